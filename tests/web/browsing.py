"""What tests in a real browser need: Debian's chromium, driven by playwright. `make test-web` runs them."""

from __future__ import annotations

import os
import shutil

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-web")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHOTS = os.environ.get("CLIPLOC_SCREENSHOTS")  # a folder; then pictures of the pages are left there, as docs/ has them

in_a_browser = [
    pytest.mark.skipif(not os.environ.get("CLIPLOC_TEST_WEB"), reason="slow: make test-web runs it"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"),
]

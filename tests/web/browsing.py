"""What tests in a real browser need: Debian's chromium, driven by playwright. `make test-web` runs them."""

import os
import shutil
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-web")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHOTS = os.environ.get("CLIPLOC_SCREENSHOTS")  # a folder; then pictures of the pages are left there, as docs/ has them

in_a_browser = [
    pytest.mark.skipif(not os.environ.get("CLIPLOC_TEST_WEB"), reason="slow: make test-web runs it"),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium"),
]


def shoot(page: Any, name: str, height: int | None = None, full_page: bool = True) -> None:
    """A picture for docs/, where one is asked for; `height`: of the part from the top that it shows."""
    if not SHOTS:
        return
    page.mouse.move(0, 0)
    clip = {"x": 0, "y": 0, "width": page.viewport_size["width"], "height": height} if height else None
    page.screenshot(path=f"{SHOTS}/{name}.jpg", type="jpeg", quality=60, full_page=full_page, clip=clip)

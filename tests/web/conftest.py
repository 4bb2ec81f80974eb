"""The browser of the tests that drive one."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def browser():
    from tests.web.browsing import CHROMIUM, playwright  # here: the other tests of this folder run without playwright

    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()

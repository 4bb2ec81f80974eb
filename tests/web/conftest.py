"""The server of the tests that ask one, and the browser of those that drive one."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where the server at `address` keeps uploads."""
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def address(folder) -> Iterator[str]:
    """A server in this process that refuses files of more than a megabyte."""
    from tests.web.asking import service, started  # here: skipped where the extra `web` is not installed

    yield from started(service(), folder, max_bytes=1_000_000)


@pytest.fixture(scope="module")
def job(one_model, tmp_path_factory) -> tuple[Path, dict[str, list[int]]]:
    """A run whose only name no model knows, and where the thing is in each of its pictures."""
    from tests.web.review_server import NAME, make  # here, as above

    return make(tmp_path_factory.mktemp("job"), [NAME])


@pytest.fixture
def truth(job) -> dict[str, list[int]]:
    return job[1]


@pytest.fixture
def out(job, tmp_path) -> Path:
    """A copy of the job's folder."""
    return shutil.copytree(job[0], tmp_path / "out")


@pytest.fixture(scope="module")
def browser():
    from tests.web.browsing import CHROMIUM, playwright  # here: the other tests of this folder run without playwright

    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()

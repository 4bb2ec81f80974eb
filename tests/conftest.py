"""What every test may rely on: no network, one thread for each worker, properties without a clock."""

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub
# Before torch is imported, and for the processes that tests start: beside another worker, threads that spin while they
# wait for each other take several times the processor time. The few tests that ask for more threads have them sleep.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

# A shared machine is slow now and then: no deadline, and the same examples for everybody who runs the suite.
settings.register_profile(
    "cliploc", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("cliploc")

# The files that take longest. A worker gets whole files: one of these at the end would keep the others waiting.
FIRST = {
    "methods/test_contract.py", "evaluate/test_benchmark.py", "web/test_guard.py", "web/test_service.py",
    "cli/test_cli.py", "test_localizer.py", "test_examples.py", "test_plugins.py", "towers/test_open_clip_timm.py",
    "hub/test_download.py", "evaluate/test_benchmark_page.py", "find/test_recipes.py",
    "evaluate/metrics/test_box_metrics.py", "evaluate/test_faithfulness.py",
}  # fmt: skip


def pytest_sessionstart() -> None:
    """Modules and tests stay until the end: the garbage collector need not look at them again and again."""
    gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    items.sort(key=lambda item: item.path.relative_to(here).as_posix() not in FIRST)  # else the order stays


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """All modules and tests are there."""
    gc.freeze()
    gc.enable()


# Towers and maps that refer to themselves are few objects to Python's collector, which is in no hurry, and glibc keeps
# the holes that they leave: workers grew to 4 GB.
TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
GROWTH = 100 * 2**20  # bytes
_before = [0]


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def pytest_runtest_logfinish() -> None:
    """A worker that has grown gives back what is free."""
    if TRIM is not None and resident() > _before[0] + GROWTH:
        gc.collect()
        TRIM(0)
        _before[0] = resident()


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """No test cuts the power, and to wait for the disk takes a sixth of the time; processes that a test starts wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", os.fstat)  # an error where the file is closed, as before
        patch.setattr(os, "sync", lambda: None, raising=False)
        yield


@pytest.fixture
def photo() -> Image.Image:
    """A textured picture, 61 wide and 43 high: odd, and not square."""
    rng = np.random.default_rng(3)
    small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    return small.resize((61, 43), Image.Resampling.BICUBIC)


@pytest.fixture(scope="session")
def backbones() -> dict[str, Any]:
    """A tiny tower of each kind, for tests that leave it as it is."""
    from tests.tiny import KINDS, tower  # torch, which some tests need not load

    return {kind: tower(kind, (8, 8)) for kind in KINDS}


@pytest.fixture(scope="module")
def one_model() -> Iterator[None]:
    """Each model is made once for all tests and fixtures of a module."""
    from cliploc import towers
    from tests.commands import create_once

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(towers, "create", create_once)
        yield


@pytest.fixture
def gap() -> Any:
    """A tiny tower of its own for a test that changes it."""
    from tests.tiny import tower

    return tower("gap_cnn", (8, 8))

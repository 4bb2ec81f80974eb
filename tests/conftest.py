"""What every test may rely on: no network, one thread for each worker, properties without a clock."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

# A shared machine is slow now and then: no deadline, and the same examples for everybody who runs the suite.
settings.register_profile(
    "cliploc", deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("cliploc")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput") or config.getoption("numprocesses", None) in (None, 0):
        torch.set_num_threads(1)


@pytest.fixture
def photo() -> Image.Image:
    """A textured picture, 61 wide and 43 high: odd, and not square."""
    rng = np.random.default_rng(3)
    small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    return small.resize((61, 43), Image.Resampling.BICUBIC)

"""Which device a model runs on; torch's modes, which the caller may have set."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from cliploc import towers
from cliploc.errors import UsageError
from cliploc.towers.tower import Backbone


def best_device() -> str:
    """The first device that this machine has of "cuda", "mps" and "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def check_device(device: str | None) -> str:
    """A device, which this machine must have; None: the best."""
    if device is None:
        return best_device()
    available = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    available += ["mps"] if torch.backends.mps.is_available() else []
    if device not in available and not (device == "cuda" and torch.cuda.is_available()):
        raise UsageError(f"expected a device of this machine ({', '.join(available)}), got {device!r}: leave it out")
    return device


def create(model: str, pretrained: str | None, device: str | None, precision: str) -> Backbone:
    """The model by its name, on a device; None: the best."""
    device = check_device(device)
    with torch_modes(device):
        return towers.create(model, pretrained, device, precision=precision)


_process = os.getpid()  # in which torch may have started threads


def _after_fork(device: torch.device) -> None:
    """Sets one thread in a forked process: it has none of its parent's threads, and would wait for them for ever."""
    global _process
    if os.getpid() == _process:
        return
    if device.type != "cpu":
        raise UsageError(
            f"expected a model on the CPU in a forked process, got one on {device}: start the process with "
            "multiprocessing.get_context('spawn')"
        )
    torch.set_num_threads(1)
    _process = os.getpid()


@contextmanager
def torch_modes(of: str | torch.device) -> Iterator[None]:
    """No gradients, no autocast, the CPU as default device; the default dtype is all threads', so not changed."""
    device = torch.device(of)
    _after_fork(device)
    with ExitStack() as modes:
        if torch.is_inference_mode_enabled():  # in which no method could have gradients
            modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.no_grad())
        for kind in {"cpu", device.type}:
            if torch.is_autocast_enabled(kind):
                modes.enter_context(torch.autocast(kind, enabled=False))
        if torch.empty(0).device.type != "cpu":  # torch 2.4's get_default_device does not see `with torch.device`
            modes.enter_context(torch.device("cpu"))
        yield

"""Which device a model runs on."""

import torch

from cliploc import towers
from cliploc.errors import UsageError
from cliploc.find.threads import torch_modes
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

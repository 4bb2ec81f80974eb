"""Makes results independent of the modes that the program has set in torch, and of a fork."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from cliploc.errors import UsageError

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
def own_modes(of: str | torch.device) -> Iterator[None]:
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
        if torch.get_default_device().type != "cpu":
            modes.enter_context(torch.device("cpu"))
        yield

"""Computing alike whatever the program has set in torch, and after a fork."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import torch

from cliploc.errors import UsageError
from cliploc.tower import Backbone

P = ParamSpec("P")
T = TypeVar("T")

_process = os.getpid()  # in which torch may have started threads


class HasBackbone(Protocol):
    """What computes with a backbone."""

    @property
    def backbone(self) -> Backbone:
        """The model."""
        ...


S = TypeVar("S", bound=HasBackbone)


def _after_fork(device: torch.device) -> None:
    """A forked process has none of the threads that its parent computed with, and would wait for them for ever.

    Raises:
        UsageError: the model is on a device that a forked process cannot use.
    """
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
def own_modes(device: torch.device) -> Iterator[None]:
    """Computes alike whatever modes the program has set: no gradients, no autocast, the CPU as default device.

    torch's default dtype is one for all threads, so it is left alone: every tensor here is made with its own.
    """
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


def undisturbed(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """The method of something with a backbone, in `own_modes`."""

    @functools.wraps(method)
    def wrapped(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with own_modes(torch.device(self.backbone.device)):
            return method(self, *args, **kwargs)

    return wrapped

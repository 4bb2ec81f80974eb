"""Which classes read the image towers of open_clip. Each registers itself: a new one is a module and its test."""

from __future__ import annotations

from typing import Any, TypeVar

from cliploc.registry import Registry

adapters: Registry[Any] = Registry("adapter of open_clip", "cliploc.backbones")

C = TypeVar("C", bound=type)


def adapter(cls: C) -> C:
    """Registers a backbone class with `supports(visual)`, which says whether it reads an open_clip image tower.

    Args:
        cls: built of open_clip's model; see `OpenClipResNet`. No two classes support the same tower.
    """
    adapters.register(cls.__name__, cls)
    return cls

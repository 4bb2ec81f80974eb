"""Public names of a package that are imported on first use, so that one of them does not cost what all of them do."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def on_first_use(package: str, homes: Mapping[str, Sequence[str]]) -> Callable[[str], Any]:
    """The `__getattr__` of a package (PEP 562) whose names lie in its modules.

    Args:
        homes: for each module, the names that are taken from there.

    Example:
        >>> on_first_use("cliploc", {"cliploc.values": ["Boxes"]})("Boxes").__name__
        'Boxes'
    """
    home_of = {name: home for home, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(home_of[name]), name)

    return get

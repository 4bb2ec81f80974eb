"""Names to things: `register`, `get`, `names`, `discover`.

Whatever is listed anywhere (command line, docs, contract tests) is read from a registry, so that a new file is the only
thing a new method needs.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator
from typing import Generic, TypeVar

from cliploc.errors import UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """A named collection that fills itself from the public modules of one package.

    Args:
        kind: what is kept, singular; used in error texts ("method").
        package: the package whose modules register their things when imported; modules whose name begins with an
            underscore are skipped. None: nothing to discover.

    Example:
        >>> colours = Registry[int]("colour")
        >>> colours.register("red", 1)
        1
        >>> colours.get("red")
        1
    """

    def __init__(self, kind: str, package: str | None = None) -> None:
        self.kind = kind
        self._package = package
        self._items: dict[str, T] = {}
        self._discovered = package is None

    def register(self, name: str, item: T) -> T:
        """Adds `item` under `name`.

        Raises:
            ValueError: when the name is taken by another item.
        """
        if name in self._items and self._items[name] is not item:
            raise ValueError(f"{self.kind} {name!r} is registered twice: choose another name")
        self._items[name] = item
        return item

    def discover(self) -> None:
        """Imports every public module of the package once, so that each registers its things."""
        if self._discovered or self._package is None:
            return
        self._discovered = True  # first, so that a module that looks something up while it is imported does not loop
        try:
            package = importlib.import_module(self._package)
            for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda found: found.name):
                if not module.name.startswith("_"):
                    importlib.import_module(f"{self._package}.{module.name}")
        except BaseException:
            self._discovered = False  # a second call shall say again what is broken, not that a name is unknown
            raise

    def _import_namesake(self, name: str) -> None:
        """Imports the module called like the thing, where there is one: seconds faster than importing all of them."""
        if self._package is None or self._discovered or not name.isidentifier() or name.startswith("_"):
            return
        module = f"{self._package}.{name}"
        if importlib.util.find_spec(module) is not None:
            importlib.import_module(module)

    def get(self, name: str) -> T:
        """The item called `name`.

        Raises:
            UnknownNameError: with the nearest names and the full list.
        """
        if name not in self._items:
            self._import_namesake(name)
        if name not in self._items:
            self.discover()
        if name not in self._items:
            raise UnknownNameError(self.kind, name, self._items)
        return self._items[name]

    def names(self) -> list[str]:
        """All names, sorted."""
        self.discover()
        return sorted(self._items)

    def __iter__(self) -> Iterator[T]:
        return iter([self.get(name) for name in self.names()])

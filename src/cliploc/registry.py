"""Names to things, of a package's modules, of entry points, or of `import_modules`; docs/plugins.md tells how."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import pkgutil
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from cliploc.errors import CliplocWarning, UnknownNameError, UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")
PACKAGE = __name__.partition(".")[0]


class Registry(Generic[T]):
    """A named collection that fills itself from the public modules of one package, and from other people's packages."""

    def __init__(
        self,
        kind: str,  # what is kept, singular; used in error texts ("method")
        package: str | None = None,  # whose public modules register their things when imported; None: no modules
        group: str | None = None,  # of the entry points by which other packages add things
        home: Callable[[T], str] | None = None,  # item → its module, which tells own things from those of the group
        # The names of the package's own things without importing them; None: they must be imported to be known.
        listed: Callable[[], Iterable[str]] | None = None,
        listed_by: str = "",  # the command that lists them; "": none does
    ) -> None:
        self.kind, self._package, self._group, self._listed_by = kind, package, group, listed_by
        self._home, self._listed = home, listed
        self._items: dict[str, T] = {}
        self._imported = package is None
        self._loaded: set[EntryPoint] = set()

    def register(self, name: str, item: T) -> T:
        """Adds `item` under `name`, which no other item may have."""
        if not name or set(name) & set("+,"):  # which join names
            raise ValueError(f"expected a name of a {self.kind} without + and comma, got {name!r}")
        if self._home is not None and (self._home(item) or "").partition(".")[0] != PACKAGE:
            self._import_package()  # so that a plugin's name is compared with all of ours, even if it is imported first
        if name in self._items and self._items[name] is not item:
            raise ValueError(f"{self.kind} {name!r} is registered twice: choose another name")
        self._items[name] = item
        return item

    def discover(self) -> None:
        """Imports each public module of the package once, and each plugin; it warns of one that fails."""
        self._import_package()
        for point in _plugins(self._group):
            if point in self._loaded:
                continue
            self._loaded.add(point)
            try:
                point.load()
            except (Exception, SystemExit) as error:
                package = "" if point.dist is None else f" of the package {point.dist.name} {point.dist.version}"
                warnings.warn(
                    f"the {self.kind} {point.name!r}{package} cannot be imported and is left out ({_in_brief(error)}): "
                    "update or remove that package",
                    CliplocWarning,
                    stacklevel=2,
                )

    def _import_package(self) -> None:
        if self._imported or self._package is None:
            return
        self._imported = True  # first, so that a module that looks something up while it is imported does not loop
        try:
            for name in module_names(self._package):
                importlib.import_module(f"{self._package}.{name}")
        except BaseException:
            self._imported = False  # so that a second call reports this error again, not an unknown name
            raise

    def _import_namesake(self, name: str) -> None:
        """Imports the module of this name, where there is one: seconds faster than importing all modules."""
        stem = name.replace("-", "_")
        if self._package is None or self._imported or not stem.isidentifier() or stem.startswith("_"):
            return
        module = f"{self._package}.{stem}"
        if importlib.util.find_spec(module) is not None:
            importlib.import_module(module)

    def get(self, name: str) -> T:
        """The item called `name`; for an unknown one, an `UnknownNameError` with the nearest names and all of them."""
        if name not in self._items:
            self._import_namesake(name)
        if name not in self._items:
            self.discover()
        if name not in self._items:
            raise UnknownNameError(self.kind, name, self._items, self._listed_by)
        return self._items[name]

    def check_known(self, name: str) -> None:
        """Refuses an unknown name as `get` does, without torch where it can; plugins are imported for it."""
        if name in self._at_hand():
            return
        known = self.known_names()
        if name not in known:
            raise UnknownNameError(self.kind, name, known, self._listed_by)

    def known_names(self) -> list[str]:
        """All names, sorted, as `names` gives them, but mostly without imports: see `check_known`."""
        if self._listed is None or _plugins(self._group):
            return self.names()
        return sorted(self._at_hand())

    def _at_hand(self) -> set[str]:
        """The names that are known without another import."""
        return {*self._items, *(() if self._listed is None else self._listed())}

    def names(self) -> list[str]:
        """All names, sorted."""
        self.discover()
        return sorted(self._items)

    def __iter__(self) -> Iterator[T]:
        return iter([self.get(name) for name in self.names()])


def module_names(package: str) -> list[str]:
    """The public modules of a package, sorted; none of them is imported."""
    spec = importlib.util.find_spec(package)
    folders = None if spec is None else spec.submodule_search_locations
    return sorted(module.name for module in pkgutil.iter_modules(folders or ()) if not module.name.startswith("_"))


# ------------------------------------------------------------------------------------------ things of other packages
@cache
def _plugins(group: str | None) -> tuple[EntryPoint, ...]:
    """The entry points of a group, in a fixed order."""
    if group is None:
        return ()
    from importlib.metadata import entry_points

    return tuple(sorted(entry_points(group=group), key=lambda point: (point.name, point.value)))


_named: list[str] = []


def import_modules(names: Sequence[str]) -> None:
    """Imports modules, installed or of the working directory, that register a user's own things."""
    if names and os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # last, so that no file there takes the place of a package
    for name in names:
        if not name or name.startswith("."):
            raise UsageError(f"expected the name of a module to import, got {name!r}: write it as after `import`")
        try:
            importlib.import_module(name)
        except (Exception, SystemExit) as error:
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            if missing is not None and f"{name}.".startswith(f"{missing}."):
                raise UsageError(
                    f"expected a module to import, found none called {name!r}: install it, or run this in its folder"
                ) from None
            raise UsageError(f"the module {name} cannot be imported ({_in_brief(error)}): correct it") from error
        if name not in _named:
            _named.append(name)


def named_modules() -> tuple[str, ...]:
    """The modules that `import_modules` imported in this process, for the processes that it starts."""
    return tuple(_named)


def _every_plugin() -> list[EntryPoint]:
    """The entry points of all our groups."""
    from importlib.metadata import entry_points

    groups = [group for group in entry_points().groups if group.startswith(f"{PACKAGE}.")]
    return [point for group in groups for point in entry_points(group=group)]


def plugin_sources() -> dict[str, str]:
    """Other people's module or package that adds things → its version and the checksum of its source."""
    from importlib.metadata import packages_distributions, version

    versions: dict[str, set[str]] = {name.partition(".")[0]: set() for name in _named}
    for point in _every_plugin():
        versions.setdefault(point.module.partition(".")[0], set()).update({point.dist.version} if point.dist else ())
    versions.pop(PACKAGE, None)
    packages = packages_distributions() if versions else {}
    sources: dict[str, str] = {}
    for top, of in sorted(versions.items()):
        of.update(version(name) for name in packages.get(top, ()))
        spec, digest = importlib.util.find_spec(top), hashlib.sha256()
        folders = None if spec is None else spec.submodule_search_locations
        files = [file for folder in folders or () for file in sorted(Path(folder).rglob("*.py"))]
        if spec is not None and spec.origin and not folders:
            files = [Path(spec.origin)]
        for file in files:
            digest.update(file.read_bytes())
        sources[top] = " ".join([*sorted(of), digest.hexdigest()[:16]])
    return sources


def plugin_in(error: BaseException) -> str | None:
    """The module of other people that an error passed through, the innermost one; None: it is ours."""
    modules = [*_named, *(point.module for point in _every_plugin())]
    packages = {module.partition(".")[0] for module in modules} - {PACKAGE}
    frames = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return next((name for name in reversed(frames) if name.partition(".")[0] in packages), None)


def _in_brief(error: BaseException) -> str:
    """An error in a few words, on one line."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:200] if first else type(error).__name__

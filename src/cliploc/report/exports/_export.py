"""The protocol of an export format and the registry of formats.

`annotate`, the page's downloads, `cliploc exports` and the documents read the registry. So a new format is one file
here and its test.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias, TypeVar

from cliploc.errors import UsageError
from cliploc.registry import Registry
from cliploc.report.exports._values import AnnotatedPicture, ExportSettings

Need = Literal["image_url", "picture_files", "polygons"]
Pictures: TypeAlias = Callable[[], Iterable[AnnotatedPicture]]  # may be called several times; holds one at a time


class Export(ABC):
    """A format that other tools read: writes all pictures of a run with their boxes.

    Attributes:
        name: as typed after `--format`.
        about: one line that describes it and names the tool that reads it.
        files: names of the files that it always writes in the given folder.
        folders: names of the folders that it always writes there.
        needs: what it needs besides the boxes: "image_url" or "polygons" of the settings, or "picture_files", the
            pictures and "copies" of the settings.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    files: ClassVar[tuple[str, ...]] = ()
    folders: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[frozenset[Need]] = frozenset()

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of everything that it writes."""
        return (*self.files, *self.folders)

    def check(self, settings: ExportSettings) -> None:  # noqa: B027 - most formats can write anything
        """Refuses what the format cannot hold, before anything is computed.

        Raises:
            UsageError: it cannot be written.
        """

    @abstractmethod
    def write(self, pictures: Pictures, settings: ExportSettings, folder: Path) -> None:
        """Writes `files` and `folders` into a folder, each atomically; existing ones are replaced.

        The same pictures and settings give the same bytes.

        Args:
            pictures: returns the pictures in order; each call starts from the first.
            settings: names, model and address prefix.
            folder: an existing folder.
        """


exports: Registry[Export] = Registry(
    "export", "cliploc.report.exports", "cliploc.exports", home=lambda export: type(export).__module__
)
E = TypeVar("E", bound=type[Export])


def export(cls: E) -> E:
    """Registers a class as an export format."""
    exports.register(cls.name, cls())
    return cls


def chosen_exports(names: str | Sequence[str]) -> tuple[Export, ...]:
    """The formats of these names, each once."""
    asked = list(dict.fromkeys([names] if isinstance(names, str) else names))
    if not asked:
        raise UsageError(f"expected at least one format, got none: name some of {', '.join(exports.names())}")
    return tuple(exports.get(name) for name in asked)

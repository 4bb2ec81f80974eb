"""Formats of boxes in files of other tools: each is one file, which reads (`LabelSet`) and writes (`Export`) it.

`annotate`, the page's downloads and the documents read the registry of exports. So a new format is one file here and
its test. `cliploc.formats.reading.read_labels` reads any of them.
"""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import unicodedata
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path, PurePosixPath
from typing import IO, Any, ClassVar, NamedTuple, TypeAlias, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import quoteattr

import numpy as np

from cliploc.errors import UsageError
from cliploc.images import rle
from cliploc.images.reading import READ_BY_ALL, load
from cliploc.images.rle import Counts, Rle
from cliploc.options import short
from cliploc.registry import Registry
from cliploc.support.files import read_text
from cliploc.values import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class AnnotatedPicture:
    """One picture with its boxes."""

    number: int  # its number in the export, from 1
    name: str  # its path below the annotated folder, with slashes
    path: Path  # the file
    size_wh: tuple[int, int]  # width and height of the upright picture
    xyxy: FloatArray  # [n, 4] float32, upright original pixels, exclusive right and bottom edge
    score: FloatArray  # [n] in 0–1: the estimated chance that a box is right
    label: IntArray  # [n] indices into the names
    # [n] the number of each box among all boxes found in the picture; dropping boxes does not change it
    box_ids: tuple[int, ...]
    margin: float  # distance of the nearest name's certainty from its threshold: how certain the picture is
    # [n] in 0–1, how certain it is that a box's name is in the picture; None if that is not known
    certainty: FloatArray | None = None
    masks: tuple[Rle, ...] = ()  # the mask of each box, as COCO's compressed run lengths; empty where the run has none
    state: str = "draft"  # or as a person set it: reviewed, later, skipped

    def detections(self) -> Any:
        """The boxes as `supervision`'s `Detections`, for its writers."""
        import supervision

        xyxy = self.xyxy.astype(np.float64).reshape(-1, 4)
        return supervision.Detections(xyxy=xyxy, confidence=self.score.copy(), class_id=self.label.astype(int))


Pictures: TypeAlias = Callable[[], Iterable[AnnotatedPicture]]  # may be called several times; holds one at a time
Size: TypeAlias = tuple[int, int]  # width and height
Box: TypeAlias = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels; right and bottom edges exclusive


@dataclass(frozen=True, eq=False)
class LabelledBox:
    """One box of a label file."""

    id: str  # the set's own; of a format without ids the box's number in its picture, from 1
    name: str
    xyxy: Box  # as written: it may be empty, or outside the picture
    # Draws its mask, whose runs lie column by column; None: the set has none, or masks were not asked for.
    mask: Callable[[], Counts] | None = None
    kind: str = "box"  # what it is in the file if not a box; then `xyxy` is the box around it


@dataclass(frozen=True)
class PictureLabels:
    """One picture of a label file."""

    names: tuple[str, ...]  # what may be its path, the best first
    # its boxes, for the picture's size, and with masks or without; a `ValueError` says what is wrong in them
    boxes: Callable[[Size, bool], Iterable[LabelledBox]]
    size_wh: Size | None = None  # its size, if the set says it
    more: tuple[str, ...] = ()  # what may be its path if none of the names is that of a picture
    file: Path | None = None  # that has its boxes; None: the set is one file


class Edit(NamedTuple):
    """What is changed of a box; None: it is as it was."""

    name: str | None = None
    xyxy: Box | None = None


@dataclass(frozen=True)
class PictureEdits:
    """What is changed of a picture's boxes, which go by their places from 0, as they are read."""

    size_wh: Size
    boxes: Mapping[int, Edit | None]  # None: dropped; those that are not here are as they were
    added: Sequence[tuple[str, Box]] = ()  # name and edges of each


Edits: TypeAlias = Mapping[int, PictureEdits]  # by the place of a picture in its set


@dataclass(frozen=True)
class LabelSet:
    """A label file or folder of one of the formats."""

    format: str  # as its users call it: "COCO"
    pictures: tuple[PictureLabels, ...]
    listed: Mapping[str, str] = field(default_factory=dict)  # file → picture, as our exports list them
    names: Sequence[str] = ()  # the names that the set lists, with boxes or without; none where the format has no list
    files: Sequence[Path] = ()  # that the labels are in
    # The content of one of these files after edits of its pictures: all else is as it was.
    rewrite: Callable[[Path, Edits], bytes] | None = None

    def rewritten(self, edits: Edits) -> Iterator[tuple[Path, bytes]]:
        """Each file of the labels with its content after edits; a file without any is the same to the byte."""
        of_file: dict[Path, dict[int, PictureEdits]] = defaultdict(dict)
        for place, of_picture in edits.items():
            of_file[self.pictures[place].file or self.files[0]][place] = of_picture
        for file in self.files:
            edited = self.rewrite and of_file.get(file)
            yield file, self.rewrite(file, edited) if self.rewrite and edited else file.read_bytes()


def edit_of(edits: Edits, picture: int, place: int) -> Edit | None:
    """What is changed of a box; None: it is dropped."""
    return edits[picture].boxes.get(place, Edit()) if picture in edits else Edit()


def json_again(content: Any, before: bytes) -> bytes:
    """Parsed JSON that was changed, with the indentation of before."""
    indent = re.match(rb"\s*[\[{]\r?\n( +)", before)
    return json.dumps(content, indent=len(indent[1]) if indent else None).encode()


@dataclass(frozen=True)
class ExportSettings:
    """What an export writes besides the boxes."""

    names: tuple[str, ...]  # names of the labels
    model: str  # the model and method that made the boxes
    image_url: str  # prefix of a picture's path, for a tool that loads pictures by address (Label Studio)
    masks: bool = False  # whether masks are written; then every box of the pictures has one
    copies: bool = False  # whether a format that comes with the pictures has copies of them; otherwise it links to them
    reviewed: bool = False  # whether only pictures that a person has reviewed are written; see `pictures_of`
    val: float = 0.0  # share of the pictures for validation, in formats that split them (YOLO, VOC)


def spellings(name: str) -> tuple[str, ...]:
    """What a name or an address of a picture may stand for: itself, its path, its `d`."""
    plain = name.replace("\\", "/")
    found = [plain]
    if "?" in plain or "%" in plain or "://" in plain or "/data/" in plain:
        address = urlsplit(plain)
        found += [*parse_qs(address.query).get("d", []), unquote(address.path)]
    return tuple(dict.fromkeys(found))


def polygon_runs(polygons_or_runs: object, size_wh: Size) -> Counts:
    """The runs of polygons in pixels, or of a list of run lengths, as COCO has them."""
    outlines = rle.outlines_of(polygons_or_runs, size_wh)
    return rle.united([rle.outline_runs(outline, size_wh[::-1]) for outline in outlines])


def pictures_of(pictures: Pictures, settings: ExportSettings) -> Pictures:
    """The pictures that these settings want: all, or those that a person has reviewed."""
    return (lambda: (one for one in pictures() if one.state == "reviewed")) if settings.reviewed else pictures


def validation(pictures: Pictures, share: float) -> frozenset[str]:
    """The names of the pictures for validation: drawn by their names, so that the same are drawn every time."""
    names = sorted((hashlib.blake2b(one.name.encode(), digest_size=8).digest(), one.name) for one in pictures())
    count = min(max(1, round(share * len(names))), len(names) - 1) if share > 0 else 0
    return frozenset(name for _, name in names[: max(0, count)])


def json_list(file: IO[str], items: Iterable[Any]) -> None:
    """Writes a JSON array with one item per line, from an iterator; plain ASCII, which every reader accepts."""
    file.write("[")
    for number, item in enumerate(items):
        file.write(f"{',' if number else ''}\n{json.dumps(item, allow_nan=False)}")
    file.write("\n]")


def attributes(**values: object) -> str:
    """The attributes of an XML element, quoted."""
    return " ".join(f"{key}={quoteattr(str(value))}" for key, value in values.items())


def number(value: float) -> float:
    """Rounds a coordinate or score for writing: to hundredths of a pixel or thousandths of a percent."""
    return round(float(value), 4)


def rows(picture: AnnotatedPicture) -> Iterator[tuple[list[float], float, int]]:
    """Yields the box, score and label of each box of a picture."""
    for box, score, label in zip(picture.xyxy.astype(float).tolist(), picture.score, picture.label, strict=True):
        yield box, float(score), int(label)


class Export(ABC):
    """A format that other tools read: writes all pictures of a run with their boxes.

    Attributes:
        name: as typed after `--format`.
        about: one line that describes it and names the tool that reads it.
        files: names of the files that it always writes in the given folder.
        folders: names of the folders that it always writes there; they may hold the pictures.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    files: ClassVar[tuple[str, ...]] = ()
    folders: ClassVar[tuple[str, ...]] = ()

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
    "export", "cliploc.formats", "cliploc.exports", home=lambda export: type(export).__module__
)
E = TypeVar("E", bound=type[Export])


def export(cls: E) -> E:
    """Registers a class as an export format."""
    exports.register(cls.name, cls())
    return cls


def chosen_exports(names: str | Sequence[str]) -> tuple[Export, ...]:
    """The formats of these names, each once."""
    if not isinstance(names, str | Sequence):
        raise UsageError(f"expected a list of formats, got {short(names)}: write ['coco']")
    distinct = dict.fromkeys([names] if isinstance(names, str) else names)
    if not distinct:
        raise UsageError(f"expected at least one format, got none: name some of {', '.join(exports.names())}")
    return tuple(exports.get(name) for name in distinct)


PICTURES = "pictures.csv"  # the list's name
MISREAD = re.compile(r"""[\s"'#<>:|?*\\\x00-\x1f\x7f-\x9f\ud800-\udfff]""")


class FileNames:
    """Unique names in one folder by stem, as most readers know them: `cats/a.jpg` → `cats__a`, then `cats__a-2`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: set[str] = set()
        self._last: dict[str, int] = {}  # stem → the number that it had last

    def of(self, picture: AnnotatedPicture, *endings: str) -> list[Path]:
        """The picture's files, one for each ending: `labels/*.txt` gives `labels/cats__a.txt`. The folders are made."""
        stem = flat_stem(picture.name)
        for number in count(self._last.get(stem, 0) + 1):
            files = [ending.replace("*", stem if number == 1 else f"{stem}-{number}") for ending in endings]
            # Some file systems treat capitals, and composed letters, as equal to others.
            folded = {unicodedata.normalize("NFC", unicodedata.normalize("NFC", file).casefold()) for file in files}
            if not folded & self._files:
                break
        self._last[stem] = number
        self._files |= folded
        for file in files:
            (self._folder / file).parent.mkdir(parents=True, exist_ok=True)
        return [self._folder / file for file in files]


def flat_stem(name: str) -> str:
    """The stem of `FileNames` for a single picture; what lists, YAML or file systems misread becomes `_`."""
    *folders, last = [part for part in name.split("/") if part.strip(" .")] or ["_"]
    stem = MISREAD.sub("_", "__".join([*folders, PurePosixPath(last).stem]))
    while len(stem.encode()) > 200:  # most file systems allow 255 bytes, and an ending and a number are added
        stem = stem[1:]
    return f"_{stem}" if stem.startswith(".") or not stem else stem


def file_suffix(picture: AnnotatedPicture) -> str:
    """The extension of a picture's file in an export, in small letters; `.png` for formats that few readers know."""
    suffix = picture.path.suffix.lower()
    return suffix if suffix in READ_BY_ALL else ".png"


def write_picture(picture: AnnotatedPicture, file: Path, copies: bool) -> None:
    """Links a picture into an export, or copies it; one in a format that few readers know is always converted."""
    if picture.path.suffix.lower() not in READ_BY_ALL:
        load(picture.path).image.save(file)
        return
    if not copies:
        with suppress(OSError, NotImplementedError):
            os.symlink(picture.path.absolute(), file)
            return
    shutil.copyfile(picture.path, file)


def read_list(folder: Path) -> dict[str, str]:
    """File → picture, as `write_list` wrote it; empty where there is no such list."""
    with suppress(OSError, ValueError, KeyError, csv.Error):
        lines = csv.DictReader(io.StringIO(read_text(folder / PICTURES), newline=""))
        return {line["file"]: line["picture"] for line in lines}
    return {}


def write_list(folder: Path, files: Iterable[tuple[str, str]]) -> None:
    """Writes which file in an export is which picture: pairs of the file's name and the picture's."""
    with (folder / PICTURES).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("file", "picture"), *files])


def list_exports() -> list[str]:
    """The names of the formats that `annotate(formats=…)` writes.

    Example:
        >>> list_exports()
        ['coco', 'csv', 'cvat', 'labelstudio', 'voc', 'yolo']
    """
    return exports.names()

"""What every format writes, and what all of them must get right: file names, XML, streams of JSON."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import numpy.typing as npt

from cliploc.errors import UsageError
from cliploc.values import FloatArray

if TYPE_CHECKING:
    from supervision import Detections


@dataclass(frozen=True)
class AnnotatedPicture:
    """One picture with its boxes.

    Attributes:
        number: from 1, unique in the export.
        name: its path below the annotated folder, with slashes.
        path: the file.
        size_wh: of the upright picture.
        xyxy: `[n, 4]` float32, upright original pixels, exclusive right and bottom edge.
        score: `[n]` in 0–1: the estimated chance that a box fits, if its name is in the picture.
        label: `[n]` indices into the names.
        box_ids: `[n]`, of each box among those found in the picture, whatever was dropped since.
        groups: `[n]`, whether a box seems to go round several things.
        margin: how far the nearest name is from its threshold: how certain the picture is.
        certainty: `[n]` in 0–1, how certain it is that a box's name is in the picture; None where nobody says.
    """

    number: int
    name: str
    path: Path
    size_wh: tuple[int, int]
    xyxy: FloatArray
    score: FloatArray
    label: npt.NDArray[np.int64]
    box_ids: tuple[int, ...]
    groups: tuple[bool, ...]
    margin: float
    certainty: FloatArray | None = None

    def detections(self) -> Detections:
        """As `supervision`'s writers take them."""
        import supervision

        if not len(self.xyxy):
            return supervision.Detections.empty()
        return supervision.Detections(
            xyxy=self.xyxy.astype(np.float64), confidence=self.score.copy(), class_id=self.label.astype(int)
        )


@dataclass(frozen=True)
class ExportSettings:
    """What is written besides the boxes.

    Attributes:
        names: of the labels.
        model: which model and method drew the boxes.
        image_url: what stands before a picture's path where a tool fetches pictures by address (Label Studio).
    """

    names: tuple[str, ...]
    model: str
    image_url: str


class FileNames:
    """Names the files of an export after its pictures. Every name stays inside the export's folder; none comes twice.

    Args:
        folder: where the export is written.
        no_folder: what no folder may be called, because the format's readers look for it; it gets a `_` behind it.
    """

    def __init__(self, folder: Path, no_folder: str | None = None) -> None:
        self._folder, self._no_folder = folder.resolve(), no_folder
        self._files: set[str] = set()
        self._folders: set[str] = set()

    def of(self, picture: AnnotatedPicture, *endings: str) -> list[Path]:
        """The picture's files, one for each ending, such as `cats/a.xml`; `cats/a-2.xml` for a second `cats/a`.

        An ending may begin with a folder: `labels/*.txt` gives `labels/cats/a.txt`. The folders are made.

        Raises:
            UsageError: a file would lie outside of the export's folder.
        """
        *folders, name = _safe_parts(picture.name)
        folders = [f"{one}_" if one == self._no_folder else one for one in folders]
        stem = _shortened(PurePosixPath(name).stem)
        number = 1
        while True:
            path = PurePosixPath(*folders, f"{stem}{'' if number == 1 else f'-{number}'}")
            files = [_placed(path, ending) for ending in endings]
            above = {_folded(one) for file in files for one in file.parents}
            if above & self._files:  # a file is called as a folder would be
                stem, folders = _shortened("_".join([*folders, stem])), []
            elif not {_folded(one) for one in files} & (self._files | self._folders):
                break
            else:
                number += 1
        self._files |= {_folded(one) for one in files}
        self._folders |= above
        return [self._inside(one) for one in files]

    def _inside(self, file: PurePosixPath) -> Path:
        """The last guard: whatever the name is made of, the file lies below the folder."""
        path = self._folder / file
        if self._folder not in path.resolve().parents:
            raise UsageError(f"expected a file inside the export's folder, got {path}: rename its picture")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _safe_parts(name: str) -> list[str]:
    """A picture's name, cut at its slashes → folders and a file name that mean nothing special on any system."""
    parts = [_safe(part) for part in name.split("/") if part not in ("", ".", "..")]
    return parts or ["_"]


def _safe(part: str) -> str:
    """Backslashes, control characters and halves of characters become `_`, as do a drive's colon, and dots alone."""
    letters = "".join("_" if one == "\\" or unicodedata.category(one) in ("Cc", "Cs") else one for one in part)
    letters = re.sub(r"^([A-Za-z]):", r"\1_", letters)
    return letters if letters.strip(" .") else "_" * len(letters)


def _shortened(stem: str) -> str:
    """Most file systems allow 255 bytes, and an ending and a number are added."""
    while len(stem.encode()) > 200:
        stem = stem[:-1]
    return stem if stem.strip(" .") else f"_{stem}"


def _placed(stem: PurePosixPath, ending: str) -> PurePosixPath:
    """`labels/*.txt` and `cats/a` → `labels/cats/a.txt`."""
    folder, _, suffix = ending.partition("*")
    return PurePosixPath(folder) / stem.with_name(_safe(f"{stem.name}{suffix}"))


def _folded(path: PurePosixPath) -> str:
    """Equal for names that some file system takes for one: of another case, or with composed letters."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", str(path)).casefold())


def json_list(file: IO[str], items: Iterable[Any]) -> None:
    """A JSON array, an item a line, without holding more than one; plain ASCII, which every reader takes."""
    file.write("[")
    for number, item in enumerate(items):
        file.write(f"{',' if number else ''}\n{json.dumps(item, allow_nan=False)}")
    file.write("\n]")


def element(tag: str, text: object, indent: str = "") -> str:
    """A line of XML."""
    return f"{indent}<{tag}>{escape(str(text))}</{tag}>\n"


def attributes(**values: object) -> str:
    """Of an XML element, quoted."""
    return " ".join(f"{key}={quoteattr(str(value))}" for key, value in values.items())


def number(value: float) -> float:
    """A coordinate or score as it is written: hundredths of a pixel, thousandths of a percent."""
    return round(float(value), 4)


def rows(picture: AnnotatedPicture) -> Iterator[tuple[list[float], float, int]]:
    """Box, score and label of each."""
    for box, score, label in zip(picture.xyxy.astype(float).tolist(), picture.score, picture.label, strict=True):
        yield box, float(score), int(label)

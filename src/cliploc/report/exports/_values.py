"""What every format writes, and what all of them must get right: file names, XML, streams of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import numpy.typing as npt

from cliploc.schema import FloatArray

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
        score: `[n]` in 0–1.
        label: `[n]` indices into the names.
        box_ids: `[n]`, of each box among those found in the picture, whatever was dropped since.
        groups: `[n]`, whether a box seems to go round several things.
        margin: how far the nearest name is from its threshold: how certain the picture is.
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


class Stems:
    """A file name without ending for each picture, of its own path, never twice: `a.jpg` and `a.png` differ in it.

    Args:
        no_folder: what no folder may be called, because the format's readers look for it; it gets a `_` behind it.
    """

    def __init__(self, no_folder: str | None = None) -> None:
        self._taken: set[str] = set()
        self._no_folder = no_folder

    def of(self, picture: AnnotatedPicture) -> PurePosixPath:
        """Such as `cats/a`; `cats/a-2` for a second one; nothing leads out of the export's folder."""
        *folders, name = (part for part in PurePosixPath(picture.name).parts if part not in ("/", "..", "."))
        path = PurePosixPath(*(f"{part}_" if part == self._no_folder else part for part in folders), name)
        number = 1
        while True:
            stem = path.with_name(f"{path.stem}{'' if number == 1 else f'-{number}'}")
            if str(stem).casefold() not in self._taken:  # case does not tell files apart everywhere
                self._taken.add(str(stem).casefold())
                return stem
            number += 1


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

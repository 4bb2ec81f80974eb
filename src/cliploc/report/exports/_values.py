"""Values that every format writes, and helpers for XML and streams of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import numpy.typing as npt

from cliploc.rle import Rle
from cliploc.values import FloatArray

if TYPE_CHECKING:
    from supervision import Detections


@dataclass(frozen=True)
class AnnotatedPicture:
    """One picture with its boxes."""

    number: int  # its number in the export, from 1
    name: str  # its path below the annotated folder, with slashes
    path: Path  # the file
    size_wh: tuple[int, int]  # width and height of the upright picture
    xyxy: FloatArray  # [n, 4] float32, upright original pixels, exclusive right and bottom edge
    score: FloatArray  # [n] in 0–1: the estimated chance that a box is right
    label: npt.NDArray[np.int64]  # [n] indices into the names
    # [n] the number of each box among all boxes found in the picture; dropping boxes does not change it
    box_ids: tuple[int, ...]
    groups: tuple[bool, ...]  # [n] whether a box seems to contain several things
    margin: float  # distance of the nearest name's certainty from its threshold: how certain the picture is
    # [n] in 0–1, how certain it is that a box's name is in the picture; None if that is not known
    certainty: FloatArray | None = None
    masks: tuple[Rle, ...] = ()  # the mask of each box, as COCO's compressed run lengths; empty where the run has none

    def detections(self) -> Detections:
        """The boxes as `supervision`'s `Detections`, for its writers."""
        import supervision

        if not len(self.xyxy):
            return supervision.Detections.empty()
        return supervision.Detections(
            xyxy=self.xyxy.astype(np.float64), confidence=self.score.copy(), class_id=self.label.astype(int)
        )


@dataclass(frozen=True)
class ExportSettings:
    """What an export writes besides the boxes."""

    names: tuple[str, ...]  # names of the labels
    model: str  # the model and method that made the boxes
    image_url: str  # prefix of a picture's path, for a tool that loads pictures by address (Label Studio)
    masks: bool = False  # whether masks are written; then every box of the pictures has one
    polygons: bool = False  # whether masks are polygons where the format has run lengths too
    copies: bool = False  # whether a format that comes with the pictures has copies of them; otherwise it links to them


def json_list(file: IO[str], items: Iterable[Any]) -> None:
    """Writes a JSON array with one item per line, from an iterator; plain ASCII, which every reader accepts."""
    file.write("[")
    for number, item in enumerate(items):
        file.write(f"{',' if number else ''}\n{json.dumps(item, allow_nan=False)}")
    file.write("\n]")


def element(tag: str, text: object) -> str:
    """An element of XML."""
    return f"<{tag}>{escape(str(text))}</{tag}>"


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

"""The photographs of the package, with names to ask and true boxes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from cliploc.support.files import demo_folder
from cliploc.values import FloatArray


class _Box(msgspec.Struct):
    name: str
    xyxy: list[float]


class _Entry(msgspec.Struct):
    """One of photos.json."""

    file: str
    title: str
    author: str
    licence: str
    origin: str
    ask: list[str]
    boxes: list[_Box]


@dataclass(frozen=True)
class DemoPhoto:
    """One photograph of the package."""

    path: Path  # the file
    ask: tuple[str, ...]  # the names to look for; some are not in it
    truth: dict[str, FloatArray]  # name → its true boxes, [k, 4] xyxy; a name left out is not in the picture
    credit: str  # title, author, licence


def demo_photos() -> Iterator[DemoPhoto]:
    """The photographs that the package ships, with names to ask and true boxes."""
    folder = demo_folder()
    for entry in msgspec.json.decode((folder / "photos.json").read_bytes(), type=list[_Entry]):
        truth: dict[str, list[list[float]]] = {}
        for box in entry.boxes:
            truth.setdefault(box.name, []).append(box.xyxy)
        boxes = {name: np.array(of_name, np.float32) for name, of_name in truth.items()}
        credit = f"{entry.title}. {entry.author}. {entry.licence}. {entry.origin}"
        yield DemoPhoto(folder / entry.file, tuple(entry.ask), boxes, credit)

"""The photographs of the package, with names to ask and true boxes."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cliploc.support.files import demo_folder
from cliploc.values import FloatArray


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
    for entry in json.loads((folder / "photos.json").read_text(encoding="utf-8")):
        names = dict.fromkeys(box["name"] for box in entry["boxes"])
        yield DemoPhoto(
            path=folder / entry["file"],
            ask=tuple(entry["ask"]),
            truth={
                name: np.array([box["xyxy"] for box in entry["boxes"] if box["name"] == name], dtype=np.float32)
                for name in names
            },
            credit=f"{entry['title']}. {entry['author']}. {entry['licence']}. {entry['origin']}",
        )

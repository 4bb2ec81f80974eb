"""The server of the review editor, in a thread of this process, and a folder that it can learn from."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from cliploc.label.annotate import annotate
from cliploc.label.editor.review_folder import ReviewFolder, Suggester
from tests.commands import PHOTOS
from tests.label.labelled import corrections
from tests.web.asking import running

__all__ = ["corrections", "make", "served"]
NAME = "zzqx 4711"  # no model knows it
COUNT, SIZE = 8, (180, 150)
OPTIONS = {"device": "cpu", "recipe": "fast", "image_size": 352, "formats": ["coco"]}


@contextlib.contextmanager
def served(out: Path, port: int = 0) -> Iterator[str]:
    """The editor of a run's folder → its address."""
    from cliploc.label.editor.app import application  # here: it needs the extra `web`

    suggester = Suggester("mini", device="cpu", recipe="fast")
    with ReviewFolder.opened(out) as folder, running(application(folder, suggester), port) as address:
        yield address


def make(root: Path, labels: list[str], **more: object) -> tuple[Path, dict[str, list[int]]]:
    """A folder of pictures with one thing that no model has a name for, annotated, and the thing's box in each."""
    photos, truth, random = root / "photos", {}, np.random.default_rng(0)
    photos.mkdir()
    thing = Image.open(PHOTOS / "drum.jpg").convert("RGB").resize(SIZE)
    background = Image.open(PHOTOS / "bridge.jpg").convert("RGB").resize((600, 450))
    for number in range(COUNT):
        x, y, left, top = (int(random.integers(0, most)) for most in (270, 200, 150, 100))
        picture = background.crop((left, top, left + 450, top + 350))
        picture.paste(thing, (x, y))
        picture.save(photos / f"{number}.jpg", quality=92)
        truth[f"{number}.jpg"] = [x, y, x + SIZE[0], y + SIZE[1]]
    annotate(photos, labels, root / "out", **OPTIONS, **more)
    return root / "out", truth

"""How time and memory of whole calls grow: names, pixels, pictures, classes, boxes.

    python -m bench.whole_growth [--quick] [--only names] [--recipe fast] [--out bench/results]

`mini`, one thread, float32. Each row is a process of its own, which does the smallest call once before it measures, so
that imports and the model do not count. One thing grows at a time:

* names: one photograph, 1 to 1,000 class names of ImageNet, through `Localizer`;
* pixels: one name, the photograph resized to sides of 224 to 2,048, with masks;
* pictures: `annotate` of 10 names on 1 to 10,000 pictures (`--quick`: 20), files to COCO;
* classes: `annotate` on 8 pictures, with 20 to 1,203 classes (LVIS has so many);
* boxes: IoU of a map's boxes at 1,000 thresholds with 1 to 1,000 true boxes;
* annotations: a COCO file of 100 to 100,000 boxes read as a dataset.

The exponent is the slope of log seconds over log size between the last two sizes: 1 is linear. For pixels the size is a
side of the photograph, so 2 is linear in their number.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.keep import headed, keep
from bench.resident import peak_mib

SIZES = {
    "names": (1, 10, 100, 1000),
    "pixels": (224, 512, 1024, 2048),
    "pictures": (1, 10, 100, 1000, 10000),
    "classes": (20, 80, 400, 1203),
    "boxes": (1, 10, 100, 1000),
    "annotations": (100, 1000, 10000, 100000),
}
QUICK = {
    "names": (1, 4),
    "pixels": (64, 128),
    "pictures": (1, 4),
    "classes": (2, 8),
    "boxes": (1, 10),
    "annotations": (10, 100),
}
HEADER = (
    "| what grows | seconds of processor time | exponent at the end | peak memory above the start, MiB |\n"
    "|---|---|---|---|"
)


def measured(work: Callable[[], object]) -> dict[str, float]:
    """Processor seconds of a call, and by how much it raised the process's peak memory."""
    before, start = peak_mib(), time.process_time()
    work()
    return {"seconds": time.process_time() - start, "mb": peak_mib() - before}


def class_names(count: int) -> list[str]:
    """ImageNet's names; beyond them pairs of two."""
    from cliploc.find.prompts import imagenet_classes

    own = [one.name for one in imagenet_classes()]
    more = [f"{a} {b}" for a, b in pairwise(own)]
    return (own + more)[:count]


def names(size: int, recipe: str) -> dict[str, float]:
    localizer, photo = _localizer(recipe), _photo(500)
    localizer(photo, ["cat"])
    asked = class_names(size)
    return measured(lambda: localizer(photo, asked))


def pixels(size: int, recipe: str) -> dict[str, float]:
    localizer, photo = _localizer(recipe), _photo(size)
    _ = localizer(_photo(64), ["cat"]).masks
    return measured(lambda: localizer(photo, ["cat"]).masks)


def pictures(size: int, recipe: str) -> dict[str, float]:
    return _annotate(size, class_names(10), recipe)


def classes(size: int, recipe: str) -> dict[str, float]:
    return _annotate(8, class_names(size), recipe)


def boxes(size: int, recipe: str) -> dict[str, float]:  # noqa: ARG001
    import numpy as np

    from cliploc.evaluate.metrics import box_curve

    random = np.random.default_rng(0)
    corners = random.integers(0, 160, (size, 2))
    truth = np.concatenate([corners, corners + random.integers(20, 64, (size, 2))], axis=1).tolist()
    y, x = np.mgrid[:224, :224]
    spots = [np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 900) for cx, cy in ((60, 70), (150, 80), (110, 170))]
    heat = np.maximum.reduce(spots).astype(np.float32)
    box_curve("first", heat, truth[:1])
    return measured(lambda: [box_curve(str(number), heat, truth) for number in range(10)])


def annotated(size: int, recipe: str) -> dict[str, float]:  # noqa: ARG001
    from cliploc.evaluate.data import open_dataset

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _coco(root / "first", 10)
        _coco(root / "all", size)
        open_dataset("coco", root / "first")
        return measured(lambda: open_dataset("coco", root / "all"))


def _annotate(count: int, labels: list[str], recipe: str) -> dict[str, float]:
    from cliploc import annotate

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "pictures").mkdir()
        photo = _photo(320)
        for number in range(count):  # each another file: annotate notices copies by their content
            left = number % 17
            photo.crop((left, number // 17 % 13, left + 300, 300)).save(root / "pictures" / f"{number:05}.jpg")
        first = sorted((root / "pictures").iterdir())[:1]
        annotate(first, labels[:1], root / "first", recipe=recipe, device="cpu")
        return measured(lambda: annotate(root / "pictures", labels, root / "out", recipe=recipe, device="cpu"))


def _coco(root: Path, count: int) -> None:
    for folder in ("annotations", "val2017"):
        (root / folder).mkdir(parents=True)
    photo = _photo(64)
    images = max(1, count // 10)
    for number in range(images):
        photo.save(root / "val2017" / f"{number:06}.jpg")
    document: dict[str, Any] = {
        "images": [{"id": n, "file_name": f"{n:06}.jpg", "width": 64, "height": 64} for n in range(images)],
        "categories": [{"id": n, "name": f"class {n}"} for n in range(80)],
        "annotations": [
            {
                "id": n,
                "image_id": n % images,
                "category_id": n % 80,
                "bbox": [n % 30, 5, 20, 20],
                "area": 400,
                "iscrowd": 0,
            }
            for n in range(count)
        ],
    }
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(document))


def _localizer(recipe: str) -> Any:
    from cliploc import Localizer

    return Localizer("mini", recipe=recipe, device="cpu")


def _photo(side: int) -> Any:
    from importlib.resources import files

    from PIL import Image

    with Image.open(str(files("cliploc") / "demo_photos" / "cat.jpg")) as photo:
        return photo.convert("RGB").resize((side, side))


CASES: dict[str, Callable[[int, str], dict[str, float]]] = {
    "names": names,
    "pixels": pixels,
    "pictures": pictures,
    "classes": classes,
    "boxes": boxes,
    "annotations": annotated,
}


def in_process(what: str, size: int, recipe: str) -> dict[str, float]:
    """One case, in a process of its own."""
    command = [sys.executable, "-m", "bench.whole_growth", "--child", what, "--size", str(size), "--recipe", recipe]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def line(cell: dict[str, Any]) -> str:
    sizes, seconds = cell["sizes"], [one["seconds"] for one in cell["found"]]
    exponent = math.log(max(seconds[-1], 1e-4) / max(seconds[-2], 1e-4)) / math.log(sizes[-1] / sizes[-2])
    steps = " · ".join(f"{size:,}: {one:.3g}" for size, one in zip(sizes, seconds, strict=True))
    memory = " · ".join(f"{one['mb']:.0f}" for one in cell["found"])
    return f"| {cell['what']} | {steps} | {exponent:.2f} | {memory} |"


def main(quick: bool, only: str, recipe: str, out: Path | None) -> int:
    """Prints the table; writes it to `out`, as JSON too, row by row."""
    from bench.vit_methods import machine

    about, cells = machine(1), []
    print(HEADER)
    for what, sizes in (QUICK if quick else SIZES).items():
        if not what.startswith(only):
            continue
        cells.append({"what": what, "sizes": list(sizes), "found": [in_process(what, size, recipe) for size in sizes]})
        print(line(cells[-1]), flush=True)
        text = f"Made by `python -m bench.whole_growth --recipe {recipe}`, whose head says what is measured."
        table = [HEADER, *map(line, cells)]
        keep(
            out, "whole_growth", {"machine": about, "cells": cells}, headed("How whole calls grow", text, about, table)
        )
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes: that it runs")
    parser.add_argument("--only", default="", help="rows that begin so")
    parser.add_argument("--recipe", default="fast", choices=("fast", "default"))
    parser.add_argument("--out", type=Path, help="write whole_growth.json and whole_growth.md here")
    parser.add_argument("--child", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(CASES[given.child](given.size, given.recipe)))
        sys.exit(0)
    sys.exit(main(given.quick, given.only, given.recipe, given.out))

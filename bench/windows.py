"""Pictures with windows and scales, beside the same forward passes of the bare tower.

    python -m bench.windows [--model mini] [--recipe default] [--photos 28] [--rounds 3] [--out bench/results]

The bundled photographs, which have several sizes, over and over, from their files to boxes: `Localizer.stream`
with a recipe that looks at scales and windows. By turns, so that a busy machine slows both: the whole call, and the
tower's forward passes in the same batches of the same sizes, on zeros. The recipe "fast", which has one forward pass a
picture, shows what the rest of the call costs. Two numbers of names: one, and ten.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from bench.keep import headed, keep
from bench.vit_methods import machine
from cliploc import Localizer
from cliploc.images.reading import SUFFIXES
from cliploc.towers import create
from cliploc.towers.tower import Backbone, Needs, Trace

NAMES = ("cat", "dog", "bird", "bee", "bridge", "cup", "drum", "fruit", "rocket", "brush")
HEADER = (
    "| model, recipe | names | forward passes a picture | pictures/s: bare | whole call | of bare: by the clock "
    "| in processor time |",
    "|---|---|---|---|---|---|---|",
)


class Recording:
    """A tower that notes the shape of each batch."""

    def __init__(self, tower: Backbone) -> None:
        self._tower = tower
        self.shapes: list[torch.Size] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tower, name)

    def trace(self, images: Tensor, needs: Needs) -> Trace:
        self.shapes.append(images.shape)
        return self._tower.trace(images, needs)


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """By the clock, and of the processor."""
    start = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def measured(model: str, recipe: str, photos: Sequence[Path], names: Sequence[str], rounds: int) -> dict[str, Any]:
    tower = create(model)
    recording = Recording(tower)
    localizer = Localizer(cast("Backbone", recording), recipe=recipe, device="cpu")

    def whole() -> None:
        for _ in localizer.stream(photos, list(names)):
            pass

    whole()
    shapes, recording.shapes = recording.shapes, []
    batches = [torch.zeros(shape) for shape in shapes]

    def bare() -> None:
        with torch.no_grad():
            for images in batches:
                tower.trace(images, Needs())

    bare()
    found: dict[str, Any] = {"bare": [], "whole": []}
    for _ in range(rounds):
        found["bare"].append(seconds(bare))
        found["whole"].append(seconds(whole))
        recording.shapes.clear()
    passes = sum(shape[0] for shape in shapes) / len(photos)
    return {"model": model, "recipe": recipe, "names": len(names), "photos": len(photos), "passes": passes, **found}


def line(cell: dict[str, Any]) -> str:
    bare, whole = ([seconds for seconds, _ in cell[one]] for one in ("bare", "whole"))
    rates = [cell["photos"] / statistics.median(one) for one in (bare, whole)]
    ratios = [
        statistics.median(a[i] / b[i] for a, b in zip(cell["bare"], cell["whole"], strict=True)) for i in range(2)
    ]
    return (
        f"| {cell['model']}, {cell['recipe']} | {cell['names']} | {cell['passes']:.1f} | {rates[0]:.2f} | "
        f"{rates[1]:.2f} | {ratios[0]:.2f} | {ratios[1]:.2f} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["mini"])
    parser.add_argument("--recipe", nargs="+", default=["default", "fast"])
    parser.add_argument("--photos", type=int, default=28)
    parser.add_argument("--names", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write windows.json and windows.md here")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    folder = Path(str(files("cliploc"))) / "demo_photos"
    every = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    photos = list(itertools.islice(itertools.cycle(every), given.photos))
    about, cells = machine(given.threads), []
    print("\n".join(HEADER))
    for model, recipe, count in itertools.product(given.model, given.recipe, given.names):
        cells.append(measured(model, recipe, photos, NAMES[:count], given.rounds))
        print(line(cells[-1]), flush=True)
    shown = f"`python -m bench.windows {' '.join(sys.argv[1:])}`, whose head says what is timed. Medians of the rounds."
    table = [*HEADER, *map(line, cells)]
    keep(given.out, "windows", {"machine": about, "cells": cells}, headed("Windows and scales", shown, about, table))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What a refinement costs on a picture of 500 × 375 pixels: seconds of one call.

    python -m bench.refinements [--quick] [--threads 2] [--rounds 5] [--names 1 21] [--out bench/results]

The steps over the picture get a bundled photograph and maps upsampled from a grid of 24 × 32; the steps on the grid get
the trace of `mini` at 384 × 512, whose middle stage has that grid, or of `mini-vit` where they need a ViT. 21 names are
the classes of Pascal VOC with the background. Nothing is remembered between calls. The clock's seconds depend on what
else the machine does, those of the processor less; with two threads on two free processors the clock shows about half
of the processor's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from bench.keep import headed, keep
from bench.turns import seconds
from bench.vit_methods import machine
from cliploc.methods import Context
from cliploc.refine import Refinement, refinements
from cliploc.towers import create

WIDTH, HEIGHT = 500, 375
INPUT_HW = (384, 512)
HEADER = (
    "| refinement | works on | names | clock, s | processor, s | rounds |",
    "|---|---|---|---|---|---|",
)


def photograph(size: tuple[int, int]) -> Tensor:
    """`[1, 3, H, W]` in 0–1; size is width and height."""
    with Image.open(str(files("cliploc") / "demo_photos" / "cat.jpg")) as photo:
        pixels = np.array(photo.convert("RGB").resize(size))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


class Scene:
    """The picture, and what the bundled towers see of it."""

    def __init__(self, quick: bool) -> None:
        scale = 4 if quick else 1
        self.picture = photograph((WIDTH // scale, HEIGHT // scale))
        self.cell = (16 // scale, 16 // scale)
        self.images = photograph((INPUT_HW[1] // scale, INPUT_HW[0] // scale))
        self.towers = {kind: create(model) for kind, model in (("cnn", "mini"), ("vit", "mini-vit"))}

    def call(self, step: Refinement, names: int) -> tuple[float, float]:
        """Seconds of one call with random maps of so many names: by the clock, and of the processor."""
        generator = torch.Generator().manual_seed(0)
        tower = self.towers["cnn" if "cnn" in step.towers else "vit"]
        trace = tower.trace(tower.normalize(self.images), step.needs(tower))
        text = torch.zeros(1, names, tower.embedding_size)
        ctx = Context(lambda: tower.normalize(self.images), text, trace, tower)
        h, w = step.grid(ctx)
        maps = torch.rand(1, names, h, w, generator=generator)
        if step.on == "grid":
            return seconds(lambda: step.function(ctx, maps))
        over = F.interpolate(maps, self.picture.shape[-2:], mode="bilinear")
        return seconds(lambda: step.function(self.picture, over, self.cell))


def main(
    quick: bool = False, out: Path | None = None, threads: int = 2, rounds: int = 5, names: tuple[int, ...] = (1, 21)
) -> int:
    """Prints the table; writes it to `out`, as JSON too.

    Args:
        quick: a picture of a quarter of the sides and one round: that it runs.
        out: a folder; None to write nothing.
        threads: torch's.
        rounds: of each cell, after one that is not counted.
        names: how many at once.
    """
    torch.set_num_threads(threads)
    about, scene = machine(threads), Scene(quick)
    cells: list[dict[str, Any]] = []
    print("\n".join(HEADER))
    with torch.inference_mode():
        for step in refinements:
            for count in names:
                scene.call(step, count)
                times = [scene.call(step, count) for _ in range(1 if quick else rounds)]
                clock, processor = ([one[i] for one in times] for i in (0, 1))
                cells.append({"refinement": step.name, "names": count, "clock": clock, "processor": processor})
                print(line(step, cells[-1]), flush=True)
    shown = (
        f"Made by `python -m bench.refinements`, whose head says what is timed. Picture {WIDTH} × {HEIGHT}. Medians."
    )
    table = [*HEADER, *(line(refinements.get(cell["refinement"]), cell) for cell in cells)]
    keep(out, "refinements", {"machine": about, "cells": cells}, headed("Refinements", shown, about, table))
    return 0


def line(step: Refinement, cell: dict[str, Any]) -> str:
    """A row of the table."""
    clock, processor = (f"{statistics.median(cell[one]):.3f}" for one in ("clock", "processor"))
    return f"| {step.name} | the {step.on} | {cell['names']} | {clock} | {processor} | {len(cell['clock'])} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small picture and one round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--names", type=int, nargs="+", default=[1, 21], help="how many at once")
    parser.add_argument("--out", type=Path, help="write refinements.json and refinements.md here")
    given = parser.parse_args()
    sys.exit(main(given.quick, given.out, given.threads, given.rounds, tuple(given.names)))

"""How cost grows with prompts, pictures, the input's size and channels: processor seconds of one call of ours.

    python -m bench.growth [--quick] [--threads 1] [--rounds 2] [--only grad_cam] [--out bench/results]

CLIP RN50 with random weights and `mini`, float32, from normalised pictures and embedded prompts to maps on the grid, by
processor seconds (median of the rounds, after one that is not counted; calls that take long get one round only). One
thing grows at a time; else it is one picture, one prompt, 224 × 224. Score-CAM is shown 16 of the tower's channels, so
that 64 pictures take a minute and not an hour; its cost is that of one forward a channel. Pictures are the demo
photographs, over again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
from bench.vit_methods import PHOTOS, machine
from cliploc import towers
from cliploc.methods import Context, methods
from cliploc.towers.tower import Backbone

SIDE, CHANNELS = 224, 16
GROWTH = {"prompts": (1, 10, 100), "images": (1, 8, 64), "input": (224, 336, 448), "channels": (16, 32, 64)}
QUICK = {"prompts": (1, 2), "images": (1, 2), "input": (64, 96), "channels": (4, 8)}
LONG = 20.0  # seconds of a call that is not repeated
HEADER = "| tower | method | what grows | processor seconds | last / first |\n|---|---|---|---|---|"


@dataclass(frozen=True)
class Case:
    """One call."""

    prompts: int = 1
    images: int = 1
    input: int = SIDE
    channels: int = CHANNELS


def pictures(tower: Backbone, count: int, side: int) -> Tensor:
    """`[count, 3, side, side]`, normalised."""
    made = []
    for name in PHOTOS:
        with Image.open(str(files("cliploc") / "demo_photos" / f"{name}.jpg")) as photo:
            made.append(torch.from_numpy(np.array(photo.convert("RGB").resize((side, side)))).permute(2, 0, 1) / 255)
    return tower.normalize(torch.stack(made)[torch.arange(count) % len(made)])


def call(tower: Backbone, name: str, case: Case, images: Tensor, text: Tensor) -> Tensor:
    """Maps of a method, from normalised pictures."""
    method = methods.get(name)
    with torch.no_grad():
        trace = tower.trace(images, method.needs())
        if name == "score_cam":
            trace = replace(trace, features={-1: trace.features[-1][:, : case.channels]})
        asked = text[None, : case.prompts].expand(case.images, -1, -1)
        return method.function(Context(lambda: images, asked, trace, tower))


def growths(quick: bool) -> Iterator[tuple[str, str, str]]:
    """(tower, method, what grows)."""
    for tower in ("mini",) if quick else ("RN50", "mini"):
        for what in GROWTH:
            if what != "channels":
                yield tower, "grad_cam", what
            yield tower, "score_cam", what


def measure(tower: Backbone, name: str, what: str, sizes: tuple[int, ...], rounds: int) -> Any:
    """Seconds for each size."""
    generator = torch.Generator().manual_seed(0)
    near = tower.encode_image(pictures(tower, len(PHOTOS), sizes[0] if what == "input" else SIDE)).mean(dim=0)  # [D]
    noise = F.normalize(torch.randn(max(GROWTH["prompts"]), tower.embedding_size, generator=generator), dim=-1)
    text = F.normalize(near + 0.5 * noise, dim=-1)  # [P, D]
    times: list[list[float]] = []
    call(tower, name, Case(), pictures(tower, 1, SIDE), text)
    for size in sizes:
        case = replace(Case(), **{what: size})
        images = pictures(tower, case.images, case.input)
        of_size: list[float] = []
        while len(of_size) < rounds and not (of_size and of_size[0] > LONG):
            of_size.append(seconds(lambda c=case, x=images: call(tower, name, c, x, text))[1])  # type: ignore[misc]
        times.append(of_size)
    return {"what": what, "sizes": list(sizes), "processor": times}


def line(cell: dict[str, Any]) -> str:
    medians = [statistics.median(one) for one in cell["processor"]]
    steps = " · ".join(f"{size}: {one:.3g}" for size, one in zip(cell["sizes"], medians, strict=True))
    return f"| {cell['tower']} | {cell['method']} | {cell['what']} | {steps} | {medians[-1] / medians[0]:.1f} |"


def main(quick: bool = False, out: Path | None = None, threads: int = 1, rounds: int = 2, only: str = "") -> int:
    """Prints the table; writes it to `out`, as JSON too, row by row.

    Args:
        quick: `mini` alone, small sizes, one round: that it runs.
        out: a folder; None to write nothing.
        threads: torch's.
        rounds: of each call.
        only: rows whose method begins so.
    """
    torch.set_num_threads(threads)
    about, cells = machine(threads), []
    made: dict[str, Backbone] = {}
    print(HEADER)
    for name, method, what in growths(quick):
        if not method.startswith(only):
            continue
        if name not in made:
            made[name] = towers.create(name, None if name == "mini" else "random", device="cpu")
        with torch.no_grad():
            found = measure(made[name], method, what, (QUICK if quick else GROWTH)[what], rounds)
        cells.append({"tower": name, "method": method, **found})
        print(line(cells[-1]), flush=True)
        text = "Made by `python -m bench.growth`, whose head says what is measured."
        table = [HEADER, *map(line, cells)]
        keep(out, "growth", {"machine": about, "cells": cells}, headed("How cost grows", text, about, table))
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="`mini` alone, small sizes, one round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", default="", help="rows whose method begins so")
    parser.add_argument("--out", type=Path, help="write growth.json and growth.md here")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    sys.exit(main(given.quick, given.out, given.threads, 1 if given.quick else given.rounds, given.only))

"""What the second look adds to a picture: the default recipe with it and without it, by turns.

    python -m bench.second_look [--model mini] [--photos 14] [--names 3 80] [--rounds 3] [--out bench/results]

The bundled photographs are asked for the first of COCO's names, one picture after the other; each round takes both
ways of all pictures. Boxes are the same; the second look gives their chances.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.keep import headed, keep
from bench.turns import in_turns
from bench.vit_methods import machine
from cliploc import Localizer
from cliploc.find import prompts
from cliploc.images.demo import demo_photos

HEADER = ("| model | names | ms a picture without | with | of the time: by the clock | in processor time |",
          "|---|---|---|---|---|---|")  # fmt: skip


def measured(model: str, count: int, photos: Sequence[Path], rounds: int) -> dict[str, Any]:
    names = [words[0] for words in prompts.packaged_entries("coco.txt")[:count]]
    calls = {}
    for key, second_look in (("without", False), ("with", True)):
        localizer = Localizer(model, second_look=second_look, device="cpu")
        calls[key] = partial(_all, localizer, photos, [n for n in names if n not in localizer.unknown_names(names)])
        calls[key]()
    return {"model": model, "names": count, "photos": len(photos), **in_turns(calls, rounds)}


def _all(localizer: Localizer, photos: Sequence[Path], names: Sequence[str]) -> None:
    for photo in photos:
        list(localizer.stream([photo], names, absent_maps=False))


def line(cell: dict[str, Any]) -> str:
    ways = [cell["without"], cell["with"]]
    clock = [1000 * statistics.median(clock for clock, _ in way) / cell["photos"] for way in ways]
    ratios = [statistics.median(b[i] / a[i] for a, b in zip(*ways, strict=True)) for i in range(2)]
    return (
        f"| {cell['model']} | {cell['names']} | {clock[0]:.0f} | {clock[1]:.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["mini"])
    parser.add_argument("--names", type=int, nargs="+", default=[3, 80])
    parser.add_argument("--photos", type=int, default=14)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write second_look.json and second_look.md here")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    photos = [one.path for one in itertools.islice(demo_photos(), given.photos)]
    about, cells = machine(given.threads), []
    print("\n".join(HEADER))
    for model, count in itertools.product(given.model, given.names):
        cells.append(measured(model, count, photos, given.rounds))
        print(line(cells[-1]), flush=True)
    shown = f"`python -m bench.second_look {' '.join(sys.argv[1:])}`, whose head says what is timed. Medians of rounds."
    table = [*HEADER, *map(line, cells)]
    keep(given.out, "second_look", {"machine": about, "cells": cells}, headed("Second look", shown, about, table))
    return 0


if __name__ == "__main__":
    sys.exit(main())

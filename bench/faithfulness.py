"""Perturbed pictures per second of deletion and insertion, beside the bare forward pass of the same tower; memory.

    python -m bench.faithfulness [--quick] [--model mini mini-vit] [--steps 28] [--rounds 5] [--out bench/results]

A round is one picture's map measured, then as many pictures through `encode_image` in the same batches; they take turns
in one process. The ratio is of processor seconds, which depend less on what else the machine does; that of the clock is
beside it. Memory is the growth of the process's largest size from after the first round to the end.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from bench.keep import headed, keep
from bench.resident import peak_mib
from bench.turns import seconds
from bench.vit_methods import machine
from cliploc.evaluate.tasks.faithfulness.measure import Faithfulness
from cliploc.evaluate.tasks.faithfulness.metrics import chosen_metrics
from cliploc.find.prompts import imagenet_classes
from cliploc.localizer import Localizer
from cliploc.options import FaithfulnessOptions

HEADER = (
    "| model | names | steps | pictures a round | bare, pictures/s of processor | ratio, processor | ratio, clock | "
    "growth, MiB |",
    "|---|---|---|---|---|---|---|---|",
)


def measure(model: str, steps: int, rounds: int, names: int) -> dict[str, Any]:
    """One row."""
    localizer = Localizer(model, method="centre_gaussian", resize="squash", min_presence=0)
    entries = [one.name for one in imagenet_classes()][:names]
    metrics = chosen_metrics(["deletion", "insertion"])
    measurer = Faithfulness(localizer, entries, metrics, {"centre_gaussian": {}}, FaithfulnessOptions(steps=steps))
    seen = measurer.see("cat", str(files("cliploc") / "demo_photos" / "cat.jpg"))
    [heat] = measurer.maps(seen).values()
    size, many = localizer.options.batch_size, 2 * (steps - 1)
    batches = [min(size, steps - 1 - start) for start in range(0, steps - 1, size)] * 2
    pictures = seen.images.repeat(max(batches), 1, 1, 1)

    def bare() -> None:
        with torch.no_grad():
            for one in batches:
                localizer.backbone.encode_image(pictures[:one])

    measurer.measure_map(seen, heat)  # warms up; the whole and the empty picture are scored here
    bare()
    before = peak_mib()
    turns = [(seconds(lambda: measurer.measure_map(seen, heat)), seconds(bare)) for _ in range(rounds)]
    growth = peak_mib() - before
    processor = [theirs[1] / ours[1] for ours, theirs in turns]
    return {
        "model": model,
        "names": len(measurer.known),
        "steps": steps,
        "pictures": many,
        "bare": many / statistics.median(theirs[1] for _, theirs in turns),
        "processor": statistics.median(processor),
        "clock": statistics.median(theirs[0] / ours[0] for ours, theirs in turns),
        "growth_mb": growth,
        "rounds": rounds,
    }


def main(
    quick: bool = False,
    out: Path | None = None,
    models: tuple[str, ...] = ("mini", "mini-vit"),
    steps: int = 28,
    rounds: int = 5,
    names: int = 1000,
    threads: int = 1,
) -> int:
    """Prints the table; writes it to `out`, as JSON too."""
    torch.set_num_threads(threads)
    about = machine(threads)
    if quick:
        models, steps, rounds, names = models[:1], 4, 1, 10
    cells = [measure(model, steps, rounds, names) for model in models]
    lines = [
        f"| {one['model']} | {one['names']} | {one['steps']} | {one['pictures']} | {one['bare']:.1f} | "
        f"{one['processor']:.2f} | {one['clock']:.2f} | {one['growth_mb']:.1f} |"
        for one in cells
    ]
    print("\n".join([*HEADER, *lines]))
    shown = f"Made by `python -m bench.faithfulness`, whose head says what is timed. Medians of {rounds} rounds."
    table = headed("Deletion and insertion beside the bare forward pass", shown, about, [*HEADER, *lines])
    keep(out, "faithfulness", {"machine": about, "cells": cells}, table)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--model", nargs="+", default=["mini", "mini-vit"])
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--names", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    sys.exit(main(given.quick, given.out, tuple(given.model), given.steps, given.rounds, given.names, given.threads))

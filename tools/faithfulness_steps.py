"""How deletion and insertion change with the number of steps, from the curves of one benchmark with all 224.

    python tools/faithfulness_steps.py OUT [--steps 7 14 16 28 32 56 112 224] [--tolerance 0.01 0.02 0.05]

A run with fewer steps that divide 224 scores some of the same pictures, so its curves are every second, fourth … score
of the long ones and nothing has to be computed again. For each number of steps it prints each setting's mean area and
the mean over pictures of its distance from the area of all steps; for two settings, the difference of their means.
Then for each tolerance how many scores a curve needs, and how far its area is off: the mean and the largest.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cliploc.evaluate.tasks.faithfulness.judged import Scores, area
from cliploc.evaluate.tasks.faithfulness.metrics.deletion import along
from cliploc.runs.evaluation import rows_in

ALL = 224


def cost(probability: list[float], cosine: list[float], tolerance: float) -> tuple[int, float]:
    """How many scores of a curve a tolerance needs, and how far the area is off."""
    both, asked = torch.tensor([probability, cosine]), [0, len(probability) - 1]

    def score(places: Sequence[int]) -> Scores:
        asked.extend(places)
        return Scores(*both[:, list(places)], torch.zeros(len(places)))

    ends = Scores(*both[:, :1], torch.zeros(1)), Scores(*both[:, -1:], torch.zeros(1))
    found = along(ends, len(probability) - 1, score, tolerance)
    return len(asked), abs(area(found[0]) - area(probability))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, nargs="+", default=[7, 14, 16, 28, 32, 56, 112, ALL])
    parser.add_argument("--tolerance", type=float, nargs="+", default=[0.01, 0.02, 0.05])
    given = parser.parse_args()
    if wrong := [one for one in given.steps if ALL % one]:
        raise SystemExit(f"expected steps that divide {ALL}, got {wrong[0]}")
    manifest = json.loads((given.out / "manifest.json").read_text())
    if manifest["protocol"]["steps"] not in (None, ALL):
        raise SystemExit(f"expected a benchmark with {ALL} steps, got {manifest['protocol']['steps']}")
    method_of = {one["id"]: one["method"] for one in manifest["settings"]}
    curves: dict[tuple[str, str], list[list[float]]] = {}
    pairs: list[tuple[list[float], list[float]]] = []  # of probability and cosine
    for row in rows_in(given.out, ["sample", "setting", "status", "curves"]):
        if row["status"] == "ok":
            both = dict(row["curves"])
            for name, curve in both.items():
                if name in ("deletion", "insertion"):
                    pairs.append((curve, both[f"{name}_cosine"]))
                    curves.setdefault((name, method_of[row["setting"]]), []).append(curve)
    print(f"| steps |{''.join(f' {name}, `{method}` | off |' for name, method in curves)}")
    print("|---" * (1 + 2 * len(curves)) + "|")
    for steps in given.steps:
        cells = []
        for found in curves.values():
            areas = np.array([[area(curve[:: ALL // one]) for curve in found] for one in (steps, ALL)])
            cells += [f"{areas[0].mean():.3f}", f"{np.abs(areas[0] - areas[1]).mean():.3f}"]
        print(f"| {steps} | {' | '.join(cells)} |")
    print("\n| tolerance | scores | off | at most |\n|---|---|---|---|")
    for tolerance in given.tolerance:
        needed, off = zip(*(cost(*one, tolerance) for one in pairs), strict=True)
        print(f"| {tolerance:g} | {np.mean(needed):.0f} | {np.mean(off):.4f} | {max(off):.4f} |")
    print(f"\n{min(map(len, curves.values()))} pictures")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

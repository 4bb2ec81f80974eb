"""How deletion and insertion change with the number of steps, from the curves of one benchmark with all 224.

    python tools/faithfulness_steps.py OUT [--steps 7 14 16 28 32 56 112 224]

A run with fewer steps that divide 224 scores some of the same pictures, so its curves are every second, fourth … score
of the long ones and nothing has to be computed again. For each number of steps it prints each setting's mean area and
the mean over pictures of its distance from the area of all steps; for two settings, the difference of their means.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from cliploc.evaluate.tasks.faithfulness.measure import area
from cliploc.runs.store import rows_in

ALL = 224


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, nargs="+", default=[7, 14, 16, 28, 32, 56, 112, ALL])
    given = parser.parse_args()
    if wrong := [one for one in given.steps if ALL % one]:
        raise SystemExit(f"expected steps that divide {ALL}, got {wrong[0]}")
    manifest = json.loads((given.out / "manifest.json").read_text())
    if manifest["protocol"]["steps"] not in (None, ALL):
        raise SystemExit(f"expected a benchmark with {ALL} steps, got {manifest['protocol']['steps']}")
    method_of = {one["id"]: one["method"] for one in manifest["settings"]}
    curves: dict[tuple[str, str], list[list[float]]] = {}
    for row in rows_in(given.out, ["sample", "setting", "status", "curves"]):
        if row["status"] == "ok":
            for name, curve in row["curves"].items():
                if name in ("deletion", "insertion"):
                    curves.setdefault((name, method_of[row["setting"]]), []).append(curve)
    print(f"| steps |{''.join(f' {name}, `{method}` | off |' for name, method in curves)}")
    print("|---" * (1 + 2 * len(curves)) + "|")
    for steps in given.steps:
        cells = []
        for found in curves.values():
            areas = np.array([[area(curve[:: ALL // one]) for curve in found] for one in (steps, ALL)])
            cells += [f"{areas[0].mean():.3f}", f"{np.abs(areas[0] - areas[1]).mean():.3f}"]
        print(f"| {steps} | {' | '.join(cells)} |")
    print(f"\n{min(map(len, curves.values()))} pictures")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

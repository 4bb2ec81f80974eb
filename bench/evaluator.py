"""The evaluator against the literal evaluation: the same numbers, how much sooner.

    python -m bench.evaluator [--maps 60] [--literal-maps 60] [--taus 1000] [--out bench/results]

Two kinds of maps, seeded: "smooth", a grid of 14×14 random numbers enlarged to 224×224 as towers' maps are, and
"noisy", three blobs under noise. One true box each, one core; boxes only, the IoU is not timed. The literal
evaluation searches the contours of every map at every one of the 1,000 thresholds, as the definition is written
(tests/evaluate/metrics/literal.py). With fewer --literal-maps or --taus it is run on these only, its time scaled up,
and the numbers are compared there.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tests.evaluate.metrics import literal

from bench.keep import headed, keep
from bench.vit_methods import machine
from cliploc.evaluate.metrics import TAUS, box_curve, contour_boxes


def noisy_map(seed: int) -> np.ndarray:
    """Three blobs under noise, `[224, 224]` float32 in 0–1."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:224, :224]
    heat = random.normal(0, 0.15, (224, 224))
    for _ in range(3):
        centre_x, centre_y, size = random.uniform(40, 184), random.uniform(40, 184), random.uniform(20, 50)
        heat += np.exp(-((x - centre_x) ** 2 + (y - centre_y) ** 2) / (2 * size**2))
    heat -= heat.min()
    return (heat / heat.max()).astype(np.float32)


def smooth_map(seed: int) -> np.ndarray:
    """A grid of 14×14, enlarged bilinearly as the localizer does, `[224, 224]` float32 in 0–1."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:14, :14]
    grid = random.uniform(0, 0.5, (14, 14))
    for _ in range(2):
        centre_x, centre_y, size = random.uniform(2, 12), random.uniform(2, 12), random.uniform(1, 4)
        grid += np.exp(-((x - centre_x) ** 2 + (y - centre_y) ** 2) / (2 * size**2))
    grid -= grid.min()
    heat = cv2.resize((grid / grid.max()).astype(np.float32), (224, 224), interpolation=cv2.INTER_LINEAR)
    return np.clip(heat, 0, 1)


def true_box(seed: int) -> tuple[int, int, int, int]:
    random = np.random.default_rng(seed + 10**6)
    x, y, w, h = random.integers((0, 0, 60, 60), (100, 100, 123, 123)).tolist()
    return x, y, x + w, y + h


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def compare(kind: str, count: int, literal_maps: int, taus: np.ndarray) -> dict[str, Any]:
    """The row of one kind of maps: seconds of processor time a map, and whether all IoUs are identical."""
    maps = [KINDS[kind](seed) for seed in range(count)]
    truths = [[true_box(seed)] for seed in range(count)]
    box_curve("warm-up", maps[0], truths[0])
    compared = maps[:literal_maps]
    curves = [box_curve(f"{i}", heat, boxes) for i, (heat, boxes) in enumerate(zip(maps, truths, strict=True))]
    levels = [(heat * 255).astype(np.uint8) for heat in maps]
    row: dict[str, Any] = {"kind": kind, "identical": True}
    fast = seconds(lambda: [contour_boxes(one) for one in levels])[0]

    def at_all(heat: Any, every: bool) -> list[Any]:
        return [literal.boxes_at(heat, tau, every) for tau in taus]

    for name, every in (("V1", False), ("V2", True)):  # the same boxes serve both
        slow = 0.0
        for heat, boxes, curve in zip(compared, truths, curves, strict=False):
            spent, found = seconds(partial(at_all, heat, every))
            slow += spent
            expected = [max(literal.iou(a, b) for a in one for b in boxes) for one in found]
            values = curve.best if every else curve.largest
            row["identical"] &= [values[curve.index(tau)] for tau in taus] == expected
        row[name] = {"literal": slow / len(compared) * len(TAUS) / len(taus), "ours": fast / len(maps)}
    both = seconds(lambda: [box_curve("", heat, boxes) for heat, boxes in zip(maps, truths, strict=True)])[0]
    row["both"] = {"literal": row["V1"]["literal"] + row["V2"]["literal"], "ours": both / len(maps)}
    return row


KINDS: dict[str, Callable[[int], np.ndarray]] = {"smooth": smooth_map, "noisy": noisy_map}
NAMES = {"V1": "MaxBoxAcc (V1)", "V2": "MaxBoxAccV2", "both": "both, ours with IoU"}
HEADER = ("| maps | | literal, ms a map | ours, ms a map | ratio | IoUs identical |", "|---|---|---|---|---|---|")


def lines(row: dict[str, Any]) -> list[str]:
    same = "yes" if row["identical"] else "NO"
    return [
        f"| {row['kind']} | {name} | {1000 * row[key]['literal']:.1f} | {1000 * row[key]['ours']:.2f} | "
        f"{row[key]['literal'] / row[key]['ours']:.1f} | {same} |"
        for key, name in NAMES.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=60)
    parser.add_argument("--literal-maps", type=int, default=60)
    parser.add_argument("--taus", type=int, default=len(TAUS))
    parser.add_argument("--out", type=Path, help="write evaluator.json and evaluator.md here")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    about = machine(1)
    taus = TAUS[:: max(1, len(TAUS) // options.taus)]
    literal_maps = min(options.maps, options.literal_maps)
    settings = (
        f"{options.maps} maps of each kind, {len(TAUS)} τ; the literal evaluation ran on {literal_maps} of them and "
        f"{len(taus)} τ, scaled up. OpenCV {cv2.__version__}, NumPy {np.__version__}."
    )
    print("\n".join([settings, "", *HEADER]), flush=True)
    rows, table = [], list(HEADER)
    for kind in KINDS:
        rows.append(compare(kind, options.maps, literal_maps, taus))
        table += lines(rows[-1])
        print("\n".join(lines(rows[-1])), flush=True)
    shown = f"`python -m bench.evaluator {' '.join(sys.argv[1:])}`, whose head says what is timed. {settings}"
    keep(
        options.out,
        "evaluator",
        {"machine": about, "settings": settings, "rows": rows},
        headed("The evaluator against the literal evaluation", shown, about, table),
    )
    sys.exit(0 if all(row["identical"] for row in rows) else 1)


if __name__ == "__main__":
    main()

"""Chooses what the refinement `level` does: how a map's own level is found. The tables of docs/studies/refinement.md.

The pictures are the 118 of tools/recipe_study.py, in four sets, so that no one size of things is tuned on: "one" as
they are; "stretched" to 227×227, as the WSOL benchmark's; "enlarged", cut out round the thing so that it takes 0.6 to
0.95 of each side, and stretched; "small", pasted into another picture. No number is reported on them. Maps are those of
`--method cam --refine affinity --scales 1.43 --windows 1.5,2`, on their grid. The first number is the share of pictures
where the box of the largest region has IoU ≥ 0.5 with a true box, the second the mean of the IoU. Levels are taken of
the upsampled map, in steps of 0.02; the step itself comes before the upsampling.

The last rows choose on nine tenths of the pictures, in all four sets, and count on the rest.

    python tools/level_study.py --cache /tmp/level
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from recipe_study import SIDE, Photo, photos_of
from torch.nn import functional as F
from windows_study import SCALES, WINDOWS, looked_at, refined_on_grid

from cliploc.boxes import BoxRule, boxes_from_maps
from cliploc.images.geometry import iou_matrix
from cliploc.localizer import Localizer
from cliploc.methods import min_max
from cliploc.refine.level import PULL, SHRINK, WIDTH, levels

SETS = ("one", "stretched", "enlarged", "small")
TAU = 0.5
TAUS = (0.4, 0.45, 0.5, 0.55)
STEPS = np.round(np.arange(0.04, 0.96, 0.02), 2)  # levels at which boxes are taken; others are rounded to them
GRID = list(product((0.05, 0.08, 0.12), (0.5, 0.75, 1.0), (2.0, 3.0, 4.0, 6.0)))  # width, shrink, pull
FOLDS = 10


def photos(which: str, limit: int | None) -> Iterator[Photo]:
    """The pictures of a set, always the same."""
    if which in ("one", "small"):
        yield from photos_of(which, limit)
        return
    rng = np.random.default_rng(1)
    for photo in photos_of("one", limit):
        image, boxes = photo.image, photo.boxes
        if which == "enlarged":
            image, boxes = _cut_out(image, boxes, rng)
        scale = np.array([227 / image.width, 227 / image.height] * 2)
        yield Photo(image.resize((227, 227), Image.Resampling.BICUBIC), photo.name, boxes * scale)


def _cut_out(image: Image.Image, boxes: np.ndarray, rng: np.random.Generator) -> tuple[Image.Image, np.ndarray]:
    """A part of a picture in which the first box is large, and the boxes in it."""
    low, high = boxes[0, :2], boxes[0, 2:]
    sides = np.array(image.size)
    size = np.minimum(sides, (high - low) / rng.uniform(0.6, 0.95, 2))
    corner = np.array([low[axis] - rng.uniform() * (size - (high - low))[axis] for axis in (0, 1)])
    corner = np.clip(corner, 0, sides - size)
    left, top, right, bottom = (int(value) for value in np.rint([*corner, *(corner + size)]))
    part = image.crop((left, top, max(right, left + 4), max(bottom, top + 4)))
    inside = np.clip(boxes - [left, top, left, top], 0, [*part.size, *part.size])
    return part, inside[(inside[:, 2:] - inside[:, :2]).prod(axis=1) > 0.02 * part.width * part.height]


def overlaps(grid: torch.Tensor, photo: Photo) -> np.ndarray:
    """For each of STEPS, the IoU of the largest region's box with the true box most like it."""
    heat = F.interpolate(min_max(F.interpolate(grid, (320, 320), mode="bilinear")), (SIDE, SIDE), mode="bilinear")
    truths = photo.boxes * SIDE / np.array([photo.image.width, photo.image.height] * 2)
    found = [boxes_from_maps(min_max(heat)[0].numpy(), BoxRule(float(tau), "largest")).xyxy for tau in STEPS]
    return np.array([iou_matrix(box, truths).max() if len(box) else 0.0 for box in found])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="a folder for maps and features")
    parser.add_argument("--limit", type=int, help="only the first N pictures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    localizer = Localizer("mini", method="cam", min_presence=0, scales=SCALES, windows=WINDOWS)
    maps: dict[str, torch.Tensor] = {}  # [n, 1, h, w]
    found: dict[str, np.ndarray] = {}  # [n, STEPS]
    for which in SETS:
        kept = arguments.cache / f"{which}-{arguments.limit or 'all'}.npz"
        if not kept.exists():
            grids, rows = [], []
            for number, photo in enumerate(photos(which, arguments.limit)):
                seen = looked_at(localizer, photo, arguments.cache / which / f"{number}.npz")
                grids.append(refined_on_grid(seen, "windows", 0.2, 0.2))
                rows.append(overlaps(grids[-1], photo))
            np.savez(kept, maps=torch.cat(grids).numpy(), overlaps=np.stack(rows))
        with np.load(kept) as file:
            maps[which], found[which] = torch.from_numpy(file["maps"]), file["overlaps"]

    def at(which: str, taken: np.ndarray) -> np.ndarray:
        """The IoU of each picture at its level."""
        places = np.rint((taken - STEPS[0]) / 0.02).astype(int).clip(0, len(STEPS) - 1)
        return found[which][np.arange(len(taken)), places]

    def cells(by_set: dict[str, np.ndarray]) -> str:
        pairs = [((one >= 0.5).mean(), one.mean()) for one in by_set.values()]
        return " | ".join(f"{share:.3f}, {mean:.3f}" for share, mean in [*pairs, np.mean(pairs, axis=0)])

    print(f"| | {' | '.join(SETS)} | mean |\n{'|---' * (2 + len(SETS))}|")
    fixed = {tau: {which: at(which, np.full(len(found[which]), tau)) for which in SETS} for tau in TAUS}
    for tau, by_set in fixed.items():
        print(f"| τ {tau:g} for all | {cells(by_set)} |")
    tried = {rule: {which: at(which, levels(maps[which], TAU, *rule)[:, 0].numpy()) for which in SETS} for rule in GRID}
    for rule, by_set in tried.items():
        mark = "**" if rule == (WIDTH, SHRINK, PULL) else ""
        width, shrink, pull = rule
        print(f"| {mark}width {width:g}, shrink {shrink:g}, pull {pull:g}{mark} | {cells(by_set)} |")
    print(f"| each picture's best | {cells({which: found[which].max(axis=1) for which in SETS})} |")
    count = len(found["one"])
    fold = np.random.default_rng(0).permutation(count) % FOLDS
    for title, choices in (("τ", fixed), ("width, shrink, pull", tried)):
        left_out = {which: np.zeros(count) for which in SETS}
        for number in range(FOLDS):
            use = fold != number
            best = max(
                choices.values(), key=lambda by_set, use=use: np.mean([(by_set[w][use] >= 0.5).mean() for w in SETS])
            )
            for which in SETS:
                left_out[which][~use] = best[which][~use]
        print(f"| {title}: chosen on other pictures | {cells(left_out)} |")
        if choices is tried:
            gain = np.mean([(left_out[w] >= 0.5) - 1.0 * (fixed[TAU][w] >= 0.5) for w in SETS], axis=0)  # [count]
            more = np.mean([left_out[w] - fixed[TAU][w] for w in SETS], axis=0)
            for what, one in (("share", gain), ("IoU", more)):
                print(
                    f"\nGain in {what} over τ {TAU:g} for all: {one.mean():.3f}, "
                    f"standard error {one.std(ddof=1) / np.sqrt(count):.3f}"
                )


if __name__ == "__main__":
    main()

"""Learns how `mini` compares places: the linear reading of three stages that `affinity` spreads maps by.

    python tools/build_mixture.py            # about 3 minutes; the same bytes each time on one machine

Read are the stages −5, −4 and −3 of the 174 photographs of `coco_tune`, whole at 320 and in windows of half the shorter
side, and their polygons: every instance that covers 3 places or more and at most nine tenths of them. For such a mask,
μ is the mean feature of its places, S_w the mean of (F_i − μ)(F_i − μ)ᵀ over places inside, S_b the same over places
outside. The reading is the 32 leading solutions of S_b v = λ (S_w + 3 · tr(S_w)/C · I) v, means over masks: linear
discriminant analysis, in closed form. Each stage is divided by the root mean square of its length first.

Chosen on the 118 pictures of tools/tuning_boxes.json and `ilsvrc_val_dev`: docs/refinement.md.
Writes mixture.safetensors beside the other weights of `mini`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools.coco import COCO
from safetensors.torch import save_file
from scipy.linalg import eigh
from torch import Tensor
from torch.nn import functional as F

from cliploc.localizer import Localizer
from cliploc.methods import Context
from cliploc.refine import refinement
from cliploc.towers.mini import MIXTURE_FILE, WEIGHTS
from cliploc.towers.tower import Backbone, Needs

ROOT = Path(__file__).parents[1]
COCO_TUNE = ROOT / "../shared/data/coco_tune"
STAGES = (-5, -4, -3)  # on the grid of the first
DIMENSIONS = 32
RIDGE = 3.0
INSIDE, OUTSIDE = 0.6, 0.2  # share of a place's area that a mask covers: more is inside, less is outside
FEWEST, MOST = 3, 0.9  # places of a mask; the most as a share of all
VIEWS: tuple[dict[str, Any], ...] = ({"scales": (1.43,)}, {"scales": (1.43,), "windows": (2.0,)})

Learnt = tuple[dict[int, Tensor], list[Tensor]]  # a picture's stages, each [N, C], and how its masks cover places
seen: list[dict[int, Tensor]] = []  # what `watch` saw


def needed(tower: Backbone) -> Needs:
    """What `watch` reads: its grid is that of the tower's own middle stage."""
    return Needs(features=(*STAGES, tower.middle_stage))


@refinement("watch", title="Watch", paper="no paper", on="grid", needs=needed)
def watch(ctx: Context, maps: Tensor) -> Tensor:
    """Changes nothing, and keeps the stages of the picture, stitched from windows where there are some."""
    seen.append({stage: ctx.trace.features[stage][0].float() for stage in STAGES})  # each [C, h, w]
    return maps


def pictures(view: dict[str, Any]) -> Iterator[tuple[dict[int, Tensor], list[np.ndarray]]]:
    """For each picture its stages, and its masks over the picture as float32 in 0–1."""
    annotations = COCO(COCO_TUNE / "annotations/instances_val2017.json")
    localizer = Localizer("mini", method="cam", refine=("watch",), min_presence=0, second_look=False, **view)
    for number in sorted(annotations.imgs):
        masks = [
            annotations.annToMask(one).astype(np.float32)
            for one in annotations.loadAnns(annotations.getAnnIds(number, iscrowd=False))
        ]
        if masks:
            with Image.open(COCO_TUNE / "val2017" / annotations.imgs[number]["file_name"]) as file:
                localizer(file.convert("RGB"), ["dog"])
            yield seen.pop(), masks


def read(stages: dict[int, Tensor]) -> dict[int, Tensor]:
    """Every stage on the grid of the first, as `[N, C]`."""
    grid = stages[STAGES[0]].shape[-2:]
    return {
        stage: F.interpolate(values[None], grid, mode="bilinear")[0].flatten(1).T for stage, values in stages.items()
    }


def covered(mask: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """How much of each place a mask covers: `[N]`."""
    return F.adaptive_avg_pool2d(torch.from_numpy(mask)[None], grid).flatten()


def scatters(learnt: list[Learnt], scale: dict[int, float]) -> tuple[Tensor, Tensor]:
    """S_w and S_b, each `[C, C]` float64."""
    within = around = torch.zeros(())
    count = 0
    for stages, masks in learnt:
        places = torch.cat([stages[stage] / scale[stage] for stage in STAGES], dim=1).double()  # [N, C]
        places = places - places.mean(dim=0)
        for mask in masks:
            inside, outside = places[mask >= INSIDE], places[mask < OUTSIDE]
            if not FEWEST <= len(inside) <= MOST * len(places) or not len(outside):
                continue
            mean = inside.mean(dim=0)
            within = within + (inside - mean).T @ (inside - mean) / len(inside)
            around = around + (outside - mean).T @ (outside - mean) / len(outside)
            count += 1
    print(f"{count} masks")
    return within / count, around / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="the folder to write to")
    options = parser.parse_args()
    torch.set_num_threads(1)
    learnt: list[Learnt] = []
    for view in VIEWS:
        for stages, masks in pictures(view):
            grid = tuple(stages[STAGES[0]].shape[-2:])
            learnt.append((read(stages), [covered(mask, grid) for mask in masks]))
    scale = {
        stage: float(np.sqrt(np.mean([one[stage].square().sum(dim=1).mean() for one, _ in learnt]))) for stage in STAGES
    }
    within, around = (matrix.numpy() for matrix in scatters(learnt, scale))
    channels = len(within)
    _, vectors = eigh(around, within + RIDGE * np.trace(within) / channels * np.eye(channels))
    leading = vectors[:, ::-1][:, :DIMENSIONS].T  # [32, C]
    leading = leading / np.linalg.norm(leading) * DIMENSIONS**0.5  # products between places depend on no common factor
    leading = leading * np.sign(leading[np.arange(DIMENSIONS), np.abs(leading).argmax(axis=1)])[:, None]
    weights, start = {}, 0
    for stage in STAGES:
        width = learnt[0][0][stage].shape[1]
        weight = leading[:, start : start + width] / scale[stage]
        weights[str(stage)] = torch.from_numpy(weight.copy()).to(torch.float16)
        start += width
    save_file(weights, options.out / MIXTURE_FILE)
    print(f"wrote {options.out / MIXTURE_FILE}")


if __name__ == "__main__":
    main()

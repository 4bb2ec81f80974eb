"""Chooses the option `split_peaks`: how prominent a peak must be to get a box of its own. For docs/studies/boxes.md.

The pictures and boxes are those of tools/choose_thresholds.py; no number is reported on them. Three kinds of pictures:

* one: the 103 tuning pictures with one true box. Splitting must not lose them.
* several: the 15 with 2 to 9 true boxes.
* pairs: 2 × 103 pictures made of those with one box, as 15 say little. A picture is cut off beside the thing (`GAP` of
  its box's side away), and a second copy, 0.7 to 1 times as large, is put at that edge: two things of one name that
  nearly touch. One picture has a mirrored copy to the right, another a copy below. The sizes are drawn with a seed.

Boxes are made as the product makes them (all regions, each setting's own threshold). A line of a table is a value of
`split_peaks`; 1 is never. Of the pictures with one box: the share whose best-scored box, whose largest region's box,
and any of whose boxes has IoU ≥ 0.5 with the true box; boxes a picture. Of the others: recall, the share of true boxes
that have a box of their own of IoU ≥ 0.5 (one to one, best scores first); precision; for pairs also how often both have
one. Last, milliseconds of processor time for a map.

    python tools/split_study.py --cache /tmp/split
    python tools/split_study.py --cache /tmp/split --setting cam-affinity --threshold 0.4
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from cliploc.boxes import BoxRule, boxes_from_maps
from cliploc.images.geometry import iou_matrix
from cliploc.localizer import Localizer

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "../shared/data/imagenet_one_per_class"
SYNSETS = ROOT / "../shared/data/ilsvrc_val_dev/synsets.csv"
SPLITS = (1, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1, 0.05)
GAP = 0.05  # between the things of a pair, twice this share of the box's side
SETTINGS: dict[str, dict[str, Any]] = {
    "cam": {"model": "mini", "method": "cam"},
    "cam-affinity": {"model": "mini", "method": "cam", "refine": ("affinity",), "image_size": 320},
    "naclip": {"model": "mini-vit", "method": "naclip"},
}


@dataclass(frozen=True)
class Photo:
    """A picture, what is asked for, and the true boxes `[m, 4]` in its pixels."""

    kind: str
    image: Image.Image
    name: str
    true_xyxy: np.ndarray


@dataclass(frozen=True)
class Judged:
    """A photo's map `[H, W]`, and the factors from its pixels to the photo's."""

    photo: Photo
    heat: np.ndarray
    to_photo: np.ndarray


def photos(limit: int | None) -> list[Photo]:
    """The tuning pictures, and the pairs made of those with one box."""
    drawn = json.loads((ROOT / "tools/tuning_boxes.json").read_text())["boxes"]
    names = {row["wnid"]: row["synset_words"].split(", ")[0] for row in csv.DictReader(SYNSETS.open())}
    draw, made = random.Random(0), []
    for wnid in list(drawn)[:limit]:
        with Image.open(PICTURES / f"{wnid}.jpg") as file:
            image = file.convert("RGB")
        boxes = np.array(drawn[wnid]["xyxy"], float)
        made.append(Photo("one" if len(boxes) == 1 else "several", image, names[wnid], boxes))
        if len(boxes) == 1:
            both, true = pair(image, boxes[0], draw.uniform(0.7, 1), mirrored=True)
            made.append(Photo("pairs", both, names[wnid], true))
            turned = image.transpose(Image.Transpose.TRANSPOSE)
            both, true = pair(turned, boxes[0][[1, 0, 3, 2]], draw.uniform(0.7, 1), mirrored=False)
            both = both.transpose(Image.Transpose.TRANSPOSE)
            made.append(Photo("pairs", both, names[wnid], true[:, [1, 0, 3, 2]]))
    return made


def pair(image: Image.Image, box: np.ndarray, size: float, mirrored: bool) -> tuple[Image.Image, np.ndarray]:
    """The thing twice, side by side, and the two true boxes."""
    if mirrored and box[0] < image.width - box[2]:  # less of the picture is lost on the other side
        image, box = ImageOps.mirror(image), np.array([image.width - box[2], box[1], image.width - box[0], box[3]])
    gap = GAP * (box[2] - box[0])
    left, right = max(0, round(box[0] - gap)), min(image.width, round(box[2] + gap))
    one = image.crop((0, 0, right, image.height))
    other = ImageOps.mirror(one) if mirrored else image.crop((left, 0, image.width, image.height))
    second = [right - box[2], box[1], right - box[0], box[3]] if mirrored else box - [left, 0, left, 0]
    other = other.resize((max(1, round(other.width * size)), max(1, round(image.height * size))))
    top = round((box[1] + box[3]) / 2 * (1 - size))  # their middles are level
    top = min(top, image.height - other.height)
    rows = np.clip(np.arange(image.height) - top, 0, other.height - 1)  # a smaller one goes on with its edge
    both = np.concatenate([np.asarray(one), np.asarray(other)[rows]], axis=1)
    return Image.fromarray(both), np.stack([box, np.array(second) * size + [right, top, right, top]])


def maps(setting: str, of: Sequence[Photo], cache: Path) -> tuple[list[Judged], BoxRule]:
    """Each photo's map under a setting; what the cache lacks is computed."""
    localizer = Localizer(min_presence=0, **SETTINGS[setting])
    cache.mkdir(parents=True, exist_ok=True)
    judged = []
    for place, photo in enumerate(of):
        kept = cache / f"{setting}-{len(of)}-{place}.npy"
        if not kept.exists():
            np.save(kept, localizer(photo.image, [photo.name]).maps[0])
        heat = np.load(kept)
        judged.append(Judged(photo, heat, np.array(photo.image.size * 2) / np.array(heat.shape[::-1] * 2)))
    return judged, localizer.box_rule


def found(judged: Judged, rule: BoxRule) -> np.ndarray:
    """The boxes `[n, 4]` of a photo, in its pixels, best first."""
    return boxes_from_maps(judged.heat[None], rule).xyxy * judged.to_photo


def matches(boxes: np.ndarray, true_xyxy: np.ndarray) -> int:
    """How many true boxes have a box of their own."""
    free = iou_matrix(boxes, true_xyxy) if len(boxes) else np.zeros((0, len(true_xyxy)))
    hits = 0
    for row in free:
        best = int(row.argmax())
        if row[best] >= 0.5:
            hits += 1
            free[:, best] = -1
    return hits


def line(judged: Sequence[Judged], rule: BoxRule) -> list[str]:
    """The numbers of one value of `split_peaks`."""
    of_kind = {kind: [one for one in judged if one.photo.kind == kind] for kind in ("one", "several", "pairs")}
    best, largest, some, count = 0, 0, 0, 0
    for one in of_kind["one"]:
        boxes = found(one, rule)
        fits = iou_matrix(boxes, one.photo.true_xyxy)[:, 0] >= 0.5 if len(boxes) else np.zeros(1, bool)
        best, some, count = best + fits[0], some + fits.any(), count + len(boxes)
        widest = found(one, replace(rule, components="largest"))
        largest += len(widest) > 0 and iou_matrix(widest, one.photo.true_xyxy).max() >= 0.5
    n = len(of_kind["one"])
    cells = [f"{best / n:.3f}", f"{largest / n:.3f}", f"{some / n:.3f}", f"{count / n:.2f}"]
    for kind in ("several", "pairs"):
        boxes = [found(one, rule) for one in of_kind[kind]]
        hits = [matches(these, one.photo.true_xyxy) for these, one in zip(boxes, of_kind[kind], strict=True)]
        true = sum(len(one.photo.true_xyxy) for one in of_kind[kind])
        cells += [f"{sum(hits) / true:.3f}", f"{sum(hits) / max(1, sum(map(len, boxes))):.3f}"]
        if kind == "pairs":
            cells += [f"{np.mean([hit == 2 for hit in hits]):.3f}", f"{sum(map(len, boxes)) / len(boxes):.2f}"]
    return cells


def milliseconds(judged: Sequence[Judged], rule: BoxRule) -> float:
    """Of one map, the least of three runs over the tuning pictures."""
    heats = [one.heat[None] for one in judged if one.photo.kind != "pairs"]
    times = []
    for _ in range(3):
        start = time.process_time()
        for heat in heats:
            boxes_from_maps(heat, rule)
        times.append(time.process_time() - start)
    return min(times) / len(heats) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="a folder for the maps")
    parser.add_argument("--setting", choices=list(SETTINGS), help="one alone")
    parser.add_argument("--threshold", type=float, help="instead of the setting's own")
    parser.add_argument("--limit", type=int, help="only the first N pictures")
    parser.add_argument("--pairs", type=Path, help="a folder to write the pairs to, for a look")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    of = photos(arguments.limit)
    if arguments.pairs:
        arguments.pairs.mkdir(parents=True, exist_ok=True)
        for place, photo in enumerate(of):
            if photo.kind == "pairs":
                photo.image.save(arguments.pairs / f"{place:03d}.jpg")
    for setting in [arguments.setting] if arguments.setting else SETTINGS:
        judged, rule = maps(setting, of, arguments.cache)
        if arguments.threshold is not None:
            rule = replace(rule, threshold=arguments.threshold)
        print(f"\n{setting}, τ {rule.threshold:g}\n")
        print("| split_peaks | one: best | largest | any | boxes | several: recall | precision ", end="")
        print("| pairs: recall | precision | both | boxes | ms |\n" + "|---" * 12 + "|")
        for split in SPLITS:
            now = replace(rule, split_peaks=split)
            cells = [*line(judged, now), f"{milliseconds(judged, now):.2f}"]
            print(f"| {split:g} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()

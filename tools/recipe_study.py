"""Chooses the recipes: refinement, scales, windows, flips, resize and τ. For docs/studies/recipes.md.

The pictures and boxes are those of tools/choose_thresholds.py; no number is reported on them. "One thing" are these
pictures as they are. "Panorama" are three of them side by side, and the name of one is asked for. "Small thing" is one
of them with the thing of another pasted in, its longer side 0.3 of the picture's shorter side, and that is asked for.
The maps of each variant are kept in a folder. A number is the share of pictures where a box has IoU ≥ 0.5 with a true
box, at the best τ of 0.15, 0.2 … 0.75: the box of the largest region for one thing, the best-scored for the others.

    python tools/recipe_study.py --cache /tmp/recipes                      # mini
    python tools/recipe_study.py --cache /tmp/recipes --model mini-vit --method naclip
    python tools/recipe_study.py --cache /tmp/recipes --sets one --variant "affinity, 320" --thresholds
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cliploc.boxes import BoxRule, boxes_from_maps
from cliploc.images.geometry import iou_matrix
from cliploc.localizer import Localizer

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "../shared/data/imagenet_one_per_class"
SYNSETS = ROOT / "../shared/data/ilsvrc_val_dev/synsets.csv"
TAUS = [round(0.05 * step, 2) for step in range(3, 16)]
SIDE = 224  # of the maps that boxes are taken from
SETS = ("one", "panorama", "small")
SPREAD = {"refine": ("affinity",)}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain, 224": {},
    "affinity, 224": SPREAD,
    "affinity, 320": {**SPREAD, "scales": (1.43,)},
    "320 + windows 1.5": {"scales": (1.43,), "windows": (1.5,)},
    "320 + windows 2": {"scales": (1.43,), "windows": (2,)},
    "affinity, 320 + windows 1.5": {**SPREAD, "scales": (1.43,), "windows": (1.5,)},
    "affinity, 320 + windows 2": {**SPREAD, "scales": (1.43,), "windows": (2,)},
    "affinity, 320 + windows 2, pad": {**SPREAD, "scales": (1.43,), "windows": (2,), "resize": "pad"},
    "affinity, 320 + windows 1.5, 2": {**SPREAD, "scales": (1.43,), "windows": (1.5, 2)},
    "affinity, level, 320 + windows 1.5, 2": {"refine": ("affinity", "level"), "scales": (1.43,), "windows": (1.5, 2)},
    "affinity, level, 320 + windows 2": {"refine": ("affinity", "level"), "scales": (1.43,), "windows": (2,)},
    "affinity, level, 320 + windows 1.5, 2, pad": {
        "refine": ("affinity", "level"),
        "scales": (1.43,),
        "windows": (1.5, 2),
        "resize": "pad",
    },
    "affinity, 448 + windows 1.5": {**SPREAD, "scales": (2,), "windows": (1.5,)},
    "affinity, 448 + windows 2": {**SPREAD, "scales": (2,), "windows": (2,)},
    "affinity, 448 + 320 + windows 2": {**SPREAD, "scales": (2, 1.43), "windows": (2,)},
    "affinity, 320 + windows 2, flipped": {**SPREAD, "scales": (1.43,), "windows": (2,), "flip": True},
}


@dataclass(frozen=True)
class Photo:
    """A picture, the name asked for, and the true boxes `[m, 4]` xyxy."""

    image: Image.Image
    name: str
    boxes: np.ndarray


def photos_of(which: str, limit: int | None) -> Iterator[Photo]:
    """The pictures of a set, always the same."""
    drawn = json.loads((ROOT / "tools/tuning_boxes.json").read_text())["boxes"]
    names = {row["wnid"]: row["synset_words"].replace(", ", "|") for row in csv.DictReader(SYNSETS.open())}
    wnids, rng = list(drawn), np.random.default_rng(0)

    def read(wnid: str) -> tuple[Image.Image, np.ndarray]:
        with Image.open(PICTURES / f"{wnid}.jpg") as file:
            return file.convert("RGB"), np.array(drawn[wnid]["xyxy"], float)

    for place, wnid in enumerate(wnids[:limit]):
        image, boxes = read(wnid)
        others = rng.permutation([other for other in wnids if other != wnid])[:2]
        if which == "panorama":
            parts = [read(other)[0] for other in others]
            parts.insert(place % 3, image)
            resized = [part.resize((round(part.width * 400 / part.height), 400)) for part in parts]
            sheet, left = Image.new("RGB", (sum(part.width for part in resized), 400)), 0
            for number, part in enumerate(resized):
                sheet.paste(part, (left, 0))
                if number == place % 3:
                    boxes = boxes * 400 / image.height + [left, 0, left, 0]
                left += part.width
            image = sheet
        elif which == "small":
            host, _ = read(others[0])
            thing = image.crop(tuple(boxes[0].round().astype(int).tolist()))
            scale = 0.3 * min(host.size) / max(thing.size)
            thing = thing.resize((max(8, round(thing.width * scale)), max(8, round(thing.height * scale))))
            left, top = (int(rng.integers(room + 1)) for room in (host.width - thing.width, host.height - thing.height))
            host.paste(thing, (left, top))
            image, boxes = host, np.array([[left, top, left + thing.width, top + thing.height]], float)
        yield Photo(image, names[wnid], boxes)


def maps_of(localizer: Localizer, photos: list[Photo], kept: Path) -> tuple[np.ndarray, float]:
    """Maps over the whole pictures `[n, SIDE, SIDE]`, and milliseconds of processor time a picture."""
    if not kept.exists():
        start = time.process_time()
        maps = [localizer(photo.image, [photo.name]).maps_over_picture((SIDE, SIDE))[0] for photo in photos]
        spent = 1000 * (time.process_time() - start) / len(photos)
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(kept, maps=np.stack(maps).astype(np.float16), ms=spent)
    with np.load(kept) as file:
        return file["maps"].astype(np.float32), float(file["ms"])


def curve(photos: list[Photo], maps: np.ndarray, largest: bool) -> np.ndarray:
    """For each τ, the share of pictures whose box has IoU ≥ 0.5 with a true one."""
    shares = np.zeros(len(TAUS))
    truths = [photo.boxes * SIDE / np.array([photo.image.width, photo.image.height] * 2) for photo in photos]
    for place, tau in enumerate(TAUS):
        found = boxes_from_maps(maps, BoxRule(tau, "largest" if largest else "all"))
        first: dict[int, int] = {}  # boxes come best first
        for number, index in enumerate(found.index.tolist()):
            first.setdefault(index, number)
        hits = [iou_matrix(found.xyxy[number][None], truths[index]).max() >= 0.5 for index, number in first.items()]
        shares[place] = sum(hits) / len(photos)
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--method", default="cam")
    parser.add_argument("--cache", type=Path, required=True, help="a folder for maps")
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    parser.add_argument("--variant", nargs="+", help="only these")
    parser.add_argument("--thresholds", action="store_true", help="the share at every τ")
    parser.add_argument("--limit", type=int, help="only the first N pictures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sets = {which: list(photos_of(which, arguments.limit)) for which in arguments.sets}
    columns = [f"τ {tau:.2f}" for tau in TAUS] if arguments.thresholds else []
    print(f"| | {' | '.join([*sets, *columns])} | ms a picture |\n{'|---' * (2 + len(sets) + len(columns))}|")
    for title, options in VARIANTS.items():
        if arguments.variant and title not in arguments.variant:
            continue
        localizer = Localizer(arguments.model, method=arguments.method, min_presence=0, **options)
        cells, times = [], []
        for which, photos in sets.items():
            file = f"{arguments.limit or 'all'}-{title}.npz".replace(" ", "")
            maps, spent = maps_of(
                localizer, photos, arguments.cache / arguments.model / arguments.method / which / file
            )
            shares = curve(photos, maps, largest=which == "one")
            times.append(spent)
            cells.append(f"{shares.max():.3f} at {TAUS[int(shares.argmax())]:.2f}")
            if columns:
                cells += [f"{share:.3f}" for share in shares]
        print(f"| {title} | {' | '.join(cells)} | {times[0]:.0f} |", flush=True)


if __name__ == "__main__":
    main()

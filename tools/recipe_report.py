"""What the recipes give on pictures that nothing was chosen on. For docs/mini.md and docs/mini-vit.md.

`best`: of each name that is in a picture, the best-scored box, whatever its presence: the share with IoU ≥ 0.5 with any
true box; "to the first row" is its difference in pairs, ± the standard error over pictures. `drafts`: boxes as
`cliploc annotate` draws them, with the presence test; a draft is right when it overlaps a true box of its name, that no
better draft took. A COCO picture is asked for all names that the model knows, one of ILSVRC for its own and nine others
of a seeded ten. Things that are in a picture but not annotated count as absent.

    python tools/recipe_report.py best --dataset coco --root ../shared/data/coco_dev
    python tools/recipe_report.py best --dataset coco --root ../shared/data/coco_dev --model mini-vit --method gem
    python tools/recipe_report.py best --dataset coco --root ../shared/data/coco_tune --views 2.29 1.43+2 1.43+2,3
    python tools/recipe_report.py best --dataset tuning
    python tools/recipe_report.py drafts --dataset coco --root ../shared/data/coco_dev
    python tools/recipe_report.py drafts --dataset wsol --root ../shared/data/ilsvrc_val_dev

GT-known localisation is the benchmark's: `cliploc benchmark boxes --dataset wsol --root ../shared/data/ilsvrc_val_dev`.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from second_look_study import asked_of

from cliploc.evaluate.data import open_dataset
from cliploc.images.geometry import iou_matrix
from cliploc.images.reading import load
from cliploc.localizer import Localizer
from cliploc.options import MIN_SCORE

RUNS: dict[str, dict[str, Any]] = {
    "CAM alone": {"method": "cam"},
    "recipe fast": {"recipe": "fast"},
    "recipe default": {"recipe": "default"},
    "default without level": {"recipe": "default", "refine": ("affinity",)},
    "more passes": {"recipe": "default", "windows": (1.5, 2.0), "flip": True},
}
LEVELS = (0.5, 0.3)  # IoU
SEED, TEN = 0, 10


@dataclass
class Pictured:
    """One picture: the names to ask for, and the true boxes `[m, 4]` xyxy of those that are there, in its pixels."""

    path: Path
    asked: list[str] = field(default_factory=list)
    truth: dict[str, np.ndarray] = field(default_factory=dict)


def pictures_of(name: str, root: Path, localizer: Localizer, limit: int | None) -> list[Pictured]:
    """The pictures of a dataset; names that the model does not know are left out. `tuning`: the 118 tuning pictures."""
    if name == "tuning":
        return [Pictured(one.path, [*one.truth], dict(one.truth)) for one in asked_of(name)][:limit]
    dataset = open_dataset(name, root)
    words = ["|".join(one.synonyms) for one in dataset.classes]
    unknown = localizer.unknown_names(words)
    known = {label: word for label, word in enumerate(words) if dataset.classes[label].name not in unknown}
    labels = sorted(known)
    random.Random(SEED).shuffle(labels)
    ten_of = {label: labels[place // TEN * TEN :][:TEN] for place, label in enumerate(labels)}
    found: dict[Path, Pictured] = {}
    for sample in dataset.samples:
        if sample.label not in known:
            continue
        one = found.setdefault(sample.path, Pictured(sample.path))
        one.asked = [known[label] for label in (sorted(known) if name == "coco" else ten_of[sample.label])]
        with Image.open(sample.path) as file:  # only its header
            scale = np.array(file.size) / sample.size_wh
        one.truth[known[sample.label].partition("|")[0]] = sample.boxes_xyxy * np.tile(scale, 2)
    return list(found.values())[:limit]


def matched(boxes: np.ndarray, truth: np.ndarray, level: float) -> int:
    """How many boxes, best first, overlap a true box that no better box took."""
    free = set(range(len(truth)))
    for box in boxes:
        overlaps = iou_matrix(box[None], truth)[0]
        taken = max(free, key=lambda place: overlaps[place], default=None)
        if taken is not None and overlaps[taken] >= level:
            free.remove(taken)
    return len(truth) - len(free)


def best_boxes(localizer: Localizer, pictures: Sequence[Pictured], first: list[list[bool]]) -> list[str]:
    """The shares of names in a picture whose best-scored box is right; `first`: by picture, of the first run."""
    hits: list[list[bool]] = []
    areas = []
    for one in pictures:
        asked = [word for word in one.asked if word.partition("|")[0] in one.truth]
        found = localizer(load(one.path).image, asked)
        hits.append([])
        for name, truth in one.truth.items():
            boxes = found.boxes.of(name)[:1]
            hit = len(boxes) > 0 and bool(iou_matrix(boxes, truth).max() >= LEVELS[0])
            hits[-1].append(hit)
            sides = (truth[:, 2:] - truth[:, :2]).prod(1).max() / (found.image.width * found.image.height)
            areas.append((sides, hit))
    small = [hit for area, hit in areas if area < 0.1]
    first.extend(hits[len(first) :])
    more = np.array([sum(own) - sum(others) for own, others in zip(hits, first, strict=True)])  # [pictures]
    names = np.array([len(own) for own in hits])
    gain = more.sum() / names.sum()
    error = np.sqrt(np.square(more - gain * names).sum()) / names.sum()  # names of a picture are not independent
    return [
        f"{sum(map(sum, hits)) / names.sum():.3f} of {names.sum()}",
        f"{np.mean(small):.3f} of {len(small)}" if small else "–",
        f"{gain:+.3f} ± {error:.3f}",
    ]


def drafts(localizer: Localizer, pictures: Sequence[Pictured]) -> list[str]:
    """Precision and recall of the drafts."""
    truths, boxes, right = 0, 0, dict.fromkeys(LEVELS, 0)
    for one in pictures:
        found = localizer(load(one.path).image, one.asked)
        boxes += len(found.boxes)
        for name, truth in one.truth.items():
            truths += len(truth)
            for level in LEVELS:
                right[level] += matched(found.boxes.of(name), truth, level)
    cells = [f"{boxes / len(pictures):.1f}"]
    for level in LEVELS:
        cells += [f"{right[level] / max(1, boxes):.3f}", f"{right[level] / truths:.3f}"]
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["best", "drafts"])
    parser.add_argument("--dataset", required=True, choices=["coco", "wsol", "tuning"])
    parser.add_argument("--root", type=Path, help="of coco and wsol")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=RUNS)
    parser.add_argument("--method", nargs="+", help="these published methods instead of the recipes")
    parser.add_argument(
        "--views", nargs="+", default=(), help="also the default recipe with these scales, or scales+windows: 1.43+2,3"
    )
    parser.add_argument("--guide", help="a second tower, for methods that need one")
    parser.add_argument("--min-score", type=float, default=MIN_SCORE, help="of drafts")
    parser.add_argument("--min-presence", type=float, help="of drafts; the usual one if not given")
    parser.add_argument("--limit", type=int, help="only the first N pictures")
    given = parser.parse_args()
    torch.set_num_threads(1)
    titles = {
        "best": ["best box right", "of names whose things are below a tenth of the picture", "to the first row"],
        "drafts": ["boxes a picture", *(f"{what} at {level}" for level in LEVELS for what in ("precision", "recall"))],
    }[given.what]
    print(f"| | {' | '.join(titles)} | ms a picture |\n{'|---' * (2 + len(titles))}|")
    runs = {method: {"method": method} for method in given.method or ()} or {title: RUNS[title] for title in given.runs}
    for text in given.views:
        scales, windows = ([float(n) for n in part.split(",") if n] for part in f"{text}+".split("+")[:2])
        runs[f"default, {text}"] = {"recipe": "default", "scales": scales, "windows": windows}
    first: list[list[bool]] = []
    for title, run in runs.items():
        of_drafts = {"min_score": given.min_score, "min_presence": given.min_presence}
        shown = {"min_presence": 0} if given.what == "best" else of_drafts
        localizer = Localizer(given.model, guide=given.guide, **shown, **run)
        pictures = pictures_of(given.dataset, given.root, localizer, given.limit)
        start = time.process_time()
        cells = best_boxes(localizer, pictures, first) if given.what == "best" else drafts(localizer, pictures)
        spent = 1000 * (time.process_time() - start) / len(pictures)
        print(f"| {title} | {' | '.join(cells)} | {spent:.0f} |", flush=True)


if __name__ == "__main__":
    main()

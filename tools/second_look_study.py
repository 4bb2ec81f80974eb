"""Fits the second look to the tuning pictures, and prints how well it holds (about 25 minutes, one thread).

Pictures and true boxes: `coco_tune` (asked for COCO's 80 names), `ilsvrc_val_dev` and the tuning pictures of
tools/tuning_boxes.json (each asked for its true name and 20 others, drawn at random). No number is reported on them.
What is printed is said of pictures that were not in the fit: eight folds of pictures.

A name that is there in a picture of one thing counts twice: such pictures are mostly asked for what they
show, and the 20 others stand for the names that nobody asks.

    python tools/second_look_study.py --cache /tmp/looks          # prints it
    python tools/second_look_study.py --cache /tmp/looks --write mini  # and writes find/calibrations.json
    python tools/second_look_study.py --cache /tmp/looks --report # of the package's, on pictures that only report
    python tools/second_look_study.py --cache /tmp/looks --features  # what boxes' scores gain by each feature
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch

from cliploc import towers
from cliploc.evaluate.calibrate import Examples, examples_in, fit_calibration
from cliploc.evaluate.metrics import average_precision
from cliploc.find import prompts
from cliploc.find.calibration import OF_BOX, Calibration, fit_logistic, package_calibration, reliability
from cliploc.localizer import Localizer
from cliploc.options import FOUND
from cliploc.towers._mini_text import MiniTextTower
from cliploc.towers.mini import WEIGHTS

ROOT = Path(__file__).parents[1]
DATA = ROOT / "../shared/data"
OUT = ROOT / "src/cliploc/find/calibrations.json"
MODELS = ("mini", "mini-vit")
REPORTED = ("coco_dev", "ilsvrc_val_report")
SETS = {"coco_tune": 1.0, "ilsvrc_val_dev": 2.0, "tuning": 2.0}  # set → how much a name that is there counts
OTHERS = 20
FIT = OF_BOX.index("map_score")
FOLDS, NAME_FOLDS = 8, 4
# Features that are left out together.
BANK, INSIDE = ("bank_mean", "bank_related"), ("inside", "behind", "inside_rank")
GROUPS = (BANK, INSIDE, ("behind",), ("inside_rank",), ("best_view",), ("whole",))
Parts = dict[tuple[str, str], list[Examples]]  # model, set → the examples of each picture


@dataclass(frozen=True)
class Asked:
    """A picture with the names to ask, and the true boxes `[k, 4]` of those that are in it."""

    path: Path
    names: Sequence[str]
    truth: Mapping[str, np.ndarray]


def examples_of(localizer: Localizer, asked: Iterable[Asked]) -> Iterator[Examples]:
    """The examples of each picture; names that the model does not know are not asked."""
    for one in asked:
        unknown = localizer.unknown_names(one.names)
        names = [name for name in one.names if prompts.parse([name]).names[0] not in unknown]
        if names:
            [found] = localizer.stream([one.path], names, absent_maps=False)
            yield examples_in(found, names, {p: one.truth[name] for p, name in enumerate(names) if name in one.truth})


def asked_of(name: str) -> Iterator[Asked]:
    """The pictures of a set with their names and true boxes."""
    if name.startswith("coco"):
        document = json.loads((DATA / name / "annotations/instances_val2017.json").read_text())
        category = {one["id"]: one["name"] for one in document["categories"]}
        for picture in document["images"]:
            truth: dict[str, list[list[float]]] = {}
            for one in document["annotations"]:
                if one["image_id"] == picture["id"]:
                    x, y, w, h = one["bbox"]
                    truth.setdefault(category[one["category_id"]], []).append([x, y, x + w, y + h])
            boxes = {key: np.array(value, np.float32) for key, value in truth.items()}
            yield Asked(DATA / name / "val2017" / picture["file_name"], list(category.values()), boxes)
        return
    names = [one.name for one in prompts.imagenet_classes()]
    draw = random.Random(0)
    for path, label, boxes in _tuning() if name == "tuning" else _wsol(DATA / name):
        others = draw.sample([other for other in names if other != names[label]], OTHERS)
        yield Asked(path, [names[label], *others], {names[label]: boxes})


def _wsol(root: Path) -> Iterator[tuple[Path, int, np.ndarray]]:
    """A set in the layout of the WSOL evaluation, whose pictures are stretched to 227×227."""

    def rows(file: str) -> list[list[str]]:
        return [line.split(",") for line in (root / "metadata" / file).read_text().split()]

    ratio = {image: 227 / np.array([width, height] * 2, float) for image, width, height in rows("image_sizes.txt")}
    boxes: dict[str, list[np.ndarray]] = {}
    for image, *edges in rows("localization.txt"):
        boxes.setdefault(image, []).append(np.array(edges, float) * ratio[image])
    for image, label in rows("class_labels.txt"):
        yield root / image, int(label), np.array(boxes[image], np.float32)


def _tuning() -> Iterator[tuple[Path, int, np.ndarray]]:
    with (DATA / "ilsvrc_val_dev/synsets.csv").open() as file:
        label = {row["wnid"]: int(row["label"]) for row in csv.DictReader(file)}
    drawn = json.loads((ROOT / "tools/tuning_boxes.json").read_text())["boxes"]
    for wnid, one in drawn.items():
        yield DATA / "imagenet_one_per_class" / f"{wnid}.jpg", label[wnid], np.array(one["xyxy"], np.float32)


def examples(model: str, name: str, cache: Path) -> list[Examples]:
    """Of each picture; kept in the cache."""
    file, columns = cache / f"{model}-{name}.npz", [one.name for one in fields(Examples)]
    if not file.exists():
        torch.set_num_threads(1)
        tower, calibration = towers.create(model), None
        if name == "coco_tune":  # the anchors of everyday names were learnt from these pictures
            tower.text = MiniTextTower.load(WEIGHTS, everyday=False)  # type: ignore[attr-defined]
            calibration = unlifted(model, cache)
        made = list(examples_of(Localizer(tower, calibration=calibration), asked_of(name)))
        rows = {f"{column}_rows": [len(getattr(one, column)) for one in made] for column in columns}
        np.savez(file, **vars(Examples.together(made)), **rows)
    with np.load(file) as read:
        parts = [np.split(read[column], read[f"{column}_rows"].cumsum()[:-1]) for column in columns]
    return [Examples(*one) for one in zip(*parts, strict=True)]


def unlifted(model: str, cache: Path) -> Path:
    """A file with the package's calibration, without the lifts of everyday names."""
    file = cache / f"{model}-unlifted.json"
    replace(package_calibration(model), lifts={}).save(file)
    return file


def fitted(parts: Parts, models: Sequence[str], fold: int | None = None) -> Calibration:
    """To all pictures, or to those outside a fold; of each set with its weight."""
    found, weights = [], []
    for (model, name), pictures in parts.items():
        if model in models:
            found.append(Examples.together(p for i, p in enumerate(pictures) if fold is None or i % FOLDS != fold))
            weights.append(SETS[name])
    return fit_calibration(found, weights, models, "coco_tune, ilsvrc_val_dev and 118 tuning pictures")


def without(parts: Parts, model: str, left_out: Sequence[str]) -> str:
    """Average precision and calibration error of boxes by set, in pictures and with names that were not in the fit."""
    columns = [i for i, feature in enumerate(OF_BOX) if feature not in left_out]
    held_out: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {name: [] for name in SETS}
    for fold in range(FOLDS):
        of = {name: parts[model, name] for name in SETS}
        fits = {n: Examples.together(p for i, p in enumerate(own) if i % FOLDS != fold) for n, own in of.items()}
        kept = {name: Examples.together(own[fold::FOLDS]) for name, own in of.items()}
        every = Examples.together(fits.values())
        weight = np.concatenate([np.where(one.box_present, SETS[name], 1.0) for name, one in fits.items()])
        for number in range(NAME_FOLDS):
            others = name_fold(every.of_boxes) != number
            chance = fit_logistic(every.of_boxes[others][:, columns], every.right[others], weight[others])
            for name, one in kept.items():
                own = name_fold(one.of_boxes) == number
                held_out[name].append((chance(one.of_boxes[own][:, columns]), one.right[own]))
    of_sets = {name: [np.concatenate(one) for one in zip(*pairs, strict=True)] for name, pairs in held_out.items()}
    return ", ".join(f"{n} AP {average_precision(*one):.3f} ECE {reliability(*one):.3f}" for n, one in of_sets.items())


def name_fold(features: np.ndarray) -> np.ndarray:
    """The fold of each box's name, which its mean standing over the bank tells from others."""
    return (features[:, OF_BOX.index("bank_mean")] * 1e4).round().astype(int) % NAME_FOLDS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--write", nargs="+", choices=(*MODELS, "others"), help="what is written; the rest stays")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--features", action="store_true")
    parser.add_argument("--only", nargs=2, metavar=("MODEL", "SET"), help="only makes the examples of one set")
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    if given.only:
        examples(*given.only, given.cache)
        return
    if given.report:
        for model in MODELS:
            for name in REPORTED:
                pictures = examples(model, name, given.cache)
                print(f"## {model}, {name}: {len(pictures)} pictures\n")
                report(pictures, [package_calibration(model)] * len(pictures))
        return
    parts = {(model, name): examples(model, name, given.cache) for model in MODELS for name in SETS}
    if given.features:
        for model in MODELS:
            for left_out in ((), *GROUPS):
                print(model, "without", ", ".join(left_out) or "nothing", without(parts, model, left_out))
        return
    for model in MODELS:
        held_out = [fitted(parts, [model], fold) for fold in range(FOLDS)]
        other = fitted(parts, [one for one in MODELS if one != model])
        for name in SETS:
            pictures = parts[model, name]
            print(f"## {model}, {name}: {len(pictures)} pictures\n")
            report(pictures, [held_out[i % FOLDS] for i in range(len(pictures))])
            print("by the calibration of the other model:")
            report(pictures, [other] * len(pictures))
    chosen = {model: fitted(parts, [model]) for model in MODELS}
    others = replace(fitted(parts, MODELS), models=())
    if given.write:
        document = json.loads(OUT.read_text(encoding="utf-8"))
        for name in given.write:
            lifts = document[name].get("lifts", {})  # tools/everyday_lifts.py learns them again
            document[name] = {**{**chosen, "others": others}[name].document(), "lifts": lifts}
        OUT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def report(pictures: Sequence[Examples], by: Sequence[Calibration]) -> None:
    """Prints how chances hold in pictures, each by its own calibration."""
    every = Examples.together(pictures)
    right = np.concatenate([c.right(p.of_boxes) for p, c in zip(pictures, by, strict=True)])
    there = np.concatenate([c.there(p.of_names) for p, c in zip(pictures, by, strict=True)])
    true_boxes = every.box_present
    print(f"boxes: {len(right)}, right {every.right.sum()}; AP {average_precision(right, every.right):.3f} ", end="")
    print(f"(by the maps' scores {average_precision(every.of_boxes[:, FIT], every.right):.3f}), ", end="")
    print(
        f"ECE {reliability(right, every.right):.3f}; of true names alone: mean {right[true_boxes].mean():.3f}, ", end=""
    )
    print(
        f"right {every.right[true_boxes].mean():.3f}, ECE {reliability(right[true_boxes], every.right[true_boxes]):.3f}"
    )
    asked, absent = every.all_present.sum(), (~every.all_present).sum()
    print(f"names: {len(every.all_present)} asked, {asked} there, looked at {every.present.sum()} of these", end="")
    print(f" and {(~every.present).sum()} others; AP {average_precision(there, every.present):.3f}, ", end="")
    print(f"ECE {reliability(there, every.present):.3f}")
    for least in (0.15, 0.2, 0.25, 0.3, FOUND, 0.35, 0.4, 0.5):
        found = there >= least
        hits = (found & every.present).sum()
        print(
            f"  presence ≥ {least:.2f}: precision {hits / max(1, found.sum()):.3f}, recall {hits / asked:.3f}, ", end=""
        )
        print(f"absent names found {(found & ~every.present).sum() / absent:.4f}")
    for least in (0.02, 0.05, 0.1, 0.15, 0.2, 0.3):
        kept = right >= least
        share = every.right[kept].sum() / every.right.sum()
        print(f"  score ≥ {least:.2f}: {kept.sum()} boxes, mean {right[kept].mean():.3f}, ", end="")
        print(f"right {every.right[kept].mean():.3f} ({share:.3f} of the right ones)")
    print()


if __name__ == "__main__":
    main()

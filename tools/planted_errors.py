"""Plants errors in labels that are taken as right, and prints how well `cliploc check` finds them.

    python tools/planted_errors.py ../shared/data/coco_dev [--seeds 6] [--share 0.1] [--plain] [--cache FILE.npz]

The folder is in COCO's layout. Numbers are chosen on coco_tune and reported on coco_dev: docs/studies/check.md.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

from cliploc import Localizer, towers
from cliploc.images.reading import load
from cliploc.label.checking import wrong_labels
from cliploc.label.checking.labels import read_set
from cliploc.label.checking.wrong_labels import Reading, jittered, read_picture
from cliploc.towers._mini_text import MiniTextTower
from cliploc.towers.mini import WEIGHTS
from cliploc.values import Floats

KINDS = ("random", "frequent", "in the picture")
FIRST, FIRST_MISSING = 50, 20
Data = dict[str, Any]


def read(root: Path, plain: bool) -> Data:
    """The boxes of a set with their labels, and what the tower reads; each has a moved copy. Crowds are boxes, too."""
    data = read_set(root / "annotations/instances_val2017.json", root / "val2017", None)
    pictures = [one for one in data.pictures if one.readable]
    names = sorted({box.name for one in pictures for box in one.boxes})
    tower = towers.create("mini")
    if plain:
        tower.text = MiniTextTower.load(WEIGHTS, everyday=False)  # type: ignore[attr-defined]
    localizer = Localizer(tower, recipe="fast")
    text = localizer.embed_names(names).cpu().numpy()
    text[[names.index(name) for name in localizer.unknown_names(names)]] = np.nan
    every = [read_picture(tower, load(one.path).image, one.xyxy, one.xyxy[:, 0] >= 0) for one in pictures]
    numbers, rngs = range(len(pictures)), (np.random.default_rng(0) for _ in pictures)  # as `read_picture` draws
    copied = [len(jittered(rng, box, one.size_wh)) for one, rng in zip(pictures, rngs, strict=True) for box in one.xyxy]
    return {
        **Reading(*map(np.concatenate, zip(*every, strict=True)))._asdict(),
        "boxes": np.concatenate([one.xyxy / (one.size_wh * 2) for one in pictures]),  # in 0–1
        "labels": np.array([names.index(one.boxes[i].name) for one in pictures for i in one.readable]),
        "pictures": np.repeat(numbers, [len(one.xyxy) for one in pictures]),
        "of_pictures": np.repeat(numbers, [len(one.regions) for one in every]),  # [k] of regions
        "owners": np.flatnonzero(copied),  # which box each moved copy is of
        "text": text,
        "scale": float(tower.logit_scale),
    }


def renamed(true: Any, pictures: Any, kind: str, rng: np.random.Generator, share: float) -> Any:
    """The labels with a share of other names."""
    given, there, count = true.copy(), np.unique(true), np.bincount(true).astype(float)
    for box in np.flatnonzero(rng.random(len(true)) < share):
        others = np.unique(true[pictures == pictures[box]]) if kind == KINDS[2] else there
        others = others[others != true[box]]
        if len(others):
            chance = count[others] / count[others].sum() if kind == KINDS[1] else None
            given[box] = rng.choice(others, p=chance)
    return given


def names_trial(data: Data, kind: str, seed: int, share: float) -> tuple[Floats, Any]:
    """Chances of all boxes, and whether each is wrong."""
    given = renamed(data["labels"], data["pictures"], kind, np.random.default_rng(seed), share)
    boxes = data["features"], data["text"], data["boxes"], given, data["pictures"]
    return wrong_labels.wrong_names(*boxes, float(data["scale"])).chance, given != data["labels"]


def places_trial(data: Data, seed: int, share: float) -> tuple[Floats, Any]:
    """As `names_trial`: the moved copy of a box takes its place."""
    owners, edges, pictures = data["owners"], data["edges"].copy(), data["pictures"]
    chosen = np.random.default_rng(seed).random(len(edges))[owners] < share
    edges[owners[chosen]] = data["moved"][chosen]
    bad = np.isin(np.arange(len(edges)), owners[chosen])
    return wrong_labels.wrong_places(edges, pictures, data["moved"][~chosen], pictures[owners[~chosen]]), bad


def missing_trial(data: Data, seed: int, share: float, by_picture: bool = False) -> tuple[Floats, Any]:
    """Chances of missing labels, and whether a hidden one of its name lies in each or around it.

    With `by_picture` one is right that names what misses a label anywhere in its picture: the measure of
    ../shared/proto/check_labels.py.
    """
    shown, labels, boxes = (
        np.random.default_rng(seed).random(len(data["labels"])) >= share,
        data["labels"],
        data["boxes"],
    )
    numbers = range(data["pictures"].max() + 1)
    own, regions = ([np.flatnonzero(data[key] == each) for each in numbers] for key in ("pictures", "of_pictures"))
    visible, hidden = ([some[shown[some] == seen] for some in own] for seen in (True, False))
    none = data["moved"][:0]
    of = [Reading(data["features"][some], none, none, data["regions"][here], data["of_regions"][here])
          for some, here in zip(visible, regions, strict=True)]  # fmt: skip
    given = [boxes[some] for some in visible], [labels[some] for some in visible]
    found = wrong_labels.missing_labels(of, *given, data["text"], float(data["scale"]))
    chances, right = [], []
    for missing, some in zip(found, hidden, strict=True):
        for xyxy, name, chance in missing:
            same = boxes[some[labels[some] == name]]
            chances.append(chance)
            right.append(len(same) > 0 if by_picture else share_it(xyxy, same))
    return np.array(chances), np.array(right)


def share_it(xyxy: Floats, others: Floats) -> bool:
    """Whether a box shares more than a tenth of the smaller one with any of some others."""
    shared = np.clip(np.minimum(xyxy[2:], others[:, 2:]) - np.maximum(xyxy[:2], others[:, :2]), 0, None).prod(axis=1)
    smaller = np.minimum((xyxy[2:] - xyxy[:2]).prod(), (others[:, 2:] - others[:, :2]).prod(axis=1))
    return bool((shared > 0.1 * smaller).any())


def report(title: str, trial: Callable[..., tuple[Floats, Any]], seeds: int, first: int) -> None:
    """Prints a row of a table: means over the seeds, each with its standard error."""
    rows = []
    for seed in range(seeds):
        chance, wrong = trial(seed=seed)
        chance, wrong = (values[np.isfinite(chance)] for values in (chance, wrong))  # the others are not judged
        top = np.argsort(-chance, kind="stable")[:first]
        rows.append((roc_auc_score(wrong, chance), wrong[top].sum(), chance[top].sum()))
    mean, error = np.mean(rows, axis=0), np.std(rows, axis=0) / np.sqrt(seeds)
    print(f"| {title} | {mean[0]:.3f} ± {error[0]:.3f} | {mean[1]:.1f} of {first} | {mean[2]:.1f} |", flush=True)


def main() -> None:
    """Reads the set once, then plants errors of each kind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--plain", action="store_true", help="without everyday names, which were learnt on coco_tune")
    parser.add_argument("--cache", type=Path, help="keeps what was read, which takes longest")
    options = parser.parse_args()
    if options.cache is not None and options.cache.exists():
        data = dict(np.load(options.cache))
    else:
        data = read(options.root, options.plain)
        if options.cache is not None:
            np.savez(options.cache, **data)
    print("| planted | AUROC | wrong of the first | said |\n|---|---|---|---|")
    for kind in KINDS:
        report(f"name: {kind}", partial(names_trial, data, kind, share=options.share), options.seeds, FIRST)
    report("badly placed", partial(places_trial, data, share=options.share), options.seeds, FIRST)
    for title, by_picture in (("missing", False), ("missing, by the picture", True)):
        trial = partial(missing_trial, data, share=options.share, by_picture=by_picture)
        report(title, trial, options.seeds, FIRST_MISSING)


if __name__ == "__main__":
    main()

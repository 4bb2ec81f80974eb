"""Learns the lifts of everyday names, for the second look of `mini` (about 10 minutes, one thread).

The second look is fitted to how other names lie above their rivals, on `coco_tune` without the anchors. People vary
more than dogs do, so person lies lower than dog where it is there, and also where it is not. Its *lift* is added to how
far it lies above its rivals, in views and in boxes.

Pictures: `coco_tune`, asked for COCO's names, and every sixth one of `imagenet_one_per_class`, asked for the names that
tools/everyday_regions.txt marks. A picture is asked by anchors that were learnt without it (five folds), and what is
printed is also of lifts that were learnt without it. No number is reported on these pictures.

    python tools/build_everyday.py --folds /tmp/folds
    python tools/everyday_lifts.py --folds /tmp/folds --cache /tmp/lifts            # prints how lifts hold
    python tools/everyday_lifts.py --folds /tmp/folds --cache /tmp/lifts --write    # src/cliploc/find/calibrations.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from build_everyday import FOLDS, REGIONS, read_regions
from second_look_study import DATA, OUT, asked_of, unlifted

from cliploc import towers
from cliploc.evaluate.calibrate import examples_in
from cliploc.find import prompts
from cliploc.find.calibration import OF_BOX, Calibration, package_calibration
from cliploc.localizer import Localizer
from cliploc.options import FOUND
from cliploc.towers._mini_text import MiniTextTower
from cliploc.values import Floats

MODEL = "mini"
SETS = ("coco_tune", "imagenet_one_per_class")
EVERY = 6  # picture of the second set
LIFTS = np.arange(-30, 51) / 10  # that are tried
SHRINK = 6.0  # the log-likelihood loses half of it times the lift's square: few pictures move little; by the folds
LEAST = 5  # pictures with the thing, below which a name has no lift
LIFTED = [OF_BOX.index(name) for name in ("best_view", "whole", "inside")]


@dataclass(frozen=True)
class Asked:
    """Names in pictures, a row each."""

    fold: np.ndarray  # [n] of the picture
    name: np.ndarray  # [n]
    there: np.ndarray  # [n] bool
    of_names: Floats  # [n, 2]; see `calibration.OF_NAME`
    of_boxes: Floats  # [n, F] the best of the name's boxes; NaN where it has none

    def where(self, kept: np.ndarray) -> Asked:
        return Asked(*(values[kept] for values in vars(self).values()))

    @classmethod
    def together(cls, parts: Sequence[Asked]) -> Asked:
        return cls(*(np.concatenate(column) for column in zip(*(vars(one).values() for one in parts), strict=True)))


def pictures_of(name: str, anchors: Sequence[str]) -> Iterator[tuple[int, Path, list[str], set[str]]]:
    """Of each picture of a set: its number, as tools/build_everyday.py counts, its file, names to ask, names there."""
    if name == "coco_tune":
        for number, one in enumerate(asked_of(name)):
            yield number, one.path, list(one.names), set(one.truth)
        return
    regions = read_regions(REGIONS)
    marked = {word for cells in regions.values() for word in cells}
    paths = sorted((DATA / name).glob("n*.jpg"))
    for number in range(0, len(paths), EVERY):
        yield number, paths[number], [one for one in anchors if one in marked], set(regions[paths[number].stem])


def asked(name: str, folds: Path, cache: Path, anchors: Sequence[str]) -> Asked:
    """What the second look reads of names in the pictures of a set; kept in the cache."""
    file = cache / f"{MODEL}-{name}.npz"
    if not file.exists():
        calibration = unlifted(MODEL, cache)
        localizers = []
        for fold in range(FOLDS):
            tower = towers.create(MODEL)
            tower.text = MiniTextTower.load(folds / str(fold))  # type: ignore[attr-defined]
            localizers.append(Localizer(tower, min_presence=0, calibration=calibration))  # so all names get boxes
        parts = []
        for number, path, names, there in pictures_of(name, anchors):
            localizer = localizers[number % FOLDS]
            unknown = localizer.unknown_names(names)
            names = [one for one in names if prompts.parse([one]).names[0] not in unknown]
            [found] = localizer.stream([path], names, absent_maps=False)
            seen = examples_in(found, names, {})
            assert found.judged is not None
            of_boxes = np.full((len(names), len(OF_BOX)), np.nan)
            of_boxes[np.unique(found.judged.candidates.label)] = seen.of_names
            here = np.array([one in there for one in names])
            of_fold = np.full(len(names), number % FOLDS)
            parts.append(Asked(of_fold, np.array(names, dtype="U40"), here, seen.of_all, of_boxes))
        np.savez(file, **vars(Asked.together(parts)))
    with np.load(file) as kept:
        return Asked(**kept)


def presence(one: Asked, calibration: Calibration, lift: np.ndarray | float) -> np.ndarray:
    """`[n]`, as `SecondLook.judge` has it for what is found from `FOUND` on."""
    lifts = np.broadcast_to(lift, len(one.name))[:, None]
    of_names, of_boxes = one.of_names + lifts, one.of_boxes.copy()
    of_boxes[:, LIFTED] += lifts
    boxed = calibration.passes(of_names, FOUND) & ~np.isnan(of_boxes[:, 0])
    return np.where(boxed, calibration.there(np.nan_to_num(of_boxes)), calibration.first(of_names))


def learnt(every: Asked, calibration: Calibration, names: Sequence[str]) -> dict[str, float]:
    """Name → the lift of greatest likelihood, less its own penalty."""
    chances = np.stack([presence(every, calibration, lift) for lift in LIFTS]).clip(1e-6, 1 - 1e-6)
    likelihood = np.log(np.where(every.there, chances, 1 - chances))  # [lifts, n]
    found = {}
    for name in names:
        own = every.name == name
        if every.there[own].sum() >= LEAST:
            best = (likelihood[:, own].sum(axis=1) - SHRINK * LIFTS**2 / 2).argmax()
            found[name] = float(LIFTS[best])
    return {name: lift for name, lift in found.items() if lift}


def lift_of(every: Asked, lifts: Mapping[str, float]) -> np.ndarray:
    return np.array([lifts.get(name, 0.0) for name in every.name.tolist()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folds", type=Path, required=True, help="as tools/build_everyday.py wrote them")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    lines = (given.folds / "0/everyday.txt").read_text(encoding="utf-8").splitlines()[:-1]
    anchors = [line.split("|")[0] for line in lines]
    of_sets = {name: asked(name, given.folds, given.cache, anchors) for name in SETS}
    every, own = Asked.together([*of_sets.values()]), replace(package_calibration(MODEL), lifts={})
    held_out = [learnt(every.where(every.fold != fold), own, anchors) for fold in range(FOLDS)]
    print("| names found | there | absent |\n|---|---|---|")
    for name, one in of_sets.items():
        lift = np.choose(one.fold, np.stack([lift_of(one, lifts) for lifts in held_out]))
        pairs = [presence(one, own, by) >= FOUND for by in (0.0, lift)]
        kinds = {"all": one.there | True, "everyday": np.isin(one.name, anchors), "person": one.name == "person"}
        for what, kind in kinds.items():
            shares = [f"{b[kind & t].mean():.3f} → {a[kind & t].mean():.3f} of {(kind & t).sum()}"
                      for t in (one.there, ~one.there) for b, a in [pairs]]  # fmt: skip
            print(f"| {name}, {what} | {' | '.join(shares)} |")
    lifts = learnt(every, own, anchors)
    print(", ".join(f"{name} {lift:+.1f}" for name, lift in lifts.items()))
    if given.write:
        document = json.loads(OUT.read_text(encoding="utf-8"))
        document[MODEL]["lifts"] = lifts
        OUT.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

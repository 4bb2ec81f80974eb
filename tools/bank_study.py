"""Measures a part of the bank against the whole, by the guess that other models get (about 10 minutes, one thread).

Both bundled models with their fast recipe, on all of `coco_tune` and every fourth picture of `ilsvrc_val_dev`, each
asked for the names of tools/second_look_study.py. No number is reported on these pictures.

    python tools/bank_study.py
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from second_look_study import MODELS, OUT, Asked, asked_of

from cliploc import towers
from cliploc.evaluate.calibrate import Examples, examples_in
from cliploc.evaluate.metrics import average_precision
from cliploc.find import prompts
from cliploc.find.memory import Memory
from cliploc.localizer import Localizer
from cliploc.towers._mini_text import MiniTextTower
from cliploc.towers.mini import WEIGHTS

SETS = {"coco_tune": 1, "ilsvrc_val_dev": 4}  # set → of how many pictures one is taken
PARTS = (1, 4, 8, 16)  # of how many of ImageNet's names the bank has one


class Tally:
    """What a localizer finds in the pictures of a set."""

    def __init__(self, localizer: Localizer, every: int) -> None:
        self.localizer, self.every = localizer, every
        localizer.flow.bank.every = every
        self.z_scores, self.found, self.examples = list[np.ndarray](), list[np.ndarray](), list[Examples]()

    def add(self, one: Asked, names: list[str]) -> None:
        """Localizes the names in a picture."""
        [result] = self.localizer.stream([one.path], names, absent_maps=False)
        assert result.second_look is not None
        truth = {p: one.truth[name] for p, name in enumerate(names) if name in one.truth}
        self.z_scores.append(result.second_look.of_names[:, 0])
        self.found.append(result.found)
        self.examples.append(examples_in(result, names, truth))

    def row(self, whole: Tally) -> str:
        """A row of the table: how it differs from the whole bank, and how good it is."""
        z, of_whole = np.concatenate(self.z_scores), np.concatenate(whole.z_scores)
        found, before, every = np.concatenate(self.found), np.concatenate(whole.found), Examples.together(self.examples)
        there, near = every.all_present, of_whole > 1.5
        precision = average_precision(self.localizer.calibration.right(every.of_boxes), every.right)
        return (
            f"| {self.every} | {(z - of_whole)[near].mean():+.2f} ± {(z - of_whole)[near].std():.2f} "
            f"| {(found != before).sum()} of {before.sum()} | {found[there].mean():.3f} | {there[found].mean():.3f} "
            f"| {found[~there].mean():.4f} | {precision:.3f} |"
        )


def measure(model: str, name: str, calibration: Path) -> None:
    """Prints the table of a model and a set."""
    tower, memory = towers.create(model), Memory()
    if name == "coco_tune":  # the anchors of everyday names were learnt from these pictures
        tower.text = MiniTextTower.load(WEIGHTS, everyday=False)  # type: ignore[attr-defined]
    how: dict[str, Any] = {"recipe": "fast", "calibration": calibration, "memory": memory}
    whole, *parts = (Tally(Localizer(tower, **how), every) for every in PARTS)
    for one in list(asked_of(name))[:: SETS[name]]:
        unknown = whole.localizer.unknown_names(one.names)
        names = [entry for entry in one.names if prompts.parse([entry]).names[0] not in unknown]
        for tally in (whole, *parts) if names else ():
            tally.add(one, names)
    print(f"{model}, {name}: {len(whole.found)} pictures\n")
    print("| one name of | z-scores above 1.5 | decisions changed | recall | precision | absent names | AP of boxes |")
    print("|---" * 7 + "|")
    for tally in (whole, *parts):
        print(tally.row(whole))
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs=2, metavar=("MODEL", "SET"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        calibration = Path(folder) / "others.json"
        calibration.write_text(json.dumps(json.loads(OUT.read_text(encoding="utf-8"))["others"]))
        for model, name in [given.only] if given.only else [(model, name) for model in MODELS for name in SETS]:
            measure(model, name, calibration)


if __name__ == "__main__":
    main()

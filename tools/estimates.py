"""Do the promises of reviewed pictures hold? Random splits of a folder whose true boxes are known.

    python tools/estimates.py ../shared/data/jobs/raccoon --truth voc --out OUT [--splits 500]

The pictures are annotated into OUT. Then some of them, drawn at random, are reviewed without mistakes, as often as
`--splits` says, and it is counted how often the numbers in the others lie within what `cliploc.label.estimates` says.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cliploc.cli.terminal import Terminal, titled
from cliploc.evaluate.data import open_prompted
from cliploc.evaluate.tasks.task import class_entries
from cliploc.find.prompts import Labels
from cliploc.label.annotate import annotate
from cliploc.label.drafts import Prior, View, choose
from cliploc.label.estimates import Observation, Sample, observe
from cliploc.label.results import AnnotatedFolder
from cliploc.runs.label_store import Correction, LabellingRun, Saved
from cliploc.runs.picture_files import FoundPictures, PictureFile, by_path
from cliploc.values import Floats

COMMON = 10  # things of a name, from which its counts are looked at
PROCESSES = 2


@dataclass(frozen=True)
class Split:
    """What became of one split."""

    within: npt.NDArray[np.bool_]  # [2, names] whether the true counts of things and pictures lie within what is said
    errors: Floats  # [2, names] of each count, for each picture
    accepted: list[float]  # by promise the share of the drafts that need no look
    wrong: list[float]  # the share of these that is wrong


class Splits:
    """A folder that is reviewed again and again."""

    def __init__(self, out: Path, truth: dict[str, Correction], files: list[PictureFile]) -> None:
        with LabellingRun.open(out) as run:
            folder = AnnotatedFolder(run, files)
            self.pictures = [file.id for file in folder.annotated()]
            self.rule, self.names = folder.rule, run.names
            self.candidates = [folder.candidates(name) for name in self.pictures]
            self.plain = [folder.candidates(name, taught=False) for name in self.pictures]
            self.generations = [folder.saved(name).generation for name in self.pictures]
            self.presence = np.array([folder.pictures[name].presence for name in self.pictures])
        self.truth = [truth[name] for name in self.pictures]
        self.counts = np.array([[of.labels.count(p) for p in range(len(self.names))] for of in self.truth])  # [n, P]

    def observations(self, seen: set[int]) -> list[Observation]:
        """All pictures, as they are seen when they are reviewed, after these were."""
        true = np.where([[i in seen] for i in range(len(self.pictures))], self.counts > 0, np.nan)
        prior, observations = Prior.of(self.presence, [None] * len(self.names), true), list[Observation]()
        for i, found in enumerate(self.candidates):
            saved = Saved("reviewed", 1, self.truth[i], self.generations[i])
            now = View(found, choose(found, self.rule, prior), saved, False)
            plain = now
            if found.taught:  # as `AnnotatedFolder.observation`
                plain = replace(now, found=self.plain[i], chosen=choose(self.plain[i], self.rule, prior))
            observations.append(observe(now, plain, len(self.names)))
        return observations

    def split(self, count: int, number: int, most: Sequence[float]) -> Split:
        """Reviews so many pictures, in the random order of this number."""
        order = np.random.default_rng([count, number]).permutation(len(self.pictures)).tolist()
        seen = {*order[:count]}
        observations = self.observations(seen)
        known = {self.pictures[i]: replace(one, reviewed=i in seen) for i, one in enumerate(observations)}
        sample = Sample(known, [self.pictures[i] for i in order])
        counts = sample.counts(self.names)
        common = np.flatnonzero(self.counts.sum(axis=0) >= COMMON)
        true = np.stack([self.counts.sum(axis=0), (self.counts > 0).sum(axis=0)])[:, common]
        said = [[getattr(counts[self.names[p]], kind) for p in common] for kind in ("things", "pictures")]
        middle, errors = (np.array([[getattr(one, of) for one in kind] for kind in said]) for of in ("count", "error"))
        accepted, wrong = list[float](), list[float]()
        rest = [draft for i in order[count:] for draft in observations[i].drafts]
        for share in most:
            found = sample.accepted_drafts(share, range(len(self.names)))
            right = [draft.right for draft in rest if found is not None and draft.score >= found.score]
            accepted.append(0.0 if found is None else found.share)
            wrong.append(right.count(False) / len(right) if right else 0.0)
        return Split(np.abs(middle - true) <= errors, errors / len(self.pictures), accepted, wrong)


def main() -> None:
    """Annotates, reviews and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--truth", required=True, help="layout: a name of `cliploc datasets`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the drafts")
    parser.add_argument("--reviewed", default="20,40,80", help="numbers of reviewed pictures")
    parser.add_argument("--most", default="0.05,0.1,0.2", help="promised shares of wrong drafts")
    parser.add_argument("--splits", type=int, default=500)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--recipe", default="default")
    asked = parser.parse_args()
    dataset, terminal = open_prompted(asked.truth, asked.folder), Terminal()
    labels = sorted({label for picture in dataset.samples for label in picture.labels})
    entries = class_entries(dataset)
    names = Labels(tuple(entries[label] for label in labels), (None,) * len(labels))
    files = sorted((PictureFile(one.id, one.path) for one in dataset.samples), key=by_path)
    with terminal.progress("annotating") as reporter:
        how = {"formats": ("csv",), "as_typed": True, "model": asked.model, "recipe": asked.recipe}
        annotate(FoundPictures(dataset.root, files, []), names, asked.out, reporter=reporter, **how)
    truth = {}
    for one in dataset.samples:
        pairs = [(box, labels.index(p)) for p, boxes in one.truth.items() for box in np.asarray(boxes, float).tolist()]
        truth[one.id] = Correction([box for box, _ in pairs], [p for _, p in pairs])
    most = [*map(float, asked.most.split(","))]
    counted = [("reviewed", "things within", "± of a picture", "pictures within", "±", "names", "worst name")]
    promised = [("reviewed", "promise", "need no look", "kept")]
    with get_context("spawn").Pool(PROCESSES, opened, (asked.out, truth, files)) as pool:
        for count in map(int, asked.reviewed.split(",")):
            found = pool.starmap(split, [(count, number, most) for number in range(asked.splits)], 10)
            within, errors = (np.mean([getattr(one, of) for one in found], axis=0) for of in ("within", "errors"))
            (things, pictures), (error, of_pictures) = within.mean(axis=1), errors.mean(axis=1)
            each = f"{things:.1%}", f"{error:.3f}", f"{pictures:.1%}", f"{of_pictures:.3f}"
            counted.append((f"{count}", *each, f"{within.shape[1]}", f"{within.min():.1%}"))
            for k, share in enumerate(most):
                accepted = np.mean([one.accepted[k] for one in found])
                kept = np.mean([one.wrong[k] <= share for one in found])
                promised.append((f"{count}", f"{share:.0%}", f"{accepted:.0%}", f"{kept:.1%}"))
    terminal.listing(titled(counted))
    terminal.listing(titled(promised))


def opened(*of: Any) -> None:
    """Opens the folder in a process."""
    global splits
    splits = Splits(*of)


def split(*of: Any) -> Split:
    """One split in a process."""
    return splits.split(*of)


if __name__ == "__main__":
    main()

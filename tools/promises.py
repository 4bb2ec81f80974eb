"""Do the promises of reviewed pictures hold? Random splits of a folder whose true boxes are known.

    python tools/promises.py ../shared/data/jobs/raccoon --truth voc --out OUT [--splits 500]

The pictures are annotated into OUT. Then some of them, drawn at random, are reviewed without mistakes, as often as
`--splits` says, and it is counted how often the numbers in the others lie within what `cliploc.label.promise` says.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cliploc.cli.terminal import Terminal, titled
from cliploc.evaluate.data import open_prompted
from cliploc.evaluate.tasks.task import class_entries
from cliploc.find.prompts import Labels
from cliploc.label.annotate import annotate
from cliploc.label.drafts import Prior, View, choose
from cliploc.label.promise import Look, Sample, look_at
from cliploc.label.results import AnnotatedFolder
from cliploc.runs.label_store import Correction, LabellingRun, Saved
from cliploc.runs.picture_files import FoundPictures, PictureFile, by_path

COMMON = 10  # things of a name, from which its counts are looked at


@dataclass(frozen=True)
class Split:
    """What became of one split."""

    within: list[bool]  # of each count, whether the true one lies within what is said
    widths: list[float]  # of each count, its error for each picture
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
            self.generations = [folder.saved(name).generation for name in self.pictures]
            self.presence = np.array([folder.pictures[name].presence for name in self.pictures])
        self.truth = [truth[name] for name in self.pictures]
        self.counts = np.array([[of.labels.count(p) for p in range(len(self.names))] for of in self.truth])  # [n, P]

    def looks(self, seen: set[int]) -> tuple[dict[str, Look], list[Look]]:
        """The folder after these pictures were reviewed, and what would be seen in all of them."""
        true = np.where([[i in seen] for i in range(len(self.pictures))], self.counts > 0, np.nan)
        prior = Prior.of(self.presence, [None] * len(self.names), true)
        known, every = dict[str, Look](), list[Look]()
        for i, name in enumerate(self.pictures):
            chosen, generation = choose(self.candidates[i], self.rule, prior), self.generations[i]
            states = Saved(generation=generation), Saved("reviewed", 1, self.truth[i], generation)
            views = (View(self.candidates[i], chosen, one, False) for one in states)
            before, after = (look_at(now, now, len(self.names)) for now in views)
            known[name] = after if i in seen else before
            every.append(after)
        return known, every

    def split(self, count: int, most: Sequence[float], draw: np.random.Generator) -> Split:
        """Reviews so many pictures."""
        order = draw.permutation(len(self.pictures)).tolist()
        seen = {*order[:count]}
        looks, every = self.looks(seen)
        sample = Sample(looks, [self.pictures[i] for i in order])
        counts = sample.counts(self.names)
        within, widths = list[bool](), list[float]()
        for p in np.flatnonzero(self.counts.sum(axis=0) >= COMMON).tolist():
            of = counts[self.names[p]]
            for one, true in ((of.things, self.counts[:, p].sum()), (of.pictures, (self.counts[:, p] > 0).sum())):
                within.append(abs(one.count - true) <= one.error)
                widths.append(one.error / len(self.pictures))
        accepted, wrong = list[float](), list[float]()
        for share in most:
            found = sample.no_look(share, range(len(self.names)))
            rest = [draft for i, one in enumerate(every) if i not in seen for draft in one.drafts]
            right = [draft.right for draft in rest if found is not None and draft.score >= found.score]
            accepted.append(0.0 if found is None else found.share)
            wrong.append(right.count(False) / len(right) if right else 0.0)
        return Split(within, widths, accepted, wrong)


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
    splits = Splits(asked.out, truth, files)
    rows = [("reviewed", "counts within", "± of a picture", "promise", "need no look", "kept")]
    most = [*map(float, asked.most.split(","))]
    for count in map(int, asked.reviewed.split(",")):
        draw = np.random.default_rng(0)
        found = [splits.split(count, most, draw) for _ in range(asked.splits)]
        within = np.mean([one for split in found for one in split.within])
        width = np.mean([one for split in found for one in split.widths])
        for k, share in enumerate(most):
            accepted = np.mean([split.accepted[k] for split in found])
            kept = np.mean([split.wrong[k] <= share for split in found])
            rows.append((f"{count}", f"{within:.1%}", f"{width:.3f}", f"{share:.0%}", f"{accepted:.0%}", f"{kept:.1%}"))
    terminal.listing(titled(rows))


if __name__ == "__main__":
    main()

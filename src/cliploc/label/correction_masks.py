"""Masks of corrected sets: finds one for a box without a mask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from cliploc.images import rle
from cliploc.images.rle import BoolArray, Counts
from cliploc.runs.labelling import Candidates, Correction

SAME = 1.0  # pixels that the edges of a box may have moved and still be those of its draft
# Source of the mask of a corrected box → its text; `filled` counts them.
SOURCES = {
    "set": "from the set",
    "draft": "from the draft with the same box",
    "inside": "from drafts of the label inside the box",
    "box": "the whole box, because no draft of the label has pixels there",
}


def filled(correction: Correction, found: Candidates) -> tuple[Correction, Counter[str]]:
    """The correction with a mask for every box, and the number of masks from each source."""
    canvas, sources = Canvas(found.size_wh), Counter[str]()
    masks, of_drafts = list(correction.masks or [None] * len(correction.boxes)), found.masks or ()
    for label in sorted(set(correction.labels)):
        of_label = np.flatnonzero(found.labels == label).tolist()
        inside: BoolArray | None = None  # [H, W], the pixels of all drafts of the label
        for place in (i for i, its in enumerate(correction.labels) if its == label):
            box, given = correction.boxes[place], masks[place]
            near = np.flatnonzero((np.abs(found.xyxy[of_label] - box) <= SAME).all(axis=1))
            if given is not None:
                source = "set"
            elif len(near):
                source, masks[place] = "draft", of_drafts[of_label[near[0]]]
            else:
                if inside is None:
                    inside = canvas.united(of_drafts[i] for i in of_label)
                rows, columns = canvas.window(box)
                part = inside[rows, columns]
                source = "inside" if part.any() else "box"
                whole = part if part.any() else np.ones_like(part)
                masks[place] = rle.compressed(canvas.placed(whole, columns.start, rows.start))
            sources[source] += 1
    return replace(correction, masks=masks), sources


def in_words(sources: Mapping[str, int]) -> str:
    """One line on where masks are from."""
    parts = [f"{sources[key]:,} {words}" for key, words in SOURCES.items() if sources.get(key)]
    return f"masks of corrected boxes: {'; '.join(parts)}"


class UnusableError(ValueError):
    """Why a picture's boxes cannot be taken."""


class Canvas:
    """Masks, as their runs, of a picture of this size."""

    def __init__(self, size_wh: tuple[int, int]) -> None:
        self.size_wh = size_wh
        self.hw = (size_wh[1], size_wh[0])

    def placed(self, part: BoolArray, left: int, top: int) -> Counts:
        """The runs of a mask of which a part `[h, w]` is given."""
        return rle.placed(part, left, top, self.hw)

    def united(self, codes: Iterable[str]) -> BoolArray:
        """The pixels `[H, W]` of any of some masks of the picture's size, as COCO's texts."""
        several = [rle.counts_of({"size": self.hw, "counts": code}) for code in codes]
        return rle.of_runs(rle.united(several)).reshape(self.size_wh).T if several else np.zeros(self.hw, bool)

    def window(self, box: Sequence[float]) -> tuple[slice, slice]:
        """Rows and columns of the pixels whose centres lie in a box, or of the one that it lies in."""
        sides = []
        for side, low, high in ((self.hw[0], box[1], box[3]), (self.hw[1], box[0], box[2])):
            centres = np.arange(side) + 0.5
            sides.append(slice(int(np.searchsorted(centres, low)), int(np.searchsorted(centres, high, "right"))))
        if any(side.start >= side.stop for side in sides):
            row, column = (min(int(low), side - 1) for low, side in zip((box[1], box[0]), self.hw, strict=True))
            sides = [slice(row, row + 1), slice(column, column + 1)]
        return sides[0], sides[1]

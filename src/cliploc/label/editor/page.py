"""The page of the review editor, and its pictures as the page has them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np

from cliploc.boxes.masks import outlines
from cliploc.draw.colours import as_hex, name_colour, text_colour
from cliploc.draw.html import Templates
from cliploc.formats import AnnotatedPicture
from cliploc.images import rle
from cliploc.runs.label_store import Correction, Saved

TEMPLATES = Templates(Path(__file__).with_name("templates"))
FINEST = 0.004  # of a mask's longer side: corners of its outline that are nearer to the line are left out
SAME = 0.02  # pixels between boxes that are the same, as in the editor


Box: TypeAlias = tuple[Sequence[float], int, int | None, str | None]  # corners, label, number of its draft, mask


@dataclass(frozen=True)
class ReviewPicture:
    """A picture as the editor shows it."""

    drafts: AnnotatedPicture  # all drafts, also dropped and unsure ones
    unsure: frozenset[int]  # the numbers of those that are no boxes unless a person wants them
    correction: Correction  # the boxes that hold now
    saved: Saved  # what a person did with it
    drawn: str | None = None  # a word that changes with the drafts

    def _drafts(self) -> list[Box]:
        of = self.drafts
        masks: list[str | None] = [mask["counts"] for mask in of.masks]
        masks = masks or [None] * len(of.box_ids)
        return list(zip(of.xyxy.tolist(), of.label.tolist(), of.box_ids, masks, strict=True))

    def _boxes(self) -> list[Box]:
        of, none = self.correction, [None] * len(self.correction.boxes)
        return list(zip(of.boxes, of.labels, of.drafts or none, of.masks or none, strict=True))

    def state(self) -> dict[str, Any]:
        """Everything that the editor shows, besides the picture itself."""
        drafts, boxes, of = self._drafts(), self._boxes(), self.drafts
        # Most boxes have the mask of their draft: its outline is traced once.
        masks = {mask for *_, mask in (*drafts, *boxes) if mask is not None}
        shapes = {mask: polygons_of(mask, of.size_wh) for mask in masks}
        certainty = [1.0] * len(drafts) if of.certainty is None else of.certainty.tolist()
        facts = zip(drafts, of.score.tolist(), certainty, strict=True)
        return {
            **self.entry(),
            "drafts": [
                {
                    **_box(draft, shapes),
                    "score": round(score, 4),
                    "certainty": round(certain, 4),
                    "unsure": draft[2] in self.unsure,
                }
                for draft, score, certain in facts
            ],
            "boxes": [_box(box, shapes) for box in boxes],
        }

    def entry(self) -> dict[str, Any]:
        """What the editor's list shows and filters by.

        `found`: of each box its label, score and share of the picture, and whether a person drew, changed or wanted it.
        """
        width, height = self.drafts.size_wh
        scores: dict[int | None, float] = dict(zip(self.drafts.box_ids, self.drafts.score.tolist(), strict=True))
        drafts = {draft[2]: draft for draft in self._drafts()}
        found = []
        for box in self._boxes():
            xyxy, label, origin, _ = box
            by_hand = origin not in drafts or origin in self.unsure or drafts[origin][1:] != box[1:]
            by_hand = by_hand or max(abs(a - b) for a, b in zip(drafts[origin][0], xyxy, strict=True)) > SAME
            found.append([label, round(scores.get(origin, 1.0), 4), _share(xyxy, width * height), by_hand])
        return {
            "name": self.drafts.name,
            "size": [width, height],
            "margin": round(self.drafts.margin, 4),
            "status": self.saved.status,
            "revision": self.saved.revision,
            "found": found,
            "unsure": len(self.unsure - {box[2] for box in self._boxes()}),
            "drawn": self.drawn,
        }


def facts(names: Sequence[str], masks: bool, of_set: str | None = None) -> dict[str, Any]:
    """What the editor knows of a run; `of_set`: a data set's format."""
    colours = [name_colour(index) for index in range(len(names))]
    return {
        "names": list(names),
        "colours": [as_hex(colour) for colour in colours],
        "inks": [as_hex(text_colour(colour)) for colour in colours],
        "masks": masks,
        "set": of_set,
    }


def polygons_of(counts: str, size_wh: tuple[int, int]) -> list[list[list[float]]]:
    """A mask as polygons x, y …: pieces, then their holes; the largest stays, others need a triangle."""
    width, height = size_wh
    pieces: list[list[list[float]]] = []
    part, left, top = rle.part_of({"size": [height, width], "counts": counts})
    for ring in outlines(part):
        points = ring.points + np.array([left, top], np.float32)
        finest = max(1.0, FINEST * float(np.ptp(points, axis=0).max()))
        corners = cv2.approxPolyDP(points[:, None], finest, closed=True)[:, 0].astype(np.float64)
        if len(corners) < 3 and (pieces or ring.hole):
            continue
        flat = (corners if len(corners) >= 3 else points).round(1).ravel().tolist()
        if not ring.hole:
            pieces.append([flat])
        elif pieces:
            pieces[-1].append(flat)
    return pieces


def _box(box: Box, shapes: Mapping[str, list[list[list[float]]]]) -> dict[str, Any]:
    xyxy, label, draft, mask = box
    made = {"xyxy": [round(value, 2) for value in xyxy], "label": label, "draft": draft}
    if mask is None:
        return made
    polygons = shapes[mask]  # none of an empty mask, which has no shape to edit but its box
    return {**made, "mask": mask, **({"polygons": polygons} if polygons else {})}


def _share(xyxy: Sequence[float], area: int) -> float:
    """A box's share of the picture, with three digits."""
    share = (xyxy[2] - xyxy[0]) * (xyxy[3] - xyxy[1]) / area
    return round(share, 2 - math.floor(math.log10(share))) if share > 0 else 0.0

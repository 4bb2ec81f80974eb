"""The review editor, one page: in a file that saves for `--apply`, or served by `cliploc review`."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from cliploc.boxes.outlines import outlines
from cliploc.draw.colours import as_hex, distinct_colours, text_colour
from cliploc.draw.html import Templates, jpeg_uri
from cliploc.errors import InputError
from cliploc.formats import AnnotatedPicture
from cliploc.images import rle
from cliploc.images.reading import load
from cliploc.support.files import write_atomic

REVIEW_KIND = "cliploc review"
TEMPLATES = Templates(Path(__file__).with_name("templates"))
SIDE = 640  # longest side of the pictures in the file
JPEG_QUALITY = 78
FINEST = 0.004  # of a mask's longer side: corners of its outline that are nearer to the line are left out
SAME = 0.02  # pixels between boxes that are the same, as in the editor


@dataclass(frozen=True)
class ReviewPicture:
    """A picture as the editor shows it."""

    drafts: AnnotatedPicture  # all drafts, also dropped and unsure ones
    unsure: frozenset[int]  # the numbers of those that are no boxes unless a person keeps them
    boxes: Sequence[Sequence[float]]  # those that hold now, x0, y0, x1, y1 in pixels of the upright picture
    labels: Sequence[int]  # of each, from 0
    # of each, the number of the draft that it was made from, or None for one that a person drew
    origins: Sequence[int | None]
    masks: Sequence[str | None] | None  # of each its mask, as COCO's compressed counts; None where the run has none
    status: str  # "none", "reviewed", "unsure" or "skipped", as a person set it
    revision: int  # number of times that it was saved
    drawn: str | None = None  # a word that changes with the drafts

    def state(self) -> dict[str, Any]:
        """Everything that the editor shows, besides the picture itself."""
        drafts = self.drafts
        draft_masks, masks = self._masks()
        certainty = [1.0] * len(drafts.box_ids) if drafts.certainty is None else drafts.certainty.tolist()
        # Most boxes have the mask of their draft: its outline is traced once.
        shapes = {m: polygons_of(m, drafts.size_wh) for m in {*draft_masks, *masks} if m is not None}
        columns = drafts.xyxy.tolist(), drafts.label.tolist(), drafts.score.tolist(), certainty, drafts.groups
        return {
            **self.entry(),
            "drafts": [
                {
                    **_box(xyxy, label, number, mask, shapes),
                    "score": round(score, 4),
                    "certainty": round(certain, 4),
                    "group": group,
                    "unsure": number in self.unsure,
                }
                for number, mask, xyxy, label, score, certain, group in zip(
                    drafts.box_ids, draft_masks, *columns, strict=True
                )
            ],
            "boxes": [
                _box(xyxy, label, origin, mask, shapes)
                for xyxy, label, origin, mask in zip(self.boxes, self.labels, self.origins, masks, strict=True)
            ],
        }

    def entry(self) -> dict[str, Any]:
        """What the editor's list shows and filters by.

        `found`: of each box its label, score and share of the picture, and whether a person drew, changed or kept it.
        """
        width, height = self.drafts.size_wh
        scores: dict[int | None, float] = dict(zip(self.drafts.box_ids, self.drafts.score.tolist(), strict=True))
        boxes = [
            [label, round(scores.get(origin, 1.0), 4), _share(xyxy, width * height), by_hand]
            for xyxy, label, origin, by_hand in zip(self.boxes, self.labels, self.origins, self._by_hand(), strict=True)
        ]
        return {
            "name": self.drafts.name,
            "size": [width, height],
            "margin": round(self.drafts.margin, 4),
            "status": self.status,
            "revision": self.revision,
            "found": boxes,
            "unsure": len(self.unsure - {*self.origins}),
            "drawn": self.drawn,
        }

    def _masks(self) -> tuple[Sequence[str | None], Sequence[str | None]]:
        """The mask of each draft, and of each box."""
        masks, none = [mask["counts"] for mask in self.drafts.masks], [None]
        return masks or none * len(self.drafts.box_ids), none * len(self.boxes) if self.masks is None else self.masks

    def _by_hand(self) -> list[bool]:
        """Of each box whether it is another than a draft that is not unsure."""
        draft_masks, masks = self._masks()
        columns = self.drafts.xyxy.tolist(), self.drafts.label.tolist(), draft_masks
        drafts = zip(self.drafts.box_ids, zip(*columns, strict=True), strict=True)
        sure = {number: draft for number, draft in drafts if number not in self.unsure}
        return [
            origin not in sure
            or sure[origin][1:] != (label, mask)
            or max(abs(a - b) for a, b in zip(sure[origin][0], xyxy, strict=True)) > SAME
            for xyxy, label, mask, origin in zip(self.boxes, self.labels, masks, self.origins, strict=True)
        ]


def facts(labels: Iterable[Iterable[int]], names: Sequence[str], run: str, masks: bool) -> dict[str, Any]:
    """What the editor knows of a run, with these labels of boxes in each picture."""
    colours = distinct_colours(len(names), labels)
    return {
        "kind": REVIEW_KIND,
        "run": run,
        "names": list(names),
        "colours": [as_hex(colour) for colour in colours],
        "inks": [as_hex(text_colour(colour)) for colour in colours],
        "masks": masks,
    }


def write_review(
    path: Path, pictures: Sequence[ReviewPicture], names: Sequence[str], run: str, total: int, masks: bool = False
) -> None:
    """Writes the editor with these pictures, in this order, as one file; `run` is the id of the boxes' run."""

    def records() -> Iterator[dict[str, Any]]:
        for picture in pictures:
            try:
                image = load(picture.drafts.path).image
            except InputError:
                continue  # the picture's own file can no longer be read
            image.thumbnail((SIDE, SIDE))
            yield {**picture.state(), "image": jpeg_uri(image, quality=JPEG_QUALITY)}

    def fill(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as file:
            TEMPLATES.render_to(
                file,
                "review.html",
                title="Review of draft boxes",
                server=False,
                shown=len(pictures),
                total=total,
                facts=facts((picture.labels for picture in pictures), names, run, masks),
                pictures=records(),
            )

    write_atomic(path, fill)


def served_page(facts: dict[str, Any], total: int, writable: bool) -> str:
    """The editor as a server gives it: without pictures, which it asks for."""
    return TEMPLATES.render(
        "review.html",
        title="Review of draft boxes",
        server=True,
        writable=writable,
        shown=total,
        total=total,
        facts=facts,
        pictures=[],
    )


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


def _box(
    xyxy: Sequence[float],
    label: int,
    draft: int | None,
    mask: str | None,
    shapes: Mapping[str, list[list[list[float]]]],
) -> dict[str, Any]:
    box = {"xyxy": [round(value, 2) for value in xyxy], "label": label, "draft": draft}
    if mask is None:
        return box
    polygons = shapes[mask]  # none of an empty mask, which has no shape to edit but its box
    return {**box, "mask": mask, **({"polygons": polygons} if polygons else {})}


def _share(xyxy: Sequence[float], area: int) -> float:
    """A box's share of the picture, with three digits."""
    share = (xyxy[2] - xyxy[0]) * (xyxy[3] - xyxy[1]) / area
    return round(share, 2 - math.floor(math.log10(share))) if share > 0 else 0.0

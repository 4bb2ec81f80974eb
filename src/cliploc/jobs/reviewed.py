"""What a person saved in the review editor, checked against the drafts of its picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cliploc import rle
from cliploc.jobs.annotator import Row
from cliploc.jobs.corrections import Correction, clipped
from cliploc.polygons import draw_all, outlines_of

SAME = 0.01  # pixels; coordinates are kept in hundredths


class UnusableReviewError(ValueError):
    """Why what was saved cannot be taken."""


def correction_of(boxes: Sequence[Mapping[str, Any]], row: Row, labels: int) -> Correction:
    """The boxes that the editor saved of a picture.

    Example:
        >>> row = {"width": 8, "height": 6, "boxes": []}
        >>> correction_of([{"xyxy": [1, 2, 30, 4], "label": 0}], row, 1).boxes
        [[1.0, 2.0, 8.0, 4.0]]
    """
    width, height = row["width"], row["height"]
    corners: list[list[float]] = []
    for one in boxes:
        box = clipped(one["xyxy"], (width, height))
        if box is None:
            raise UnusableReviewError("expected boxes inside the picture, with a width and a height above 0")
        if one["label"] >= labels:
            raise UnusableReviewError(f"expected labels below {labels}, got {one['label']}")
        draft = one.get("draft")
        if draft is not None and draft >= len(row["boxes"]):
            raise UnusableReviewError(f"expected drafts below {len(row['boxes'])}, got {draft}")
        corners.append(box)
    masks: list[str | None] = [_counts(one, box, (width, height)) for one, box in zip(boxes, corners, strict=True)]
    return Correction(
        corners,
        [one["label"] for one in boxes],
        masks=masks if "masks" in row else None,
        drafts=[one.get("draft") for one in boxes],
    )


def review_of(saved: Mapping[str, Any], row: Row, labels: int, kept: Sequence[int]) -> Correction | None:
    """The boxes that hold after a person saved a picture; None where its drafts hold, with their scores."""
    found = correction_of(saved["boxes"], row, labels)
    return found if saved["status"] == "reviewed" or _is_edited(found, row, kept) else None


def _is_edited(found: Correction, row: Row, kept: Sequence[int]) -> bool:
    """Whether the boxes differ from the drafts that held so far."""
    if found.drafts != list(kept) or found.labels != [row["labels"][i] for i in kept]:
        return True
    drafts = np.array([row["boxes"][i] for i in kept]).reshape(-1, 4)
    if np.abs(drafts - np.array(found.boxes).reshape(-1, 4)).max(initial=0) > SAME:
        return True
    return found.masks is not None and found.masks != [row["masks"][i] for i in kept]


def _counts(box: Mapping[str, Any], xyxy: Sequence[float], size_wh: tuple[int, int]) -> str:
    """A box's mask: as it came, from its polygons, or all of the box where these have no pixel."""
    width, height = size_wh
    if (given := box.get("mask")) is not None:
        try:
            counts = rle.uncompressed(given)
        except ValueError as error:
            raise UnusableReviewError(f"expected a mask as COCO's run lengths ({error})") from None
        if not rle.fills(counts, width * height):
            raise UnusableReviewError("expected masks of the picture's size")
        return str(given)
    try:
        mask = draw_all([outlines_of(polygon, size_wh) for polygon in box.get("polygons") or ()], (height, width))
    except ValueError as error:
        raise UnusableReviewError(f"expected polygons inside the picture ({error})") from None
    if not mask.any():  # of a polygon too: one between the pixels' centres has none
        x0, y0, x1, y1 = (round(value) for value in xyxy)
        x0, y0 = min(x0, width - 1), min(y0, height - 1)
        mask[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = True
    return rle.encode(mask)["counts"]

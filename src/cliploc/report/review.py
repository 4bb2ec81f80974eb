"""Writes a page in one file to review boxes: click to drop or keep them, then save the decisions as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cliploc import rle
from cliploc._files import write_whole
from cliploc.boxes import outlines
from cliploc.errors import InputError
from cliploc.images import load
from cliploc.report.colours import as_hex, distinct_colours
from cliploc.report.exports import AnnotatedPicture
from cliploc.report.html import REPORT_TEMPLATES, jpeg_uri

REVIEW_KIND = "cliploc review"
SIDE = 480  # longest side of the pictures in the page
JPEG_QUALITY = 78
HEIGHT = 330  # largest height of a picture on the screen


def write_review(
    path: Path,
    pictures: Sequence[AnnotatedPicture],
    names: Sequence[str],
    run: str,
    decided: Mapping[str, Mapping[str, bool]],
    total: int,
) -> None:
    """Writes a page that shows these pictures with their boxes, in this order.

    Args:
        path: the file.
        pictures: the pictures with all boxes, also dropped ones.
        names: the names of the labels.
        run: the id of the run that the decisions belong to.
        decided: picture → box → whether it is kept, from earlier reviews.
        total: the number of pictures of the run.

    Raises:
        OSError: the file cannot be written.
    """

    facts = {
        "kind": REVIEW_KIND,
        "run": run,
        "names": list(names),
        "colours": [as_hex(one) for one in distinct_colours(len(names), (one.label.tolist() for one in pictures))],
        "height": HEIGHT,
        "decided": {one.name: dict(decided[one.name]) for one in pictures if one.name in decided},
    }

    def fill(temporary: Path) -> None:
        records = (record for one in pictures if (record := _record(one)) is not None)
        with temporary.open("w", encoding="utf-8") as file:
            REPORT_TEMPLATES.render_to(
                file,
                "review.html",
                title="Review of draft boxes",
                shown=len(pictures),
                total=total,
                facts=facts,
                pictures=records,
            )

    write_whole(path, fill)


def _record(picture: AnnotatedPicture) -> dict[str, Any] | None:
    """The picture as review.js shows it; None if its file can no longer be read."""
    try:
        image = load(picture.path, str(picture.path)).image
    except InputError:
        return None
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    boxes = zip(picture.box_ids, picture.xyxy, picture.score, picture.label, picture.groups, strict=True)
    masks = [_outline(one, image.size) for one in picture.masks] or [[]] * len(picture.box_ids)
    return {
        "name": picture.name,
        "size_wh": picture.size_wh,
        "image_wh": image.size,
        "image": jpeg_uri(image, quality=JPEG_QUALITY),
        "boxes": [
            {
                "id": box_id,
                "xyxy": [round(value, 2) for value in xyxy.astype(float).tolist()],
                "score": round(float(score), 4),
                "label": int(label),
                "group": group,
                **({"mask": mask} if mask else {}),
            }
            for (box_id, xyxy, score, label, group), mask in zip(boxes, masks, strict=True)
        ],
    }


def _outline(code: rle.Rle, size_wh: tuple[int, int]) -> list[list[float]]:
    """The outlines of a mask, each as x, y, x, y … in pixels of the picture, no finer than the page shows it."""
    height, width = code["size"]
    small = Image.fromarray(rle.decode(code).astype(np.uint8)).resize(size_wh)  # nearest neighbour
    scale = np.array([width / size_wh[0], height / size_wh[1]])
    return [(ring.points * scale).round(1).ravel().tolist() for ring in outlines(np.asarray(small))]

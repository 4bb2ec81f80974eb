"""A self-contained page to look boxes through: click to drop or keep, then save the decisions as JSON."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from cliploc._files import write_whole
from cliploc.errors import InputError
from cliploc.images import load
from cliploc.report.exports import AnnotatedPicture
from cliploc.report.html import REPORT_TEMPLATES, jpeg_uri

REVIEW_KIND = "cliploc review"
SIDE = 480  # longest side of the pictures in the page
JPEG_QUALITY = 78
HEIGHT = 330  # at most, of a picture on the screen


def write_review(
    path: Path,
    pictures: Sequence[AnnotatedPicture],
    names: Sequence[str],
    run: str,
    decided: Mapping[str, Mapping[str, bool]],
    total: int,
) -> None:
    """Writes a page with these pictures, in this order, and all that is needed to decide on their boxes.

    Args:
        path: the file.
        pictures: with all boxes, dropped ones too.
        names: of the labels.
        run: what the decisions will belong to.
        decided: picture → box → whether it is kept, of reviews before.
        total: how many pictures the run has.

    Raises:
        OSError: the file cannot be written.
    """

    facts = {
        "kind": REVIEW_KIND,
        "run": run,
        "names": list(names),
        "colours": [_colour(i) for i in range(len(names))],
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
    """A picture that has gone since is left out."""
    try:
        image = load(picture.path, str(picture.path)).image
    except InputError:
        return None
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    boxes = zip(picture.box_ids, picture.xyxy, picture.score, picture.label, picture.groups, strict=True)
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
            }
            for box_id, xyxy, score, label, group in boxes
        ],
    }


def _colour(index: int) -> str:
    """Hues far from each other, however many; light enough to be seen on any photograph."""
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.85, 1))
    return f"#{red:02x}{green:02x}{blue:02x}"

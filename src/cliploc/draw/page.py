"""Writes results as one HTML page in one file: pictures embedded, no script, no external font, light and dark."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cliploc.draw import captions, overlay
from cliploc.draw.colours import name_colour
from cliploc.draw.html import TEMPLATES, count, embedded
from cliploc.localization import Localization, Verdict
from cliploc.support.files import write_atomic
from cliploc.values import GOOD_IOU, FloatArray, rounded_below

PHOTO_WIDTH = 320  # of a picture on the page, for which labels and lines are drawn
DENSE = 2  # pixels of a screen in one of the page: embedded pictures have as many, where the photograph has them
JPEG_QUALITY = 70
COLUMNS = (4, 6)  # fewest and most pictures in a row on a wide screen; with fewer, photographs would differ in size


@dataclass(frozen=True)
class PageItem:
    """One photograph on the page."""

    result: Localization  # the result for it
    credit: str  # its author, source and licence, as plain text
    # name → its true boxes, [k, 4] xyxy in original pixels; a name without an entry is not in the picture
    truth: Mapping[str, FloatArray]
    ious: Mapping[str, float | None]  # name → IoU of its best box with the true box; None where one of them is missing


def write_page(
    path: str | os.PathLike[str],
    title: str,
    items: Sequence[PageItem],
    settings: Mapping[str, Any],
    hint: str = "",  # a line below the settings, such as the command that uses another model
) -> None:
    """A page of results beside the truth: names found, missed and invented, then overlays, table, settings."""
    names = sum(len(item.result.names) for item in items)
    summary = f"{count(len(items), 'picture')}, {count(names, 'name')} asked for"
    if ious := [iou for item in items for iou in item.ious.values() if iou is not None]:
        summary += f"; mean IoU of the best boxes with the true ones {np.mean(ious):.2f}"
    page = TEMPLATES.render(
        "page.html",
        title=title,
        settings=settings,
        hint=hint,
        counts=_counts(items),
        summary=f"{summary}.",
        photos=[_photo(item) for item in items],
    )
    content = page.encode("utf-8", "backslashreplace")
    write_atomic(Path(path), lambda temporary: temporary.write_bytes(content))


def _counts(items: Sequence[PageItem]) -> list[tuple[str, int, int, str]]:
    """How many names were found, missed and invented, each of how many; nothing where no truth is known."""
    judged = [
        (name in item.truth, right[0])
        for item in items
        for index, name in enumerate(item.result.names)
        if (right := judgement(item, name, item.result.verdict(index), item.ious.get(name)))
    ]
    present = [right for is_present, right in judged if is_present]
    absent = [right for is_present, right in judged if not is_present]
    found, invented = sum(present), len(absent) - sum(absent)
    if not judged:
        return []
    return [
        ("found", found, len(present), f"in the picture, with a box on it (IoU ≥ {GOOD_IOU:g})"),
        ("missed", len(present) - found, len(present), "in the picture, without a box or with one elsewhere"),
        ("invented", invented, len(absent), "not in the picture, but found"),
    ]


def _photo(item: PageItem) -> dict[str, Any]:
    """A photograph as page.html shows it: a row of pictures for each result, and a row of the table for each name."""
    result = item.result
    rows = []
    for index, name in enumerate(result.names):
        best, iou = result.visible_boxes.xyxy[result.visible_boxes.label == index][:1], item.ious.get(name)
        rows.append(
            {
                "name": name,
                "there": name in item.truth,
                "found": result.verdict(index),
                "score": result.scores[index],
                "presence": result.presence_text(index),
                "box": [end for box in best for end in box],
                "iou": "–" if iou is None else rounded_below(iou, GOOD_IOU),
                "judgement": judgement(item, name, result.verdict(index), iou),
            }
        )
    least, most = COLUMNS
    return {
        "file": overlay.file_name(result),
        "size_wh": result.image.size,
        "notes": result.notes,
        "credit": item.credit,
        "legend": [(name, name_colour(index)) for index, name in enumerate(result.names)],
        "has_truth": bool(item.truth),
        "columns": min(max(1 + len(result.names), least), most),
        "results": [_pictures(item, result, item.ious)],
        "rows": rows,
    }


def _pictures(item: PageItem, result: Localization, ious: Mapping[str, float | None]) -> dict[str, Any]:
    """A row of pictures: all boxes, and the heat of every name with its judgement."""
    width, height = result.image.size
    small = overlay.scaled(
        result, overlay.fit_within(result.image.size, round(DENSE * PHOTO_WIDTH * max(1.0, height / width)))
    )
    dense = max(1.0, small.image.width / PHOTO_WIDTH)
    boxes = small.image.convert("RGB").copy()
    ratio = np.array(boxes.size * 2) / np.array(item.result.image.size * 2)
    line = captions.line_width(boxes.size, dense)
    for index, name in enumerate(small.names):
        for xyxy in np.asarray(item.truth.get(name, np.zeros((0, 4)))).reshape(-1, 4) * ratio:
            rectangle = captions.to_rectangle(xyxy, boxes.size)
            captions.draw_box(boxes, rectangle, name_colour(index), line, dash=round(1.5 * line))
    overlay.paint_boxes(boxes, small, {i: name_colour(i) for i in range(len(small.names))}, dense)
    names = ", ".join(name for name, is_found in zip(result.names, result.found, strict=True) if is_found) or "none"
    true = ", ".join(name for name in result.names if name in item.truth) or "none given"
    title = overlay.run_line(result)
    alt = f"{overlay.file_name(result)}, {title or 'all names'}; boxes found: {names}; true boxes: {true}"
    return {
        "title": title,
        "boxes": _picture(boxes, alt),
        "heats": [
            {
                "picture": _picture(
                    overlay.draw_names(small, [index], dense=dense), overlay.heatmap_alt(result, index)
                ),
                "name": name,
                "verdict": overlay.verdict(result, index),
                "judgement": judgement(item, name, result.verdict(index), ious.get(name)),
            }
            for index, name in enumerate(result.names)
        ],
    }


def judgement(item: PageItem, name: str, verdict: Verdict, iou: float | None) -> tuple[bool, str] | None:
    """Whether the result for a name is right, and why in a few words; None where the truth or the IoU is not known."""
    if not item.truth:
        return None
    if name not in item.truth:
        return (False, "found, but it is not there") if verdict == "found" else (True, f"rightly {verdict}")
    if verdict == "not found":
        return False, "missed: it is there"
    if iou is None:
        return None
    right, doubt = iou >= GOOD_IOU, "" if verdict == "found" else "unsure; "
    return right, f"{doubt}{'' if right else 'wrong box: '}IoU {rounded_below(iou, GOOD_IOU)}"


def _picture(image: Image.Image, alt: str) -> dict[str, Any]:
    return embedded(image, alt, quality=JPEG_QUALITY, optimize=True, progressive=True)

"""check.html: suspects as crops with the given and the likelier name, by kind and name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cliploc.draw import captions
from cliploc.draw.colours import name_colour
from cliploc.draw.html import Templates, embedded
from cliploc.errors import InputError
from cliploc.images.reading import load
from cliploc.label.checking.report import KINDS, PAGE, Checked, Suspect
from cliploc.support.files import write_bytes

TEMPLATES = Templates(Path(__file__).with_name("templates"))
SHOWN = 60  # suspects of a kind
SIDE = 260  # pixels of a crop's longer side
AROUND = 1.8  # of a box's longer side, which a crop shows
LEAST_SHOWN = 48  # pixels of the picture in a crop
ABOUT = {
    "wrong name": "Another name fits what is in the box better.",
    "badly placed": "What is in the box does not end where the box ends.",
    "missing": "Something is found where no label of its name is.",
    "double": "Nearly the same box twice, with the same name.",
    "odd": "Wrong whatever is in the box.",
}


def write_page(out: Path, checked: Checked, files: Mapping[str, Path]) -> None:
    """Writes the page; `files` are those of the pictures."""
    sections = []
    for kind in KINDS:
        suspects = checked.of(kind)
        by_name: dict[str, list[dict[str, Any]]] = {}  # in the order of the worst
        for one in islice(suspects, SHOWN):
            by_name.setdefault(one.name or one.likelier, []).append(_shown(one, files))
        sections.append({"kind": kind, "about": ABOUT[kind], "names": by_name, "suspects": len(suspects)})
    page = TEMPLATES.render(
        "check.html", title="Labels that may be wrong", kinds=checked.kinds(), pairs=checked.pair_table(),
        sections=sections, most=SHOWN, notes=checked.notes, summary=checked.summary(),
    )  # fmt: skip
    write_bytes(out / PAGE, page.encode("utf-8", "backslashreplace"))


def _shown(one: Suspect, files: Mapping[str, Path]) -> dict[str, Any]:
    try:
        picture = crop(load(files[one.picture]).image, [*_edges(one)])
    except InputError:  # gone since it was read
        picture = None
    alt = f"{one.name or 'no label'} in {one.picture}"
    return {"suspect": one, "picture": None if picture is None else embedded(picture, alt, quality=75, optimize=True)}


def _edges(one: Suspect) -> Iterator[float]:
    yield from (edge for edge in (one.x0, one.y0, one.x1, one.y1) if edge is not None and np.isfinite(edge))


def crop(image: Image.Image, edges: list[float]) -> Image.Image:
    """The box with what is around it; the picture where there is no box."""
    if len(edges) < 4:
        image.thumbnail((SIDE, SIDE))
        return image
    size, box = np.array(image.size), np.clip(edges, 0, image.size * 2)
    side = max(LEAST_SHOWN, AROUND * float((box[2:] - box[:2]).max()))
    part = np.minimum(side, size)
    corner = np.clip((box[:2] + box[2:] - part) / 2, 0, size - part).round()
    shown = image.crop((*corner.astype(int).tolist(), *(corner + part).round().astype(int).tolist()))
    ratio = SIDE / max(shown.size)
    shown = shown.resize((max(1, round(shown.width * ratio)), max(1, round(shown.height * ratio))))
    rectangle = captions.to_rectangle((box - np.tile(corner, 2)) * ratio, shown.size)
    captions.draw_box(shown, rectangle, name_colour(0), captions.line_width(shown.size))
    return shown

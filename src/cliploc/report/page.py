"""Results as one self-contained HTML page: pictures inside, no script, no outside font, light and dark."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cliploc.report import _draw
from cliploc.report._html import STYLE, count, decimal, escape
from cliploc.report.overlay import draw_names, fit_within, paint_boxes, scaled, verdict
from cliploc.schema import FloatArray, Localization

PAGE_STYLE = "thead th:nth-child(n+5) { text-align: right; }\n"
PHOTO_SIDE, HEAT_SIDE = 640, 480  # longest sides of the pictures in the page; with them ten photos stay below 4 MB
JPEG_QUALITY = 82


@dataclass(frozen=True)
class PageItem:
    """One photograph on the page.

    Attributes:
        result: what was found in it.
        credit: its author, source and licence, as plain text.
        truth: name → its true boxes, `[k, 4]` xyxy in original pixels; a name left out is not in the picture.
        ious: name → IoU of its best box with the true one; None where there is nothing to compare.
        beside: title → what another model or method says of the same names; its heat is shown below.
    """

    result: Localization
    credit: str
    truth: Mapping[str, FloatArray]
    ious: Mapping[str, float | None]
    beside: Mapping[str, Localization] = field(default_factory=dict)


def write_page(
    path: str | os.PathLike[str],
    title: str,
    items: Sequence[PageItem],
    settings: Mapping[str, Any],
    hint: str = "",
) -> None:
    """Writes a page that shows what was found where, beside what is there.

    For each photograph: the original with true boxes (dashed) and found ones (solid), and a heat overlay for every name
    with its score and IoU, also by what stands beside; at the end a table of all.

    Args:
        path: the file; written over if it exists.
        title: the page's heading.
        items: the photographs.
        settings: shown in the header (model, method …).
        hint: a line below the settings, such as the command that uses another model.

    Raises:
        OSError: the file cannot be written.

    Example:
        >>> write_page("demo.html", "cliploc demo", items, {"model": "mini", "method": "cam"})  # doctest: +SKIP
    """
    Path(path).write_text(_page(title, items, settings, hint), encoding="utf-8", errors="backslashreplace")


def _page(title: str, items: Sequence[PageItem], settings: Mapping[str, Any], hint: str) -> str:
    chosen = "".join(f"<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>" for key, value in settings.items())
    articles = "\n".join(_article(number, item) for number, item in enumerate(items))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{STYLE}{PAGE_STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<dl>{chosen}</dl>
{f"<p class=hint>{escape(hint)}</p>" if hint else ""}
</header>
<main>
<p>{escape(_summary(items))} <a href="#table">Table of all results</a></p>
{articles}
<section id="table" aria-labelledby="table-name">
<h2 id="table-name">All results</h2>
{_table(items)}
</section>
</main>
</body>
</html>
"""


def _summary(items: Sequence[PageItem]) -> str:
    """Counts in words: how many names of how many photos, how well the boxes fit, how often absence was seen."""
    asked = sum(len(item.result.names) for item in items)
    words = [f"{count(len(items), 'photo')}, {count(asked, 'name')} asked for."]
    ious = [iou for item in items for iou in item.ious.values() if iou is not None]
    if ious:
        good = sum(iou >= 0.5 for iou in ious)
        words.append(f"Mean IoU with the true boxes {np.mean(ious):.2f}; {good} of {len(ious)} at least 0.5.")
    absent = [bool(f) for item in items for n, f in _pairs(item.result) if n not in item.truth]
    if absent and any(item.truth for item in items):
        words.append(f"Of {count(len(absent), 'name')} that {'is' if len(absent) == 1 else 'are'} not in the picture, ")
        words[-1] += f"{len(absent) - sum(absent)} rightly reported as not found."
    return " ".join(words)


def _pairs(result: Localization) -> list[tuple[str, bool]]:
    return [(name, bool(found)) for name, found in zip(result.names, result.found, strict=True)]


def _table(items: Sequence[PageItem]) -> str:
    rows = []
    for number, item in enumerate(items):
        result = item.result
        for index, name in enumerate(result.names):
            best = result.boxes.xyxy[result.boxes.label == index][:1]
            presence = None if result.presence is None else result.presence[index]
            photo = f'<a href="#photo-{number}">{escape(_file(result))}</a>'
            cells = [
                f"<th scope=row>{photo}</th>",
                f"<td>{escape(name)}</td>",
                f"<td>{'yes' if name in item.truth else 'no'}</td>",
                f"<td>{_mark(bool(result.found[index]), name in item.truth)}</td>",
                f"<td class=n>{decimal(result.scores[index], 3)}</td>",
                f"<td class=n>{decimal(presence, 2)}</td>",
                f"<td class=n>{', '.join(f'{value:.0f}' for value in best[0]) if len(best) else '–'}</td>",
                f"<td class=n>{decimal(item.ious.get(name), 2)}</td>",
            ]
            rows.append(f"<tr>{''.join(cells)}</tr>")
    heads = ["photo", "name", "in the picture", "found", "cosine", "presence", "best box, xyxy px", "IoU"]
    head = "".join(f"<th scope=col>{one}</th>" for one in heads)
    return (
        '<div class=scroll role=region aria-label="Results, a row for each photo and name" tabindex=0>'
        f"<table><thead><tr>{head}</tr></thead><tbody>\n" + "\n".join(rows) + "\n</tbody></table></div>"
    )


def _mark(found: bool, there: bool) -> str:
    """Yes or no, and whether that is right: by a sign and a word, not by colour alone."""
    word = "yes" if found else "no"
    right = found == there
    return f"<span class={'right' if right else 'wrong'}>{word} {'✓' if right else '✗ wrong'}</span>"


def _article(number: int, item: PageItem) -> str:
    result = item.result
    width, height = result.image.size
    figures = [_figure(_truth_picture(item), _truth_alt(item), _legend(item))]
    for title, one in {"": result, **item.beside}.items():
        heat = scaled(one, fit_within(result.image.size, HEAT_SIDE))
        for index, name in enumerate(one.names):
            words = " ".join([verdict(one, index), *([f"· {title}"] if title else [])])
            caption = f"<b>{escape(name)}</b> {escape(words)}{'' if title else _fit(item, name)}"
            figures.append(_figure(draw_names(heat, [index]), _heat_alt(one, index), caption))
    notes = "".join(f" · {escape(note)}" for note in result.notes)
    return f"""<article id="photo-{number}" aria-labelledby="photo-{number}-name">
<h2 id="photo-{number}-name">{escape(_file(result))} <small>{width}×{height}{notes}</small></h2>
<div class=pictures>
{"".join(figures)}</div>
<p class=credit>{escape(item.credit)}</p>
</article>"""


def _truth_picture(item: PageItem) -> Image.Image:
    shown = scaled(item.result, fit_within(item.result.image.size, PHOTO_SIDE))
    image = shown.image.convert("RGB").copy()
    ratio = np.array(shown.image.size * 2) / np.array(item.result.image.size * 2)
    line = _draw.line_width(image.size)
    for index, name in enumerate(shown.names):
        for xyxy in np.asarray(item.truth.get(name, np.zeros((0, 4)))).reshape(-1, 4) * ratio:
            rectangle = _draw.to_rectangle(xyxy, image.size)
            _draw.draw_box(image, rectangle, _draw.name_colour(index), max(2, line // 2), dash=3 * line)
    paint_boxes(image, shown, {i: _draw.name_colour(i) for i in range(len(shown.names))})
    return image


def _legend(item: PageItem) -> str:
    chips = []
    for index, name in enumerate(item.result.names):
        red, green, blue = _draw.name_colour(index)
        chips.append(f'<span class=chip><i style="background:rgb({red},{green},{blue})"></i>{escape(name)}</span>')
    lines = "solid: found · dashed: true" if item.truth else "solid: found"
    return f"{' '.join(chips)} <span>{lines}</span>"


def _fit(item: PageItem, name: str) -> str:
    iou = item.ious.get(name)
    return f" · <b>IoU {iou:.2f}</b>" if iou is not None else ""


def _truth_alt(item: PageItem) -> str:
    found = [name for name, found in _pairs(item.result) if found]
    there = [name for name in item.result.names if name in item.truth]
    drawn, true = ", ".join(found) or "none", ", ".join(there) or "none given"
    return f"{_file(item.result)}; boxes found: {drawn}; true boxes: {true}"


def _heat_alt(result: Localization, index: int) -> str:
    boxes = result.boxes.xyxy[result.boxes.label == index]
    where = "; ".join("box from {:.0f}, {:.0f} to {:.0f}, {:.0f}".format(*box) for box in boxes) or "no box"
    return f"{_file(result)} with the heatmap for “{_draw.clean(result.names[index])}”: {where}"


def _figure(image: Image.Image, alt: str, caption: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True, progressive=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    size = f"width={image.width} height={image.height}"
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" {size} alt="{escape(alt)}">'
        f"<figcaption>{caption}</figcaption></figure>\n"
    )


def _file(result: Localization) -> str:
    return result.source.replace("\\", "/").rsplit("/", 1)[-1]

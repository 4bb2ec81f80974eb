"""What the page shows of a look, as HTML with the pictures inside, and the files that it hands out."""

from __future__ import annotations

import base64
import io
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from cliploc.errors import UsageError
from cliploc.localization import Localization
from cliploc.report import clean, draw_overlay, name_colour, to_document
from cliploc.report.exports import AnnotatedPicture, Export, ExportSettings, exports
from cliploc.report.html import count, decimal, escape
from cliploc.report.overlay import draw_names, verdict
from cliploc.saliency import find
from cliploc.web.engine import slim
from cliploc.web.settings import Settings, to_json

SHOWN_SIDE = 720  # of a picture on the page; downloads have the photograph's own size
JPEG_QUALITY = 85
MAX_NAME_BYTES = 90  # of a photograph's and of a name's part in a file's name
MAX_VALUES = 250_000_000  # of the heatmaps that are written at once: 1 GB


def results_html(results: Mapping[str, Localization], opacity: float) -> str:
    """A figure for every name and method, one of all names together, and a table of scores and boxes.

    Args:
        results: method → what it found in the same photograph.
        opacity: of the hottest places, 0–1.
    """
    shown = {method: _shown(one) for method, one in results.items()}
    first = next(iter(results.values()))
    several = len(results) > 1
    figures = []
    for index in range(len(first.names)):
        for method, one in shown.items():
            figures.append(_name_figure(results[method], one, index, opacity, find(method).title if several else ""))
    if len(first.names) > 1:
        for method, one in shown.items():
            picture = draw_names(one, list(range(len(one.names))), opacity)
            found = [name for name, there in zip(one.names, one.found, strict=True) if there]
            title = "All names" + (f" · {find(method).title}" if several else "")
            caption = f"<b>{escape(title)}</b> {_chips(one)}"
            figures.append(_figure(picture, f"{title}; found: {', '.join(found) or 'none'}", caption))
    notes = "".join(
        f"<li>{escape(note)}</li>" for note in dict.fromkeys(n for one in results.values() for n in one.notes)
    )
    wide = " paired" if several else ""
    return (
        f'<div class="cliploc-pictures{wide}">{"".join(figures)}</div>'
        f"{f'<ul>{notes}</ul>' if notes else ''}{_table(results)}"
    )


def _shown(result: Localization) -> Localization:
    """The result for a picture of the size that the page shows; it may hold a smaller copy already."""
    height, width = result.frame.original_hw
    small = slim(result, SHOWN_SIDE)
    ratio = np.array([small.image.width / width, small.image.height / height] * 2, dtype=np.float32)
    frame = replace(small.frame, original_hw=(small.image.height, small.image.width))
    return replace(small, frame=frame, boxes=replace(small.boxes, xyxy=small.boxes.xyxy * ratio))


def _name_figure(whole: Localization, shown: Localization, index: int, opacity: float, title: str) -> str:
    boxes = whole.boxes.xyxy[whole.boxes.label == index]
    where = "; ".join("box from {:.0f}, {:.0f} to {:.0f}, {:.0f}".format(*box) for box in boxes) or "no box"
    name = clean(whole.names[index])
    alt = f"{whole.source} with the heatmap for “{name}”{f' by {title}' if title else ''}: {where}"
    head = escape(name) + (f" · {escape(title)}" if title else "")
    return _figure(draw_names(shown, [index], opacity), alt, f"<b>{head}</b> {escape(verdict(whole, index))}")


def _chips(result: Localization) -> str:
    chips = []
    for index, name in enumerate(result.names):
        red, green, blue = name_colour(index)
        chips.append(f'<span class=chip><i style="background:rgb({red},{green},{blue})"></i>{escape(name)}</span>')
    return " ".join(chips)


def _figure(image: Image.Image, alt: str, caption: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    size = f"width={image.width} height={image.height}"
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" {size} alt="{escape(alt)}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _table(results: Mapping[str, Localization]) -> str:
    rows = []
    several = len(results) > 1
    for method, one in results.items():
        for index, name in enumerate(one.names):
            mine = one.boxes.label == index
            boxes = [
                f"{' '.join(f'{value:.0f}' for value in xyxy)} <span class=soft>({score:.2f})</span>"
                for xyxy, score in zip(one.boxes.xyxy[mine], one.boxes.score[mine], strict=True)
            ]
            found = bool(one.found[index])
            cells = [
                f"<th scope=row>{escape(name)}</th>",
                *([f"<td>{escape(find(method).title)}</td>"] if several else []),
                f"<td class={'found' if found else 'absent'}>{'✓ found' if found else '✗ not found'}</td>",
                f"<td>{decimal(one.scores[index], 3)}</td>",
                f"<td>{decimal(None if one.presence is None else one.presence[index], 2)}</td>",
                f"<td class=boxes>{'<br>'.join(boxes) or escape(one.reasons[index] or '–')}</td>",
            ]
            rows.append(f"<tr>{''.join(cells)}</tr>")
    heads = [
        "name",
        *(["method"] if several else []),
        "result",
        "cosine",
        "presence",
        "boxes: left top right bottom (score)",
    ]
    head = "".join(f"<th scope=col>{one}</th>" for one in heads)
    return (
        '<div class=cliploc-table role=region aria-label="Scores and boxes of each name" tabindex=0>'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def summary(results: Mapping[str, Localization]) -> str:
    """One line for the page: how many of the names were found."""
    parts = []
    for method, one in results.items():
        found = f"{int(one.found.sum())} of {count(len(one.names), 'name')} found, {_boxes(len(one.boxes))}"
        parts.append(f"{find(method).title}: {found}")
    return " · ".join(parts)


def _boxes(number: int) -> str:
    return "1 box" if number == 1 else f"{number} boxes"


def document(results: Mapping[str, Localization], settings: Settings) -> dict[str, object]:
    """The document of docs/json.md, a picture's entry for each method, which it names."""
    whole = to_document(list(results.values()), [], to_json(settings))
    for entry, method in zip(whole["pictures"], results, strict=True):
        entry["method"] = method
    return whole


def write_files(
    folder: Path,
    results: Mapping[str, Localization],
    settings: Settings,
    model: str,
    on_file: Callable[[], None] = lambda: None,
) -> list[str]:
    """Writes what can be downloaded.

    For every method an overlay of the photograph's size, its heatmaps as one array `[P, H, W]` float32 in 0–1 and as
    16-bit greys, a picture a name, 65535 for 1, and its boxes in every format of `downloads`; one results.json; and
    all of them as a zip, which comes first.

    Args:
        folder: an empty one.
        results: method → what it found, with the whole photograph.
        settings: what was asked.
        model: as the files name it.
        on_file: called before each name's file; may raise to end it.

    Raises:
        UsageError: so many names of so large a photograph that their heatmaps would fill the memory.

    Returns:
        The files' paths.
    """
    paths = []
    for method, one in results.items():
        width, height = one.image.size
        most = MAX_VALUES // (width * height)
        if len(one.names) > most:
            raise UsageError(
                f"expected at most {most} names for the files of a photograph of {width}×{height} pixels, got "
                f"{len(one.names)}: leave some out, or make it smaller"
            )
        behind = f"_{_plain(method)}" if len(results) > 1 else ""
        stem = _plain(Path(one.source).stem) + behind
        paths.append(folder / f"{stem}_overlay.png")
        draw_overlay(one, opacity=settings.opacity).save(paths[-1])
        heatmaps = one.heatmaps  # [P, H, W]
        paths.append(folder / f"{stem}_heatmaps.npy")
        np.save(paths[-1], heatmaps, allow_pickle=False)
        for index, name in enumerate(one.names):
            on_file()
            paths.append(folder / f"{stem}_{index + 1}_{_plain(name)}.png")
            Image.fromarray((heatmaps[index].clip(0, 1) * 65535).round().astype(np.uint16)).save(paths[-1])
        export = ExportSettings(one.names, f"{model}, {method}", image_url="/data/local-files/?d=")
        for form in downloads():
            part = folder / f"{form.name}{behind}.part"
            part.mkdir()
            form.write(partial(_annotated, one), export, part)
            for written in [part / name for name in form.files]:
                paths.append(folder / f"{written.stem}{behind}{written.suffix}")
                written.rename(paths[-1])
            part.rmdir()
    paths.append(folder / "results.json")
    text = json.dumps(document(results, settings), ensure_ascii=False, indent=1, allow_nan=False)
    paths[-1].write_text(text, encoding="utf-8")
    everything = folder / f"{_plain(Path(next(iter(results.values())).source).stem)}.zip"
    with zipfile.ZipFile(everything, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            archive.write(path, path.name)
    return [str(path) for path in (everything, *paths)]


def downloads() -> tuple[Export, ...]:
    """The export formats that the page writes: those of single files, as it has no pictures to lie beside them."""
    return tuple(one for one in exports if not one.folders and "picture_files" not in one.needs)


def _annotated(result: Localization) -> list[AnnotatedPicture]:
    """The boxes as the other tools' writers take them."""
    boxes = result.boxes
    number = len(boxes)
    return [
        AnnotatedPicture(
            number=1,
            name=result.source,
            path=Path(result.source),
            size_wh=result.image.size,
            xyxy=boxes.xyxy,
            score=boxes.score,
            label=boxes.label,
            box_ids=tuple(range(number)),
            groups=(False,) * number,
            margin=0.0,  # only of use where pictures are put in order
        )
    ]


def _plain(text: str) -> str:
    """Letters and digits that every file system takes: of a file's name, which may have 255 bytes, a part."""
    kept = re.sub(r"[^\w-]+", "_", text)[:60]
    return kept.encode()[:MAX_NAME_BYTES].decode(errors="ignore") or "_"

"""The results as a JSON document and as files to download."""

import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cliploc import Localization, Reporter
from cliploc.document import to_document
from cliploc.draw.comparison import ModelResults, draw_comparison
from cliploc.draw.overlay import draw_overlay, fit_within, label_legend, label_picture, scaled
from cliploc.draw.sheet import MAX_SIDE
from cliploc.find.recipes import Recipe
from cliploc.formats import AnnotatedPicture, ExportSettings, exports
from cliploc.images.rle import Rle, encode
from cliploc.options import IMAGE_URL
from cliploc.support.reporter import SILENT
from cliploc.web.service import title_of
from cliploc.web.settings import KEYS, Settings, recipe_in

MAX_NAME_BYTES = 90  # of the photograph's name, and of a typed name, in a file name


def document(results: Mapping[str, Localization], settings: Settings, recipe: Recipe | None = None) -> dict[str, Any]:
    """The document of docs/json.md with an entry for each method, which has the keys "method" and "recipe" too."""
    values = {key: getattr(settings, key) for key in KEYS}
    document = to_document(list(results.values()), [], values, settings.masks)
    for entry, method in zip(document["pictures"], results, strict=True):
        ran = None if recipe_in(method) is None else recipe
        entry["method"] = method if ran is None else ran.method
        entry["recipe"] = None if ran is None else {"name": ran.name, "options": str(ran)}
    return document


def write_files(
    folder: Path,
    results: Mapping[str, Localization],
    settings: Settings,
    model: str,
    reporter: Reporter = SILENT,
    recipe: Recipe | None = None,
) -> list[Path]:
    """Writes overlays, heatmaps (npy, 16-bit grey), boxes in all formats, masks, results.json, a zip (first).

    Overlays and heatmaps have at most `MAX_SIDE` pixels, boxes and masks are those of the photograph.
    """
    paths: list[Path] = []

    def file(name: str) -> Path:
        paths.append(folder / name)
        return paths[-1]

    for method, result in results.items():
        behind = f"_{_plain(method)}" if len(results) > 1 else ""
        stem = _plain(Path(result.source).stem) + behind
        small = scaled(result, fit_within(result.image.size, MAX_SIDE))
        overlay = draw_overlay(small, opacity=settings.opacity, masks=settings.masks)
        overlay.save(file(f"{stem}_overlay.png"))
        if settings.masks:
            label_picture(result.label_map(), len(result.names)).save(file(f"{stem}_labels.png"))
        width, height = fit_within(result.image.size, MAX_SIDE)
        heatmaps = np.lib.format.open_memmap(  # [P, H, W], written name by name
            file(f"{stem}_heatmaps.npy"), "w+", np.float32, (len(result.names), height, width)
        )
        for index, name in enumerate(result.names):
            path = file(f"{stem}_{index + 1}_{_plain(name)}.png")
            reporter.phase(f"writing {path.name}")
            heat = replace(result, maps=result.maps[index : index + 1]).maps_over_picture((height, width))[0]
            heatmaps[index] = heat
            Image.fromarray((heat * 65535).round().astype(np.uint16)).save(path)
        del heatmaps  # writes what is left
        export = ExportSettings(result.names, f"{model}, {title_of(method, result)}", IMAGE_URL, settings.masks)
        codes = {index: encode(mask) for index, mask in result.box_masks()} if settings.masks else {}
        masks = tuple(codes[index] for index in range(len(codes)))
        for form in (export for export in exports if not export.folders):
            part = folder / f"{form.name}{behind}.part"
            part.mkdir()
            form.write(partial(_annotated, result, masks), export, part)
            for written in [part / name for name in form.files]:
                written.rename(file(f"{written.stem}{behind}{written.suffix}"))
            part.rmdir()
    first = next(iter(results.values()))
    if len(results) > 1:
        reporter.phase("writing the comparison")
        titles = {method: title_of(method, result) for method, result in results.items()}
        sheet = draw_comparison([ModelResults(model, results)], titles)
        sheet.image().save(file(f"{_plain(Path(first.source).stem)}_compare.png"))
    if settings.masks:
        legend = json.dumps(label_legend(first.names), ensure_ascii=False, indent=1)
        file("labels.json").write_text(legend, encoding="utf-8")
    text = json.dumps(document(results, settings, recipe), ensure_ascii=False, indent=1, allow_nan=False)
    file("results.json").write_text(text, encoding="utf-8")
    everything = folder / f"{_plain(Path(first.source).stem)}.zip"
    with zipfile.ZipFile(everything, "w") as archive:  # as they are: heatmaps hardly become smaller
        for path in paths:
            reporter.phase(f"packing {path.name}")
            archive.write(path, path.name)
    return [everything, *paths]


def _annotated(result: Localization, masks: tuple[Rle, ...]) -> list[AnnotatedPicture]:
    """The result in the form that the export formats take."""
    boxes = result.boxes
    return [
        AnnotatedPicture(
            number=1,
            name=result.source,
            path=Path(result.source),
            size_wh=result.image.size,
            xyxy=boxes.xyxy,
            score=boxes.score,
            label=boxes.label,
            box_ids=tuple(range(len(boxes))),
            margin=0.0,  # only used to sort pictures
            certainty=None if result.presence is None else result.presence[boxes.label],
            masks=masks,
        )
    ]


def _plain(text: str) -> str:
    """A part of a file name: letters and digits that every file system accepts, short enough for its 255 bytes."""
    plain = re.sub(r"[^\w-]+", "_", text)[:60]
    return plain.encode()[:MAX_NAME_BYTES].decode(errors="ignore") or "_"

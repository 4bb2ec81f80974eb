"""COCO's JSON format of boxes and masks (Lin et al. 2014), with a score for each box."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cliploc.boxes.outlines import outlines
from cliploc.formats import (
    Export,
    ExportSettings,
    Pictures,
    export,
    json_list,
    number,
)
from cliploc.images import rle
from cliploc.support.files import write_atomic


@export
class Coco(Export):
    """COCO's JSON format, one file."""

    name = "coco"
    about = "COCO's JSON: x, y, width, height in pixels with fractions; `score` on each; ids from 1"
    files = ("coco.json",)
    needs = frozenset({"polygons"})

    def write(self, pictures: Pictures, settings: ExportSettings, folder: Path) -> None:
        """Writes `coco.json`; ids count from 1."""
        from supervision.dataset.formats.coco import classes_to_coco_categories, detections_to_coco_annotations

        def images() -> Iterator[dict[str, Any]]:
            for picture in pictures():
                width, height = picture.size_wh
                yield {"id": picture.number, "file_name": picture.name, "width": width, "height": height}

        def annotations() -> Iterator[dict[str, Any]]:
            next_id = 1
            for picture in pictures():
                written, next_id = detections_to_coco_annotations(picture.detections(), picture.number, next_id)
                for i, (box, score) in enumerate(zip(written, picture.score, strict=True)):
                    bbox = [number(value) for value in box["bbox"]]
                    shape = {"area": number(bbox[2] * bbox[3])}
                    if settings.masks:
                        shape = _segmentation(picture.masks[i], settings.polygons)
                    yield {**box, "bbox": bbox, **shape, "score": number(score)}

        def fill(path: Path) -> None:
            with path.open("w", encoding="utf-8") as file:
                file.write(f'{{"info": {json.dumps({"description": f"draft boxes by cliploc, {settings.model}"})},\n')
                file.write(f'"categories": {json.dumps(classes_to_coco_categories(list(settings.names)))},\n"images": ')
                json_list(file, images())
                file.write(',\n"annotations": ')
                json_list(file, annotations())
                file.write("}\n")

        write_atomic(folder / self.files[0], fill)


def _segmentation(code: rle.Rle, polygons: bool) -> dict[str, Any]:
    """A mask and its area; COCO's polygons know no holes, so that a mask with holes is run lengths in any case."""
    area = int(rle.counts_of(code)[1::2].sum())
    part, left, top = rle.part_of(code) if polygons else (np.zeros((0, 0), bool), 0, 0)
    rings = outlines(part)
    if not rings or any(ring.hole for ring in rings):
        return {"segmentation": dict(code), "area": area}
    corner = np.array([left, top], np.float32)
    return {"segmentation": [(ring.points + corner).ravel().tolist() for ring in rings], "area": area}

"""Boxes in the files that other tools read: COCO, YOLO, Pascal VOC, Label Studio, CVAT, a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from cliploc.report.exports import coco, cvat, labelstudio, table, voc, yolo
from cliploc.report.exports._values import AnnotatedPicture, ExportSettings

FORMATS: dict[str, Callable[[Callable[[], Iterable[AnnotatedPicture]], ExportSettings, Path], list[Path]]] = {
    "coco": coco.write,
    "yolo": yolo.write,
    "voc": voc.write,
    "labelstudio": labelstudio.write,
    "csv": table.write,
    "cvat": cvat.write,
}

# What each writes into its folder.
FILES: dict[str, tuple[str, ...]] = {
    "coco": ("coco.json",),
    "yolo": ("yolo",),
    "voc": ("voc",),
    "labelstudio": ("labelstudio.json", "labelstudio_config.xml"),
    "csv": ("boxes.csv",),
    "cvat": ("cvat.xml",),
}

__all__ = ["FILES", "FORMATS", "AnnotatedPicture", "ExportSettings"]

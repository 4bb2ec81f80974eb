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

FILES: dict[str, tuple[str, ...]] = {  # files or folders that a format writes
    "coco": (coco.FILE,),
    "yolo": (yolo.FOLDER,),
    "voc": (voc.FOLDER,),
    "labelstudio": (labelstudio.TASKS, labelstudio.CONFIG),
    "csv": (table.FILE,),
    "cvat": (cvat.FILE,),
}

__all__ = ["FILES", "FORMATS", "AnnotatedPicture", "ExportSettings"]

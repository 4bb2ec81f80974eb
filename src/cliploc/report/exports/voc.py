"""Pascal VOC's XML, a file for each picture; corners are whole pixels counted from 1, both within the box."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from cliploc._files import write_folder_whole
from cliploc.report.exports._values import AnnotatedPicture, ExportSettings, FileNames

FOLDER = "voc"


def write(pictures: Callable[[], Iterable[AnnotatedPicture]], settings: ExportSettings, out: Path) -> list[Path]:
    """Writes `voc/`, with the pictures' sub-folders."""
    from supervision.dataset.formats.pascal_voc import detections_to_pascal_voc

    def fill(folder: Path) -> None:
        names = FileNames(folder)
        for one in pictures():
            (path,) = names.of(one, "*.xml")
            shape = (one.size_wh[1], one.size_wh[0], 3)
            xml = detections_to_pascal_voc(one.detections(), list(settings.names), one.name, shape)
            path.write_text(xml.replace("<database>roboflow.ai<", "<database>cliploc<", 1), encoding="utf-8")

    write_folder_whole(out / FOLDER, fill)
    return [out / FOLDER]

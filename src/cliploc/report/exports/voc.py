"""Pascal VOC's XML format, a file for each picture; corners are whole pixels counted from 1, both inside the box."""

from __future__ import annotations

from pathlib import Path

from cliploc._files import write_folder_whole
from cliploc.report.exports._export import Export, Pictures, export
from cliploc.report.exports._values import ExportSettings, FileNames


@export
class Voc(Export):
    """Pascal VOC's XML format, a file for each picture."""

    name = "voc"
    about = "Pascal VOC's XML for each picture: whole pixels counted from 1, the last one inside the box; no scores"
    folders = ("voc",)

    def write(self, pictures: Pictures, settings: ExportSettings, folder: Path) -> None:
        """Writes `voc/`, with the pictures' sub-folders."""
        from supervision.dataset.formats.pascal_voc import detections_to_pascal_voc

        def fill(target: Path) -> None:
            names = FileNames(target)
            for one in pictures():
                (path,) = names.of(one, "*.xml")
                shape = (one.size_wh[1], one.size_wh[0], 3)
                xml = detections_to_pascal_voc(one.detections(), list(settings.names), one.name, shape)
                path.write_text(xml.replace("<database>roboflow.ai<", "<database>cliploc<", 1), encoding="utf-8")

        write_folder_whole(folder / self.folders[0], fill)

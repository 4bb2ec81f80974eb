"""Ultralytics' YOLO layout: the folders `images/` and `labels/`, and `data.yaml`."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from cliploc._files import write_folder_whole
from cliploc.report.exports._export import Export, Pictures, export
from cliploc.report.exports._values import ExportSettings, FileNames


@export
class Yolo(Export):
    """Ultralytics' YOLO layout: a text file for each picture, and links to the pictures."""

    name = "yolo"
    about = (
        "Ultralytics' `data.yaml`, `labels/` with a text file for each picture, empty if it has no box, and `images/` "
        "with links to your pictures, or copies where links are not possible"
    )
    folders = ("yolo",)
    needs = frozenset({"picture_files"})

    def write(self, pictures: Pictures, settings: ExportSettings, folder: Path) -> None:
        """Writes `yolo/`: a text file for each picture, empty where it has no box, and links to the pictures.

        A picture is copied if the file system does not support links.
        """
        from supervision.dataset.formats.yolo import detections_to_yolo_annotations

        def fill(target: Path) -> None:
            # Ultralytics finds a text file by the last /images/ in the picture's path.
            files = FileNames(target, no_folder="images")
            (target / "images").mkdir()
            (target / "labels").mkdir()
            for one in pictures():
                image, text = files.of(one, f"images/*{one.path.suffix}", "labels/*.txt")
                try:
                    os.symlink(one.path.absolute(), image)
                except (OSError, NotImplementedError):
                    shutil.copyfile(one.path, image)
                lines = detections_to_yolo_annotations(one.detections(), (one.size_wh[1], one.size_wh[0], 3))
                text.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            # JSON strings are valid YAML, and YAML does not misread them: yes, 1.0, "a: b".
            names = "".join(f"  {i}: {json.dumps(name, ensure_ascii=False)}\n" for i, name in enumerate(settings.names))
            path = json.dumps(str((folder / self.folders[0]).absolute()), ensure_ascii=False)
            data = f"path: {path}\ntrain: images\nval: images\nnc: {len(settings.names)}\nnames:\n{names}"
            (target / "data.yaml").write_text(data, encoding="utf-8")

        write_folder_whole(folder / self.folders[0], fill)

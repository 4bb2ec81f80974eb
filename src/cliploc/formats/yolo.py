"""Ultralytics' YOLO layout: the folders `images/` and `labels/`, and `data.yaml`."""

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from cliploc.boxes.outlines import joined
from cliploc.formats import (
    Export,
    ExportSettings,
    FileNames,
    Pictures,
    export,
    file_suffix,
    write_list,
    write_picture,
)
from cliploc.images import rle
from cliploc.support.documents import integer, read_text, read_yaml
from cliploc.support.files import write_atomic_folder

CLASS_LISTS = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt")  # FiftyOne and Label Studio write the last two


@export
class Yolo(Export):
    """Ultralytics' YOLO layout: a text file for each picture, and the pictures."""

    name = "yolo"
    about = (
        "Ultralytics' `data.yaml`, `labels/` with a text file for each picture, empty if it has no box, and `images/` "
        "with links to your pictures, or with `--copy` the pictures"
    )
    folders = ("yolo",)
    needs = frozenset({"picture_files"})

    def write(self, pictures: Pictures, settings: ExportSettings, folder: Path) -> None:
        """Writes `yolo/`: `images/`, `labels/`, `data.yaml`, `pictures.csv`; with masks, lines are polygons."""
        from supervision.dataset.formats.yolo import detections_to_yolo_annotations

        def fill(target: Path) -> None:
            names_of_files = FileNames(target)
            listed = []
            (target / "images").mkdir()
            (target / "labels").mkdir()
            for picture in pictures():
                image, text = names_of_files.of(picture, f"images/*{file_suffix(picture)}", "labels/*.txt")
                write_picture(picture, image, settings.copies)
                listed.append((image.name, picture.name))
                lines: Iterable[str] = chain.from_iterable(map(_outlines, picture.label, picture.masks))
                if not settings.masks:
                    lines = detections_to_yolo_annotations(
                        picture.detections(), (picture.size_wh[1], picture.size_wh[0], 3)
                    )
                text.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            # JSON strings are valid YAML, and YAML does not misread them: yes, 1.0, "a: b".
            names = "".join(f"  {i}: {json.dumps(name, ensure_ascii=False)}\n" for i, name in enumerate(settings.names))
            path = json.dumps(str((folder / self.folders[0]).absolute()), ensure_ascii=False)
            data = f"path: {path}\ntrain: images\nval: images\nnc: {len(settings.names)}\nnames:\n{names}"
            (target / "data.yaml").write_text(data, encoding="utf-8")
            write_list(target, listed)

        write_atomic_folder(folder / self.folders[0], fill)


def _outlines(label: int, code: rle.Rle) -> Iterator[str]:
    """A mask's lines: polygons a quarter of a pixel inside corners, for readers that round down or round."""
    height, width = code["size"]
    part, left, top = rle.part_of(code)
    for polygon in joined(part):
        points = polygon + np.array([left, top], np.float32) - 0.25
        points = np.concatenate([points, points[-1:].repeat(max(0, 3 - len(points)), axis=0)])  # else it reads as a box
        yield " ".join([str(label), *(f"{value:.6f}" for value in (points / [width, height]).ravel())])


def class_names(described: Path) -> dict[int, str]:
    """Number → name of each class in one of `CLASS_LISTS`."""
    plain = described.suffix == ".txt"
    listed = read_text(described).splitlines() if plain else read_yaml(described)["names"]
    names = (
        dict(enumerate(listed)) if isinstance(listed, list) else {integer(key): name for key, name in listed.items()}
    )
    if not all(isinstance(name, str) for name in names.values()):
        raise ValueError("expected each name to be a text")  # also: with aliases, a small list can be an endless text
    return {number: name for number, name in names.items() if name.strip()}

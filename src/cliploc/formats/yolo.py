"""Ultralytics' YOLO layout: the folders `images/` and `labels/`, and `data.yaml`."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from cliploc import formats
from cliploc.errors import UsageError
from cliploc.formats import Box, ExportSettings, LabelledBox, LabelSet, PictureLabels, Pictures
from cliploc.images import rle
from cliploc.support.files import finite, integer, read_text, read_yaml, write_atomic_folder

CLASS_LISTS = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt")  # FiftyOne and Label Studio write the last two


# ---------------------------------------------------------------------------------------------------------------- read
def class_names(described: Path) -> dict[int, str]:
    """Number → name of each class in one of `CLASS_LISTS`."""
    plain = described.suffix == ".txt"
    listed = read_text(described).splitlines() if plain else read_yaml(described)["names"]
    names = dict(enumerate(listed)) if isinstance(listed, list) else {integer(key): one for key, one in listed.items()}
    if not all(isinstance(name, str) for name in names.values()):
        raise ValueError("expected each name to be a text")  # also: with aliases, a small list can be an endless text
    return {number: name for number, name in names.items() if name.strip()}


def read(folder: Path, described: Path) -> LabelSet:
    """The pictures of a folder: each has a text in a folder called labels."""
    names, pictures = class_names(described), []
    for text in sorted(folder.rglob("*.txt")):
        parts = text.relative_to(folder).parts
        if "labels" not in parts[:-1]:
            continue
        place = parts[len(parts) - parts[::-1].index("labels") :]
        stem = "/".join(place).removesuffix(".txt")
        split, _, rest = stem.partition("/")
        more = (rest,) if rest and split.startswith(("train", "val", "test")) else ()
        pictures.append(PictureLabels((stem,), partial(read_boxes, text, names), more=more, file=text))
    if not pictures:
        raise ValueError("it has no text files in labels/")
    files = [described, *(one.file for one in pictures if one.file)]
    listed = [*names.values()]
    return LabelSet("YOLO", tuple(pictures), formats.read_list(folder), listed, files, partial(rewrite, names))


def rewrite(names: Mapping[int, str], text: Path, edits: formats.Edits) -> bytes:
    """A picture's text after edits: only lines of changed boxes are other ones."""
    numbers = {name: number for number, name in reversed([*names.items()])}
    [(picture, of_picture)] = edits.items()
    lines, kept, place = text.read_bytes().decode("utf-8-sig").splitlines(keepends=True), list[str](), -1

    def class_of(name: str) -> str:
        if name not in numbers:
            raise UsageError(f"expected names of the set's list of classes, got {name!r}: add it to the list first")
        return str(numbers[name])

    def line_of(name: str, xyxy: Box) -> str:
        (x0, y0, x1, y1), (width, height) = xyxy, of_picture.size_wh
        shares = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
        return " ".join([name, *(f"{share:.6f}" for share in shares)])

    for line in lines:
        place += bool(line.strip())
        edit = formats.edit_of(edits, picture, place) if line.strip() else formats.Edit()
        if edit is None:
            continue
        number, _, rest = line.strip().partition(" ")
        if edit.name is not None:
            number = class_of(edit.name)
        end = line[len(line.rstrip()) :]
        if edit.xyxy is not None:
            kept.append(line_of(number, edit.xyxy) + end)
        else:
            kept.append(line if edit.name is None else f"{number} {rest}{end}")
    if kept and of_picture.added and not kept[-1].endswith("\n"):
        kept[-1] += "\n"
    kept += [f"{line_of(class_of(name), xyxy)}\n" for name, xyxy in of_picture.added]
    return "".join(kept).encode()


def read_boxes(
    text: Path, names: Mapping[int, str], size_wh: formats.Size, masks: bool = False
) -> Iterator[LabelledBox]:
    """A box for each line: a class and its box's centre and size, or corners of a polygon, as shares of the picture."""
    width, height = size_wh
    for place, line in enumerate(read_text(text).splitlines(), start=1):
        if not line.strip():
            continue
        number, *values = line.split()
        shares = [finite(value) for value in values]
        if len(shares) == 4:
            x, y, w, h = shares
            xs, ys = [x - w / 2, x + w / 2], [y - h / 2, y + h / 2]
        elif len(shares) >= 6 and len(shares) % 2 == 0:
            xs, ys = shares[::2], shares[1::2]
        else:
            raise ValueError(
                f"line {place}: expected a class and 4 numbers, or corners of a polygon, got {len(shares)}"
            )
        if (name := names.get(integer(number))) is None:
            raise ValueError(f"class {number} is not in the list of classes")
        box = min(xs) * width, min(ys) * height, max(xs) * width, max(ys) * height
        kind = "box" if len(shares) == 4 else "polygon"
        mask = partial(mask_runs, shares, size_wh) if masks and kind == "polygon" else None
        yield LabelledBox(str(place), name, box, mask, kind)


def mask_runs(shares: Sequence[float], size_wh: formats.Size) -> rle.Counts:
    """The runs of a polygon in shares of the picture, filled with its border, as YOLO's readers fill it."""
    points = np.array(shares, float).reshape(-1, 2)
    if points.min() < -0.01 or points.max() > 1.01:
        raise ValueError("a polygon outside the picture")
    width, height = size_wh
    corners = np.floor(points * size_wh + 1e-3).clip(0, [width - 1, height - 1]).astype(np.int32)
    least = corners.min(axis=0)
    right, bottom = (corners.max(axis=0) - least + 1).tolist()
    drawn = np.zeros((bottom, right), np.uint8)
    cv2.fillPoly(drawn, [corners - least], 1)
    return rle.placed(drawn.astype(bool), int(least[0]), int(least[1]), (height, width))


# --------------------------------------------------------------------------------------------------------------- write
@formats.export
class Yolo(formats.Export):
    """Ultralytics' YOLO layout: a text file for each picture, and the pictures."""

    name = "yolo"
    about = "Ultralytics' `data.yaml`, `labels/` and `images/` with links to your pictures"
    folders = ("yolo",)

    def write(self, pictures: Pictures, settings: ExportSettings, folder: Path) -> None:
        """Writes `yolo/`: `images/`, `labels/`, `data.yaml`, `pictures.csv`; with masks, lines are polygons."""
        from supervision.dataset.formats.yolo import detections_to_yolo_annotations

        def fill(target: Path) -> None:
            names_of_files = formats.FileNames(target)
            listed = []
            (target / "images").mkdir()
            (target / "labels").mkdir()
            val = formats.validation(pictures, settings.val)
            for picture in pictures():
                part = "" if not val else "val/" if picture.name in val else "train/"
                suffix = formats.file_suffix(picture)
                image, text = names_of_files.of(picture, f"images/{part}*{suffix}", f"labels/{part}*.txt")
                formats.write_picture(picture, image, settings.copies)
                listed.append((image.name, picture.name))
                lines: Iterable[str] = map(_outline, picture.label, picture.masks)
                if not settings.masks:
                    lines = detections_to_yolo_annotations(picture.detections(), (*picture.size_wh[::-1], 3))
                text.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            # JSON strings are valid YAML, and YAML does not misread them: yes, 1.0, "a: b".
            names = "".join(f"  {i}: {json.dumps(name, ensure_ascii=False)}\n" for i, name in enumerate(settings.names))
            path = json.dumps(str((folder / self.folders[0]).absolute()), ensure_ascii=False)
            train, held_out = ("images/train", "images/val") if val else ("images", "images")
            data = f"path: {path}\ntrain: {train}\nval: {held_out}\nnc: {len(settings.names)}\nnames:\n{names}"
            (target / "data.yaml").write_text(data, encoding="utf-8")
            formats.write_list(target, listed)

        write_atomic_folder(folder / self.folders[0], fill)


def _outline(label: int, code: rle.Rle) -> str:
    """A mask's line: its corners a quarter of a pixel inside, for readers that round down or round."""
    from cliploc.boxes.masks import merged  # its package needs torch

    height, width = rle.hw_of(code)
    part, left, top = rle.part_of(code)
    points = merged(part) + np.array([left, top], np.float32) - 0.25
    points = np.concatenate([points, points[-1:].repeat(max(0, 3 - len(points)), axis=0)])  # else it reads as a box
    return " ".join([str(label), *(f"{value:.6f}" for value in (points / [width, height]).ravel())])

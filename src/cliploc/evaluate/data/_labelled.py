"""Pictures with a label map: a class for every pixel. Readers for segmentation give these."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import numpy as np

from cliploc.evaluate.data._base import Checker, by
from cliploc.formats import Size
from cliploc.images.reading import LabelMap, read_labels
from cliploc.images.rle import Outline, draw
from cliploc.runs.picture_files import LabelledPicture, TrueLabels
from cliploc.values import IGNORE


def label_file(path: Path, reduce_zero_label: bool = False) -> TrueLabels:
    """A label map in a picture file with one number per pixel; the option as in mmsegmentation."""
    return TrueLabels(partial(_read, path, reduce_zero_label), (path.name, reduce_zero_label), (path,))


def _read(path: Path, reduce_zero_label: bool) -> LabelMap:
    labels = read_labels(path)
    if not reduce_zero_label:
        return labels
    # 0 does not count, the others are one less, and 255 stays.
    return np.where((labels == 0) | (labels == IGNORE), IGNORE, labels - 1).astype(np.int32)


Things: TypeAlias = tuple[tuple[int, tuple[Outline, ...]], ...]  # label and outlines of each


def outlines(size_wh: Size, things: Things) -> TrueLabels:
    """Polygons in a picture, later ones drawn over earlier ones; what no outline covers is label 0."""
    return TrueLabels(partial(_draw, size_wh, things), (size_wh, things))


def _draw(size_wh: Size, things: Things) -> LabelMap:
    labels = np.zeros(size_wh[::-1], np.int32)
    for label, of_thing in things:
        for outline in of_thing:
            labels[draw(outline, labels.shape)] = label
    return labels


def check_map(checker: Checker, picture: LabelledPicture) -> LabelledPicture | None:
    """The picture with its size, or None if it or its label map cannot be used."""
    if not checker.is_new(picture.id):
        return None
    if picture.decode is not None:
        return picture
    header = checker.header(picture.id, picture.path)
    if header is None:
        return None
    size, orientation = header
    if orientation != 1:
        checker.add("turned picture", picture.id, "its EXIF orientation turns it but not its label map: left out")
        return None
    sizes = {"the picture": size}
    for path in picture.truth.files:
        header = checker.header(picture.id, path, "mask")
        if header is None:
            return None
        sizes[f"its label map {path.name}"] = header[0]
    if not picture.truth.files:
        sizes["its annotation"] = picture.size_wh
    if len(set(sizes.values())) > 1:
        each = ", ".join(f"{what} has {by(size)}" for what, size in sizes.items())
        checker.add("size mismatch", picture.id, f"{each}: left out")
        return None
    return replace(picture, size_wh=size)


def pictures_with_maps(
    base: Path, images: str, maps: str, ids: Iterable[str] | None = None, reduce_zero_label: bool = False
) -> list[LabelledPicture]:
    """The pictures and label maps at these paths, where `*` is their id; ids None: all that have either."""
    (folder, suffix), (folder_of_maps, suffix_of_map) = images.split("*"), maps.split("*")
    if ids is None:
        ids = {*ids_in(base / folder, suffix), *ids_in(base / folder_of_maps, suffix_of_map)}
    return [
        LabelledPicture(
            one,
            base / f"{folder}{one}{suffix}",
            (0, 0),
            label_file(base / f"{folder_of_maps}{one}{suffix_of_map}", reduce_zero_label),
        )
        for one in sorted(ids)
    ]


def ids_in(folder: Path, suffix: str) -> list[str]:
    """The files with this ending in a folder and below, without it."""
    return [path.relative_to(folder).as_posix().removesuffix(suffix) for path in folder.rglob(f"*{suffix}")]

"""Pictures with a label map: a class for every pixel. Readers for segmentation give these."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cliploc.evaluate.data._base import Checker, by
from cliploc.formats import Size
from cliploc.images.reading import LabelMap, read_labels
from cliploc.images.rle import Outline, draw
from cliploc.runs.picture_files import LabelledPicture
from cliploc.values import IGNORE


@dataclass(frozen=True)
class LabelFile:
    """A label map in a picture file with one number per pixel."""

    path: Path  # the file
    # mmsegmentation's reduce_zero_label: 0 does not count, the others are one less, and 255 stays
    reduce_zero_label: bool = False

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    @property
    def facts(self) -> list[Any]:
        return [self.path.name, self.reduce_zero_label]

    def read(self) -> LabelMap:
        labels = read_labels(self.path)
        if not self.reduce_zero_label:
            return labels
        return np.where((labels == 0) | (labels == IGNORE), IGNORE, labels - 1).astype(np.int32)


@dataclass(frozen=True)
class Outlines:
    """Polygons of things, as COCO annotates them; what no outline covers is label 0."""

    size_wh: Size  # of the picture
    # label and outlines of each thing; later ones are drawn over earlier ones
    things: tuple[tuple[int, tuple[Outline, ...]], ...]

    @property
    def files(self) -> tuple[Path, ...]:
        return ()

    @property
    def facts(self) -> list[Any]:
        return [self.size_wh, self.things]

    def read(self) -> LabelMap:
        width, height = self.size_wh
        labels = np.zeros((height, width), np.int32)
        for label, outlines in self.things:
            for outline in outlines:
                labels[draw(outline, (height, width))] = label
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
            LabelFile(base / f"{folder_of_maps}{one}{suffix_of_map}", reduce_zero_label),
        )
        for one in sorted(ids)
    ]


def ids_in(folder: Path, suffix: str) -> list[str]:
    """The files with this ending in a folder and below, without it."""
    return [path.relative_to(folder).as_posix().removesuffix(suffix) for path in folder.rglob(f"*{suffix}")]

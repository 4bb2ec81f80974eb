"""Pictures with a label map: a class for every pixel. Readers for segmentation give these."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from cliploc.errors import UsageError
from cliploc.evaluate.data._infra.candidates import Checker, Problems, Size
from cliploc.evaluate.data._infra.files import words
from cliploc.evaluate.data._infra.registration import DatasetReader, Readers
from cliploc.evaluate.data._infra.selection import Draw, nothing_usable
from cliploc.images.polygons import Outline, draw
from cliploc.images.reading import LabelMap, read_labels
from cliploc.runs.samples import LabelledDataset, LabelledPicture
from cliploc.support.files import user_path
from cliploc.values import IGNORE, ClassName


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


# -------------------------------------------------------------------------------------------------------------- readers
Labelled: TypeAlias = tuple[tuple[ClassName, ...], Sequence[LabelledPicture]]
LabelledReader: TypeAlias = DatasetReader[Labelled]
labelled_readers: Readers[Labelled] = Readers("segmentation dataset", "cliploc.evaluate.data.segmentation")
labelled_reader = labelled_readers.reader


def open_labelled(
    name: str,
    root: str | Path,
    split: str | None = None,
    *,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
) -> LabelledDataset:
    """Reads a segmentation set and checks that its pictures and label maps are there.

    Args:
        split: the name of a split; None for the reader's first.
        limit: read only this number of pictures, from the first on.
        sample: read only this number of pictures, drawn at random, in their usual order.

    Returns:
        The pictures that can be used, and a problem for everything that was left out.
    """
    entry = labelled_readers.get(name)
    part = entry.split(split)
    chosen = Draw(limit, sample, seed)
    root = user_path(root)
    if not root.exists():
        raise UsageError(f"expected {entry.title} at {root}, found nothing there: check the path")
    problems = Problems()
    classes, pictures = entry.read(root, part.name, problems)
    samples = chosen.of(pictures, partial(_checked, Checker(problems)))
    if not samples:
        raise nothing_usable(name, root, problems, "none is there")
    return LabelledDataset(name, root, part.name, part.role, classes, samples, tuple(problems.met))


def _checked(checker: Checker, picture: LabelledPicture) -> LabelledPicture | None:
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
        said = ", ".join(f"{what} has {width}×{height}" for what, (width, height) in sizes.items())
        checker.add("size mismatch", picture.id, f"{said}: left out")
        return None
    return replace(picture, size_wh=size)


def pictures_with_maps(
    pairs: Iterable[tuple[str, Path, Path]], reduce_zero_label: bool = False
) -> list[LabelledPicture]:
    """A `LabelledPicture` for each id, picture and label map."""
    return [
        LabelledPicture(picture_id, picture, (0, 0), LabelFile(path, reduce_zero_label))
        for picture_id, picture, path in pairs
    ]


def pictures_or_maps(images: Path, maps: Path, suffix: str) -> list[LabelledPicture]:
    """The pictures `<id>.jpg` and label maps `<id><suffix>` of two folders, also of ids that only one of them has."""
    ids = {path.name.removesuffix(suffix) for path in maps.glob(f"*{suffix}")}
    ids |= {path.stem for path in images.glob("*.jpg")}
    return pictures_with_maps(
        (picture_id, images / f"{picture_id}.jpg", maps / f"{picture_id}{suffix}") for picture_id in sorted(ids)
    )


def listed(path: Path) -> list[str]:
    """The ids in a list file, one per line."""
    return [text.split()[0] for (text,) in words(path, 1, "download")]

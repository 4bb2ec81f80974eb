"""ImageNet-Segmentation (Guillaumin 2014): one thing a picture and its mask, in one HDF5 file of MATLAB."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cliploc.datasets._infra.candidates import Problems
from cliploc.datasets._infra.labelled import Labelled, LabelledPicture, LabelMap, labelled_reader
from cliploc.datasets._infra.registration import Split
from cliploc.errors import InputError, UsageError
from cliploc.prompts import imagenet_classes
from cliploc.values import ClassName

FILE = "gtsegs_ijcv.mat"


@dataclass(frozen=True)
class MatPicture:
    """A picture in the file; calling it reads it.

    Attributes:
        file: the file.
        index: the picture's place in it.
    """

    file: Path
    index: int

    def __call__(self) -> Image.Image:
        """The picture, RGB.

        Raises:
            InputError: it cannot be read.
        """
        with _opened(self.file) as mat:
            pixels = np.array(mat[mat["value/img"][self.index, 0]]).transpose(2, 1, 0)  # MATLAB stores [3, W, H]
            return Image.fromarray(pixels.astype(np.uint8))


@dataclass(frozen=True)
class MatMask:
    """A mask in the file: 1 for the thing, 0 for the background; attributes as in `MatPicture`."""

    file: Path
    index: int

    @property
    def files(self) -> tuple[Path, ...]:
        """None: the file holds all pictures."""
        return ()

    @property
    def facts(self) -> list[Any]:
        """Its place in the file, and the file's size."""
        return [self.index, self.file.stat().st_size]

    def read(self) -> LabelMap:
        """`[H, W]` labels."""
        with _opened(self.file) as mat:
            return np.array(mat[mat[mat["value/gt"][self.index, 0]][0, 0]]).T.astype(np.int32)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """The HDF5 file; whatever cannot be read in it becomes an `InputError`."""
    try:
        import h5py
    except ImportError:
        raise UsageError("ImageNet-Segmentation needs h5py: pip install 'cliploc[segmentation]'") from None
    try:
        with h5py.File(file, "r") as mat:
            yield mat
    except (OSError, KeyError, ValueError, IndexError, TypeError) as error:
        raise InputError(f"{file} cannot be read as {FILE} ({error}): fetch it again") from error


@labelled_reader(
    "imagenet_seg",
    title="ImageNet-Segmentation",
    about="4,276 pictures with the mask of one thing each; for methods, not for classes",
    source="calvin-vision.net/bigstuff/proj-imagenet/data/gtsegs_ijcv.mat",
    splits=(Split("all", "report", "4,276 pictures"),),
    layout="""
gtsegs_ijcv.mat    pictures (value/img), masks (value/gt) and WordNet ids (value/target)
""",
)
def read(root: Path, split: str, problems: Problems) -> Labelled:  # noqa: ARG001
    """Reads the file; a picture whose WordNet id is none of ImageNet's 1,000 has no name, and is left out."""
    file = root if root.is_file() else root / FILE
    if not file.is_file():
        raise UsageError(f"expected {FILE} in {root}, found none: see the layout, cliploc datasets imagenet_seg")
    names = {one.wnid: one.entry for one in imagenet_classes()}
    made = []
    try:
        with _opened(file) as mat:
            pictures, targets = mat["value/img"], mat["value/target"]
            for index in range(pictures.shape[0]):
                wnid = "".join(map(chr, np.array(mat[targets[index, 0]]).ravel().tolist()))
                one = f"{index:05d}_{wnid}"
                if wnid not in names:
                    problems.add("label mismatch", one, "its WordNet id is none of ImageNet's 1,000: left out")
                    continue
                _, width, height = mat[pictures[index, 0]].shape
                decode, mask = MatPicture(file, index), MatMask(file, index)
                made.append(LabelledPicture(one, file, (width, height), mask, names[wnid], decode))
    except InputError as error:
        raise UsageError(str(error)) from error
    return (ClassName("background", ("background",)), ClassName("thing", ("thing",))), made

"""ImageNet-Segmentation (Guillaumin 2014): one object per picture and its mask, in one HDF5 file of MATLAB."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cliploc.errors import InputError, UsageError
from cliploc.evaluate.data._base import Labelled, Problems, Split, labelled_reader
from cliploc.find.prompts import imagenet_classes
from cliploc.images.reading import LabelMap
from cliploc.runs.picture_files import LabelledPicture
from cliploc.support.imports import install, not_installed
from cliploc.values import ClassName

FILE = "gtsegs_ijcv.mat"


@dataclass(frozen=True)
class MatPicture:
    """A picture in the file, and its true labels; calling it reads the picture."""

    file: Path
    index: int  # the picture's place in the file

    def __call__(self) -> Image.Image:
        """The picture, RGB."""
        with _opened(self.file) as mat:
            pixels = _array(mat, mat["value/img"][self.index, 0], 3)
            return Image.fromarray(pixels.transpose(2, 1, 0).astype(np.uint8))  # MATLAB stores [3, W, H]

    @property
    def files(self) -> tuple[Path, ...]:
        """None: the file holds all pictures."""
        return ()

    @property
    def facts(self) -> list[Any]:
        """Its place in the file, and the file's size."""
        return [self.index, self.file.stat().st_size]

    def read(self) -> LabelMap:
        with _opened(self.file) as mat:
            cell = mat[mat["value/gt"][self.index, 0]]
            labels: LabelMap = _array(mat, cell[0, 0], 2).T.astype(np.int32)
            return labels


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """The HDF5 file; whatever cannot be read in it becomes an `InputError`."""
    try:
        import h5py
    except ImportError as error:
        raise not_installed(error, install("segmentation", "ImageNet-Segmentation")) from None
    try:
        with h5py.File(file, "r") as mat:
            yield mat
    except InputError:
        raise
    except (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise InputError(f"{file} cannot be read as {FILE} ({error}): download it again") from error


def _array(mat: Any, reference: Any, dimensions: int) -> npt.NDArray[np.integer[Any]]:
    """The integers of an array in the file."""
    stored = mat[reference]
    if stored.dtype.kind not in "uib" or len(stored.shape) != dimensions:
        raise ValueError(f"expected integers in {dimensions} dimensions, got {stored.dtype} {list(stored.shape)}")
    numbers: npt.NDArray[np.integer[Any]] = np.array(stored)
    return numbers


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
    """Reads the file; a picture whose WordNet id is not one of ImageNet's 1,000 has no name, and is left out."""
    file = root if root.is_file() else root / FILE
    if not file.is_file():
        raise UsageError(f"expected {FILE} in {root}, found none: see the layout, cliploc datasets imagenet_seg")
    names = {class_name.wnid: class_name.entry for class_name in imagenet_classes()}
    made = []
    try:
        with _opened(file) as mat:
            pictures, targets = mat["value/img"], mat["value/target"]
            for index in range(pictures.shape[0]):
                wnid = "".join(map(chr, _array(mat, targets[index, 0], 2).ravel().tolist()))
                picture_id = f"{index:05d}_{wnid}"
                if wnid not in names:
                    problems.add(
                        "label mismatch", picture_id, "its WordNet id is not one of ImageNet's 1,000: left out"
                    )
                    continue
                _, width, height = mat[pictures[index, 0]].shape
                inside = MatPicture(file, index)
                made.append(LabelledPicture(picture_id, file, (width, height), inside, names[wnid], inside))
    except InputError as error:
        raise UsageError(str(error)) from error
    return (ClassName("background", ("background",)), ClassName("thing", ("thing",))), made

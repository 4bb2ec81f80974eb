"""ImageNet-Segmentation (Guillaumin 2014): one object per picture and its mask, in one HDF5 file of MATLAB."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cliploc.errors import InputError, UsageError
from cliploc.evaluate.data._base import Labelled, Problems, Split, labelled_reader
from cliploc.find.prompts import imagenet_classes
from cliploc.images.reading import LabelMap
from cliploc.runs.picture_files import LabelledPicture, TrueLabels
from cliploc.support.imports import install, not_installed
from cliploc.values import ClassName

FILE = "gtsegs_ijcv.mat"


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


def _pixels(file: Path, index: int) -> Image.Image:
    """The picture at a place of the file, RGB."""
    with _opened(file) as mat:
        return Image.fromarray(np.array(mat[mat["value/img"][index, 0]]).transpose(2, 1, 0))  # MATLAB stores [3, W, H]


def _labels(file: Path, index: int) -> LabelMap:
    with _opened(file) as mat:
        cell = mat[mat["value/gt"][index, 0]]
        return np.array(mat[cell[0, 0]]).T.astype(np.int32)


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
    made, size = [], file.stat().st_size
    try:
        with _opened(file) as mat:
            pictures, targets = mat["value/img"], mat["value/target"]
            for index in range(pictures.shape[0]):
                wnid = "".join(map(chr, np.array(mat[targets[index, 0]]).ravel().tolist()))
                picture_id = f"{index:05d}_{wnid}"
                if wnid not in names:
                    problems.add(
                        "label mismatch", picture_id, "its WordNet id is not one of ImageNet's 1,000: left out"
                    )
                    continue
                _, width, height = mat[pictures[index, 0]].shape
                truth = TrueLabels(partial(_labels, file, index), (index, size))
                decode = partial(_pixels, file, index)
                made.append(LabelledPicture(picture_id, file, (width, height), truth, names[wnid], decode))
    except InputError as error:
        raise UsageError(str(error)) from error
    return (ClassName("background", ("background",)), ClassName("thing", ("thing",))), made

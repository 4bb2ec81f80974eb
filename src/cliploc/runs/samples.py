"""Pictures with what is true of them, beside `Sample`: names to ask, or a label map."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from PIL import Image

from cliploc.images.reading import LabelMap, load
from cliploc.values import DatasetSplit, FloatArray

Size = tuple[int, int]  # width and height


class TrueLabels(Protocol):
    """Where the true label map of a picture comes from."""

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that it is read from, beside the picture's."""
        ...

    @property
    def facts(self) -> list[Any]:
        """What distinguishes it from another label map, as plain values without the dataset's folder."""
        ...

    def read(self) -> LabelMap:
        """`[H, W]` labels; 255 for pixels that do not count."""
        ...


@dataclass(frozen=True)
class LabelledPicture:
    """A picture with a true label map."""

    id: str  # unique in its dataset; may hold sub-folders
    path: Path  # the picture, or the file that it is in
    size_wh: Size  # width and height of the picture and of its label map; 0, 0 until the picture's file is checked
    truth: TrueLabels  # its label map
    # what is asked for if each picture has one name of its own (ImageNet-Segmentation); None: all classes
    name: str | None = None
    decode: Callable[[], Image.Image] | None = None  # reads the picture, if `path` is not a picture file

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of this picture alone; none of a file that holds all pictures."""
        return () if self.decode is not None else (self.path, *self.truth.files)

    def picture(self) -> Image.Image:
        """The picture, RGB."""
        return load(self.path).image if self.decode is None else self.decode()


@dataclass(frozen=True)
class PromptedPicture:
    """A picture with the names to ask."""

    id: str  # its path below the dataset's folder
    path: Path
    size_wh: Size  # of the original picture, to which the boxes belong
    labels: tuple[int, ...]  # to ask, in order
    truth: Mapping[int, FloatArray]  # label → its boxes `[m, 4]`, of those that are there


PromptedDataset: TypeAlias = DatasetSplit[PromptedPicture]
LabelledDataset: TypeAlias = DatasetSplit[LabelledPicture]

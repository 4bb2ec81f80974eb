"""The values handed from stage to stage: texts, datasets with their samples, and boxes.

All are frozen; arrays inside them are not copied, and what holds arrays equals only itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, Self, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from cliploc.errors import UsageError

Threshold: TypeAlias = float | Literal["auto"]  # a number, or by a rule of its own
FloatArray = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
ByteArray = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]
ResizePolicy = Literal["squash", "crop", "crop-floor", "pad"]
Interpolation = Literal["bicubic", "bilinear"]
WSOL_SIDE = 224  # pixels of the maps that the WSOL evaluation compares
GOOD_IOU = 0.5  # from which a box counts as right
IGNORE = 255  # in a label map, the label of pixels that do not count; see `ignored_label`


def rounded_below(value: float, least: float) -> str:
    """A number with two decimals, or more where it would look no smaller than the least: 0.4967 is not 0.50."""
    text = f"{value:.2f}"
    return f"{value:.4g}" if value < least <= float(text) else text


# ---------------------------------------------------------------------------------------------------------- prompts
def ignored_label(classes: int) -> int:
    """The label of pixels that do not count: 255, or, with so many classes that it is one of them, 65535."""
    return IGNORE if classes <= IGNORE else 2**16 - 1


@dataclass(frozen=True)
class TextSet:
    """Names with their synonyms, and the templates that make sentences of them."""

    names: tuple[str, ...]  # what the user called each thing; the label of its boxes
    # For each name, the words embedded and averaged for it (the name itself when it has no other).
    synonyms: tuple[tuple[str, ...], ...]
    templates: tuple[str, ...]  # sentences with one `{}` where a word goes
    # For each name, the words for what it is told from; () for a name without a contrast.
    contrasts: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.names:
            raise UsageError("expected at least one name to look for, got none: add one, such as -p cat")
        if not self.contrasts:
            object.__setattr__(self, "contrasts", ((),) * len(self.names))
        for template in self.templates:
            if template.count("{}") != 1:
                raise UsageError(f"expected a template with one {{}} for the name, got {template!r}")

    def __len__(self) -> int:
        return len(self.names)


# ---------------------------------------------------------------------------------------------------------- datasets
Role = Literal["tune", "report"]
S = TypeVar("S")


@dataclass(frozen=True, eq=False)
class Sample:
    """One thing to be localised in one picture. A picture with three classes is three samples of the same file."""

    id: str  # of this sample, unique in its dataset; the name of its score map, `<id>.npy`. May hold sub-folders
    path: Path  # the picture
    label: int  # its class, an index into `Dataset.classes`
    # Width and height, in pixels, of the ORIGINAL picture, to which the boxes belong; the file may be stretched to
    # another size (the WSOL protocol does that).
    size_wh: tuple[int, int]
    # `[m, 4]` float32, exclusive right and bottom edge, original pixels: every instance of the class.
    boxes_xyxy: FloatArray
    masks: tuple[Path, ...] = ()  # files of the instances' masks (OpenImages), instead of boxes or beside them
    ignore: Path | None = None  # file of a mask of pixels that do not count; None where there is none


@dataclass(frozen=True)
class ClassName:
    """A class of a dataset."""

    name: str  # the label of its boxes and of tables
    synonyms: tuple[str, ...]  # what is embedded and averaged; the name itself comes first
    wnid: str = ""  # such as "n02123045", or the dataset's own id; "" for none


@dataclass(frozen=True)
class Problem:
    """One thing that kept a sample, or a file, out of the numbers."""

    # What is wrong, in a word or two: "map", "metadata", "prediction", "missing picture", "empty annotation", "box
    # outside", "label mismatch" …
    kind: str
    source: str  # the sample, image id or file
    reason: str  # what was expected, what came, what to do


@dataclass(frozen=True)
class DatasetSplit(Generic[S]):
    """A split of a dataset as its reader found it; the truth of its samples is boxes, masks or label maps."""

    name: str  # of the reader, as in `cliploc datasets`
    root: Path  # the folder
    split: str  # such as "val" or "trainval"
    role: Role  # whether a threshold may be chosen on this split ("tune") or it may only be reported on ("report")
    # Label → names. All of the dataset's, also when a subset is taken: predictions choose among all.
    classes: tuple[ClassName, ...]
    samples: tuple[S, ...]  # in a fixed order, samples of the same picture next to each other
    problems: tuple[Problem, ...] = ()  # what was left out or corrected, each once; never silently skipped
    # pictures and labels; see `Annotations.unclear`, with those whose boxes cannot be used
    unclear: frozenset[tuple[Path, int]] = frozenset()
    absent: Mapping[Path, frozenset[int]] | None = None  # picture → labels; see `Annotations.absent`

    def __len__(self) -> int:
        return len(self.samples)


Dataset: TypeAlias = DatasetSplit[Sample]


# ----------------------------------------------------------------------------------------------------------- results
@dataclass(frozen=True, eq=False)
class Boxes:
    """The boxes of one picture: float xyxy in pixels of the upright original, right and bottom edges exclusive.

    Attributes:
        xyxy: `[n, 4]` float32.
        score: `[n]` float32 in 0–1: the estimated chance that a box has IoU ≥ 0.5 with a thing of its name, if that is
            in the picture.
        label: `[n]` int64, indices into `names`.
        names: the names that were asked for.
    """

    xyxy: FloatArray
    score: FloatArray
    label: npt.NDArray[np.int64]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        n = len(self.xyxy)
        if self.xyxy.shape != (n, 4) or self.score.shape != (n,) or self.label.shape != (n,):
            raise ValueError(
                f"expected xyxy [n, 4], score [n] and label [n], got {self.xyxy.shape}, {self.score.shape}, "
                f"{self.label.shape}"
            )

    def __len__(self) -> int:
        return len(self.xyxy)

    @classmethod
    def joined(cls, parts: Sequence[Self], names: tuple[str, ...]) -> Self:
        """The boxes of several lots of the same names as one."""
        return cls(
            np.concatenate([np.zeros((0, 4), np.float32), *(part.xyxy for part in parts)]),
            np.concatenate([np.zeros(0, np.float32), *(part.score for part in parts)]),
            np.concatenate([np.zeros(0, np.int64), *(part.label for part in parts)]),
            names,
        )

    def of(self, name: str) -> FloatArray:
        """The boxes `[k, 4]` of one name, best first.

        Raises:
            UsageError: a name that was not asked for.
        """
        boxes: FloatArray = self.xyxy[self.label == _index(self.names, name)]
        return boxes

    def where(self, chosen: npt.ArrayLike) -> "Boxes":
        """Some of the boxes, selected by `[n]` booleans or by their indices."""
        selection = np.asarray(chosen)
        selection = selection if selection.size else selection.astype(np.int64)
        return Boxes(self.xyxy[selection], self.score[selection], self.label[selection], self.names)


@dataclass(frozen=True, eq=False)
class Masks:
    """Which pixels of one picture belong to each box and to each name.

    Attributes:
        of_boxes: `[n, H, W]` bool, in the order of the boxes, original (EXIF-upright) pixels: the region that each box
            bounds.
        of_names: `[P, H, W]` bool: where a name's heat exceeds the threshold of its boxes, also where no box is; by
            another source than the heat, the masks of its boxes together; all False for a name that was not found.
        names: what was asked for.
    """

    of_boxes: npt.NDArray[np.bool_]
    of_names: npt.NDArray[np.bool_]
    names: tuple[str, ...]
    _labels: npt.NDArray[np.uint16]

    def __len__(self) -> int:
        return len(self.of_boxes)

    def of(self, name: str) -> npt.NDArray[np.bool_]:
        """The mask `[H, W]` of one name.

        Raises:
            UsageError: a name that was not asked for.
        """
        mask: npt.NDArray[np.bool_] = self.of_names[_index(self.names, name)]
        return mask

    def label_map(self) -> npt.NDArray[np.uint16]:
        """`[H, W]`: 0 for the background, 1 for the first name and so on: the hottest name whose mask has the pixel."""
        return self._labels


def _index(names: tuple[str, ...], name: str) -> int:
    if name not in names:
        raise UsageError(f"expected one of the names asked for ({', '.join(names)}), got {name!r}")
    return names.index(name)

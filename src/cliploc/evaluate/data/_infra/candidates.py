"""Checks candidates from annotations: each becomes a valid sample or a problem with a reason."""

import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from cliploc.errors import InputError
from cliploc.formats import Box, Size
from cliploc.images.reading import open_picture, orientation
from cliploc.values import FloatArray, Problem, Sample

Header = tuple[Size, int]  # size as stored, and the EXIF orientation: 1–8, 1 for none
BY_DESIGN = frozenset({"crowd", "difficult"})  # kinds of problems that the dataset's authors intended to be left out


class Problems(list[Problem]):
    """Everything that was left out or corrected, in the order of reading."""

    def add(self, kind: str, source: str, reason: str) -> None:
        """Adds a problem."""
        self.append(Problem(kind, source, reason))


@dataclass(frozen=True)
class Candidate:
    """The annotation of one class in one picture, not checked yet; id, path, label, masks and ignore as in `Sample`."""

    id: str
    path: Path
    label: int
    boxes: Sequence[Box] = ()  # exclusive right and bottom edges, in pixels of the picture as it was annotated
    size_wh: Size | None = None  # the annotated size; None if the annotations have none, so that the file's size counts
    masks: tuple[Path, ...] = ()
    ignore: Path | None = None
    resized: bool = False  # whether the file may have another size than the annotated one
    upright: bool = False  # whether the annotations are for the picture as it is displayed, not as it is stored (EXIF)
    hint: str = ""  # what to do if the picture is missing


class Checker:
    """Turns candidates into samples and records what is left out; `classes` 0: pictures with label maps."""

    def __init__(self, problems: Problems, classes: int = 0) -> None:
        self.add = problems.add
        self._classes = classes
        self._ids: set[str] = set()
        self._last: tuple[Path, Header | InputError] | None = None

    def is_new(self, sample_id: str) -> bool:
        """Whether an id can be used and has not come before."""
        if sample_id in self._ids:
            self.add("duplicate id", sample_id, "more than once in the annotations: counted once")
            return False
        self._ids.add(sample_id)
        if not safe_id(sample_id):
            self.add("unsafe id", sample_id, "expected an id that stays inside its folder: use a relative path")
            return False
        return True

    def header(self, sample_id: str, path: Path, what: str = "picture", hint: str = "") -> Header | None:
        """The header of a sample's picture or mask, read once for samples of the same picture; None if it has none."""
        if self._last is None or self._last[0] != path:
            try:
                self._last = (path, picture_header(path))
            except InputError as error:
                self._last = (path, error)
        header = self._last[1]
        if not isinstance(header, InputError):
            return header
        missing = not os.path.exists(path)  # also of a name too long for the system
        self.add(f"{'missing' if missing else 'broken'} {what}", sample_id, f"{header}{hint if missing else ''}")
        return None

    def sample(self, candidate: Candidate) -> Sample | None:
        """The sample of a candidate, or None if it is left out."""
        if not self.is_new(candidate.id):
            return None
        if not 0 <= candidate.label < self._classes:
            reason = f"expected a label of 0–{self._classes - 1}, got {candidate.label}: left out"
            self.add("label mismatch", candidate.id, reason)
            return None
        if not candidate.boxes and not candidate.masks:
            self.add("empty annotation", candidate.id, "no box and no mask: left out")
            return None
        hint = f"; {candidate.hint}" if candidate.hint else ""
        header = self.header(candidate.id, candidate.path, hint=hint)
        placed = None if header is None else self._upright(candidate, *header)
        if placed is None:
            return None
        for mask in (*candidate.masks, *([candidate.ignore] if candidate.ignore else [])):
            if not os.path.isfile(mask):
                self.add("missing mask", candidate.id, f"expected a mask at {mask}, found none: left out")
                return None
        size_wh, boxes = placed
        inside, problems = boxes_inside(boxes, size_wh)
        for kind, reason in problems:
            self.add(kind, candidate.id, reason)
        if not inside and not candidate.masks:
            self.add("empty annotation", candidate.id, "none of its boxes can be used: left out")
            return None
        xyxy = np.array(inside, np.float32).reshape(-1, 4)  # [m, 4]
        return Sample(candidate.id, candidate.path, candidate.label, size_wh, xyxy, candidate.masks, candidate.ignore)

    def _upright(self, candidate: Candidate, stored_wh: Size, orientation: int) -> tuple[Size, Sequence[Box]] | None:
        """The annotated size and the boxes, both for the upright picture; None if the candidate is left out."""
        upright_wh, boxes = turned_wh(stored_wh, orientation), candidate.boxes
        size_wh = candidate.size_wh or (upright_wh if candidate.upright else stored_wh)
        if min(size_wh) < 1:
            self.add("size mismatch", candidate.id, f"expected a size of at least 1×1, got {by(size_wh)}: correct it")
            return None
        # Of a picture that is turned by 90 degrees the annotated size tells whether it was annotated as displayed.
        as_displayed = candidate.upright or (orientation >= 5 and size_wh == upright_wh != stored_wh)
        if orientation != 1 and not as_displayed:
            if candidate.masks:
                self.add("turned picture", candidate.id, "its EXIF orientation turns it but not its masks: left out")
                return None
            self.add("turned picture", candidate.id, "its EXIF orientation turns it: the boxes are turned too")
            boxes = [turned(box, size_wh, orientation) for box in boxes]
            size_wh = turned_wh(size_wh, orientation)
        if size_wh != upright_wh and not candidate.resized:
            reason = f"annotated as {by(size_wh)}, the file has {by(upright_wh)}: taken as resized"
            self.add("size mismatch", candidate.id, reason)
        return size_wh, boxes


def safe_id(sample_id: str) -> bool:
    """Whether a file named by this id stays inside its folder."""
    parts = PurePosixPath(sample_id.replace("\\", "/")).parts
    return bool(sample_id) and not Path(sample_id).is_absolute() and ".." not in parts


def picture_ids(names: Iterable[str]) -> dict[str, str]:
    """The id of each picture: its path without the extension, or the full path where others have the same."""
    stems = {name: Path(name).with_suffix("").as_posix() for name in names}
    times = Counter(stems.values())
    return {name: stem if times[stem] == 1 else name for name, stem in stems.items()}


def picture_header(path: Path) -> Header:
    """The header of a picture file; the picture is not decoded."""
    try:
        with open_picture(path) as opened:
            return opened.image.size, orientation(opened.image)
    except InputError as error:
        if not os.path.exists(path):
            raise InputError(f"expected a picture at {path}, found none: left out") from None
        raise InputError(f"{error}; left out") from None


def boxes_inside(boxes: Iterable[Box], size_wh: Size) -> tuple[list[Box], list[tuple[str, str]]]:
    """The boxes clipped to the picture, without those that hold no pixel of it; the kinds and reasons of problems."""
    both = [clipped(box, size_wh) for box in boxes]
    return [box for box, _ in both if box is not None], [problem for _, problem in both if problem is not None]


def clipped(box: Box, size_wh: Size) -> tuple[Box | None, tuple[str, str] | None]:
    """Clips a box to the picture: the part inside or None, and the kind and reason of its problem or None."""
    width, height = size_wh
    x0, y0, x1, y1 = box
    text = f"box {x0:g} {y0:g} {x1:g} {y1:g}"
    if not all(map(math.isfinite, box)) or x1 < x0 or y1 < y0:
        return None, ("broken box", f"{text} is not a box with x0 < x1, y0 < y1: left out")
    inside: FloatArray = np.array(box, np.float32).clip(0, np.array([width, height] * 2, np.float32))
    a, b, c, d = inside.tolist()
    if a >= c or b >= d:
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            return None, ("box outside", f"{text} is outside the picture of {by(size_wh)}: left out")
        return None, ("broken box", f"{text} holds no pixel: left out")
    if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
        return (a, b, c, d), ("box outside", f"{text} is partly outside the picture of {by(size_wh)}: clipped")
    return (a, b, c, d), None


def turned_wh(size_wh: Size, orientation: int) -> Size:
    """The size of a picture after its EXIF orientation is applied."""
    return (size_wh[1], size_wh[0]) if orientation >= 5 else size_wh


def turned(box: Box, size_wh: Size, orientation: int) -> Box:
    """Applies the EXIF orientation to a box of the stored picture of this size."""
    corners: npt.NDArray[np.float64] = np.array([box[:2], box[2:]], np.float64)  # [2, (x, y)]
    size = np.array(size_wh, np.float64)
    if orientation in (2, 3, 7, 8):
        corners[:, 0] = size[0] - corners[:, 0]
    if orientation in (3, 4, 6, 7):
        corners[:, 1] = size[1] - corners[:, 1]
    if orientation >= 5:
        corners = corners[:, ::-1]
    low, high = corners.min(axis=0), corners.max(axis=0)
    return (*low.tolist(), *high.tolist())


def by(size_wh: Iterable[float]) -> str:
    """A size in words: 640×480."""
    return "×".join(map(str, size_wh))

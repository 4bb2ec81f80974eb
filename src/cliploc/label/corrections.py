"""What people changed, taken into a run: boxes of the editor, and corrected sets."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import numpy as np
from msgspec import Meta, Struct

from cliploc.errors import InputError, UsageError
from cliploc.find import prompts
from cliploc.formats import LabelledBox, LabelSet, labelstudio, read_list, reading
from cliploc.images import geometry, rle
from cliploc.images.rle import draw_all, outlines_of
from cliploc.label.results import AnnotatedFolder
from cliploc.runs.label_store import Candidates, Correction

LEAST_SIDE = 1e-3  # pixels of a box inside its picture
Size: TypeAlias = tuple[int, int]  # width, height
SAME = 0.01  # pixels; coordinates are stored in hundredths
MOVED = 1.0  # pixels that the edges of a box may have moved and still be those of its draft
Count = Annotated[int, Meta(ge=0, le=2**53)]
Ring = Annotated[list[float], Meta(min_length=6, max_length=20_000)]  # x, y, x, y …
Polygon = Annotated[list[Ring], Meta(min_length=1, max_length=1_000)]  # the outline, then its holes


class UnusableError(ValueError):
    """Why a picture's boxes cannot be taken."""


@dataclass(frozen=True)
class Corrections:
    """What a corrected set has for the pictures of a run."""

    form: str  # the format that was read
    pictures: dict[str, Correction]  # picture → its corrected boxes
    problems: dict[str, str]  # picture, as the set names it → why it was left as it is


class ReviewedBox(Struct, forbid_unknown_fields=True):
    """A box as the editor saves it: with its old mask, or with polygons if a person changed it."""

    xyxy: tuple[float, float, float, float]
    label: Count
    draft: Count | None = None
    mask: Annotated[str, Meta(max_length=2**20)] | None = None
    polygons: Annotated[list[Polygon], Meta(min_length=1, max_length=1_000)] | None = None


class ReviewedPicture(Struct, forbid_unknown_fields=True):
    """A picture as the editor saves it, and the revision that the person saw."""

    revision: Count
    status: Literal["none", "reviewed", "later", "skipped"]
    boxes: Annotated[list[ReviewedBox], Meta(max_length=20_000)]
    drawn: Annotated[str, Meta(max_length=64)] | None = None  # which drafts the person saw; None: those of now
    learn: bool = True  # whether it may be learnt from at once: not while pictures are reviewed in random order
    answered: list[Count] = []  # numbers of suspects of a checked set that the person has judged


def apply_corrections(folder: AnnotatedFolder, path: Path) -> tuple[Corrections, str]:
    """Takes a corrected set, and says what it held."""
    read = matched(path, folder, [picture.id for picture in folder.annotated()])
    save_reviewed(folder, read.pictures)
    return read, f"{read.form}: {len(read.pictures):,} of {len(folder.found):,} pictures corrected"


def save_reviewed(folder: AnnotatedFolder, corrections: Mapping[str, Correction]) -> None:
    """Saves boxes of pictures as reviewed ones."""
    with folder.run.store.transaction():
        for name, correction in corrections.items():
            folder.run.save(folder.pictures[name], "reviewed", correction)


def matched(
    source: Path | Sequence[Mapping[str, Any]], folder: AnnotatedFolder, pictures: Iterable[str]
) -> Corrections:
    """A corrected set or annotated tasks, for these pictures of a run."""
    texts = prompts.parse(folder.labels)
    # Also as it was typed: "cat|kitten" is a label's value in Label Studio, too.
    every = zip(texts.names, texts.synonyms, folder.labels, strict=True)
    words = [(name, *synonyms, typed) for name, synonyms, typed in every]
    sizes = {name: folder.pictures[name].size_wh for name in pictures}
    read = read_corrections(source, sizes, words, [folder.out / "yolo", folder.out / "voc"], folder.masks)
    for name, correction in read.pictures.items() if folder.masks else ():
        read.pictures[name] = with_masks(correction, folder.view(name).drafts(unsure=True))
    return read


def with_masks(correction: Correction, found: Candidates) -> Correction:
    """The correction with a mask for every box: its own, that of the nearest draft inside it, or all of the box."""
    hw, masks = (found.size_wh[1], found.size_wh[0]), [*(correction.masks or [None] * len(correction.boxes))]
    for i, (box, label) in enumerate(zip(correction.boxes, correction.labels, strict=True)):
        if masks[i] is not None:
            continue
        (rows, columns) = window = _window(box, hw)
        part = np.ones((rows.stop - rows.start, columns.stop - columns.start), bool)
        overlaps = geometry.iou_matrix([box], found.xyxy)[0] * (found.labels == label)
        if found.masks and overlaps.max(initial=0) > 0:
            best = int(overlaps.argmax())
            if np.abs(found.xyxy[best] - box).max() <= MOVED:
                masks[i] = found.masks[best]
                continue
            draft = rle.decode({"size": hw, "counts": found.masks[best]})[window]
            part = draft if draft.any() else part
        masks[i] = rle.compressed(rle.placed(part, columns.start, rows.start, hw))
    return replace(correction, masks=masks)


def _window(box: Sequence[float], hw: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the pixels whose centres lie in a box, or of the one that it lies in."""
    edges = ((hw[0], box[1], box[3]), (hw[1], box[0], box[2]))
    firsts = [min(max(int(np.ceil(low - 0.5)), 0), side) for side, low, _ in edges]
    lasts = [min(max(int(np.floor(high + 0.5)), 0), side) for side, _, high in edges]
    if any(first >= last for first, last in zip(firsts, lasts, strict=True)):
        firsts = [min(int(low), side - 1) for side, low, _ in edges]
        lasts = [first + 1 for first in firsts]
    return slice(firsts[0], lasts[0]), slice(firsts[1], lasts[1])


# ---------------------------------------------------------------------------------------------- sets of other tools
def read_corrections(
    source: Path | Sequence[Mapping[str, Any]],  # a corrected set, or tasks as Label Studio's JSON has them
    sizes: Mapping[str, Size],  # of the run's pictures, upright
    labels: Sequence[Sequence[str]],  # the names of each label of the run: the label, then its synonyms
    lists: Sequence[Path] = (),  # further lists of files, as exports write them, that tell which file is which picture
    masks: bool = False,  # whether masks are read, and polygons as masks; else only boxes are taken
) -> Corrections:
    """Reads a corrected set."""
    read = reading.read_labels(source, reading.FORMATS) if isinstance(source, Path) else _of_tasks(source)
    find = reading.PictureFinder(sizes, read.listed, {k: v for folder in lists for k, v in read_list(folder).items()})
    known = _label_index(labels)
    corrections, problems, named = dict[str, Correction](), dict[str, str](), Counter[str]()
    for entry in read.pictures:
        try:
            try:
                picture = find(entry.names, entry.more)
            except ValueError as error:
                raise UnusableError(str(error)) from None
            named[picture] += 1
            size = sizes[picture]
            if named[picture] > 1:
                corrections.pop(picture, None)
                raise UnusableError(f"several pictures of the set match {picture}")
            if entry.size_wh not in (None, size):
                width, height = entry.size_wh or size
                raise UnusableError(f"it is {width}×{height} in the set, but was annotated at {size[0]}×{size[1]}")
            corrections[picture] = _checked(entry.boxes(size, masks), size, known, masks)
        except UnusableError as error:
            problems[entry.names[0]] = str(error)
        except (InputError, *reading.UNREADABLE) as error:
            reason = f"its boxes cannot be read as {read.format}'s ({reading.in_one_line(error)}): export the set again"
            problems[entry.names[0]] = reason
    return Corrections(read.format, corrections, problems)


def _of_tasks(tasks: Sequence[Mapping[str, Any]]) -> LabelSet:
    try:
        return labelstudio.read(tasks)
    except reading.UNREADABLE as error:
        got = f"something else ({reading.in_one_line(error)})"
        raise UsageError(f"expected annotated tasks of Label Studio, got {got}") from None


def _checked(boxes: Iterable[LabelledBox], size: Size, known: Mapping[str, int], masks: bool) -> Correction:
    """The boxes, clipped to the picture."""
    corners, numbers, codes = [], [], list[str | None]()
    for drawn in boxes:
        if drawn.kind != "box" and drawn.mask is None:
            raise UnusableError(f"a shape in it is a {drawn.kind}, not a box")
        label, mask = drawn.name, drawn.mask and drawn.mask()
        number = known.get(label, known.get(label.casefold()))
        if number is None:
            raise UnusableError(f"{label!r} is not a label of this run")
        box = clipped(drawn.xyxy if mask is None or drawn.kind == "box" else rle.bounds(mask, size[1]), size)
        if box is None:
            raise UnusableError(f"a box of {label!r} is empty, or lies outside of the picture")
        corners.append(box)
        numbers.append(number)
        if mask is not None and not mask[1::2].any():
            raise UnusableError(f"a mask of {label!r} is empty")
        codes.append(None if mask is None else rle.compressed(mask))
    return Correction(corners, numbers, masks=codes if masks else None)


def clipped(xyxy: Sequence[float], size: Size) -> list[float] | None:
    """A box inside the picture, in hundredths of a pixel; None if nothing is left of it."""
    corners = np.array(xyxy, float)
    if not np.isfinite(corners).all():
        return None
    inside = np.clip(corners, 0, [*size, *size]).tolist()
    x0, y0, x1, y1 = (round(value, 2) for value in inside)
    return [x0, y0, x1, y1] if x1 - x0 > LEAST_SIDE and y1 - y0 > LEAST_SIDE else None


def _label_index(labels: Sequence[Sequence[str]]) -> dict[str, int]:
    """Name, also in small letters → label; a label's name comes before a synonym."""
    first = [(names[0], number) for number, names in enumerate(labels)]
    synonyms = [(name, number) for number, names in enumerate(labels) for name in names[1:]]
    index = dict[str, int]()
    for names, spelt in ((first, str), (first, str.casefold), (synonyms, str), (synonyms, str.casefold)):
        for name, number in names:
            index.setdefault(spelt(name), number)
    return index


# --------------------------------------------------------------------------------------------- what the editor saves
def correction_of(boxes: Sequence[ReviewedBox], found: Candidates, labels: int) -> Correction:
    """The boxes that the editor saved of a picture."""
    corners: list[list[float]] = []
    for drawn in boxes:
        box = clipped(drawn.xyxy, found.size_wh)
        if box is None:
            raise UnusableError("expected boxes inside the picture, with a width and a height above 0")
        if drawn.label >= labels:
            raise UnusableError(f"expected labels below {labels}, got {drawn.label}")
        if drawn.draft is not None and drawn.draft >= len(found.labels):
            raise UnusableError(f"expected drafts below {len(found.labels)}, got {drawn.draft}")
        corners.append(box)
    masks: list[str | None] | None = None
    if found.masks is not None:
        masks = [_mask(drawn, box, found.size_wh) for drawn, box in zip(boxes, corners, strict=True)]
    return Correction(corners, [box.label for box in boxes], masks, [box.draft for box in boxes])


def review_of(folder: AnnotatedFolder, picture: str, saved: ReviewedPicture) -> Correction | None:
    """The boxes after a person saved a picture, None: its drafts."""
    now = folder.view(picture)
    found, boxes = now.found, saved.boxes
    drafts = now.of_drafts()
    if saved.drawn not in (None, folder.drawn(picture, now.saved.generation)):
        # They were made from earlier drafts: each gets the number of the draft that is the same now, if there is.
        left, boxes = list(range(len(found.labels))), []
        for box in saved.boxes:
            alike = (i for i in left if found.labels[i] == box.label and np.abs(found.xyxy[i] - box.xyxy).max() <= SAME)
            draft = None if box.draft is None else next(alike, None)
            left = [i for i in left if i != draft]
            boxes.append(msgspec.structs.replace(box, draft=draft))
    made = correction_of(boxes, found, len(folder.names))
    unchanged = (made.drafts, made.labels, made.masks) == (drafts.drafts, drafts.labels, drafts.masks)
    unchanged = unchanged and np.abs(np.subtract(drafts.boxes, made.boxes)).max(initial=0) <= SAME
    return None if unchanged and saved.status != "reviewed" else made


def _mask(box: ReviewedBox, xyxy: Sequence[float], size_wh: Size) -> str:
    """A box's mask: as it came, from its polygons, or all of the box where these have no pixel."""
    width, height = size_wh
    if box.mask is not None:
        try:
            counts = rle.uncompressed(box.mask)
        except ValueError as error:
            raise UnusableError(f"expected a mask as COCO's run lengths ({error})") from None
        if not rle.fills(counts, width * height):
            raise UnusableError("expected masks of the picture's size")
        return box.mask
    try:
        mask = draw_all([outlines_of(polygon, size_wh) for polygon in box.polygons or ()], (height, width))
    except ValueError as error:
        raise UnusableError(f"expected polygons inside the picture ({error})") from None
    if not mask.any():  # of a polygon too: one between the pixels' centres has none
        x0, y0, x1, y1 = (round(value) for value in xyxy)
        x0, y0 = min(x0, width - 1), min(y0, height - 1)
        mask[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = True
    return rle.encode(mask)["counts"]

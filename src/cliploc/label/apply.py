"""What people changed, taken into a run: boxes of the editor, of its page in a file, and corrected sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cliploc.errors import UsageError
from cliploc.find import prompts
from cliploc.formats.yolo import CLASS_LISTS
from cliploc.images import rle
from cliploc.images.polygons import draw_all, outlines_of
from cliploc.label import correction_masks
from cliploc.label.correction_masks import UnusableError
from cliploc.label.corrections import FORMATS, Corrections, clipped, read_corrections
from cliploc.label.drafts import choose, held_drafts
from cliploc.runs.labelling import Candidates, Correction
from cliploc.support.documents import SavedReview, read_json

if TYPE_CHECKING:
    from cliploc.label.results import AnnotatedFolder

SAME = 0.01  # pixels; coordinates are kept in hundredths


def is_review(path: Path) -> bool:
    """Whether a file is read as what review.html saved: it is not in a format of another tool."""
    if path.is_dir() or path.suffix.lower() in (".xml", ".yaml", ".yml") or path.name.lower() in CLASS_LISTS:
        return False
    try:
        read = read_json(path)
    except (OSError, ValueError):
        return True
    return not isinstance(read, list) and not (isinstance(read, dict) and "images" in read)


def apply_review(folder: AnnotatedFolder, path: Path) -> dict[str, str]:
    """Takes the pictures that a person edited in review.html. Returns why others are left as they are."""
    try:
        read = read_json(path, SavedReview)
    except FileNotFoundError:
        raise UsageError(f"expected corrected boxes in {path}, found no such file: check the path") from None
    except (OSError, ValueError) as error:
        raise UsageError(
            f"expected {FORMATS}; {path} has other content or cannot be read ({error}): save it again, or unpack it"
        ) from None
    if read["run"] != folder.id:
        raise UsageError(f"{path} reviews boxes of another run: apply it to that run's --out")
    problems = dict[str, str]()
    with folder.run.store.transaction():
        for name, page in read["pictures"].items():
            picture = folder.pictures.get(name)
            if picture is None or picture.error is not None:
                raise UsageError(f"{path} reviews {name}, which this run does not have: check the file")
            file, dash, _ = (page.get("drawn") or "").partition("-")  # a page need not say it
            if dash and file != picture.checksum[: len(file)]:
                problems[name] = "its file was another one when it was reviewed: review it again"
                continue
            try:
                correction = review_of(folder, name, page)
            except UnusableError as error:
                raise UsageError(f"{path} cannot be applied to {name}: {error}: save it again from the page") from None
            folder.run.save(picture, page["status"], correction)
    return problems


def apply_corrections(folder: AnnotatedFolder, path: Path) -> tuple[Corrections, Counter[str]]:
    """Takes a corrected set, and tells where its masks are from."""
    read, sources = matched(path, folder, [picture.id for picture in folder.annotated()])
    with folder.run.store.transaction():
        for name, correction in read.pictures.items():
            folder.run.save(folder.pictures[name], "reviewed", correction)
    return read, sources


def matched(
    given: Path | Sequence[Mapping[str, Any]], folder: AnnotatedFolder, pictures: Iterable[str]
) -> tuple[Corrections, Counter[str]]:
    """A corrected set or annotated tasks, for these pictures of a run, and where its masks are from."""
    texts = prompts.parse(folder.labels)
    # Also as it was given: "cat|kitten" is a label's value in Label Studio, too.
    every = zip(texts.names, texts.synonyms, folder.labels, strict=True)
    words = [(name, *own, as_given) for name, own, as_given in every]
    sizes = {name: folder.pictures[name].size_wh for name in pictures}
    read = read_corrections(given, sizes, words, [folder.out / "yolo", folder.out / "voc"], folder.masks)
    sources: Counter[str] = Counter()
    if folder.masks:
        for name, correction in list(read.pictures.items()):
            try:
                read.pictures[name], of_picture = correction_masks.filled(correction, folder.drafts(name, unsure=True))
            except UnusableError as error:
                del read.pictures[name]
                read.problems[name] = str(error)
            else:
                sources += of_picture
    return read, sources


# --------------------------------------------------------------------------------------------- what the editor saves
def correction_of(boxes: Sequence[Mapping[str, Any]], found: Candidates, labels: int) -> Correction:
    """The boxes that the editor saved of a picture."""
    corners: list[list[float]] = []
    for drawn in boxes:
        box = clipped(drawn["xyxy"], found.size_wh)
        if box is None:
            raise UnusableError("expected boxes inside the picture, with a width and a height above 0")
        if drawn["label"] >= labels:
            raise UnusableError(f"expected labels below {labels}, got {drawn['label']}")
        draft = drawn.get("draft")
        if draft is not None and draft >= len(found.labels):
            raise UnusableError(f"expected drafts below {len(found.labels)}, got {draft}")
        corners.append(box)
    masks: list[str | None] | None = None
    if found.masks is not None:
        masks = [_counts(drawn, box, found.size_wh) for drawn, box in zip(boxes, corners, strict=True)]
    return Correction(corners, [box["label"] for box in boxes], masks, [box.get("draft") for box in boxes])


def review_of(folder: AnnotatedFolder, picture: str, saved: Mapping[str, Any]) -> Correction | None:
    """The boxes after a person saved a picture, None: its drafts."""
    found, boxes = folder.candidates(picture), saved["boxes"]
    held = held_drafts(found, choose(found, folder.rule, folder.prior).shown(folder.rule.unsure))
    if saved.get("drawn") not in (None, folder.drawn(picture, folder.saved(picture).generation)):
        # They were made from earlier drafts: each gets the number of the draft that is the same now, if there is.
        left, renumbered = list(range(len(found.labels))), list[Mapping[str, Any]]()
        for box in boxes:
            of_label = (i for i in left if found.labels[i] == box["label"])
            alike = (i for i in of_label if np.abs(found.xyxy[i] - box["xyxy"]).max() <= SAME)
            draft = None if box.get("draft") is None else next(alike, None)
            left = [i for i in left if i != draft]
            renumbered.append({**box, "draft": draft})
        boxes = renumbered
    correction = correction_of(boxes, found, len(folder.names))
    unchanged = (correction.drafts, correction.labels, correction.masks) == (
        held.drafts,
        held.labels,
        held.masks,
    ) and np.abs(np.subtract(held.boxes, correction.boxes)).max(initial=0) <= SAME
    return None if unchanged and saved["status"] != "reviewed" else correction


def _counts(box: Mapping[str, Any], xyxy: Sequence[float], size_wh: tuple[int, int]) -> str:
    """A box's mask: as it came, from its polygons, or all of the box where these have no pixel."""
    width, height = size_wh
    if (given := box.get("mask")) is not None:
        try:
            counts = rle.uncompressed(given)
        except ValueError as error:
            raise UnusableError(f"expected a mask as COCO's run lengths ({error})") from None
        if not rle.fills(counts, width * height):
            raise UnusableError("expected masks of the picture's size")
        return str(given)
    try:
        mask = draw_all([outlines_of(polygon, size_wh) for polygon in box.get("polygons") or ()], (height, width))
    except ValueError as error:
        raise UnusableError(f"expected polygons inside the picture ({error})") from None
    if not mask.any():  # of a polygon too: one between the pixels' centres has none
        x0, y0, x1, y1 = (round(value) for value in xyxy)
        x0, y0 = min(x0, width - 1), min(y0, height - 1)
        mask[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = True
    return rle.encode(mask)["counts"]

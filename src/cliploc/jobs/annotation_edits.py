"""What people changed: corrections.json, and while the editor runs a line for each save in corrections.jsonl."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cliploc import prompts, rle
from cliploc._documents import SavedCorrections, SavedPicture, SavedReview, parse_json, read_bytes, read_json
from cliploc._files import write_at
from cliploc.datasets.yolo import CLASS_LISTS
from cliploc.errors import UsageError
from cliploc.jobs import correction_masks, export_states, folder
from cliploc.jobs.annotation_rows import KIND, SCHEMA_VERSION, Results
from cliploc.jobs.annotator import Row
from cliploc.jobs.correction_masks import UnusableError
from cliploc.jobs.corrections import FORMATS, Correction, Corrections, clipped, read_corrections
from cliploc.polygons import draw_all, outlines_of

if TYPE_CHECKING:
    from cliploc.jobs.annotation_results import AnnotatedFolder

CORRECTIONS, SAVES, CORRECTIONS_KIND = "corrections.json", "corrections.jsonl", "cliploc corrections"
SAME = 0.01  # pixels; coordinates are kept in hundredths
MOST_SAVES = 2**24  # bytes of corrections.jsonl before it is merged into a corrections.json that is smaller than this


def is_review(path: Path) -> bool:
    """Whether a file is read as what review.html saved: it is not in a format of another tool."""
    if path.is_dir() or path.suffix.lower() in (".xml", ".yaml", ".yml") or path.name.lower() in CLASS_LISTS:
        return False
    try:
        read = read_json(path)
    except (OSError, ValueError):
        return True
    return not isinstance(read, list) and not (isinstance(read, dict) and "images" in read)


def merge_review(drafts: AnnotatedFolder, path: Path) -> dict[str, str]:
    """Adds the pictures that a person edited in review.html. Returns why others are left as they are."""
    try:
        read = read_json(path, SavedReview)
    except FileNotFoundError:
        raise UsageError(f"expected corrected boxes in {path}, found no such file: check the path") from None
    except (OSError, ValueError) as error:
        raise UsageError(
            f"expected {FORMATS}; {path} has other content or cannot be read ({error}): save it again, or unpack it"
        ) from None
    if read["run"] != drafts.run:
        raise UsageError(f"{path} reviews boxes of another run: apply it to that run's --out")
    problems = dict[str, str]()
    for name, page in read["pictures"].items():
        place = drafts.results.places.get(name)
        if place is None or not place.ok:
            raise UsageError(f"{path} reviews {name}, which this run does not have: check the file")
        file, dash, _ = (page.get("drawn") or "").partition("-")  # pages of earlier versions do not say the file
        if dash and file != drafts.results.drawn(name).partition("-")[0]:
            problems[name] = "its file was another one when it was reviewed: review it again"
            continue
        try:
            correction = review_of(drafts, name, page)
        except UnusableError as error:
            raise UsageError(f"{path} cannot be applied to {name}: {error}: save it again from the page") from None
        drafts.enter(name, correction, page["status"])
    write_corrections(drafts.out, drafts.corrected, drafts.run, drafts.reviews)
    return problems


def corrections_in(out: Path, run: str) -> tuple[dict[str, Correction], dict[str, dict[str, Any]]]:
    """The corrected pictures so far; and `status` and `revision` of the pictures that a person saved in the editor."""
    read = _read_corrections(out, run)
    pictures = {
        name: Correction(page["boxes"], page["labels"], page.get("masks"), page.get("drafts"))
        for name, page in read["pictures"].items()
    }
    return pictures, read["reviews"]


def _read_corrections(out: Path, run: str) -> dict[str, Any]:
    """What corrections.json has, with the saves that follow it."""
    path, pictures, reviews = out / CORRECTIONS, dict[str, Any](), dict[str, Any]()
    try:
        if path.exists():
            read = read_json(path, SavedCorrections)
            _refuse_other(read["run"], run)
            pictures, reviews = read["pictures"], read.get("reviews", {})
        path = out / SAVES
        for line in saves_in(out):
            save = parse_json(line, SavedPicture)
            _refuse_other(save["run"], run)
            name = save["picture"]
            reviews[name] = save["review"]
            pictures.pop(name, None)
            if save.get("corrected") is not None:
                pictures[name] = save["corrected"]
    except (OSError, ValueError) as error:
        raise UsageError(
            f"expected the corrections of this run, {path} cannot be read ({error}): move it away and --apply the "
            "corrected set again"
        ) from None
    return {"pictures": pictures, "reviews": reviews}


def _refuse_other(run: str, own: str) -> None:
    if run != own:
        raise ValueError("it belongs to another run")


def saves_in(out: Path) -> list[bytes]:
    """The whole lines of corrections.jsonl; what follows the last one was never said to be saved."""
    path = out / SAVES
    content = read_bytes(path) if path.exists() else b""
    return content[: content.rfind(b"\n") + 1].splitlines(keepends=True)


def write_save(
    out: Path, place: int, run: str, picture: str, review: Mapping[str, Any], correction: Correction | None
) -> int:
    """Adds to corrections.jsonl the boxes that a person saved, None if the drafts hold; exports are stale then."""
    if not place:  # of a run that was begun before there was such a file
        folder.update_manifest(out, KIND, files=sorted({*folder.read_manifest(out, KIND)["files"], SAVES}))
    export_states.mark_stale(out)
    corrected = {} if correction is None else {"corrected": _plain(correction)}
    line = json.dumps({"run": run, "picture": picture, "review": review, **corrected}, allow_nan=False)
    return write_at(out / SAVES, place, f"{line}\n".encode("ascii"))


def merge_saves(out: Path, run: str) -> None:
    """Merges corrections.jsonl into corrections.json. To do it again after a kill changes nothing."""
    if (out / SAVES).exists():
        read = _read_corrections(out, run)
        _write_document(out, read["pictures"], run, read["reviews"])
        (out / SAVES).unlink()


def merge_corrections(drafts: AnnotatedFolder, path: Path) -> tuple[Corrections, Counter[str]]:
    """Adds a corrected set to those before, and tells where its masks are from."""
    sizes = sizes_of(drafts.results, [picture.id for picture in drafts.annotated()])
    read, sources = matched(path, drafts, sizes)
    reviews = {name: entry for name, entry in drafts.reviews.items() if name not in read.pictures}
    write_corrections(drafts.out, {**drafts.corrected, **read.pictures}, drafts.run, reviews)
    return read, sources


def sizes_of(results: Results, pictures: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Picture → its width and height, upright."""
    return {name: (int(row["width"]), int(row["height"])) for name in pictures for row in [results.row(name)]}


def matched(
    given: Path | Sequence[Mapping[str, Any]], drafts: AnnotatedFolder, sizes: Mapping[str, tuple[int, int]]
) -> tuple[Corrections, Counter[str]]:
    """A corrected set or annotated tasks, for a run whose pictures have these sizes, and where its masks are from."""
    texts = prompts.parse(drafts.labels)
    # Also as it was given: "cat|kitten" is a label's value in Label Studio, too.
    every = zip(texts.names, texts.synonyms, drafts.labels, strict=True)
    words = [(name, *own, as_given) for name, own, as_given in every]
    read = read_corrections(given, sizes, words, [drafts.out / "yolo", drafts.out / "voc"], drafts.masks)
    sources: Counter[str] = Counter()
    if drafts.masks:
        for name, correction in list(read.pictures.items()):
            try:
                read.pictures[name], of_picture = correction_masks.filled(correction, drafts.shown_row(name))
            except UnusableError as error:
                del read.pictures[name]
                read.problems[name] = str(error)
            else:
                sources += of_picture
    return read, sources


def plain_corrections(pictures: Mapping[str, Correction]) -> dict[str, Any]:
    """Corrections as corrections.json has them."""
    return {name: _plain(correction) for name, correction in pictures.items()}


def _plain(correction: Correction) -> dict[str, Any]:
    return {key: value for key, value in vars(correction).items() if value is not None}


def write_corrections(
    out: Path, pictures: Mapping[str, Correction], run: str, reviews: Mapping[str, Mapping[str, Any]]
) -> None:
    """Writes corrections.json; exports written before are stale from now on."""
    export_states.mark_stale(out)
    merge_saves(out, run)  # else a kill before the end would leave earlier saves beside later corrections
    _write_document(out, plain_corrections(pictures), run, reviews)


def _write_document(out: Path, pictures: Mapping[str, Any], run: str, reviews: Mapping[str, Mapping[str, Any]]) -> None:
    document = {"kind": CORRECTIONS_KIND, "schema_version": SCHEMA_VERSION, "run": run, "pictures": pictures}
    folder.write_json(out / CORRECTIONS, {**document, **({"reviews": reviews} if reviews else {})})


# --------------------------------------------------------------------------------------------- what the editor saves
def correction_of(boxes: Sequence[Mapping[str, Any]], row: Row, labels: int) -> Correction:
    """The boxes that the editor saved of a picture."""
    width, height = row["width"], row["height"]
    corners: list[list[float]] = []
    for drawn in boxes:
        box = clipped(drawn["xyxy"], (width, height))
        if box is None:
            raise UnusableError("expected boxes inside the picture, with a width and a height above 0")
        if drawn["label"] >= labels:
            raise UnusableError(f"expected labels below {labels}, got {drawn['label']}")
        draft = drawn.get("draft")
        if draft is not None and draft >= len(row["boxes"]):
            raise UnusableError(f"expected drafts below {len(row['boxes'])}, got {draft}")
        corners.append(box)
    masks: list[str | None] | None = None
    if "masks" in row:
        masks = [_counts(drawn, box, (width, height)) for drawn, box in zip(boxes, corners, strict=True)]
    return Correction(corners, [box["label"] for box in boxes], masks, [box.get("draft") for box in boxes])


def review_of(drafts: AnnotatedFolder, picture: str, saved: Mapping[str, Any]) -> Correction | None:
    """The boxes after a person saved a picture, None: its drafts."""
    row, kept, boxes = drafts.results.row(picture), drafts.kept(picture), saved["boxes"]
    if saved.get("drawn") not in (None, drafts.results.drawn(picture)):
        # They were made from earlier drafts: each gets the number of the draft that is the same now, if there is.
        left, renumbered = list(range(len(row["boxes"]))), list[Mapping[str, Any]]()
        for box in boxes:
            of_label = (i for i in left if row["labels"][i] == box["label"])
            alike = (i for i in of_label if np.abs(np.subtract(row["boxes"][i], box["xyxy"])).max() <= SAME)
            draft = None if box.get("draft") is None else next(alike, None)
            left = [i for i in left if i != draft]
            renumbered.append({**box, "draft": draft})
        boxes = renumbered
    correction = correction_of(boxes, row, len(drafts.names))
    xyxy, labels, masks = ([row[key][i] for i in kept if key in row] for key in ("boxes", "labels", "masks"))
    unchanged = (
        (correction.drafts, correction.labels) == (kept, labels)
        and np.abs(np.subtract(xyxy, correction.boxes)).max(initial=0) <= SAME
        and correction.masks in (None, masks)
    )
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

"""The JSON document that `--json` prints. docs/json.md explains its keys."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cliploc import __version__
from cliploc.images.rle import encode

if TYPE_CHECKING:
    from cliploc.draw.comparison import ModelResults
    from cliploc.images.reading import Picture
    from cliploc.localization import Localization
    from cliploc.values import Boxes

MOST_SKIPPED = 1_000  # skipped files that a document lists
SCHEMA_VERSION = 1  # raised when a key changes its meaning or is removed; not for new keys


def to_document(
    results: Sequence[Localization],
    failures: Sequence[tuple[str, str]],
    settings: Mapping[str, Any],
    masks: bool = False,
) -> dict[str, Any]:
    """All results of one run, as plain values for `json.dumps(…, allow_nan=False)`.

    Boxes are xyxy in pixels of the upright original with exclusive right and bottom edges, rounded to 2 decimals;
    scores are rounded to 4. Infinity and NaN become null.

    Args:
        settings: the settings of the run (model, method, threshold …); paths and tuples become plain JSON.
        masks: whether names and boxes have their masks, as COCO's compressed run lengths.

    Example:
        >>> document = to_document([], [("a.jpg", "a.jpg: no such file: check the path")], {"model": "mini"})
        >>> document["failures"][0]["file"], document["settings"]["model"]
        ('a.jpg', 'mini')
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "cliploc_version": __version__,
        "settings": _plain(settings),
        "pictures": [_picture(result, masks) for result in results],
        "failures": [{"file": _text(file), "error": _text(error)} for file, error in failures],
    }


def skipped_document(skipped: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Skipped files, each with the reason, as in JSON results: their number, and the first 1,000 by name."""
    files = [{"file": _text(file), "reason": reason} for file, reason in skipped[:MOST_SKIPPED]]
    return {"count": len(skipped), "files": files}


def classified_record(
    source: str, size_wh: tuple[int, int], notes: Sequence[str], names: Sequence[tuple[str, float, float]]
) -> dict[str, Any]:
    """One entry of "pictures" in the document of a classification."""
    return described(source, size_wh, notes) | {
        "names": [
            {"rank": rank, "name": _text(name), "probability": _number(probability, 4), "cosine": _number(cosine, 4)}
            for rank, (name, probability, cosine) in enumerate(names, start=1)
        ]
    }


def segmented_record(
    picture: Picture, labels: npt.NDArray[np.integer[Any]], names: Sequence[str], masks: bool = False
) -> dict[str, Any]:
    """One entry of "pictures" in the document of a segmentation; with masks as COCO's compressed run lengths."""
    counts = np.bincount(labels.ravel(), minlength=len(names)).tolist()
    entries = []
    for value, name in enumerate(names):
        entry = {"name": name, "value": value, "pixels": counts[value], "share": round(counts[value] / labels.size, 6)}
        entries.append(entry | ({"mask": encode(labels == value)} if masks else {}))
    return described(picture.source, picture.image.size, picture.notes) | {"names": entries}


def compared_record(models: Sequence[ModelResults], methods: Iterable[str]) -> dict[str, Any]:
    """One entry of "pictures" in the document of a comparison: "results" has each method on each model."""
    results = [result for model in models for result in model.results.values()]
    shared = [note for note in results[0].notes if all(note in result.notes for result in results)]
    entries = []
    for model, method in product(models, methods):
        entry: dict[str, Any] = {"model": _text(model.model), "method": _text(method)}
        result = model.results.get(method)
        if result is None:
            entries.append(entry | {"missing": _text(model.missing[method]), "notes": [], "names": []})
            continue
        names = []
        for index in range(len(result.names)):
            peak = result.peak(index)  # heat, x, y
            entry_of_peak = peak and {"heat": _number(peak[0], 4), "xy": [_number(value, 2) for value in peak[1:]]}
            names.append(_name(result, index) | {"peak": entry_of_peak})
        notes = [_text(note) for note in result.notes if note not in shared]
        entries.append(entry | {"missing": None, "notes": notes, "names": names})
    return described(results[0].source, results[0].image.size, shared) | {"results": entries}


def described(source: str, size_wh: tuple[int, int], notes: Sequence[str]) -> dict[str, Any]:
    """The keys that every entry of "pictures" has."""
    return {"file": _text(source), "width": size_wh[0], "height": size_wh[1], "notes": [_text(note) for note in notes]}


def _picture(result: Localization, masks: bool) -> dict[str, Any]:
    names = [_name(result, index) for index in range(len(result.names))]
    if masks:
        of_boxes = {index: encode(mask) for index, mask in result.box_masks()}
        for index, name in enumerate(names):
            name["mask"] = encode(result.name_mask(index)) if result.found[index] else None
            for i, box in zip(np.flatnonzero(result.boxes.label == index).tolist(), name["boxes"], strict=True):
                box["mask"] = of_boxes[i]
    height, width = result.frame.original_hw  # the picture may be a smaller copy
    return described(result.source, (width, height), result.notes) | {"names": names}


def _name(result: Localization, index: int) -> dict[str, Any]:
    reason, presence = result.reasons[index], result.presence_of(index)
    return {
        "name": _text(result.names[index]),
        "found": bool(result.found[index]),
        "verdict": result.verdict(index),
        "reason": None if reason is None else _text(reason),
        "score": _number(result.scores[index], 4),
        "presence": None if presence is None else round(presence, 4),
        "presence_rule": None if presence is None else result.presence_rule,
        "calibrated": result.is_calibrated(index),
        "boxes": _boxes(result.boxes, index),
        "unsure_boxes": _boxes(result.unsure, index),
    }


def _boxes(boxes: Boxes, index: int) -> list[dict[str, Any]]:
    return [
        {"xyxy": [_number(value, 2) for value in boxes.xyxy[i]], "score": _number(boxes.score[i], 4)}
        for i in np.flatnonzero(boxes.label == index).tolist()
    ]


def _number(value: Any, decimals: int) -> float | None:
    number = float(value)
    return round(number, decimals) + 0.0 if math.isfinite(number) else None  # + 0.0 turns −0 into 0


def _text(value: Any) -> str:
    """A value as valid UTF-8 text, as file names may contain other bytes."""
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if hasattr(value, "tolist"):  # numpy
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_text(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(inner) for inner in value]
    return _text(value)

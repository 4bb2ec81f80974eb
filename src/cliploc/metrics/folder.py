"""Score maps in a folder and metadata in another → the WSOL numbers."""

from __future__ import annotations

import csv
import math
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from cliploc.boxes import one_thread
from cliploc.errors import InputError, UsageError
from cliploc.metrics._bootstrap import DEFAULT, Bootstrap
from cliploc.metrics.box_accuracy import (
    Interval,
    LocalizationAccuracy,
    LocalizationResult,
    MaxBoxAcc,
    MaxBoxAccResult,
    MaxBoxAccV2,
    MaxBoxAccV2Result,
)
from cliploc.metrics.curve import BoxCurve, Convention, box_curve, boxes_on_map, checked_map
from cliploc.schema import Problem

Numbers = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Truth:
    """What metadata say of one image: boxes in original pixels."""

    image_id: str
    label: int
    size_wh: tuple[int, int]
    xyxy: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class FolderResult:
    """The numbers of a folder of maps.

    Attributes:
        asked: how many images the metadata list.
        max_box_acc, max_box_acc_v2, localization: see these results; all of the images without a problem.
        problems: everything that was left out.
    """

    asked: int
    max_box_acc: MaxBoxAccResult
    max_box_acc_v2: MaxBoxAccV2Result
    localization: LocalizationResult
    problems: tuple[Problem, ...]

    def counts(self) -> dict[str, int]:
        """How many problems of each kind."""
        return dict(sorted(Counter(one.kind for one in self.problems).items()))

    def document(self, convention: Convention) -> dict[str, Any]:
        """As `cliploc evaluate --json` prints it: shares in percent, None where there is no number."""
        one, two, located = self.max_box_acc, self.max_box_acc_v2, self.localization
        numbers: dict[str, tuple[float | None, Interval]] = {
            "max_box_acc": (one.accuracy, one.interval),
            **{f"max_box_acc_iou{iou * 100:.0f}": (part.accuracy, part.interval) for iou, part in two.at_iou.items()},
            "max_box_acc_v2": (two.accuracy, two.interval),
        }
        for name in ("gt_known", "top1_loc", "top5_loc", "top1_cls", "top5_cls"):
            numbers[name] = (getattr(located, name), located.intervals.get(name))
        return {
            **{name: None if share is None else 100 * share for name, (share, _) in numbers.items()},
            "best_threshold": one.threshold,
            "threshold": located.threshold,
            "threshold_chosen_on_these_images": located.oracle,
            "convention": convention,
            "images": self.asked,
            "evaluated": one.n,
            "with_predictions": located.predicted,
            "confidence_95": {name: [100 * end for end in ends] for name, (_, ends) in numbers.items() if ends},
            "per_class": {
                str(label): {"max_box_acc": 100 * share, "gt_known": 100 * located.per_class[label]}
                for label, share in one.per_class.items()
            },
            "problems": self.counts(),
            "failed": [{"kind": p.kind, "source": p.source, "reason": p.reason} for p in self.problems],
        }

    def lines(self) -> list[tuple[str, str, str, str]]:
        """A line for each number: name, percent, 95 % interval, and the τ it is at."""
        two, located = self.max_box_acc_v2, self.localization
        rows = [("MaxBoxAcc", self.max_box_acc.accuracy, self.max_box_acc.interval, _tau(self.max_box_acc.threshold))]
        for iou, part in two.at_iou.items():
            rows.append((f"MaxBoxAccV2, IoU {iou:g}", part.accuracy, part.interval, _tau(part.threshold)))
        rows.append(("MaxBoxAccV2", two.accuracy, two.interval, "their mean"))
        of = "" if located.predicted == located.n else f", of {located.predicted} images with predictions"
        titles = {
            "gt_known": ("GT-known Loc", _tau(located.threshold, located.oracle)),
            "top1_loc": ("Top-1 Loc", _tau(located.threshold, located.oracle) + of),
            "top5_loc": ("Top-5 Loc", _tau(located.threshold, located.oracle) + of),
            "top1_cls": ("Top-1 classification", of.removeprefix(", ")),
            "top5_cls": ("Top-5 classification", of.removeprefix(", ")),
        }
        for key, (title, note) in titles.items():
            share = getattr(located, key)
            if share is not None:
                rows.append((title, share, located.intervals[key], note))
        return [(title, f"{100 * share:.2f} %", _ends(ends), note) for title, share, ends, note in rows]


def _tau(threshold: float, oracle: bool = True) -> str:
    return f"τ {threshold:g}, {'the best on these images (an oracle)' if oracle else 'as given'}"


def _ends(interval: Interval) -> str:
    return "" if interval is None else f"{100 * interval[0]:.2f}–{100 * interval[1]:.2f}"


def evaluate_folder(
    maps: str | Path,
    metadata: str | Path,
    *,
    convention: Convention = "wsoleval",
    threshold: float | None = None,
    predictions: str | Path | None = None,
    workers: int = 1,
    bootstrap: Bootstrap = DEFAULT,
    on_problem: Callable[[Problem], None] | None = None,
    on_image: Callable[[], None] | None = None,
    on_start: Callable[[int], None] | None = None,
) -> FolderResult:
    """Evaluates score maps made by any tool.

    Args:
        maps: folder with `<image_id>.npy` for each image (ids may hold sub-folders): floats in 0–1, see `box_curve`.
        metadata: folder in the layout of the public WSOL evaluation (Choe et al. 2020): see `read_metadata`.
        convention: "wsoleval" or "exact".
        threshold: τ of GT-known and Top-k; None for the best on these images.
        predictions: CSV with `image_id,class,class,…` a line, best first.
        workers: how many processes.
        bootstrap: how intervals are made.
        on_problem: called with each problem when it is found.
        on_image: called after each image.
        on_start: called with the number of images.

    Raises:
        UsageError: a folder, file or option that cannot be used, or no image that can be evaluated.
    """
    problems: list[Problem] = []

    def leave_out(problem: Problem) -> None:
        problems.append(problem)
        if on_problem:
            on_problem(problem)

    maps = Path(maps)
    if not maps.is_dir():
        raise UsageError(f"expected a folder of maps, found none at {maps}: check the path")
    if threshold is not None and not 0 <= threshold <= 1:
        raise UsageError(f"expected a threshold from 0 to 1, got {threshold}")
    if workers < 1:
        raise UsageError(f"expected at least 1 worker, got {workers}")
    checked_map(np.zeros((224, 224)), convention)  # refuses an unknown convention before anything is read
    asked, truths = read_metadata(metadata, leave_out)
    ranked = read_predictions(predictions, leave_out) if predictions is not None else {}
    known = {f"{one}.npy" for one in asked}
    for path in sorted(_maps_in(maps) - known):
        leave_out(Problem("metadata", path, "a map whose image is not in image_ids.txt: add its metadata or remove it"))
    for image_id in sorted(ranked.keys() - set(asked)):
        leave_out(Problem("prediction", image_id, "predicted, but not in image_ids.txt: add its metadata or remove it"))
    one, two, located = MaxBoxAcc(), MaxBoxAccV2(), LocalizationAccuracy()
    if on_start:
        on_start(len(truths))
    for truth, curve in zip(truths, _curves(maps, truths, convention, workers), strict=True):
        if on_image:
            on_image()
        if isinstance(curve, Problem):
            leave_out(curve)
            continue
        if predictions is not None and truth.image_id not in ranked:
            leave_out(Problem("prediction", truth.image_id, "no line in the predictions: not in the Top-k numbers"))
        one.update(curve, truth.label)
        two.update(curve, truth.label)
        located.update(curve, truth.label, ranked.get(truth.image_id))
    if not len(one.hits):
        raise UsageError(f"none of {len(asked)} images could be evaluated: check {maps} and {metadata}")
    return FolderResult(
        len(asked),
        one.compute(bootstrap),
        two.compute(bootstrap),
        located.compute(threshold, bootstrap),
        tuple(problems),
    )


# ------------------------------------------------------------------------------------------------------------- maps
def _maps_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.npy")}


def _curves(maps: Path, truths: Sequence[Truth], convention: Convention, workers: int) -> Iterator[BoxCurve | Problem]:
    if workers == 1 or len(truths) < 2:
        yield from map(_curve, repeat(maps), truths, repeat(convention))
        return
    # Started afresh, not forked: a fork of a process with threads can hang.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), one_thread) as pool:
        yield from pool.map(_curve, repeat(maps), truths, repeat(convention), chunksize=8)


def _curve(maps: Path, truth: Truth, convention: Convention) -> BoxCurve | Problem:
    path = maps / f"{truth.image_id}.npy"
    try:
        heat = checked_map(_load(path), convention)
        height, width = heat.shape
        boxes = boxes_on_map(truth.xyxy, truth.size_wh, (height, width), convention)
        return box_curve(truth.image_id, heat, boxes, convention)
    except InputError as error:
        return Problem("map", truth.image_id, str(error))


def _load(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    try:
        loaded = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"expected a map at {path}, found none: make it, or leave the image out") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}): write it again") from error
    except (ValueError, EOFError) as error:
        raise InputError(f"{path} is no .npy file of numbers: write it with numpy.save") from error
    if not isinstance(loaded, np.ndarray):  # an .npz archive under another name
        raise InputError(f"{path} holds several arrays: save one map a file")
    return loaded


# --------------------------------------------------------------------------------------------------------- metadata
def read_metadata(folder: str | Path, leave_out: Callable[[Problem], None]) -> tuple[list[str], list[Truth]]:
    """Reads image_ids.txt, class_labels.txt, image_sizes.txt (width, height) and localization.txt.

    Args:
        folder: holds the four files; sizes and boxes (x0, y0, x1, y1; a line a box) in original pixels.
        leave_out: called for every image that cannot be used.

    Returns:
        All image ids, and what is known of those that can be used.

    Raises:
        UsageError: a file that is absent or holds a line that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"expected a folder of metadata, found none at {folder}: check the path")
    listed = [row[0] for row in _rows(folder / "image_ids.txt", 1)]
    if not listed:
        raise UsageError(f"expected image ids in {folder / 'image_ids.txt'}, found none: check the file")
    labels, sizes = (
        _one_each(path, _numbers(path, count), leave_out)
        for path, count in ((folder / "class_labels.txt", 1), (folder / "image_sizes.txt", 2))
    )
    boxes: dict[str, list[tuple[float, ...]]] = {}
    for one, box in _numbers(folder / "localization.txt", 4, whole=False):
        boxes.setdefault(one, []).append(box)
    for one, count in Counter(listed).items():
        if count > 1:
            leave_out(Problem("metadata", one, f"{count} times in image_ids.txt: counted once"))
    asked = list(dict.fromkeys(listed))
    known = set(asked)
    files: tuple[tuple[str, Mapping[str, object]], ...]
    files = (("class_labels", labels), ("image_sizes", sizes), ("localization", boxes))
    for name, there in files:
        for one in there:
            if one not in known:
                leave_out(Problem("metadata", one, f"in {name}.txt, but not in image_ids.txt: add it or remove it"))
    truths = []
    for one in asked:
        reason = _mismatch(one, labels, sizes, boxes)
        if reason:
            leave_out(Problem("metadata", one, reason))
        else:
            width, height = map(int, sizes[one])
            truths.append(Truth(one, int(labels[one][0]), (width, height), tuple(boxes[one])))
    return asked, truths


def _mismatch(
    one: str, labels: Numbers, sizes: Numbers, boxes: Mapping[str, Sequence[tuple[float, ...]]]
) -> str | None:
    files: tuple[tuple[str, Mapping[str, object]], ...]
    files = (("class_labels", labels), ("image_sizes", sizes), ("localization", boxes))
    for name, there in files:
        if one not in there:
            return f"not in {name}.txt: add its line"
    if Path(one).is_absolute() or ".." in Path(one).parts:
        return "expected an image id that stays inside the folder of maps: use a relative path"
    width, height = sizes[one]
    if width < 1 or height < 1:
        return f"expected a size of at least 1×1, got {width:g}×{height:g}: mend image_sizes.txt"
    for x0, y0, x1, y1 in boxes[one]:
        text = f"box {x0:g} {y0:g} {x1:g} {y1:g}"
        if not all(map(math.isfinite, (x0, y0, x1, y1))) or x1 < x0 or y1 < y0:
            return f"{text} is no box of x0 ≤ x1, y0 ≤ y1: mend localization.txt"
        if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
            return f"{text} is outside the picture of {width:g}×{height:g}: mend localization.txt or image_sizes.txt"
    return None


def _rows(path: Path, cells: int | None) -> list[list[str]]:
    """The lines of a comma-separated file that are not empty; `cells` a line unless None."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [(i, [cell.strip() for cell in row]) for i, row in enumerate(csv.reader(file), start=1) if row]
    except FileNotFoundError:
        raise UsageError(f"expected {path}, found no such file: see docs/cli.md for the layout") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is no comma-separated text in UTF-8: write it again") from error
    for i, row in rows:
        if cells is not None and len(row) != cells:
            raise UsageError(f"{path}, line {i}: expected {cells} values with commas, got {len(row)}: mend the line")
    return [row for _, row in rows]


def _numbers(path: Path, count: int, whole: bool = True) -> list[tuple[str, tuple[float, ...]]]:
    """Lines of an image id and `count` numbers."""
    rows = []
    for i, (one, *cells) in enumerate(_rows(path, 1 + count), start=1):
        try:
            rows.append((one, tuple(int(cell) if whole else float(cell) for cell in cells)))
        except ValueError:
            wanted = "whole numbers" if whole else "numbers"
            raise UsageError(f"{path}, row {i}: expected {wanted}, got {','.join(cells)}: mend the line") from None
    return rows


def _one_each(
    path: Path, rows: Sequence[tuple[str, tuple[float, ...]]], leave_out: Callable[[Problem], None]
) -> dict[str, tuple[float, ...]]:
    """Image id → its line; the first where there are several that differ, which is a problem."""
    found: dict[str, tuple[float, ...]] = {}
    for one, values in rows:
        if found.setdefault(one, values) != values:
            leave_out(Problem("metadata", one, f"two different lines in {path.name}, the first is used: mend the file"))
    return found


def read_predictions(path: str | Path, leave_out: Callable[[Problem], None]) -> dict[str, list[int]]:
    """Reads `image_id,class,class,…`, best first; a first line that begins with image_id is a title.

    Raises:
        UsageError: a file that cannot be read, or lines of different lengths.
    """
    path = Path(path)
    rows = _rows(path, None)
    if rows and rows[0][0] == "image_id":
        rows = rows[1:]
    if not rows:
        raise UsageError(f"expected predictions in {path}, found none: write image_id,class,class,… a line")
    ranked: dict[str, list[int]] = {}
    for i, (one, *cells) in enumerate(rows, start=1):
        try:
            classes = [int(cell) for cell in cells]
        except ValueError:
            raise UsageError(f"{path}, row {i}: expected classes as whole numbers, got {','.join(cells)}") from None
        if not classes or len(cells) != len(rows[0]) - 1:
            wanted = f"{len(rows[0]) - 1} classes as in the first row" if len(rows[0]) > 1 else "at least one class"
            raise UsageError(f"{path}, row {i}: expected {wanted}, got {len(classes)}: mend the line")
        if ranked.setdefault(one, classes) != classes:
            leave_out(Problem("prediction", one, "two different lines, the first is used: mend the file"))
    return ranked

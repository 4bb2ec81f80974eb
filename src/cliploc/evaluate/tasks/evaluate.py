"""Evaluates a folder that any tool filled; of score maps, against WSOL metadata."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from cliploc.errors import InputError, UsageError
from cliploc.evaluate import metrics
from cliploc.evaluate.data import boxes_inside
from cliploc.evaluate.data.wsol import read_metadata, read_predictions
from cliploc.support.reporter import SILENT, Reporter
from cliploc.values import Dataset, DatasetSplit, Problem, Sample

Columns = dict[str, Any]
S = TypeVar("S")
J = TypeVar("J")


# --------------------------------------------------------------------------------------------------------- any folder
class LeftOut:
    """What an evaluation leaves out; each problem is told when it is met."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.problems: list[Problem] = []

    def __call__(self, problem: Problem) -> None:
        self.problems.append(problem)
        self._reporter.failed(problem.source, InputError(f"{problem.source}: {problem.reason}"))


def folder_of(what: str, folder: str | Path) -> Path:
    """The folder of what is evaluated."""
    if not Path(folder).is_dir():
        raise UsageError(f"expected a folder of {what}, found none at {folder}: check the path")
    return Path(folder)


def measured(
    samples: Sequence[S], measure: Callable[[S], J | Problem], leave_out: Callable[[Problem], None], reporter: Reporter
) -> Iterator[tuple[S, J]]:
    """Each sample with what is measured of it, but for those with a problem."""
    reporter.phase("maps")
    reporter.start(len(samples), len(samples))
    for sample in samples:
        outcome = measure(sample)
        reporter.images(1)
        if isinstance(outcome, Problem):
            leave_out(outcome)
        else:
            yield sample, outcome


class EvaluatedFolder(NamedTuple):
    """What an evaluation of a folder gives."""

    document: dict[str, Any]  # as `--json` prints it: shares in percent, None where there is no number
    lines: list[tuple[str, ...]]  # a row for each number: title, value, 95 % interval, and a note


def left_out_entries(problems: Sequence[Problem]) -> dict[str, Any]:
    """What was left out, as a document has it."""
    counts = Counter(problem.kind for problem in problems)
    return {"problems": dict(sorted(counts.items())), "failed": [asdict(problem) for problem in problems]}


def lines_of(
    titles: Mapping[str, str],  # key → title
    numbers: Mapping[str, Any],  # with `confidence_95`
    text: Callable[..., str],  # of one number, or of the ends of an interval
    notes: Mapping[str, str] = {},
) -> list[tuple[str, ...]]:
    """A row for each number that there is: title, value, 95 % interval, and its note."""
    ends = numbers["confidence_95"]
    return [
        (title, text(numbers[key]), text(*ends[key]) if key in ends else "", notes.get(key, ""))
        for key, title in titles.items()
        if numbers.get(key) is not None
    ]


def percents(*values: float) -> str:
    """A percentage, or an interval of them."""
    return "–".join(f"{value:.2f}" for value in values) + (" %" if len(values) == 1 else "")


# --------------------------------------------------------------------------------------------------------- score maps
def evaluate_folder(
    maps: str | Path,
    truth: str | Path | Dataset,
    *,
    convention: metrics.Convention = "wsoleval",
    threshold: float | None = None,
    predictions: str | Path | None = None,
    bootstrap: metrics.Bootstrap = metrics.DEFAULT,
    reporter: Reporter = SILENT,
) -> EvaluatedFolder:
    """Evaluates any tool's `<image_id>.npy` in 0–1 by WSOL metadata or a dataset; no threshold: the best of these."""
    leave_out, maps = LeftOut(reporter), folder_of("maps", maps)
    if isinstance(truth, DatasetSplit):
        ids, truths = [sample.id for sample in truth.samples], [*truth.samples]
    else:
        ids, truths = _of_metadata(maps, truth, leave_out)
    ranked = read_predictions(predictions, leave_out) if predictions is not None else {}
    for image_id in sorted(ranked.keys() - set(ids)):
        leave_out(Problem("prediction", image_id, "predicted, but not in image_ids.txt: add its metadata or remove it"))
    chosen = [
        metric.at(threshold)
        for metric in metrics.all_metrics("boxes")
        if threshold is not None or not metric.needs_threshold or metric.chooses_threshold
    ]
    evaluated, measure = 0, partial(_measure_map, maps, convention, chosen)
    for one, columns in measured(truths, measure, leave_out, reporter):
        evaluated += 1
        if predictions is not None and one.id not in ranked:
            leave_out(Problem("prediction", one.id, "no line in the predictions: not in the Top-k numbers"))
        for metric in chosen:
            metric.add(one.id, columns, one.label, ranked.get(one.id))
    if not evaluated:
        raise UsageError(f"none of {len(ids)} pictures could be evaluated: check {maps} and their true boxes")
    summaries = [metric.summarise(False, bootstrap) for metric in chosen]
    numbers, facts, per_class = metrics.joined(summaries)
    notes = {key: score.note for summary in summaries for key, score in summary.scores.items()}  # on its τ
    titles = {key: number.title for key, number in metrics.all_numbers().items()}
    counts = {"images": len(ids), "evaluated": evaluated, "per_class": per_class}
    document = {"schema_version": 1, **numbers, **facts, "convention": convention, **counts}
    return EvaluatedFolder(document | left_out_entries(leave_out.problems), lines_of(titles, numbers, percents, notes))


def _of_metadata(maps: Path, metadata: str | Path, leave_out: LeftOut) -> tuple[list[str], list[Sample]]:
    """All ids, and the true boxes; also of maps that have none."""
    ids, listed = read_metadata(metadata, leave_out)
    truths = []
    for one in listed:
        assert one.size_wh is not None
        boxes, met = boxes_inside(one.boxes, one.size_wh)
        for _, reason in met:
            leave_out(Problem("metadata", one.id, reason))
        if boxes:
            truths.append(Sample(one.id, one.path, one.label, one.size_wh, np.array(boxes, np.float32)))
    known = {f"{image_id}.npy" for image_id in ids}
    for path in sorted({path.relative_to(maps).as_posix() for path in maps.rglob("*.npy")} - known):
        leave_out(Problem("metadata", path, "a map whose image is not in image_ids.txt: add its metadata or remove it"))
    return ids, truths


def _measure_map(
    maps: Path, convention: metrics.Convention, chosen: Sequence[metrics.Metric], truth: Sample
) -> Columns | Problem:
    """The metrics' columns of one map, or its problem."""
    path = maps / f"{truth.id}.npy"
    try:
        heat = metrics.checked_map(read_map(path, convention), convention)
        judged = metrics.JudgedMap(truth.id, heat, truth.boxes_xyxy, truth.size_wh, convention=convention)
        columns: Columns = {}
        for metric in chosen:
            columns |= metric.measure(judged)
        return columns
    except InputError as error:
        return Problem("map", truth.id, str(error))


def read_map(path: Path, convention: metrics.Convention) -> npt.NDArray[np.generic]:
    """Reads the array of a file; the header is checked before memory is allocated for the array."""
    if not path.is_file():
        raise InputError(f"expected a map at {path}, found none: make it, or leave the picture out")
    try:
        heat = np.load(path, mmap_mode="r", allow_pickle=False)
        metrics.check_header(heat.shape, heat.dtype, convention)
        return np.array(heat)
    except InputError:
        raise
    except Exception as error:  # numpy evaluates the header as a Python literal, which fails in many ways
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0][:200]
        raise InputError(f"{path} is not a .npy file of numbers ({reason}): write it with numpy.save") from error

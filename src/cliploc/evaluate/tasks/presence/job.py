"""`run_presence`: are names found only where they are, are scores chances; see docs/presence.md."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, Unpack

import numpy as np
import numpy.typing as npt

from cliploc.evaluate.data import PromptedDataset
from cliploc.evaluate.metrics import Bootstrap, CocoAP, average_precision, ratio
from cliploc.evaluate.tasks.presence.page import FILES, LOSSES, NUMBERS, things_text
from cliploc.evaluate.tasks.rows import arrow, columns_of_pictures, schema_of
from cliploc.evaluate.tasks.tables import number_cell
from cliploc.evaluate.tasks.task import (
    BenchmarkResult,
    BenchmarkTask,
    How,
    Manifest,
    Summary,
    Tally,
    class_entries,
    run_task,
)
from cliploc.evaluate.tasks.worker import Asked, AskingJudge, right_boxes
from cliploc.find.calibration import reliability
from cliploc.images.geometry import iou_matrix
from cliploc.localization import Localization
from cliploc.runs.evaluation import Row
from cliploc.runs.plan import ModelSetup, Setting
from cliploc.support.reporter import Reporter
from cliploc.values import GOOD_IOU

VERSION = 1  # of the format of manifest and summary
SHARD = 16  # pictures that are computed and written together
NUMBER_COLUMNS = (
    "sample", "setting", "status", "reason", "there", "verdicts", "unknown", "unknown_there", "box_scores", "box_right",
    "things", "box_labels", "boxes", "true_labels", "true_boxes",
)  # fmt: skip
OF_KNOWN = ("there", "verdicts", "presence", "box_labels", "boxes", "box_scores", "box_right")  # lists of a row
TOUCHES = 0.1  # least IoU of a proposal that is of the thing, with other edges
BINS = 10  # of the expected calibration error
Floats: TypeAlias = npt.NDArray[np.floating[Any]]


# ------------------------------------------------------------------------------------------------------------ the task
def row_schema() -> Any:
    """The columns of a row, one for each picture and setting, as a `pyarrow.Schema`."""
    pa = arrow()
    text, labels, flags, floats = pa.string(), pa.list_(pa.int32()), pa.list_(pa.bool_()), pa.list_(pa.float32())
    return schema_of(
        **columns_of_pictures(),
        # Of each name asked that the model knows, and of those that it does not.
        labels=labels, there=flags, verdicts=pa.list_(text), presence=floats, unknown=labels, unknown_there=flags,
        # Of each box.
        box_labels=labels, boxes=pa.list_(pa.list_(pa.float32(), 4)), box_scores=floats, box_right=flags,
        true_labels=labels, true_boxes=pa.list_(pa.list_(pa.float32(), 4)),
        things=pa.list_(text),  # of each true box one of `LOSSES`
    )  # fmt: skip


def _table(summary: Mapping[str, Summary], _: Manifest) -> list[tuple[str, ...]]:
    rows = [("setting", *(title for title, _ in NUMBERS.values()))]
    return rows + [
        (name, *(number_cell(numbers.get(key)).text for key in NUMBERS)) for name, numbers in summary.items()
    ]


def _legend(summary: Mapping[str, Summary], _: Manifest) -> list[str]:
    lines = [f"{title}: {about}" for title, about in NUMBERS.values()]
    for name, numbers in summary.items():
        if "names" in numbers:
            lines.append(
                f"{name}: {numbers['names']:,} names asked, {numbers['names_there']:,} there; "
                f"{numbers['boxes']:,} boxes, {numbers['right_boxes']:,} right; "
                f"{numbers['unknown']:,} further names that the model does not know, {numbers['unknown_there']:,} there"
            )
            counted = ", ".join(f"{title} {things_text(numbers, key)}" for key, (title, _) in LOSSES.items())
            lines.append(f"{name}: of {sum(numbers['things'].values()):,} true boxes: {counted}")
    return lines


TASK = BenchmarkTask(
    "presence", VERSION, FILES, row_schema, lambda: NUMBER_COLUMNS, lambda *_: PresenceTally(), _table, _legend
)


def run_presence(
    dataset: PromptedDataset,
    setups: Sequence[ModelSetup],
    settings: Sequence[Setting],
    out: Path,
    *,
    shard: int = SHARD,
    **how: Unpack[How],
) -> BenchmarkResult:
    """Asks every picture for the names chosen for it; see `run_benchmark`."""
    judge_of = partial(PresenceJudge, class_entries(dataset))
    return run_task(TASK, judge_of, dataset, setups, settings, out, shard_size=shard, **how)


# ----------------------------------------------------------------------------------------------------------- the judge
class PresenceJudge(AskingJudge):
    """Compares what a localizer says of names with what is there."""

    def judge(self, seen: Asked, setting: Setting, heat: Localization | None, reporter: Reporter) -> Row:  # noqa: ARG002
        sample = seen.sample
        unknown = [label for label in sample.labels if label in self.unknown]
        row = {"labels": seen.labels, "unknown": unknown, "unknown_there": [label in sample.truth for label in unknown]}
        true = [(label, box) for label in sample.labels for box in sample.truth.get(label, np.zeros((0, 4))).tolist()]
        row |= {"true_labels": [label for label, _ in true], "true_boxes": [box for _, box in true]}
        things = ["unknown" for label in unknown for _ in sample.truth.get(label, ())]
        if heat is None:
            return row | {key: [] for key in OF_KNOWN} | {"things": things}
        boxes = heat.boxes if heat.judged is None else heat.judged.candidates
        scale = np.array([*heat.image.size] * 2) / np.array([*sample.size_wh] * 2)
        truth = seen.truth(heat.image.size)
        count = len(seen.labels)
        return row | {
            "there": [label in sample.truth for label in seen.labels],
            "verdicts": [heat.verdict(p) for p in range(count)],
            "presence": [None] * count if heat.presence is None else heat.presence.tolist(),
            "box_labels": [seen.labels[p] for p in boxes.label.tolist()],
            "boxes": (boxes.xyxy / scale).astype(np.float32).tolist(),
            "box_scores": boxes.score.tolist(),
            "box_right": right_boxes(boxes, truth).tolist(),
            "things": things + self._things(heat, truth),
        }

    def _things(self, heat: Localization, truth: Mapping[int, npt.NDArray[Any]]) -> list[str]:
        """Whether each true box is found, or where it is lost, one of `LOSSES`."""
        proposed, said = heat.boxes if heat.judged is None else heat.judged.candidates, []
        for p, true in truth.items():
            least = self.localizer.flow.min_presence
            if heat.presence is not None and heat.presence[p] < least:
                said += ["presence"] * len(true)
                continue
            every, kept = (
                iou_matrix(true, np.concatenate([boxes.xyxy[boxes.label == p], np.zeros((1, 4))])).max(axis=1)
                for boxes in (proposed, heat.boxes)
            )
            lost = np.select([every < TOUCHES, every < GOOD_IOU], ["missed", "edges"], "score")
            said += np.where(kept >= GOOD_IOU, "found", lost).tolist()
        return said


# --------------------------------------------------------------------------------------------------------- the numbers
@dataclass(frozen=True)
class _Picture:
    """What the numbers need of a picture."""

    counts: Floats  # [5] names that are there and found, absent and found, there and not, absent and not; unsure ones
    scores: Floats  # [n] of its boxes
    right: npt.NDArray[np.bool_]  # [n]
    unknown: int
    unknown_there: int
    things: Sequence[str]


class PresenceTally(Tally):
    """Counts the rows of one setting."""

    def __init__(self) -> None:
        self._pictures: dict[str, _Picture] = {}
        self._coco = CocoAP()

    def add(self, row: Row) -> None:
        there, verdicts = np.array(row["there"], bool), np.array(row["verdicts"], object)
        is_found = verdicts == "found"
        pairs = (there & is_found, ~there & is_found, there & ~is_found, ~there & ~is_found, verdicts == "unsure")
        self._pictures[row["sample"]] = _Picture(
            np.array([pair.sum() for pair in pairs], np.float64),
            np.array(row["box_scores"], np.float64),
            np.array(row["box_right"], bool),
            len(row["unknown"]),
            sum(row["unknown_there"]),
            row["things"],
        )
        found, true = np.array(row["box_labels"], int), np.array(row["true_labels"], int)
        boxes, truth = (np.array(row[key], np.float64).reshape(-1, 4) for key in ("boxes", "true_boxes"))
        scores = np.array(row["box_scores"], np.float64)
        for label in np.union1d(found, true).tolist():
            of_name = found == label
            self._coco.add(row["sample"], label, boxes[of_name], scores[of_name].tolist(), truth[true == label])

    def summary(self, counts: Mapping[str, int], bootstrap: Bootstrap) -> Summary:
        """The numbers of `NUMBERS`, in 0–1, with `confidence_95`, the counts, and `reliability`: ten bins of boxes."""
        # the order of the parts must not matter
        pictures = [self._pictures[sample] for sample in sorted(self._pictures)]
        if not pictures:
            return dict(counts)
        of_names = np.stack([picture.counts for picture in pictures])  # [n, 5]
        numbers: dict[str, float | None] = {}
        ends: dict[str, list[float]] = {}
        for key, share in SHARES.items():
            value = share(of_names.mean(axis=0)[None])[0]
            numbers[key] = float(value) if np.isfinite(value) else None
            _add_interval(ends, key, bootstrap.replicated(of_names, share), bootstrap)
        owner = np.repeat(np.arange(len(pictures)), [len(picture.scores) for picture in pictures])
        scores, right = (np.concatenate([getattr(picture, key) for picture in pictures]) for key in ("scores", "right"))
        numbers["average_precision"] = average_precision(scores, right) if right.any() else None
        numbers["calibration_error"] = reliability(scores, right, BINS) if len(scores) else None
        drawn = bootstrap.replicated(np.eye(len(pictures), dtype=np.float32), _weighted_precision(scores, right, owner))
        _add_interval(ends, "average_precision", drawn, bootstrap)
        coco, coco_ends = self._coco.compute(bootstrap)
        numbers["ap50"] = coco.get("ap50")
        if pair := coco_ends.get("ap50"):
            ends["ap50"] = list(pair)
        # [n, 11]: of each picture and bin Σ score − Σ right, and the number of its boxes
        gaps = np.stack(
            [
                np.append(
                    np.bincount(_bin_of(picture.scores), picture.scores - picture.right, BINS), len(picture.scores)
                )
                for picture in pictures
            ]
        )
        if (errors := bootstrap.replicated(gaps, _error)) is not None and numbers["calibration_error"] is not None:
            # It cannot be negative, so it is greater in a drawn set: this bias is taken off.
            errors = (errors - np.nanmean(errors) + numbers["calibration_error"]).clip(0, 1)
        _add_interval(ends, "calibration_error", errors, bootstrap)
        there_found, absent_found, missed, absent, _ = of_names.sum(axis=0).astype(int).tolist()
        return {
            **numbers,
            "confidence_95": ends,
            "names": there_found + absent_found + missed + absent,
            "names_there": there_found + missed,
            "unknown": sum(picture.unknown for picture in pictures),
            "unknown_there": sum(picture.unknown_there for picture in pictures),
            "boxes": len(scores),
            "right_boxes": int(right.sum()),
            "reliability": [
                {"boxes": int(own.sum()), "score": float(scores[own].mean()), "right": float(right[own].mean())}
                for own in (_bin_of(scores) == i for i in range(BINS))
                if own.any()
            ],
            "things": dict.fromkeys(LOSSES, 0) | Counter(said for picture in pictures for said in picture.things),
            **counts,
        }


def _mcc(means: Floats) -> Floats:
    """Matthews correlation coefficient of counts `[r, 5]`."""
    tp, fp, fn, tn, _ = means.astype(np.float64).T
    return ratio(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))


# Number → what makes it of mean counts `[r, 5]`; see `_Picture.counts`.
SHARES: Mapping[str, Callable[[Floats], Floats]] = {
    "recall": lambda n: ratio(n[:, 0], n[:, 0] + n[:, 2]),
    "precision": lambda n: ratio(n[:, 0], n[:, 0] + n[:, 1]),
    "false_finds": lambda n: ratio(n[:, 1], n[:, 1] + n[:, 3]),
    "f1": lambda n: ratio(2 * n[:, 0], 2 * n[:, 0] + n[:, 1] + n[:, 2]),
    "mcc": _mcc,
    "unsure": lambda n: ratio(n[:, 4], n[:, :4].sum(axis=1)),
}


def _bin_of(scores: Floats) -> npt.NDArray[np.int64]:
    return (scores * BINS).astype(np.int64).clip(max=BINS - 1)


def _error(means: Floats) -> Floats:
    """The expected calibration error of mean gaps `[r, 11]`."""
    return ratio(np.abs(means[:, :BINS]).sum(axis=1), means[:, BINS])


def _weighted_precision(
    scores: Floats, right: npt.NDArray[np.bool_], owner: npt.NDArray[np.int64]
) -> Callable[[Floats], Floats]:
    """A function: weights of pictures `[r, n]` → average precision `[r]` of their boxes."""
    order = np.argsort(-scores, kind="stable")
    hit, picture = right[order], owner[order]
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # the last of equal scores

    def precision(weights: Floats) -> Floats:
        precisions = np.full(len(weights), np.nan)
        for i, row in enumerate(weights):
            weight = row[picture].astype(np.float64)
            hits, total = (weight * hit).cumsum()[ends], weight.cumsum()[ends]
            if hits.any():
                precisions[i] = (np.diff(hits, prepend=0) * hits / np.maximum(total, 1e-12)).sum() / hits[-1]
        return precisions

    return precision


def _add_interval(ends: dict[str, list[float]], key: str, drawn: Floats | None, bootstrap: Bootstrap) -> None:
    """Adds the interval of the replicates in which there is such a number."""
    there = None if drawn is None else drawn[np.isfinite(drawn)]
    if there is not None and len(there):
        ends[key] = list(bootstrap.quantiles(there))

"""`run_presence` and its page: are names found only where they are, are scores chances; see docs/presence.md."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, Unpack

import numpy as np
import numpy.typing as npt

from cliploc.draw.html import LIGHT
from cliploc.evaluate.data import PromptedDataset
from cliploc.evaluate.metrics import Bootstrap, CocoAP, average_precision, ratio
from cliploc.evaluate.tasks import paired, report, tables, task, worker
from cliploc.evaluate.tasks.rows import OF_PICTURE, PictureRow
from cliploc.find.calibration import reliability
from cliploc.localization import Localization
from cliploc.runs import plan, store

VERSION = 1  # of the format of manifest and summary
SHARD = 16  # pictures that are computed and written together
OF_KNOWN = ("there", "verdicts", "presence", "box_labels", "boxes", "box_scores", "box_right")  # lists of a row
BEST: dict[str, tables.Best] = {"false_finds": "low", "calibration_error": "low", "unsure": ""}  # others: "high"
BINS = 10  # of the expected calibration error
Floats: TypeAlias = npt.NDArray[np.floating[Any]]


# ------------------------------------------------------------------------------------------------------------ the task
COLUMNS = {
    **OF_PICTURE,
    # Of each name that the model knows, and of those that it does not.
    "labels": "int32[]", "there": "bool[]", "verdicts": "text[]", "presence": "float[]",
    "unknown": "int32[]", "unknown_there": "bool[]",
    # Of each box.
    "box_labels": "int32[]", "boxes": "box[]", "box_scores": "float[]", "box_right": "bool[]",
    "true_labels": "int32[]", "true_boxes": "box[]",
}  # fmt: skip


NUMBERS = {  # key → title and meaning
    "recall": ("recall", "share of the names that are there that are found"),
    "precision": ("precision", "share of the names found that are there"),
    "false_finds": ("absent found", "share of the names that are not there that are found"),
    "f1": ("F1", "harmonic mean of recall and precision"),
    "mcc": ("MCC", "Matthews correlation of found and there"),
    "unsure": ("unsure", "share of the names asked that are unsure"),
    "ap50": ("box AP50", "COCO's average precision at IoU 0.5: recall of all true boxes, mean over names"),
    "average_precision": (
        "AP of proposed",
        "average precision of all proposed boxes by score; its recall is of the right ones among them",
    ),
    "calibration_error": ("box ECE", "expected calibration error of the scores of boxes, ten bins"),
}
TASK = task.BenchmarkTask(
    "presence",
    VERSION,
    report.FILES,
    lambda: COLUMNS,
    lambda: PresenceRow,
    lambda *_: PresenceTally(),
    numbers=lambda _: NUMBERS,
    best=lambda key, _: BEST.get(key, "high"),
)


def run_presence(
    dataset: PromptedDataset,
    setups: Sequence[plan.ModelSetup],
    settings: Sequence[plan.Setting],
    out: Path,
    *,
    shard: int = SHARD,
    **how: Unpack[task.How],
) -> task.BenchmarkResult:
    """Asks every picture for the names chosen for it; see `run_benchmark`."""
    evaluator_of = partial(PresenceEvaluator, task.class_entries(dataset))
    return task.run_task(TASK, evaluator_of, dataset, setups, settings, out, shard_size=shard, **how)


# -------------------------------------------------------------------------------------------------------- the evaluator
class PresenceEvaluator(worker.NameEvaluator):
    """Compares what a localizer says of names with what is there."""

    def evaluate(self, seen: worker.Query, heat: Localization | None, *_: Any) -> store.Row:
        sample = seen.sample
        unknown = [label for label in sample.labels if label in self.unknown]
        row = {"labels": seen.labels, "unknown": unknown, "unknown_there": [label in sample.truth for label in unknown]}
        true = [(label, box) for label in sample.labels for box in sample.truth.get(label, np.zeros((0, 4))).tolist()]
        row |= {"true_labels": [label for label, _ in true], "true_boxes": [box for _, box in true]}
        if heat is None:
            return row | {key: [] for key in OF_KNOWN}
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
            "box_right": worker.right_boxes(boxes, truth).tolist(),
        }


# --------------------------------------------------------------------------------------------------------- the numbers
class PresenceRow(PictureRow, frozen=True, kw_only=True):
    """What the numbers need of a picture."""

    there: Sequence[bool] = ()
    verdicts: Sequence[str] = ()
    unknown: Sequence[int] = ()
    unknown_there: Sequence[bool] = ()
    box_labels: Sequence[int] = ()
    boxes: Sequence[Sequence[float]] = ()
    box_scores: Sequence[float] = ()
    box_right: Sequence[bool] = ()
    true_labels: Sequence[int] = ()
    true_boxes: Sequence[Sequence[float]] = ()

    def counts(self) -> Floats:
        """`[5]` names that are there and found, absent and found, there and not, absent and not; unsure ones."""
        present, verdicts = np.array(self.there, bool), np.array(self.verdicts, object)
        found = verdicts == "found"
        pairs = (present & found, ~present & found, present & ~found, ~present & ~found, verdicts == "unsure")
        return np.array([pair.sum() for pair in pairs], np.float64)


class PresenceTally(task.Tally):
    """Counts the rows of one setting."""

    def __init__(self) -> None:
        self._pictures: dict[str, PresenceRow] = {}
        self._coco = CocoAP()

    def add(self, picture: PresenceRow) -> None:
        self._pictures[picture.sample] = picture
        found, true = np.array(picture.box_labels, int), np.array(picture.true_labels, int)
        boxes, truth = (np.array(corners).reshape(-1, 4) for corners in (picture.boxes, picture.true_boxes))
        scores = np.array(picture.box_scores)
        for label in np.union1d(found, true).tolist():
            of_name = found == label
            self._coco.add(picture.sample, label, boxes[of_name], scores[of_name].tolist(), truth[true == label])

    def per_picture(self) -> paired.PerPicture | None:
        samples = sorted(self._pictures)
        values = np.array([self._pictures[sample].counts() for sample in samples]).reshape(-1, 5)
        return paired.PerPicture("mcc", samples, values, _mcc)

    def summary(self, counts: Mapping[str, int], bootstrap: Bootstrap) -> task.Summary:
        """The numbers of `NUMBERS`, in 0–1, with `confidence_95`, the counts, and `reliability`: ten bins of boxes."""
        # the order of the parts must not matter
        pictures = [self._pictures[sample] for sample in sorted(self._pictures)]
        if not pictures:
            return dict(counts)
        of_names = np.stack([picture.counts() for picture in pictures])  # [n, 5]
        of_boxes = [np.array(picture.box_scores, np.float64) for picture in pictures]
        numbers: dict[str, float | None] = {}
        drawn: dict[str, Floats | None] = {}  # each number in each replicate
        for key, share in SHARES.items():
            value = share(of_names.mean(axis=0)[None])[0]
            numbers[key] = float(value) if np.isfinite(value) else None
            drawn[key] = bootstrap.replicated(of_names, share)
        right_of = [np.array(picture.box_right, bool) for picture in pictures]
        owner = np.repeat(np.arange(len(pictures)), [len(each) for each in of_boxes])
        scores, right = np.concatenate(of_boxes), np.concatenate(right_of)
        error = reliability(scores, right, BINS) if len(scores) else None
        # [n, 11]: of each picture and bin Σ score − Σ right, and the number of its boxes
        gaps = np.stack(
            [
                np.append(np.bincount(_bin_of(each), each - true, BINS), len(each))
                for each, true in zip(of_boxes, right_of, strict=True)
            ]
        )
        if (errors := bootstrap.replicated(gaps, _error)) is not None and error is not None:
            # It cannot be negative, so it is greater in a drawn set: this bias is taken off.
            errors = (errors - np.nanmean(errors) + error).clip(0, 1)
        coco, coco_ends = self._coco.compute(bootstrap)
        precision = bootstrap.replicated(
            np.eye(len(pictures), dtype=np.float32), _weighted_precision(scores, right, owner)
        )
        drawn |= {"average_precision": precision, "calibration_error": errors}
        ends: dict[str, Any] = {"ap50": coco_ends.get("ap50")}
        for key, values in drawn.items():  # of the replicates in which there is such a number
            if values is not None and len(finite := values[np.isfinite(values)]):
                ends[key] = bootstrap.quantiles(finite)
        present_found, absent_found, missed, absent, _ = of_names.sum(axis=0).astype(int).tolist()
        return {
            **numbers,
            "average_precision": average_precision(scores, right) if right.any() else None,
            "calibration_error": error,
            "ap50": coco.get("ap50"),
            "confidence_95": {key: list(of) for key in (*drawn, "ap50") if (of := ends.get(key)) is not None},
            "names": present_found + absent_found + missed + absent,
            "names_there": present_found + missed,
            "unknown": sum(len(picture.unknown) for picture in pictures),
            "unknown_there": sum(sum(picture.unknown_there) for picture in pictures),
            "boxes": len(scores),
            "right_boxes": int(right.sum()),
            "reliability": [
                {"boxes": int(one.sum()), "score": float(scores[one].mean()), "right": float(right[one].mean())}
                for one in (_bin_of(scores) == i for i in range(BINS))
                if one.any()
            ],
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


# ------------------------------------------------------------------------------------------------------------- the page
COUNTS = {
    "names": "names asked that the model knows",
    "names_there": "of these, there",
    "unknown": "names asked that the model does not know; not in the numbers",
    "boxes": "all boxes of all names",
    "right_boxes": "of these, right",
}
NEGATIVES = {
    "random": "drawn at random, as many as names are there",
    "popular": "the most frequent of the split, as many as names are there",
    "confusable": "those most often together with the names that are there, as many as these",
    "all": "all names of the dataset",
}


def write_presence_report(folder: Path, *, pictures: bool = True) -> Path:  # noqa: ARG001 - it shows none
    """Writes report.html and the tables into a presence benchmark's folder; see `write_report`."""
    run = report.read_run(folder, lambda _, numbers: numbers.get("mcc"))
    title = run.title("Presence")
    table = tables.numbers_table(run, NUMBERS, {key: (key.replace("_", " "), about) for key, about in COUNTS.items()})
    bins = {one.index: of_one for one in run.settings if (of_one := one.numbers.get("reliability"))}
    text = "on the dashed line, a score is the chance that a box is right"
    page = run.render(
        "presence.html",
        title=title,
        about=run.facts({"absent names": NEGATIVES.get(run.dataset.negatives, "")}, {}),
        table=table,
        numbers=list(NUMBERS.values()),
        curves=[(text, _reliability(bins))] if bins else [],
        legend=tables.legend((setting.index, setting.id) for setting in run.settings),
    )

    csv = tables.numbers_csv(run, NUMBERS, COUNTS)
    return report.write_files(folder, csv, tables.to_markdown(title, [table]), page)


def _reliability(bins_of: Mapping[int, Sequence[Mapping[str, float]]]) -> tables.Figure:
    """Draws the share of right boxes at each score, index of a setting → bins; on the diagonal, scores are chances."""

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=LIGHT.soft, linewidth=1, dashes=(4, 3))
        for index, bins in bins_of.items():
            tables.plot(axes, index, [one["score"] for one in bins], [one["right"] for one in bins], marked=True)
        axes.set(xlim=(0, 1), ylim=(-0.02, 1.02), xlabel="mean score of the boxes", ylabel="share that is right")

    return tables.figure(draw, "Reliability: score and share of right boxes", (5.8, 4.0))

"""`run_faithfulness`: whether maps show what a model uses, resumable; see docs/faithfulness.md."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from cliploc.errors import InputError, ModelError, UsageError
from cliploc.evaluate.metrics import DEFAULT, Bootstrap, checked_map, ratio
from cliploc.evaluate.tasks.evaluate import folder_of, read_map
from cliploc.evaluate.tasks.faithfulness.measure import Faithfulness, SeenPicture
from cliploc.evaluate.tasks.faithfulness.metrics import chosen_metrics
from cliploc.evaluate.tasks.report import FILES
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
    summed_up,
)
from cliploc.evaluate.tasks.worker import FAILURES, PictureJudge, thumb
from cliploc.localizer import Localizer
from cliploc.options import FaithfulnessOptions, Options
from cliploc.runs.engine import failure_reason
from cliploc.runs.evaluation import Row
from cliploc.runs.plan import ModelSetup, Setting
from cliploc.support.reporter import SILENT, Reporter
from cliploc.values import Dataset, FloatArray, Sample

VERSION = 1  # of the format of manifest and summary
SHARD = 8  # pictures that are computed and written together: each takes seconds
NUMBER_COLUMNS = ("sample", "setting", "path", "status", "reason", "values", "curves")
MAPS = "maps"  # stands for the setting, where maps were made by other tools
# The parts of a localizer's description that the numbers depend on; its boxes are not used.
IDENTITY = (
    "weights", "method", "options", "heads", "ensemble", "templates", "background", "refine", "scales", "windows",
    "flip", "resize", "interpolation", "image_size", "precision", "masked_precision", "guide",
    "batch_size",
)  # fmt: skip
Numbers = Mapping[str, Mapping[str, Any]]  # key → title, about, best, visible


# ------------------------------------------------------------------------------------------------------------ the task
COLUMNS = {
    **dict.fromkeys(("sample", "setting", "path", "blake2b"), "text"),
    "label": "int32", "width": "int32", "height": "int32", "status": "text", "reason": "text",
    "name": "text",  # that was mapped and scored
    "probability": "double", "cosine": "double",  # of the picture as it is
    "values": "values", "curves": "curves", "thumb": "thumb",
}  # fmt: skip


def _table(summary: Mapping[str, Summary], manifest: Manifest) -> list[tuple[str, ...]]:
    titles = {key: number["title"] for key, number in manifest["numbers"].items() if number["visible"]}
    rows = ((name, *(number_cell(of.get(key)).text for key in titles)) for name, of in summary.items())
    return [("setting", *titles.values()), *rows]


def _legend(_: Mapping[str, Summary], manifest: Manifest) -> list[str]:
    return [f"{number['title']}: {number['about']}" for number in manifest["numbers"].values() if number["visible"]]


TASK = BenchmarkTask(
    "faithfulness",
    VERSION,
    FILES,
    lambda: COLUMNS,
    lambda: NUMBER_COLUMNS,
    lambda _, run: ValueTally(list(run["numbers"])),
    _table,
    _legend,
)


def run_faithfulness(
    dataset: Dataset,
    setups: Sequence[ModelSetup],
    settings: Sequence[Setting],
    out: Path,
    *,
    metrics: Sequence[str],
    options: FaithfulnessOptions,
    shard: int = SHARD,
    **how: Unpack[How],
) -> BenchmarkResult:
    """Measures every setting on a dataset; see `run_benchmark`."""
    judge_of = partial(FaithfulnessJudge, class_entries(dataset), metrics, options)
    axes = (axis for metric in chosen_metrics(metrics) for axis in metric.curves.items())
    entries = {
        "metrics": list(metrics),
        "protocol": asdict(options),
        "numbers": numbers_of(metrics),
        "curves": {name: asdict(axis) for name, axis in axes},
    }
    return run_task(TASK, judge_of, dataset, setups, settings, out, entries=entries, shard_size=shard, **how)


# ----------------------------------------------------------------------------------------------------------- the judge
class FaithfulnessJudge(PictureJudge):
    """Measures maps with a `Faithfulness`."""

    def __init__(
        self, classes: Sequence[str], metrics: Sequence[str], options: FaithfulnessOptions, *of_setup: Any
    ) -> None:
        super().__init__(*of_setup)
        self._classes, chosen = classes, chosen_metrics(metrics)
        self._measurer = Faithfulness(self.localizer, classes, chosen, self.methods, options)
        others = f"the softmax is over the other {len(self._measurer.known)}"
        self.note_unknown([*self._measurer.unknown], f"{len(classes)} classes", others)

    def describe(self, setting: Setting) -> dict[str, Any]:
        scale = self._measurer.backbone.logit_scale
        return self.described(setting, IDENTITY, names=len(self._measurer.known), logit_scale=scale)

    def look(self, sample: Sample, read: None) -> SeenPicture:  # noqa: ARG002
        return self._measurer.see(sample.id, sample.path, self._classes[sample.label])

    def maps(self, seen: SeenPicture, methods: Sequence[str], reporter: Reporter) -> Mapping[str, FloatArray]:
        return self._measurer.maps(seen, methods, reporter=reporter)

    def judge(self, seen: SeenPicture, setting: Setting, heat: FloatArray, reporter: Reporter) -> Row:
        others = self._measurer.others(seen, setting.method, reporter)
        measured = self._measurer.measure_map(seen, heat, others, reporter)
        return {
            "name": self._measurer.known[seen.target],
            "probability": seen.probability,
            "cosine": seen.cosine,
            "values": list(measured.values.items()),
            "curves": list(measured.curves.items()),
            "thumb": thumb(heat),
        }


# --------------------------------------------------------------------------------------------------------- the numbers
class ValueTally(Tally):
    """Counts the rows of one setting, for these numbers."""

    def __init__(self, numbers: Sequence[str]) -> None:
        self._numbers = numbers
        self._rows: dict[str, tuple[dict[str, float | None], dict[str, list[float | None]]]] = {}

    def add(self, row: Row) -> None:
        self._rows[row["sample"]] = dict(row["values"]), dict(row["curves"])

    def summary(self, counts: Mapping[str, int], bootstrap: Bootstrap) -> Summary:
        """The mean of each number, `confidence_95`, mean `curves`, and `measured` where pictures lack a number."""
        samples = sorted(self._rows)  # the order of the parts must not matter
        means: Summary = {}
        ends: dict[str, list[float]] = {}
        measured: dict[str, int] = {}
        for key in self._numbers:
            known = {sample: value for sample in samples if (value := self._rows[sample][0].get(key)) is not None}
            values = np.array(list(known.values()), np.float64)
            means[key] = float(values.mean()) if known else None
            if (interval := bootstrap.of_mean(values, list(known))) is not None:
                ends[key] = list(interval)
            if len(known) < len(samples):
                measured[key] = len(known)
        curves = mean_curves({sample: self._rows[sample][1] for sample in samples}, bootstrap)
        return {
            **means,
            "confidence_95": ends,
            "curves": curves,
            **({"measured": measured} if measured else {}),
            **counts,
        }


def mean_curves(
    curves: Mapping[str, Mapping[str, Sequence[float | None]]], bootstrap: Bootstrap = DEFAULT
) -> dict[str, dict[str, list[float | None]]]:
    """The mean of each curve over samples, with the ends of its interval at each place; None where there is none."""
    made = {}
    for name in dict.fromkeys(key for by_name in curves.values() for key in by_name):
        samples = [sample for sample, by_name in curves.items() if name in by_name]
        rows = np.array([curves[sample][name] for sample in samples], np.float64)  # [n, T]; None is NaN
        scored: npt.NDArray[np.bool_] = np.asarray(np.isfinite(rows).any(axis=0))
        known = np.isfinite(rows[:, scored])
        both = np.concatenate([np.nan_to_num(rows[:, scored]), known], axis=1)  # [n, 2T]: scores, and whether they are
        made[name] = {"mean": _listed(_of_known(both.mean(axis=0)), scored)}
        replicates = bootstrap.replicated(both, _of_known, samples)
        if replicates is not None and scored.any():
            tail = (1 - bootstrap.confidence) / 2
            low, high = np.nanquantile(replicates, [tail, 1 - tail], axis=0)
            made[name] |= {"low": _listed(low, scored), "high": _listed(high, scored)}
    return made


def _of_known(means: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """`[…, 2T]`, means with 0 for unknown scores beside shares of known ones → `[…, T]`; NaN if none is known."""
    return ratio(*np.split(np.asarray(means, np.float64), 2, axis=-1))


def _listed(values: npt.NDArray[Any], scored: npt.NDArray[np.bool_]) -> list[float | None]:
    """The values at the places where there are some; None elsewhere."""
    listed = np.full(len(scored), None, object)
    listed[scored] = values.tolist()
    return list(listed)


def numbers_of(metrics: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the numbers of these metrics are, for manifests and tables: key → title, about, best, visible."""
    return {key: asdict(number) for metric in chosen_metrics(metrics) for key, number in metric.numbers.items()}


# --------------------------------------------------------------------------------------------- maps made by other tools
@dataclass(frozen=True)
class MapsResult:
    """The numbers of a folder of maps."""

    summary: Summary  # as in a benchmark's summary.json, of one setting
    numbers: Numbers  # what its numbers are
    model: str  # that scored the pictures
    protocol: FaithfulnessOptions  # the options

    def document(self) -> dict[str, Any]:
        """The result as `cliploc evaluate faithfulness --json` prints it."""
        return {
            "schema_version": VERSION,
            "model": self.model,
            "protocol": asdict(self.protocol),
            "settings": {MAPS: self.summary},
        }

    def lines(self) -> list[tuple[str, str, str]]:
        """A row for each number: title, mean, 95 % interval."""
        ends: Mapping[str, Sequence[float]] = self.summary["confidence_95"]
        return [
            (
                number["title"],
                number_cell(self.summary[key]).text,
                "–".join(number_cell(end).text for end in ends.get(key, ())),
            )
            for key, number in self.numbers.items()
        ]


def evaluate_maps(
    maps: str | Path,
    dataset: Dataset,
    options: Options,
    *,
    metrics: Sequence[str],
    protocol: FaithfulnessOptions,
    reporter: Reporter = SILENT,
) -> MapsResult:
    """Measures any tool's `<sample id>.npy`, in 0–1 over the whole picture, of the name that `protocol` says."""
    maps = folder_of("maps", maps)
    chosen, entries = chosen_metrics(metrics, with_method=False), class_entries(dataset)
    # No method runs here, and none is named: a name would have to fit the tower.
    localizer = Localizer(**options.but(resize="squash", method=None, text_cache=False).changed())
    measurer = Faithfulness(localizer, entries, chosen, {}, protocol)
    reporter.phase("maps")
    reporter.start(len(dataset), len(dataset))
    quiet = Reporter(masked=reporter.masked, halved=reporter.halved)
    rows: list[Row] = []
    for sample in dataset.samples:
        row: Row = {"sample": sample.id, "setting": MAPS, "status": "failed"}
        try:
            heat = checked_map(read_map(maps / f"{sample.id}.npy", "exact"), "exact")
            seen = measurer.see(sample.id, sample.path, entries[sample.label])
            measured = measurer.measure_map(seen, heat.astype(np.float32), reporter=quiet)
            row |= {"status": "ok", "values": measured.values, "curves": measured.curves}
        except InputError as error:
            row["reason"] = str(error)
            reporter.failed(sample.id, error)
        except FAILURES as error:
            row["reason"] = failure_reason(error)
            reporter.failed(sample.id, ModelError(f"{sample.id}: {row['reason']}"))
        rows.append(row)
        reporter.images(1)
    numbers = numbers_of(metrics)
    summary = summed_up(rows, {MAPS: ValueTally(list(numbers))})[MAPS]
    if not summary["evaluated"]:
        raise UsageError(f"none of {len(rows)} pictures could be measured: {summary['failed'][0]['reason']}")
    return MapsResult(summary, numbers, localizer.backbone.name, protocol)

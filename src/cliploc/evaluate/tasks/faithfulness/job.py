"""`run_faithfulness` and its page: whether maps show what a model uses, resumable; see docs/faithfulness.md."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import msgspec
import numpy as np

from cliploc.errors import InputError, UsageError
from cliploc.evaluate.metrics import Bootstrap, checked_map, known_mean
from cliploc.evaluate.tasks import evaluate, paired, report, tables, task, worker
from cliploc.evaluate.tasks.faithfulness.measure import STEPS, Axis, Faithfulness, Number, SeenPicture
from cliploc.evaluate.tasks.faithfulness.metrics import chosen_metrics
from cliploc.evaluate.tasks.rows import PictureRow
from cliploc.localizer import Localizer
from cliploc.options import FaithfulnessOptions, Options
from cliploc.runs.engine import failure_reason
from cliploc.runs.plan import ModelSetup, Setting
from cliploc.runs.store import Row
from cliploc.support.reporter import SILENT, Reporter
from cliploc.values import Dataset, FloatArray, Sample

VERSION = 2  # of the format of manifest and summary
SHARD = 8  # pictures that are computed and written together: each takes seconds
MAPS = "maps"  # stands for the setting, where maps were made by other tools
# The parts of a localizer's description that the numbers depend on; its boxes are not used.
IDENTITY = (
    "weights", "method", "options", "heads", "templates", "refine", "scales", "windows",
    "flip", "resize", "interpolation", "image_size", "precision", "masked_precision", "guide",
    "batch_size",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ the task
COLUMNS = {
    **dict.fromkeys(("sample", "setting", "path", "blake2b"), "text"),
    "label": "int32", "width": "int32", "height": "int32", "status": "text", "reason": "text",
    "name": "text",  # that was mapped and scored
    "probability": "double", "cosine": "double",  # of the picture as it is
    "values": "values", "curves": "curves",
}  # fmt: skip


class Measures(msgspec.Struct, frozen=True):
    """What a run measures: these entries of its manifest."""

    numbers: dict[str, Number]  # key → what it is
    curves: dict[str, Axis]
    protocol: FaithfulnessOptions

    @classmethod
    def of(cls, metrics: Sequence[str], options: FaithfulnessOptions) -> "Measures":
        """By these metrics."""
        chosen = chosen_metrics(metrics)
        numbers = {key: number for metric in chosen for key, number in metric.numbers.items()}
        return cls(numbers, {name: axis for metric in chosen for name, axis in metric.curves.items()}, options)

    @classmethod
    def in_(cls, manifest: task.Manifest) -> "Measures":
        """Those of a run."""
        return msgspec.convert(manifest, cls)


TASK = task.BenchmarkTask(
    "faithfulness",
    VERSION,
    report.FILES,
    lambda: COLUMNS,
    lambda: ValueRow,
    lambda *of: ValueTally([*(numbers := Measures.in_(of[-1]).numbers)], next(iter(numbers.values())).best),
    numbers=lambda run: {key: (number.title, number.about) for key, number in Measures.in_(run).numbers.items()},
    shown=lambda _, run: {key: one.title for key, one in Measures.in_(run).numbers.items() if one.visible},
    best=lambda key, run: Measures.in_(run).numbers[key].best,
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
    **how: Unpack[task.How],
) -> task.BenchmarkResult:
    """Measures every setting on a dataset; see `run_benchmark`."""
    evaluator_of = partial(FaithfulnessEvaluator, task.class_entries(dataset), metrics, options)
    entries = {"metrics": list(metrics), **msgspec.to_builtins(Measures.of(metrics, options))}
    return task.run_task(TASK, evaluator_of, dataset, setups, settings, out, entries=entries, shard_size=shard, **how)


# -------------------------------------------------------------------------------------------------------- the evaluator
class FaithfulnessEvaluator(worker.PictureEvaluator):
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

    def look(self, sample: Sample) -> SeenPicture:
        return self._measurer.see(sample.id, sample.path, self._classes[sample.label])

    def maps(self, seen: SeenPicture, methods: Sequence[str], reporter: Reporter) -> Mapping[str, FloatArray]:
        return self._measurer.maps(seen, methods, reporter=reporter)

    def evaluate(self, seen: SeenPicture, heat: FloatArray, setting: Setting, reporter: Reporter, /) -> Row:
        others = self._measurer.others(seen, setting.method, reporter)
        measured = self._measurer.measure_map(seen, heat, others, reporter)
        return {
            "name": self._measurer.known[seen.target],
            "probability": seen.probability,
            "cosine": seen.cosine,
            "values": list(measured.values.items()),
            "curves": list(measured.curves.items()),
        }


# --------------------------------------------------------------------------------------------------------- the numbers
class ValueRow(PictureRow, frozen=True, kw_only=True):
    """What was measured of a map."""

    values: Mapping[str, float | None] = msgspec.field(default_factory=dict)
    curves: Mapping[str, Sequence[float | None]] = msgspec.field(default_factory=dict)


class ValueTally(task.Tally):
    """Counts the rows of one setting, for these numbers."""

    def __init__(self, numbers: Sequence[str], best: str = "") -> None:
        self._numbers, self._best = numbers, best  # whether low or high values of the first are best
        self._rows: dict[str, ValueRow] = {}

    def add(self, row: ValueRow) -> None:
        self._rows[row.sample] = row

    def per_picture(self) -> paired.PerPicture | None:
        key, low = self._numbers[0], self._best == "low"
        known = {sample: self._rows[sample].values.get(key) for sample in sorted(self._rows)}
        samples = [sample for sample, value in known.items() if value is not None]
        values = np.array([known[sample] for sample in samples], np.float64)[:, None]
        return paired.PerPicture(key, samples, values, lambda means: means[:, 0], 1, low) if self._best else None

    def summary(self, counts: Mapping[str, int], bootstrap: Bootstrap) -> task.Summary:
        """The mean of each number, `confidence_95`, mean `curves`, and `measured` where pictures lack a number."""
        rows = [self._rows[sample] for sample in sorted(self._rows)]  # the order of the parts must not matter
        means: task.Summary = {}
        ends: dict[str, list[float]] = {}
        measured: dict[str, int] = {}
        for key in self._numbers:
            known = {row.sample: value for row in rows if (value := row.values.get(key)) is not None}
            numbers = np.array(list(known.values()), np.float64)
            means[key] = float(numbers.mean()) if known else None
            if (interval := bootstrap.of_mean(numbers, list(known))) is not None:
                ends[key] = list(interval)
            if len(known) < len(rows):
                measured[key] = len(known)
        curves: dict[str, list[Sequence[float | None]]] = {}
        for name, curve in (curve for row in rows for curve in row.curves.items()):
            curves.setdefault(name, []).append(curve)
        # The mean score at each place `[T]`, of scores `[n, T]`; None is NaN.
        mean_of = {name: known_mean(np.array(of_name, np.float64)).tolist() for name, of_name in curves.items()}
        return {
            **means,
            "confidence_95": ends,
            "curves": {name: {"mean": [None if np.isnan(one) else one for one in of]} for name, of in mean_of.items()},
            **({"measured": measured} if measured else {}),
            **counts,
        }


# --------------------------------------------------------------------------------------------- maps made by other tools
def evaluate_maps(
    maps: str | Path,
    dataset: Dataset,
    options: Options,
    *,
    metrics: Sequence[str],
    protocol: FaithfulnessOptions,
    reporter: Reporter = SILENT,
) -> evaluate.EvaluatedFolder:
    """Measures any tool's `<sample id>.npy`, in 0–1 over the whole picture, of the name that `protocol` says."""
    maps = evaluate.folder_of("maps", maps)
    chosen, entries = chosen_metrics(metrics, with_method=False), task.class_entries(dataset)
    # No method runs here, and none is named: a name would have to fit the tower.
    localizer = Localizer(**options.but(resize="squash", method=None).changed())
    measurer = Faithfulness(localizer, entries, chosen, {}, protocol)
    reporter.phase("maps")
    reporter.start(len(dataset), len(dataset))
    quiet = Reporter(masked=reporter.masked, halved=reporter.halved)
    rows: list[ValueRow] = []
    for sample in dataset.samples:
        try:
            heat = checked_map(evaluate.read_map(maps / f"{sample.id}.npy", "exact"), "exact")
            seen = measurer.see(sample.id, sample.path, entries[sample.label])
            measured = measurer.measure_map(seen, heat.astype(np.float32), reporter=quiet)
            rows.append(ValueRow(sample=sample.id, setting=MAPS, values=measured.values, curves=measured.curves))
        except (InputError, *worker.FAILURES) as error:
            reason = str(error) if isinstance(error, InputError) else f"{sample.id}: {failure_reason(error)}"
            rows.append(ValueRow(sample=sample.id, setting=MAPS, status="failed", reason=reason))
            reporter.failed(sample.id, InputError(reason))
        reporter.images(1)
    measures = Measures.of(metrics, protocol)
    summary = task.summed_up(rows, {MAPS: ValueTally([*measures.numbers])})[MAPS]
    if not any(row.ok for row in rows):
        raise UsageError(f"none of {len(rows)} pictures could be measured: {rows[0].reason}")
    document = {"schema_version": VERSION, "model": localizer.backbone.name, "protocol": asdict(protocol)}
    titles = {key: number.title for key, number in measures.numbers.items()}
    lines = evaluate.lines_of(
        titles, summary, lambda *values: "–".join(tables.number_cell(value).text for value in values)
    )
    return evaluate.EvaluatedFolder(document | {"settings": {MAPS: summary}}, lines)


# ------------------------------------------------------------------------------------------------------------- the page
NOTE = (
    "Compare an area with those of the baselines Random and Centred Gaussian, which ignore the picture and the name. "
    "Removed pixels make pictures that no model was trained on: a low deletion area may show that too."
)


def write_faithfulness_report(folder: Path, *, pictures: bool = True) -> Path:  # noqa: ARG001 - it shows none
    """Writes report.html, tables.csv and tables.md into a faithfulness benchmark's folder; see `write_report`."""

    def best(manifest: Mapping[str, Any], numbers: Mapping[str, Any]) -> float | None:
        first, about = next(iter(Measures.in_(manifest).numbers.items()))  # of which low or high values are the best
        value: float | None = numbers.get(first)
        return -value if value is not None and about.best == "low" else value

    run = report.read_run(folder, best)
    title, measures = run.title("Faithfulness"), Measures.in_(run.manifest)
    numbers = {key: (number.title, number.about) for key, number in measures.numbers.items()}
    table = tables.numbers_table(run, numbers, {"evaluated": ("pictures", "")}, [NOTE])
    of_protocol = {
        **({"steps": f"{measures.protocol.steps or STEPS}"} if {"deletion", "insertion"} & numbers.keys() else {}),
        "baseline": measures.protocol.baseline or "as published",
        "name": "the true label" if measures.protocol.target == "label" else "the model's prediction",
    }
    curves = []
    for name, axis in measures.curves.items():
        of_settings = {setting.id: (setting.numbers.get("curves") or {}).get(name) for setting in run.settings}
        if lines := {setting: curve["mean"] for setting, curve in of_settings.items() if curve is not None}:
            words = name.replace("_", " ")
            curves.append((words, draw_curves(lines, words, axis.label, axis.places)))
    page = run.render(
        "faithfulness.html",
        title=title,
        about=run.facts({}, of_protocol),
        table=table,
        numbers=list(numbers.values()),
        curves=curves,
        legend=tables.legend((setting.index, setting.id) for setting in run.settings),
    )
    return report.write_files(folder, tables.numbers_csv(run, numbers, ()), tables.to_markdown(title, [table]), page)


def draw_curves(
    lines: Mapping[str, Sequence[float | None]],  # of each label
    title: str,
    axis: str,
    places: Sequence[float] = (),  # of the scores on it; none: at equal distances from 0 to 1
    score: str = "mean score",
    ends: tuple[float, float] | None = None,  # of the vertical axis; None: as the curves need
) -> tables.Figure:
    """Draws curves."""

    def draw(axes: Any) -> None:
        for index, line in enumerate(lines.values()):
            y = np.array(line, np.float64)
            tables.plot(axes, index, np.array(places) if len(places) else np.linspace(0, 1, len(y)), y)
        axes.set(xlim=(0, 1), xlabel=axis, ylabel=score)
        if ends is not None:
            margin = 0.02 * (ends[1] - ends[0])
            axes.set_ylim(ends[0] - margin, ends[1] + margin)

    text = "; ".join(
        f"{label}: {line[0]:.2f} to {line[-1]:.2f}"
        for label, line in lines.items()
        if line[0] is not None and line[-1] is not None
    )
    return tables.figure(draw, f"{title}. {text}", (5.8, 4.0))

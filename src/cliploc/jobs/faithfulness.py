"""`run_faithfulness`: whether maps show what a model uses, for a grid of settings, into a folder that can be resumed.

`cliploc help faithfulness` explains the metrics and the folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cliploc.config import FaithfulnessOptions
from cliploc.errors import UsageError
from cliploc.jobs import folder, local
from cliploc.jobs.benchmark import class_entries, describe_dataset
from cliploc.jobs.engine import Engine
from cliploc.jobs.folder import RunKind, plain, write_json
from cliploc.jobs.plan import ModelSetup, Setting, shard_size, shards_of
from cliploc.jobs.rows import Row, arrow, rows_in
from cliploc.jobs.summary import DEFAULT, Summary
from cliploc.jobs.task import BenchmarkTask, TaskResult, run_task
from cliploc.metrics import Bootstrap
from cliploc.report.task_folder import FILES as REPORT_FILES
from cliploc.report.task_folder import THUMB
from cliploc.reporter import SILENT, Reporter
from cliploc.values import Dataset

SCHEMA_VERSION = 1  # of manifest.json, summary.json and the parts
KIND = RunKind(
    "faithfulness",
    "a faithfulness benchmark",
    SCHEMA_VERSION,
    ".parquet",
    frozenset({"dataset.root", "dataset.problems"}),
)
FILES = ("summary.json", *REPORT_FILES)
SHARD = 8  # pictures that are computed and written together: each takes seconds
METRICS = ("deletion", "insertion")  # where none are named
BASELINES = ("centre_gaussian", "random")  # an area means something only beside those of baselines
Numbers = Mapping[str, Mapping[str, Any]]  # key → title, about, best, shown


# ----------------------------------------------------------------------------------------------------------------- rows
def row_schema() -> Any:
    """The columns of a row, one for each picture and setting, as a `pyarrow.Schema`."""
    pa = arrow()
    return pa.schema(
        [
            pa.field("sample", pa.string(), nullable=False),
            pa.field("setting", pa.string(), nullable=False),
            pa.field("path", pa.string(), nullable=False),
            pa.field("blake2b", pa.string()),
            pa.field("label", pa.int32(), nullable=False),
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("status", pa.string(), nullable=False),
            pa.field("reason", pa.string()),
            pa.field("name", pa.string()),  # that was mapped and scored
            pa.field("probability", pa.float64()),  # of the whole picture
            pa.field("cosine", pa.float64()),
            pa.field("values", pa.map_(pa.string(), pa.float64())),
            pa.field("curves", pa.map_(pa.string(), pa.list_(pa.float32()))),
            pa.field("thumb", pa.binary(THUMB * THUMB)),
        ]
    )


NUMBER_COLUMNS = ("sample", "setting", "status", "reason", "values", "curves")


# -------------------------------------------------------------------------------------------------------------- summary
def summarize(
    settings: Sequence[str], rows: Iterable[Row], numbers: Sequence[str], bootstrap: Bootstrap = DEFAULT
) -> dict[str, Summary]:
    """Computes the numbers of a run, setting → numbers.

    Args:
        rows: the rows of its parts, in any order; `NUMBER_COLUMNS` are enough.

    Returns:
        For each setting the mean over pictures of each number, in its own unit (areas in 0–1), None if there is none;
        `confidence_95`; `curves`, the mean of each with the ends of its interval; `measured`, the number of pictures of
        numbers that not every picture has; `images`, `evaluated` and `failed`.
    """
    values: dict[str, dict[str, dict[str, float | None]]] = {name: {} for name in settings}
    curves: dict[str, dict[str, dict[str, list[float | None]]]] = {name: {} for name in settings}
    failed: dict[str, list[dict[str, str]]] = {name: [] for name in settings}
    for row in rows:
        name, sample = row["setting"], row["sample"]
        if row["status"] != "ok":
            failed[name].append({"sample": sample, "reason": row["reason"]})
            continue
        if sample in values[name]:
            raise UsageError(f"{sample} occurs twice: evaluate each picture once")
        values[name][sample] = dict(row["values"])
        curves[name][sample] = dict(row["curves"])
    found: dict[str, Summary] = {}
    for name in settings:
        samples = sorted(values[name])  # the order of the parts must not matter
        summary: Summary = {}
        ends: dict[str, list[float]] = {}
        measured: dict[str, int] = {}
        for key in numbers:
            there = [one for sample in samples if (one := values[name][sample].get(key)) is not None]
            summary[key] = float(np.mean(there)) if there else None
            interval = bootstrap.interval(np.array(there)[:, None], lambda means: means[:, 0]) if there else None
            if interval is not None:
                ends[key] = list(interval)
            if len(there) < len(samples):
                measured[key] = len(there)
        found[name] = {
            **summary,
            "confidence_95": ends,
            "curves": mean_curves([curves[name][sample] for sample in samples], bootstrap),
            **({"measured": measured} if measured else {}),
            "images": len(samples) + len(failed[name]),
            "evaluated": len(samples),
            "failed": sorted(failed[name], key=lambda one: one["sample"]),
        }
    return found


def mean_curves(
    curves: Sequence[Mapping[str, Sequence[float | None]]], bootstrap: Bootstrap = DEFAULT
) -> dict[str, dict[str, list[float | None]]]:
    """The mean of each curve over pictures, with the ends of its interval at each place; None where there is none."""
    made = {}
    for name in dict.fromkeys(key for one in curves for key in one):
        rows = np.array([one[name] for one in curves if name in one], np.float64)  # [n, T]; None is NaN
        there: npt.NDArray[np.bool_] = np.asarray(np.isfinite(rows).any(axis=0))
        known = np.isfinite(rows[:, there])
        both = np.concatenate([np.nan_to_num(rows[:, there]), known], axis=1)  # [n, 2T]: scores, and whether they are
        made[name] = {"mean": _listed(_of_known(both.mean(axis=0)), there)}
        replicates = bootstrap.replicated(both, _of_known)
        if replicates is not None and there.any():
            tail = (1 - bootstrap.confidence) / 2
            low, high = np.nanquantile(replicates, [tail, 1 - tail], axis=0)
            made[name] |= {"low": _listed(low, there), "high": _listed(high, there)}
    return made


def _of_known(means: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The mean over the pictures whose score is known: `[…, 2T]` → `[…, T]`; NaN if no score is known.

    The first half holds means over all pictures, with 0 for an unknown score; the second the share of known scores.
    """
    scores, known = np.split(np.asarray(means, np.float64), 2, axis=-1)
    found: npt.NDArray[np.float64] = np.divide(scores, known, out=np.full_like(scores, np.nan), where=known > 0)
    return found


def _listed(values: npt.NDArray[Any], there: npt.NDArray[np.bool_]) -> list[float | None]:
    """The values at the places where there are some; None elsewhere."""
    full: list[float | None] = [None] * len(there)
    for place, value in zip(there.nonzero()[0], values, strict=True):
        full[place] = float(value)
    return full


def conclude(out: Path) -> dict[str, Summary]:
    """Computes the numbers of all existing parts and writes them into summary.json."""
    manifest = read_manifest(out)
    settings = [one["id"] for one in manifest["settings"]]
    rows = rows_in(out, NUMBER_COLUMNS, manifest["shards"])
    summary = summarize(settings, rows, list(manifest["numbers"]))
    write_json(out / "summary.json", {"schema_version": SCHEMA_VERSION, "settings": summary})
    return summary


def read_manifest(out: Path) -> dict[str, Any]:
    """A faithfulness benchmark's manifest; errors as in `cliploc.jobs.folder.read_manifest`."""
    return folder.read_manifest(out, KIND)


def numbers_of(metrics: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the numbers of these metrics are, for manifests and tables: key → title, about, best, shown."""
    from cliploc.faithfulness import chosen_metrics

    return {key: asdict(number) for one in chosen_metrics(metrics) for key, number in one.numbers.items()}


def table_of(summary: Mapping[str, Summary], numbers: Numbers) -> list[tuple[str, ...]]:
    """The table of settings: a header, then a row for each."""
    shown = {key: number for key, number in numbers.items() if number["shown"]}
    rows = [("setting", *(number["title"] for number in shown.values()))]
    rows += [(name, *(number_text(one.get(key)) for key in shown)) for name, one in summary.items()]
    return rows


def number_text(value: float | None) -> str:
    """A number in a table."""
    return "–" if value is None else f"{value:.3f}" if abs(value) >= 0.0005 or value == 0 else f"{value:.1e}"


@dataclass(frozen=True)
class FaithfulnessResult(TaskResult):
    """The result of a faithfulness benchmark."""

    numbers: Numbers  # what its numbers are

    def document(self) -> dict[str, Any]:
        """The result as in summary.json."""
        return {"schema_version": SCHEMA_VERSION, "settings": self.summary}

    def table(self) -> list[tuple[str, ...]]:
        """The table of settings: a header, then a row for each."""
        return table_of(self.summary, self.numbers)

    def legend(self) -> list[str]:
        """The lines below the table that explain its numbers."""
        return [f"{one['title']}: {one['about']}" for one in self.numbers.values() if one["shown"]]


# -------------------------------------------------------------------------------------------------------------- the run
@dataclass(frozen=True)
class FaithfulnessSettings:
    """The settings of a faithfulness worker; picklable. Calling them makes the worker.

    Attributes:
        setups, settings, classes, root: as in `cliploc.jobs.plan.WorkerSettings`.
        metrics: names of the metrics.
        options: of the protocols.
    """

    setups: tuple[ModelSetup, ...]
    settings: tuple[Setting, ...]
    classes: tuple[str, ...]
    root: Path
    metrics: tuple[str, ...]
    options: FaithfulnessOptions

    def __call__(self) -> Any:
        """Makes the worker: a `cliploc.jobs.faithfulness_worker.FaithfulnessWorker`."""
        from cliploc.jobs.faithfulness_worker import FaithfulnessWorker  # imports torch

        return FaithfulnessWorker(self)


def run_faithfulness(
    dataset: Dataset,
    setups: Sequence[ModelSetup],
    settings: Sequence[Setting],
    out: Path,
    *,
    metrics: Sequence[str] = METRICS,
    options: FaithfulnessOptions | None = None,
    engine: Engine = local.run,
    shard: int = SHARD,
    asked: Mapping[str, Any] | None = None,
    reporter: Reporter = SILENT,
) -> FaithfulnessResult:
    """Measures every setting on a dataset.

    Args:
        setups: models × prompts, with resize "squash". Their options for boxes are not used.
        out: an empty folder, or the folder of a run with the same settings, which is resumed.
        options: of the protocols; None: as they were published.
        asked: how the dataset was chosen (limit, seed …), for the manifest.
    """
    numbers = numbers_of(metrics)
    options = options or FaithfulnessOptions()
    size = shard_size(1, shard)
    task = BenchmarkTask(
        kind=KIND,
        make_worker=FaithfulnessSettings(
            tuple(setups), tuple(settings), class_entries(dataset), dataset.root, tuple(metrics), options
        ),
        shards=tuple(shards_of(dataset.samples, size)),
        passes=len({one.setup for one in settings}),
        dataset=describe_dataset(dataset, asked or {}),
        shard_size=size,
        schema=row_schema,
        facts={
            "metrics": list(metrics),
            "protocol": plain(asdict(options)),
            "numbers": numbers,
            "curves": _curves_of(metrics),
        },
        files=FILES,
        conclude=conclude,
    )
    result = run_task(task, out, folder.token_for(out), engine, reporter)
    return FaithfulnessResult(**vars(result), numbers=numbers)


def _curves_of(metrics: Sequence[str]) -> dict[str, Any]:
    from cliploc.faithfulness import chosen_metrics

    return {name: plain(asdict(axis)) for one in chosen_metrics(metrics) for name, axis in one.curves.items()}

"""`run_segmentation`: mIoU of a grid of settings on a segmentation set, into a folder that can be resumed.

`cliploc help segmentation` explains the protocol and the folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cliploc.datasets import LabelledDataset
from cliploc.errors import UsageError
from cliploc.jobs import folder, local
from cliploc.jobs.engine import Engine
from cliploc.jobs.folder import RunKind, plain, write_json
from cliploc.jobs.plan import ModelSetup, Setting, shard_size, shards_of
from cliploc.jobs.rows import Row, arrow, rows_in
from cliploc.jobs.summary import DEFAULT, Summary
from cliploc.jobs.task import BenchmarkTask, TaskResult, dataset_entry, percent_text, run_task
from cliploc.metrics import Bootstrap, MeanIoU, MeanIoUResult, PixelPairs
from cliploc.report.task_folder import FILES as REPORT_FILES
from cliploc.reporter import SILENT, Reporter
from cliploc.segmentation import Protocol

SCHEMA_VERSION = 1  # of manifest.json, summary.json and the parts
KIND = RunKind(
    "segmentation",
    "a segmentation benchmark",
    SCHEMA_VERSION,
    ".parquet",
    frozenset({"dataset.root", "dataset.problems"}),
)
FILES = ("summary.json", *REPORT_FILES)
SHARD = 16  # pictures that are computed and written together
NUMBERS = {"miou": "mIoU", "miou_known": "mIoU known", "mean_accuracy": "mAcc", "pixel_accuracy": "pixel acc"}


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
            pa.field("width", pa.int32(), nullable=False),
            pa.field("height", pa.int32(), nullable=False),
            pa.field("status", pa.string(), nullable=False),
            pa.field("reason", pa.string()),
            # Each pair of a true and a predicted class that occurs, and its pixels; true −1 is a label of no class.
            pa.field("true", pa.list_(pa.int16())),
            pa.field("predicted", pa.list_(pa.int16())),
            pa.field("pixels", pa.list_(pa.int64())),
            pa.field("average_precision", pa.float64()),
            # Small label maps as PNG, for the report.
            pa.field("preview", pa.binary()),
            pa.field("true_preview", pa.binary()),
        ]
    )


NUMBER_COLUMNS = ("sample", "setting", "status", "reason", "true", "predicted", "pixels", "average_precision")


def pairs_of(row: Row) -> PixelPairs:
    """The pixel pairs of a row."""
    return PixelPairs(
        np.array(row["true"], np.int16), np.array(row["predicted"], np.int16), np.array(row["pixels"], np.int64)
    )


# -------------------------------------------------------------------------------------------------------------- summary
def numbers_of(
    result: MeanIoUResult, names: Sequence[str], known: Sequence[int] | None = None, precisions: Sequence[float] = ()
) -> Summary:
    """The numbers of label maps as plain values, shares in percent.

    Args:
        known: labels that the model can predict; None: all.
        precisions: the average precision of each picture, for the protocol with one object per picture.

    Returns:
        `miou`, `mean_accuracy`, `pixel_accuracy`, `confidence_95`, `per_class` (label → name, iou, accuracy, pixels;
        None where a class is in no map) and `confused` (the pairs of classes with the most wrong pixels). With `known`
        fewer than all classes, `miou_known` is the mean over these. None stands for a number that does not exist.
    """
    confusion = result.confusion
    true = confusion[:-1].sum(axis=1)
    per_class = {
        str(label): {
            "name": name,
            "iou": _percent(result.iou[label]),
            "accuracy": _percent(result.accuracy[label]),
            "pixels": int(true[label]),
        }
        for label, name in enumerate(names)
    }
    wrong = confusion[:-1] - np.diag(confusion[:-1].diagonal())
    worst = np.argsort(-wrong, axis=None, kind="stable")[:20]
    confused = [
        {"true": int(t), "predicted": int(p), "pixels": int(wrong[t, p]), "share": _percent(wrong[t, p] / true[t])}
        for t, p in zip(*np.unravel_index(worst, wrong.shape), strict=True)
        if wrong[t, p]
    ]
    interval = None if result.interval is None else [100 * end for end in result.interval]
    of_known: dict[str, Any] = {}
    if known is not None and len(known) < len(names):
        there = [result.iou[label] for label in known if np.isfinite(result.iou[label])]
        of_known = {"miou_known": _percent(np.mean(there)) if there else None, "known_classes": len(known)}
    return {
        "miou": _percent(result.miou),
        **of_known,
        "mean_accuracy": _percent(result.mean_accuracy),
        "pixel_accuracy": _percent(result.pixel_accuracy),
        **({"mean_average_precision": _percent(np.mean(precisions))} if len(precisions) else {}),
        "confidence_95": {"miou": interval} if interval else {},
        "classes": int(np.isfinite(result.iou).sum()),
        "per_class": per_class,
        "confused": confused,
    }


def _percent(share: Any) -> float | None:
    return 100 * float(share) if np.isfinite(share) else None


def summarize(
    settings: Sequence[Mapping[str, Any]], rows: Iterable[Row], names: Sequence[str], bootstrap: Bootstrap = DEFAULT
) -> dict[str, Summary]:
    """Computes the numbers of a run, setting → numbers; see `numbers_of`.

    Args:
        rows: the rows of its parts, in any order; `NUMBER_COLUMNS` are enough.
    """
    metrics = {one["id"]: MeanIoU(len(names)) for one in settings}
    failed: dict[str, list[dict[str, str]]] = {one["id"]: [] for one in settings}
    precisions: dict[str, list[float]] = {one["id"]: [] for one in settings}
    for row in rows:
        if row["status"] != "ok":
            failed[row["setting"]].append({"sample": row["sample"], "reason": row["reason"]})
            continue
        metrics[row["setting"]].restore(row["sample"], pairs_of(row))
        if row["average_precision"] is not None:
            precisions[row["setting"]].append(row["average_precision"])
    found: dict[str, Summary] = {}
    for one in settings:
        metric, name = metrics[one["id"]], one["id"]
        numbers = {} if not len(metric) else numbers_of(
            metric.compute(bootstrap), names, one["known_classes"], precisions[name]
        )  # fmt: skip
        found[name] = {
            **numbers,
            "images": len(metric) + len(failed[name]),
            "evaluated": len(metric),
            "failed": failed[name],
        }
    return found


def conclude(out: Path) -> dict[str, Summary]:
    """Computes the numbers of all existing parts and writes them into summary.json."""
    manifest = read_manifest(out)
    names = [one["name"] for one in manifest["dataset"]["classes"]]
    summary = summarize(manifest["settings"], rows_in(out, NUMBER_COLUMNS, manifest["shards"]), names)
    write_json(out / "summary.json", {"schema_version": SCHEMA_VERSION, "settings": summary})
    return summary


def read_manifest(out: Path) -> dict[str, Any]:
    """A segmentation benchmark's manifest; errors as in `cliploc.jobs.folder.read_manifest`."""
    return folder.read_manifest(out, KIND)


@dataclass(frozen=True)
class SegmentationResult(TaskResult):
    """The result of a segmentation benchmark."""

    def document(self) -> dict[str, Any]:
        """The result as in summary.json."""
        return {"schema_version": SCHEMA_VERSION, "settings": self.summary}

    def table(self) -> list[tuple[str, ...]]:
        """The table of settings: a header, then a row for each."""
        shown = {**NUMBERS, "mean_average_precision": "mAP"}
        keys = [key for key in shown if any(one.get(key) is not None for one in self.summary.values())]
        rows = [("setting", *(shown[key] for key in keys))]
        rows += [(name, *(percent_text(one, key) for key in keys)) for name, one in self.summary.items()]
        return rows

    def legend(self) -> list[str]:
        """The lines below the table that explain its numbers."""
        lines = ["percent; mIoU: mean over classes of Σ intersection / Σ union over the whole set"]
        known = {one["known_classes"] for one in self.summary.values() if "known_classes" in one}
        if known:
            lines.append(f"mIoU known: over the {', '.join(map(str, sorted(known)))} classes that the model knows")
        return lines


# -------------------------------------------------------------------------------------------------------------- the run
@dataclass(frozen=True)
class SegmentationSettings:
    """The settings of a segmentation worker; picklable. Calling them makes the worker.

    Attributes:
        setups, settings, root: as in `cliploc.jobs.plan.WorkerSettings`.
        protocol: how label maps are made.
    """

    setups: tuple[ModelSetup, ...]
    settings: tuple[Setting, ...]
    protocol: Protocol
    root: Path

    def __call__(self) -> Any:
        """Makes the worker: a `cliploc.jobs.segmentation_worker.SegmentationWorker`."""
        from cliploc.jobs.segmentation_worker import SegmentationWorker  # imports torch

        return SegmentationWorker(self)


def run_segmentation(
    dataset: LabelledDataset,
    setups: Sequence[ModelSetup],
    settings: Sequence[Setting],
    protocol: Protocol,
    out: Path,
    *,
    engine: Engine = local.run,
    shard: int = SHARD,
    asked: Mapping[str, Any] | None = None,
    reporter: Reporter = SILENT,
) -> SegmentationResult:
    """Benchmarks every setting on a segmentation set.

    Args:
        setups: models × prompts. Their options for views and boxes are not used.
        out: an empty folder, or the folder of a run with the same settings, which is resumed.
        asked: how the dataset was chosen (limit, seed …), for the manifest.
    """
    if [one.name for one in dataset.classes] != [one.name for one in protocol.classes]:
        raise UsageError(
            f"expected the protocol of {dataset.name}, got that of {protocol.name}: take protocol_of({dataset.name!r})"
        )
    size = shard_size(1, shard)
    task = BenchmarkTask(
        kind=KIND,
        make_worker=SegmentationSettings(tuple(setups), tuple(settings), protocol, dataset.root),
        shards=tuple(shards_of(dataset.samples, size)),
        passes=len({one.setup for one in settings}),
        dataset=describe_dataset(dataset, asked or {}),
        shard_size=size,
        facts={"protocol": plain(protocol.describe())},
        files=FILES,
        conclude=conclude,
        schema=row_schema,
    )
    return SegmentationResult(**vars(run_task(task, out, folder.token_for(out), engine, reporter)))


def describe_dataset(dataset: LabelledDataset, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The dataset's entry in a manifest; `samples_sha256` covers ids, sizes, names, and which truth each has."""
    digest = hashlib.sha256()
    for one in dataset.samples:
        digest.update(json.dumps((one.id, one.size_wh, one.name, one.truth.facts)).encode() + b"\n")
    return dataset_entry(dataset, asked, digest.hexdigest())


def rows_of(out: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of all finished parts."""
    return rows_in(out, columns, read_manifest(out)["shards"])

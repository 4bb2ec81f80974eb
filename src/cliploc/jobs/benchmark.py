"""`run_benchmark`: evaluates a grid of settings on a dataset, into a folder.

A run can be stopped at any moment and resumed. `cliploc help benchmark` explains the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cliploc.datasets import subsets
from cliploc.errors import UsageError
from cliploc.jobs import folder, local
from cliploc.jobs.engine import Engine
from cliploc.jobs.folder import RunKind, write_json
from cliploc.jobs.plan import SHARD, ModelSetup, Setting, WorkerSettings, shard_size, shards_of
from cliploc.jobs.rows import arrow, place_of, row_schema, rows_in
from cliploc.jobs.summary import Summary, summarize, summary_columns
from cliploc.jobs.task import BenchmarkTask, TaskResult, dataset_entry, percent_text, run_task
from cliploc.metrics import all_numbers
from cliploc.report.benchmark import FILES as REPORT_FILES
from cliploc.reporter import SILENT, Reporter
from cliploc.values import Dataset

SCHEMA_VERSION = 2  # of manifest.json, summary.json and the parts
KIND = RunKind(
    "benchmark",
    "a benchmark",
    SCHEMA_VERSION,
    ".parquet",
    frozenset({"dataset.root", "dataset.problems", "dataset.reasons"}),
)
FILES = ("summary.json", *REPORT_FILES)  # files that a run writes besides the manifest, the parts and the maps


@dataclass(frozen=True)
class BenchmarkResult(TaskResult):
    """The result of a benchmark run."""

    def document(self) -> dict[str, Any]:
        """The result as in summary.json."""
        return {"schema_version": SCHEMA_VERSION, "settings": self.summary}

    def table(self) -> list[tuple[str, ...]]:
        """The table of settings: a header, then a row for each; at most 80 columns wide if ids are short."""
        shown = {
            key: number
            for key, number in all_numbers().items()
            if number.column and any(key in one for one in self.summary.values())
        }
        titles = ["setting"]
        for number in shown.values():
            titles += [number.column, "at τ"] if number.threshold else [number.column]
        rows = [tuple(titles)]
        for name, one in self.summary.items():
            cells = [name]
            for key, number in shown.items():
                cells.append(percent_text(one, key))
                if number.threshold:
                    cells.append(f"{one[number.threshold]:g}" if number.threshold in one else "–")
            rows.append(tuple(cells))
        return rows

    def legend(self) -> list[str]:
        """The lines below the table that explain its numbers."""
        lines = []
        if any("gt_known" in one for one in self.summary.values()):
            tune = not any(one.get("best_threshold_is_an_oracle") for one in self.summary.values())
            kind = "a split that may tune" if tune else "the images it is reported on: an oracle"
            lines = [
                "percent; GT-known, Top-1 and Top-5 Loc at the setting's own τ;",
                f"MaxBoxAcc at the best τ of {kind}",
            ]
        classified: dict[tuple[str, str], str] = {}
        for name, one in self.summary.items():
            classified.setdefault((percent_text(one, "top1_cls"), percent_text(one, "top5_cls")), name)
        lines += [f"{name}: classification Top-1 {a} Top-5 {b}" for (a, b), name in classified.items() if a != "–"]
        return lines


def run_benchmark(
    dataset: Dataset,
    setups: Sequence[ModelSetup],
    settings: Sequence[Setting],
    out: Path,
    *,
    engine: Engine = local.run,
    save_maps: bool = False,
    judges: int | None = None,
    shard: int = SHARD,
    asked: Mapping[str, Any] | None = None,
    reporter: Reporter = SILENT,
) -> BenchmarkResult:
    """Benchmarks every setting on a dataset.

    Args:
        out: an empty folder, or the folder of a run with the same settings, which is resumed.
        save_maps: whether to save score maps, 200 kB for each sample and setting.
        judges: number of processes that compare maps with boxes; None for one fewer than there are cores, at least one;
            0 for a thread of this process.
        shard: number of samples that are computed and written together; rounded to whole batches.
        asked: how the dataset was chosen (subset, limit, seed …), for the manifest.
        reporter: gets the phases ("benchmark", then "summary"), the numbers of pictures × setups to do and done, each
            failed sample, and each note.
    """
    arrow()
    batch_sizes = {setup.options.batch_size for setup in setups}
    if len(batch_sizes) != 1:
        raise UsageError(f"expected one batch size for all models, got {sorted(batch_sizes)}: give all the same")
    size = shard_size(batch_sizes.pop(), shard)
    token = folder.token_for(out)
    worker_settings = WorkerSettings(
        tuple(setups),
        tuple(settings),
        class_entries(dataset),
        dataset.root,
        out / "maps" if save_maps else None,
        max(1, (os.cpu_count() or 2) - 1) if judges is None else judges,
        token,
    )
    task = BenchmarkTask(
        kind=KIND,
        make_worker=worker_settings,
        shards=tuple(shards_of(dataset.samples, size)),
        passes=len({one.setup for one in settings}),
        dataset=describe_dataset(dataset, asked or {}),
        shard_size=size,
        facts={"save_maps": save_maps},
        files=(*FILES, *(["maps"] if save_maps else [])),
        conclude=conclude,
        schema=row_schema,
    )
    return BenchmarkResult(**vars(run_task(task, out, token, engine, reporter)))


def unfit_for_setup(setup: ModelSetup, method: str) -> str | None:
    """Why a method does not run on a setup, as far as that is known without loading the model; for `Grid.settings`."""
    from cliploc.backbones import models
    from cliploc.heads import read_config
    from cliploc.saliency import find, fitting, unfit_reason

    found = find(method)
    trained = set() if setup.head is None else {read_config(setup.head).method}
    if trained and found.name not in trained:
        return ""
    if ":" in setup.model:  # from a hub or folder: its tower is known only when it is loaded
        return None
    model = models.get(setup.model.replace("/", "-"))
    guided = setup.options.guide is not None
    reason = unfit_reason(found, model, trained=trained, guided=guided)
    return None if reason is None else f"{reason}: use one of {', '.join(fitting(model, trained, guided))}"


def conclude(out: Path) -> dict[str, Summary]:
    """Computes the numbers of all existing parts and writes them into summary.json."""
    manifest = read_manifest(out)
    rows = rows_in(out, summary_columns(), manifest["shards"])
    summary = summarize(manifest["settings"], rows, manifest["dataset"]["role"] == "tune")
    write_json(out / "summary.json", {"schema_version": SCHEMA_VERSION, "settings": summary})
    return summary


def class_entries(dataset: Dataset) -> tuple[str, ...]:
    """Each class of a dataset as `cliploc.prompts.parse` takes it: label → "cat|kitten"."""
    return tuple("|".join(one.synonyms) for one in dataset.classes)


# ----------------------------------------------------------------------------------------------------------- manifest
def describe_dataset(dataset: Dataset, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The dataset's entry in a manifest; `samples_sha256` covers ids, labels, sizes, boxes and the names of masks."""
    digest = hashlib.sha256()
    for one in dataset.samples:
        masks = [place_of(mask, dataset.root) for mask in (*one.masks, *([one.ignore] if one.ignore else []))]
        facts = (one.id, one.label, one.size_wh, one.boxes_xyxy.tolist(), len(one.masks), masks)
        digest.update(json.dumps(facts).encode() + b"\n")
    return dataset_entry(dataset, asked, digest.hexdigest(), reasons=_reasons(dataset, asked.get("subset")))


def _reasons(dataset: Dataset, subset: str | None) -> dict[str, str]:
    """WordNet id → why the class was chosen for details, if the ten classes were asked for or are all in the run."""
    reasons = subsets.get("ten-classes").reasons
    present = {dataset.classes[label].wnid for label in {one.label for one in dataset.samples}}
    return dict(reasons) if subset == "ten-classes" or reasons.keys() <= present else {}


def read_manifest(out: Path) -> dict[str, Any]:
    """A benchmark's manifest; errors as in `cliploc.jobs.folder.read_manifest`."""
    return folder.read_manifest(out, KIND)

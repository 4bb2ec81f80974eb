"""Faithfulness of score maps in a folder, made by any tool: their numbers by one of our models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cliploc.config import FaithfulnessOptions, Options
from cliploc.errors import InputError, ModelError, UsageError
from cliploc.faithfulness import Faithfulness, chosen_metrics
from cliploc.jobs.benchmark import class_entries
from cliploc.jobs.evaluate import read_map
from cliploc.jobs.failures import failure_reason
from cliploc.jobs.faithfulness import (
    SCHEMA_VERSION,
    Numbers,
    number_text,
    numbers_of,
    summarize,
)
from cliploc.jobs.rows import Row
from cliploc.jobs.summary import Summary
from cliploc.localizer import Localizer
from cliploc.metrics import checked_map
from cliploc.reporter import SILENT, Reporter
from cliploc.values import Dataset

SETTING = "maps"


@dataclass(frozen=True)
class MapsResult:
    """The numbers of a folder of maps."""

    summary: Summary  # as in a benchmark's summary.json, of one setting
    numbers: Numbers  # what its numbers are
    model: str  # that scored the pictures
    protocol: FaithfulnessOptions  # the options

    def document(self) -> dict[str, Any]:
        """The result as `cliploc evaluate --task faithfulness --json` prints it."""
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "protocol": asdict(self.protocol),
            "settings": {SETTING: self.summary},
        }

    def lines(self) -> list[tuple[str, str, str]]:
        """A row for each number: title, mean, 95 % interval."""
        ends: Mapping[str, Sequence[float]] = self.summary["confidence_95"]
        return [
            (one["title"], number_text(self.summary[key]), "–".join(map(number_text, ends.get(key, ()))))
            for key, one in self.numbers.items()
        ]


def evaluate_maps(
    maps: str | Path,
    dataset: Dataset,
    options: Options,
    *,
    metrics: Sequence[str],
    protocol: FaithfulnessOptions | None = None,
    reporter: Reporter = SILENT,
) -> MapsResult:
    """Measures score maps made by any tool.

    Args:
        maps: folder with `<sample id>.npy` for each picture (ids may hold sub-folders): floats in 0–1 of any size, over
            the whole picture; of the name that `protocol` says.
        protocol: options of the protocols; None: as they were published.
        reporter: gets each picture that is left out, and the numbers of pictures to do and done.
    """
    folder, protocol = Path(maps), protocol or FaithfulnessOptions()
    if not folder.is_dir():
        raise UsageError(f"expected a folder of maps, found none at {folder}: check the path")
    chosen, entries = chosen_metrics(metrics, with_method=False), class_entries(dataset)
    # No method runs here, and none is named: a name would have to fit the tower.
    localizer = Localizer(**options.but(resize="squash", method=None, text_cache=False).given())
    measurer = Faithfulness(localizer, entries, chosen, {}, protocol)
    reporter.phase("maps")
    reporter.start(len(dataset), len(dataset))
    told = Reporter(masked=reporter.masked, halved=reporter.halved)
    rows: list[Row] = []
    for sample in dataset.samples:
        row: Row = {"sample": sample.id, "setting": SETTING, "status": "failed"}
        try:
            heat = checked_map(read_map(folder / f"{sample.id}.npy", "exact"), "exact")
            seen = measurer.see(sample.id, sample.path, entries[sample.label])
            measured = measurer.measure_map(seen, heat.astype(np.float32), reporter=told)
            row |= {"status": "ok", "values": measured.values, "curves": measured.curves}
        except InputError as error:
            row["reason"] = str(error)
            reporter.failed(sample.id, error)
        except (ModelError, RuntimeError, MemoryError) as error:
            row["reason"] = failure_reason(error)
            reporter.failed(sample.id, ModelError(f"{sample.id}: {row['reason']}"))
        rows.append(row)
        reporter.images(1)
    numbers = numbers_of(metrics)
    summary = summarize([SETTING], rows, list(numbers))[SETTING]
    if not summary["evaluated"]:
        raise UsageError(f"none of {len(rows)} pictures could be measured: {summary['failed'][0]['reason']}")
    return MapsResult(summary, numbers, localizer.backbone.name, protocol)

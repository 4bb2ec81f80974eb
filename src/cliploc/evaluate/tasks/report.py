"""What all reports share: how a folder is read, and how a page and its tables are written."""

import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from PIL import Image

from cliploc.draw.html import Templates
from cliploc.errors import InputError, UsageError
from cliploc.evaluate.tasks.paired import Comparison
from cliploc.evaluate.tasks.rows import R, rows_of
from cliploc.images.reading import load
from cliploc.runs.store import manifest_of, open_run
from cliploc.support.files import locked, write_output
from cliploc.values import ClassName, Problem

FILES = ("tables.csv", "tables.md", "report.html")
TASKS = ("boxes", "segmentation", "faithfulness", "presence")
TEMPLATES = Templates(*(Path(__file__).parent / task / "templates" for task in ("", *TASKS)))
MOST_LISTED = 200  # problems, and failures, that a page names


class DatasetEntry(msgspec.Struct, frozen=True):
    """The dataset in a manifest."""

    name: str
    split: str
    samples: int
    classes: list[ClassName]  # by label
    root: str = "."
    role: str = ""  # "tune" or "report"
    subset: str | None = None
    negatives: str = ""  # which absent names are asked
    reasons: dict[str, str] = {}  # WordNet id → why the class is shown in detail
    problems: list[Problem] = []


class SettingEntry(msgspec.Struct, frozen=True):
    """A setting in a manifest."""

    id: str
    model: str | None = None
    method: str | None = None
    pretrained: str | None = None
    threshold: Any = None  # of its boxes
    known_classes: list[int] | None = None  # labels that its label maps can have; None: all
    refine: list[str] = []


class Manifest(msgspec.Struct, frozen=True):
    """What numbers and reports need of any manifest."""

    dataset: DatasetEntry
    settings: list[SettingEntry]


class Failure(msgspec.Struct, frozen=True):
    """A picture that a setting could not evaluate."""

    sample: str
    reason: str


@dataclass(frozen=True)
class SettingResult:
    """One model × method × prompt setting."""

    id: str  # its id in the manifest and the rows
    about: SettingEntry
    numbers: Mapping[str, Any]  # its entry in summary.json; empty where none of its pictures could be evaluated
    index: int  # its place, which determines its colour

    def number(self, key: str) -> float | None:
        """A number of summary.json, or None."""
        value = self.numbers.get(key)
        return float(value) if isinstance(value, int | float) else None  # metrics have keys of other types

    def interval(self, key: str) -> tuple[float, float] | None:
        """Its 95 % interval, or None."""
        ends = (self.numbers.get("confidence_95") or {}).get(key)
        return None if ends is None else (float(ends[0]), float(ends[1]))

    def of_class(self, label: int) -> Mapping[str, Any]:
        """The numbers of a class."""
        return (self.numbers.get("per_class") or {}).get(str(label)) or {}

    @property
    def compared(self) -> Comparison | None:
        """How it compares with the best setting; None for that one, and where settings are not compared."""
        return msgspec.convert(self.numbers.get("compared"), Comparison | None)

    @property
    def failed(self) -> list[Failure]:
        """Its failures."""
        return msgspec.convert(self.numbers.get("failed", ()), list[Failure])


@dataclass(frozen=True)
class TaskRun:
    """The folder of a benchmark."""

    folder: Path
    manifest: Mapping[str, Any]
    settings: tuple[SettingResult, ...]  # the best first
    dataset: DatasetEntry
    unreadable: dict[str, str] = field(default_factory=dict)  # photographs → why

    @property
    def classes(self) -> list[str]:
        """Label → name."""
        return [entry.name for entry in self.dataset.classes]

    def title(self, task: str) -> str:
        """The title of its report."""
        return f"{task}: {self.dataset.name} {self.dataset.split}, {self.dataset.samples:,} pictures"

    def facts(self, of_dataset: Mapping[str, str], of_protocol: Mapping[str, str]) -> dict[str, str]:
        """The facts at the head of the page."""
        return {
            "dataset": f"{self.dataset.name} {self.dataset.split}",
            "pictures": f"{self.dataset.samples:,}",
            **of_dataset,
            "settings": f"{len(self.settings):,}",
            **of_protocol,
            "cliploc": str(self.manifest.get("cliploc_version") or ""),
        }

    def rows_of_samples(self, kind: type[R], samples: Collection[str]) -> dict[tuple[str, str], R]:
        """(sample, setting) → the rows of these samples that did not fail."""
        which = f"row.status = 'ok' AND row.sample IN ({', '.join('?' * len(samples))})"
        return {(row.sample, row.setting): row for row in rows_of(self.folder, kind, which, *samples)}

    def photograph(self, path: str, size_wh: tuple[int, int]) -> Image.Image | None:
        """A small copy of a photograph; None if it cannot be read: then the page has the maps alone."""
        try:
            return load(Path(self.dataset.root) / path).image.resize(size_wh)
        except InputError as error:
            self.unreadable[path] = str(error)
            return None

    def render(self, template: str, **values: Any) -> str:
        """The page; its end has problems of the dataset, failures of settings, and the manifest."""
        problems = self.dataset.problems
        failures = [(each.id, one.sample, one.reason) for each in self.settings for one in each.failed]
        hidden = ("classes", "reasons", "problems")
        data = {key: value for key, value in self.manifest["dataset"].items() if key not in hidden}
        return TEMPLATES.render(
            template,
            counted=dict(sorted(Counter(problem.kind for problem in problems).items())),
            problems=[(problem.kind, problem.source, problem.reason) for problem in problems[:MOST_LISTED]],
            failed=len(failures),
            failures=failures[:MOST_LISTED],
            unshown=self.unreadable,
            manifest=json.dumps({**self.manifest, "dataset": data}, ensure_ascii=False, indent=1),
            **values,
        )


def read_run(
    folder: Path,
    # of a setting, by the manifest and the setting's numbers; larger for better ones
    best: Callable[[Mapping[str, Any], Mapping[str, Any]], float | None],
) -> TaskRun:
    """Reads a benchmark's folder."""
    with open_run(folder) as run:
        manifest, numbers = manifest_of(run), run.summary
    if not numbers:
        raise UsageError(f"expected a finished cliploc benchmark in {folder}, got a stopped one: run its command again")

    about = msgspec.convert(manifest, Manifest)

    def worst_last(entry: SettingEntry) -> float:
        value = best(manifest, numbers[entry.id])
        return math.inf if value is None else -value  # 0 is a number, and a missing one is less than any

    ranked = sorted(about.settings, key=worst_last)
    settings = [SettingResult(each.id, each, numbers[each.id], i) for i, each in enumerate(ranked)]
    return TaskRun(folder, manifest, tuple(settings), about.dataset)


def write_files(folder: Path, *texts: str) -> Path:
    """Writes the files of a report into a folder: `FILES`, of which the last is the page."""
    with locked(folder):
        for name, text in zip(FILES, texts, strict=True):
            write_output(folder / name, text.encode("utf-8", "backslashreplace"), "--out")
    return folder / FILES[-1]

"""What the reports share: how a folder is read and a report is written."""

import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cliploc.errors import InputError, UsageError
from cliploc.images.reading import load
from cliploc.runs.evaluation import Row, manifest_of, open_run, rows_in
from cliploc.support.files import locked, write_output
from cliploc.support.imports import install, not_installed

FILES = ("tables.csv", "tables.md", "report.html")
THUMB = 28  # side of the small maps in the rows of a benchmark
Floats = npt.NDArray[np.float64]
MOST_LISTED = 200  # problems, and failures, that a page names


def heat_of(thumb: bytes) -> npt.NDArray[np.uint8]:
    """The small map `[28, 28]` of a row, in levels 0–255."""
    return np.frombuffer(thumb, np.uint8).reshape(THUMB, THUMB)


def pandas() -> Any:
    """The package pandas."""
    try:
        import pandas
    except ImportError as error:
        raise not_installed(error, install("bench", "report", "pandas")) from error
    return pandas


@dataclass(frozen=True)
class SettingResult:
    """One model × method × prompt setting."""

    id: str  # its id in the manifest and the rows
    label: str  # a short text that distinguishes it from the other settings of the run
    about: Mapping[str, Any]  # its entry in the manifest
    numbers: Mapping[str, Any]  # its entry in summary.json; empty where none of its pictures could be evaluated
    curve: Floats | None  # [1000], MaxBoxAcc in percent at each τ of `TAUS`; None where no boxes were evaluated
    index: int  # its place, which determines its colour

    def number(self, key: str) -> float | None:
        """A number of summary.json in percent, or None."""
        value = self.numbers.get(key)
        return float(value) if isinstance(value, int | float) else None  # metrics have their own keys

    def interval(self, key: str) -> tuple[float, float] | None:
        """Its 95 % interval, or None."""
        ends = (self.numbers.get("confidence_95") or {}).get(key)
        return None if ends is None else (float(ends[0]), float(ends[1]))

    def columns(self, keys: Iterable[str]) -> dict[str, object]:
        """These numbers as columns of a CSV, each with the ends of its interval."""
        cells: dict[str, object] = {}
        for key in keys:
            low, high = self.interval(key) or (None, None)
            cells |= {key: self.number(key), f"{key}_low": low, f"{key}_high": high}
        return cells

    @property
    def named(self) -> dict[str, object]:
        """What names it in a row of a CSV."""
        return {"setting": self.id, **{key: self.about.get(key) for key in ("model", "method")}}

    @property
    def baseline(self) -> bool:
        """Whether its boxes were made without a model."""
        return bool(self.about.get("baseline"))

    @property
    def threshold(self) -> float | None:
        """The τ of its boxes, hits and IoUs; None where each map has its own."""
        value = self.numbers.get("threshold", self.about.get("threshold"))
        return float(value) if isinstance(value, int | float) else None

    @property
    def oracle(self) -> bool:
        """Whether this τ was chosen on the same pictures."""
        return bool(self.numbers.get("threshold_chosen_on_these_images"))


@dataclass(frozen=True)
class TaskRun:
    """What the folder of a benchmark holds."""

    folder: Path
    manifest: Mapping[str, Any]
    settings: tuple[SettingResult, ...]  # of boxes as in the manifest, else the best first
    unshown: dict[str, str] = field(default_factory=dict, kw_only=True)  # photographs that cannot be read → reason

    @property
    def dataset(self) -> Mapping[str, Any]:
        """Its entry in the manifest."""
        facts: Mapping[str, Any] = self.manifest.get("dataset") or {}
        return facts

    def title(self, task: str) -> str:
        """The title of its report."""
        return f"{task}: {self.dataset['name']} {self.dataset['split']}, {self.dataset['samples']:,} pictures"

    def facts(self, of_dataset: Mapping[str, str], of_protocol: Mapping[str, str]) -> dict[str, str]:
        """What the head of the page says."""
        return {
            "dataset": f"{self.dataset['name']} {self.dataset['split']}",
            "pictures": f"{self.dataset['samples']:,}",
            **of_dataset,
            "settings": f"{len(self.settings):,}",
            **of_protocol,
            "cliploc": str(self.manifest.get("cliploc_version") or ""),
        }

    def read_rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """These columns of all rows, one after the other."""
        return rows_in(self.folder, columns)

    def rows_of_samples(self, columns: Sequence[str] | None, samples: Collection[str]) -> dict[tuple[str, str], Row]:
        """Sample and setting → row, all columns or these, for these samples. Failed ones are left out."""
        names = None if columns is None else ["sample", "setting", *columns]
        which = f"row.status = 'ok' AND row.sample IN ({', '.join('?' * len(samples))})"
        return {(row["sample"], row["setting"]): row for row in rows_in(self.folder, names, which, *samples)}

    def photograph(self, row: Mapping[str, Any], size_wh: tuple[int, int]) -> Image.Image | None:
        """A small copy of a row's photograph; None if it cannot be read: then the page shows the maps alone."""
        try:
            return load(Path(str(self.dataset["root"])) / row["path"]).image.resize(size_wh)
        except InputError as error:
            self.unshown[row["path"]] = str(error)
            return None

    def ending(self) -> dict[str, Any]:
        """What the end of a page shows: problems of the dataset, failures of settings, and the manifest."""
        problems = self.dataset.get("problems") or []
        kinds = Counter(problem["kind"] for problem in problems)
        failures = [
            (setting.id, failure["sample"], failure["reason"])
            for setting in self.settings
            for failure in setting.numbers["failed"]
        ]
        data = {key: value for key, value in self.dataset.items() if key not in ("classes", "reasons", "problems")}
        return {
            "counted": {kind: kinds[kind] for kind in sorted(kinds)},
            "problems": [(problem["kind"], problem["source"], problem["reason"]) for problem in problems[:MOST_LISTED]],
            "failed": len(failures),
            "failures": failures[:MOST_LISTED],
            "unshown": self.unshown,
            "manifest": json.dumps({**self.manifest, "dataset": data}, ensure_ascii=False, indent=1),
        }


def worth(value: float | None) -> float:
    """A number by which settings are ranked: 0 is one, and a missing one is less than any."""
    return -math.inf if value is None else value


def read_run(
    folder: Path,
    # of a setting, by the manifest and the setting's numbers; larger for better ones
    best: Callable[[Mapping[str, Any], Mapping[str, Any]], float | None] = lambda *_: None,
) -> TaskRun:
    """Reads a benchmark's folder."""
    with open_run(folder) as run:
        about, settings = manifest_of(run), run.get("summary")
    if settings is None:
        raise UsageError(f"expected a finished cliploc benchmark in {folder}, got a stopped one: run its command again")
    ranked = sorted(about["settings"], key=lambda setting: -worth(best(about, settings[setting["id"]])))
    return TaskRun(
        folder,
        about,
        tuple(
            SettingResult(setting["id"], setting["id"], setting, settings[setting["id"]], None, i)
            for i, setting in enumerate(ranked)
        ),
    )


def write_files(folder: Path, texts: Sequence[str], names: Sequence[str] = FILES) -> Path:
    """Writes the files of a report into a folder; the last is the page."""
    with locked(folder):
        for name, text in zip(names, texts, strict=True):
            write_output(folder / name, text.encode("utf-8", "backslashreplace"), "--out")
    return folder / names[-1]

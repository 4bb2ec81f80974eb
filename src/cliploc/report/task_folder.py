"""What the reports share: how a folder is read and a report is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cliploc._documents import BenchmarkSummary, read_json
from cliploc._files import parts_in, read_part, write_whole
from cliploc._imports import install, not_installed
from cliploc.errors import InputError, UsageError
from cliploc.images import load

FILES = ("tables.csv", "tables.md", "report.html")
THUMB = 28  # side of the small maps in the rows of a benchmark
MOST_FAILURES = 200  # of a setting, that a page names


def heat_of(thumb: bytes) -> npt.NDArray[np.uint8]:
    """The small map `[28, 28]` of a row, in levels 0–255."""
    return np.frombuffer(thumb, np.uint8).reshape(THUMB, THUMB)


def kind_of(folder: Path) -> str:
    """The kind of run in a folder, as its manifest has it; "" if no manifest can be read."""
    try:
        return str(read_json(folder / "manifest.json", dict[str, Any]).get("kind", ""))
    except (OSError, ValueError):
        return ""


def read_run(
    folder: Path, manifest: type[Any], numbers_of: Callable[[Mapping[str, Any]], Iterable[str]]
) -> tuple[Mapping[str, Any], dict[str, Mapping[str, Any]]]:
    """The manifest of a benchmark, and setting → numbers in the manifest's order.

    Args:
        numbers_of: takes the manifest; the keys of the numbers that a setting may have.
    """
    read = []
    for name, kind in (("manifest.json", manifest), ("summary.json", BenchmarkSummary)):
        try:
            read.append(read_json(folder / name, kind))
        except (OSError, ValueError) as error:
            raise UsageError(f"{folder / name} cannot be read ({error}): run the benchmark again") from error
    about, summary = read
    try:
        settings = {one["id"]: summary["settings"][one["id"]] for one in about["settings"]}
    except KeyError as error:
        raise UsageError(f"{folder} is damaged ({error}): run the benchmark again") from error
    for name, found in settings.items():
        wrong = [key for key in numbers_of(about) if not isinstance(found.get(key), int | float | None)]
        wrong += [key for key, kind in (("evaluated", int), ("failed", list)) if not isinstance(found.get(key), kind)]
        if wrong:
            raise UsageError(f"{folder} is damaged ({wrong[0]} of {name}): run the benchmark again")
    return about, settings


def rows_of(folder: Path, manifest: Mapping[str, Any], columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """These columns of all parts, a part at a time."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise not_installed(error, install("bench", "report", "pyarrow")) from None
    for path in parts_in(folder, count=manifest["shards"]):
        content = read_part(path)
        if content is None:
            raise UsageError(f"{path} is damaged: run the benchmark again, to compute it again")
        try:
            yield from parquet.read_table(pa.BufferReader(content), columns=list(columns)).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise UsageError(f"{path} is damaged ({error}): run the benchmark again") from None


def rows_of_samples(
    folder: Path, manifest: Mapping[str, Any], columns: Sequence[str], samples: Collection[str]
) -> dict[tuple[str, str], dict[str, Any]]:
    """Sample and setting → row, for these samples; arguments and errors as in `rows_of`. Failed ones are left out."""
    return {
        (row["sample"], row["setting"]): row
        for row in rows_of(folder, manifest, ["sample", "setting", "status", *columns])
        if row["sample"] in samples and row["status"] == "ok"
    }


def small_photograph(path: Path, size_wh: tuple[int, int]) -> Image.Image | None:
    """A small copy of a photograph; None if it cannot be read: then the page shows the maps alone."""
    try:
        return load(path).image.resize(size_wh)
    except InputError:
        return None


def ending(manifest: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the end of a page shows: problems of the dataset, failures of settings, and the manifest."""
    return {
        "problems": [[one["kind"], one["source"], one["reason"]] for one in manifest["dataset"].get("problems") or []],
        "failures": [
            [name, one["sample"], one["reason"]]
            for name, found in settings.items()
            for one in found["failed"][:MOST_FAILURES]
        ],
        "manifest": json.dumps(manifest, ensure_ascii=False, indent=1),
    }


def write_files(folder: Path, texts: Sequence[str], names: Sequence[str] = FILES) -> Path:
    """Writes the files of a report into a folder.

    Args:
        names: the name of each file; the last is that of the page.
    """
    for name, text in zip(names, texts, strict=True):
        path = folder / name
        try:
            write_whole(path, partial(_write, text))
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}: free space, or check its permissions") from error
    return folder / names[-1]


def _write(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8", errors="backslashreplace")

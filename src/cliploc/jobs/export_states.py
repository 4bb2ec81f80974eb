"""exports.json: which run each export is of; stale before boxes change, current once written."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cliploc._documents import ExportStates, read_if_there
from cliploc.jobs.folder import write_json

FILE, KIND, SCHEMA_VERSION = "exports.json", "cliploc exports", 1
STALE, CURRENT = "stale", "current"


def mark_stale(out: Path, names: Iterable[str] | None = None) -> None:
    """Marks exports, by default all, as not holding the folder's boxes."""
    before = _states(out)
    wanted = list(before) if names is None else list(names)
    _write(out, before, {name: {**before.get(name, {}), "state": STALE} for name in wanted})


def mark_current(out: Path, name: str, files: Sequence[str], run: str, corrected: int) -> None:
    """Marks an export as up to date, with what it was made from."""
    state = {"state": CURRENT, "files": list(files), "run": run, "corrected": corrected}
    _write(out, _states(out), {name: state})


def seal(out: Path, names: Sequence[str], newest: int | None = None) -> str:
    """An export's newest time, and a digest of names, sizes and times, without files newer than an earlier seal's."""
    status = [(path.relative_to(out).as_posix(), path.lstat()) for name in names for path in _files(out / name)]
    facts = sorted((path, entry.st_size, entry.st_mtime_ns) for path, entry in status)
    newest = max((time for _, _, time in facts), default=0) if newest is None else newest
    own = [fact for fact in facts if fact[2] <= newest]
    return f"{newest} {hashlib.sha256(json.dumps(own).encode()).hexdigest()[:32]}"


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir() and not path.is_symlink():
        yield from (Path(folder, name) for folder, _, names in os.walk(path) for name in names)
    elif os.path.lexists(path):
        yield path


def _states(out: Path) -> dict[str, dict[str, Any]]:
    states: dict[str, dict[str, Any]] = read_if_there(out / FILE, ExportStates).get("exports", {})
    return states


def _write(out: Path, before: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]) -> None:
    if (states := {**before, **new}) != before:
        write_json(out / FILE, {"kind": KIND, "schema_version": SCHEMA_VERSION, "exports": states})

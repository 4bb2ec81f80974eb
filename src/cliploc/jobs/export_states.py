"""exports.json: the run and decisions that each export was made from, and whether the boxes have changed since.

The formats of other tools have no place for this. An export is marked as stale before the boxes change, and as current
when it is written: a run that is killed between the two leaves no export that looks current and is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cliploc._documents import read_json
from cliploc._schemas import ExportStates
from cliploc.jobs.folder import write_json

FILE, KIND, SCHEMA_VERSION = "exports.json", "cliploc exports", 1
STALE, CURRENT = "stale", "current"


def mark_stale(out: Path, names: Iterable[str] | None = None) -> None:
    """Marks exports, by default all, as not holding the folder's boxes.

    Args:
        out: the folder of the run.
        names: of formats, and "review".
    """
    states = _states(out)
    wanted = list(states) if names is None else list(names)
    _write(out, {**states, **{name: {**states.get(name, {}), "state": STALE} for name in wanted}})


def mark_current(out: Path, name: str, files: Sequence[str], run: str, decisions: str | None, corrected: int) -> None:
    """Marks an export as up to date, with what it was made from.

    Args:
        out: the folder of the run.
        name: of the format, or "review".
        files: that were written.
        run: the id of names and settings.
        decisions: the digest of the decisions; None where there are none.
        corrected: the number of corrected pictures.
    """
    state = {"state": CURRENT, "files": list(files), "run": run, "decisions": decisions, "corrected": corrected}
    _write(out, {**_states(out), name: state})


def _states(out: Path) -> dict[str, dict[str, Any]]:
    try:
        found: dict[str, dict[str, Any]] = read_json(out / FILE, ExportStates)["exports"]
    except (OSError, ValueError):
        return {}
    return found


def _write(out: Path, states: dict[str, dict[str, Any]]) -> None:
    if states != _states(out):
        write_json(out / FILE, {"kind": KIND, "schema_version": SCHEMA_VERSION, "exports": states})

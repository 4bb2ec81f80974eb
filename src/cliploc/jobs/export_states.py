"""exports.json: of which run and decisions each export is, and whether the folder's boxes have changed since.

Formats of other tools have no place for it. An export is marked as stale before the boxes change, and as current when
it is written: a run that is killed between the two leaves no export that looks current and is not.
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
    """Says of exports, by default of all, that they do not hold the folder's boxes any more, or not yet.

    Args:
        out: the folder of the run.
        names: of formats, and "review".
    """
    states = _states(out)
    wanted = list(states) if names is None else list(names)
    _write(out, {**states, **{name: {**states.get(name, {}), "state": STALE} for name in wanted}})


def mark_current(out: Path, name: str, files: Sequence[str], run: str, decisions: str | None, corrected: int) -> None:
    """Says of an export what it is of.

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

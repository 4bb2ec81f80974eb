"""Remarks of a run: each once, said when it comes up."""

from __future__ import annotations

from cliploc.jobs.notes import Notes
from cliploc.reporter import Reporter


def test_each_is_kept_and_said_once_in_order():
    said: list[str] = []
    notes = Notes(Reporter(note=said.append))
    notes.add(["b", "a", "b"])
    assert said == ["b", "a"]
    notes.add(["a", "c"])
    assert said == ["b", "a", "c"]
    assert notes.lines == ("b", "a", "c")

"""A command that is stopped amid its pictures, as by Ctrl-C, and then resumed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cliploc.evaluate.tasks.worker import NameJudge
from tests.commands import Outcome, cliploc_, refused


def stopped_and_resumed(
    command: Sequence[object], folder: Path, judge: type[NameJudge], at: int, patch: pytest.MonkeyPatch
) -> tuple[Outcome, list[str]]:
    """What a command stopped at so many pictures says when resumed, and judges then; a.json is b.json in the end."""
    judged, stops_at, own = list[str](), at, judge.judge

    def counted(self: NameJudge, seen: Any, *more: Any) -> Any:
        judged.append(seen.sample.id)
        if len(judged) == stops_at:
            raise KeyboardInterrupt
        return own(self, seen, *more)

    patch.setattr(judge, "judge", counted)
    first, other = (*command, "--out", folder / "a.json"), (*command, "--out", folder / "b.json")
    assert cliploc_(*first).code == 130
    assert [one.name for one in folder.iterdir()] == ["a.json.partial"]
    assert "holds a run with other settings" in refused(*first, "--flip")
    judged, stops_at = [], 0
    ran, again = cliploc_(*first), [*judged]
    assert ran.code == 0, ran.err
    assert cliploc_(*other).code == 0
    assert sorted(one.name for one in folder.iterdir()) == ["a.json", "b.json"]
    assert (folder / "a.json").read_bytes() == (folder / "b.json").read_bytes()
    return ran, again

"""README.md prints what its commands print, in order, in an empty folder, and is short."""

import re
from itertools import zip_longest
from pathlib import Path

import pytest
from tools.readme_outputs import BLOCK, with_outputs

from cliploc.cli.commands import NAMES

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"(\d+(?:\.\d+)?)")


def test_the_readme_shows_what_its_commands_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPLOC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    again = with_outputs(README, tmp_path)
    assert (tmp_path / "found").is_dir()
    assert len(list(BLOCK.finditer(README))) >= 2
    for shown, printed in zip_longest(README.splitlines(), again.splitlines()):
        assert same(shown, printed), f"python tools/readme_outputs.py writes what is printed now: {printed}"


def same(shown: str | None, printed: str | None) -> bool:
    """Whether lines agree but for one in the last digit of their numbers: processors add in other orders."""
    parts = [NUMBER.split(line or "") for line in (shown, printed)]
    if parts[0][::2] != parts[1][::2]:
        return False
    numbers = zip(*(one[1::2] for one in parts), strict=True)
    return all(abs(float(a) - float(b)) <= 1.01 * 10.0 ** -len(a.partition(".")[2]) for a, b in numbers)


def test_lines_that_differ_by_more_than_rounding_are_told_apart() -> None:
    assert same("bee  score 0.95  box 77 86", "bee  score 0.94  box 78 86")
    assert not same("score 0.95", "score 0.93")
    assert not same("bee found", "bee unsure")
    assert not same("bee", None)


def test_it_is_short() -> None:
    assert len(README.split()) <= 900


def test_every_command_that_it_names_is_one() -> None:
    named = set(re.findall(r"cliploc ([a-z][\w-]*)", " ".join(re.findall(r"`[^`\n]+`|\$ [^\n]+", README))))
    assert {"localize", "annotate", "benchmark"} <= named <= set(NAMES)

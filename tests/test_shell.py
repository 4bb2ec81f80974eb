"""What a shell and a terminal get: completion, and colours only where they are wanted."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cliploc._terminal import Terminal
from tests.commands import cliploc_, refused

ROOT = Path(__file__).parents[1]

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
CLIPLOC = f"{sys.executable} -m cliploc"


def in_bash(line: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"{line}; exit $?"],  # a second command, so that bash stays the parent
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(home), **environment},
        check=False,
    )


@needs_bash
def test_completion_is_installed_for_the_shell(tmp_path: Path) -> None:
    done = in_bash(f"{CLIPLOC} --install-completion", tmp_path)
    assert done.returncode == 0, done.stderr
    script = tmp_path / ".bash_completions/cliploc.sh"
    assert str(script) in (tmp_path / ".bashrc").read_text()
    assert "complete -o default -F _cliploc_completion cliploc" in script.read_text()
    assert in_bash(f"source {script}; complete -p cliploc", tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("words", "expected"), [("cliploc loc", ["localize"]), ("cliploc localize --prec", ["--precision"])]
)
def test_the_shell_is_told_what_may_follow(words: str, expected: list[str]) -> None:
    asked = {"_CLIPLOC_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(
        [sys.executable, "-m", "cliploc"], capture_output=True, text=True, env={**os.environ, **asked}, check=False
    )
    assert done.stdout.split() == expected
    assert not done.stderr


def said(capsys: pytest.CaptureFixture[str]) -> str:
    Terminal().say("failed: a picture", style="red")
    return capsys.readouterr().err


def test_colours_only_where_they_are_wanted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    assert said(capsys) == "failed: a picture\n"  # no terminal
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a terminal
    assert said(capsys) == "\x1b[31mfailed: a picture\x1b[0m\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert said(capsys) == "failed: a picture\n"


def test_help_lists_every_page_and_shows_each() -> None:
    listed = cliploc_("help").out
    pages = sorted(path.stem for path in (ROOT / "docs").glob("*.md") if path.stem != "index")
    assert sorted(re.findall(r"^  ([\w-]+) {2,}\S", listed, re.MULTILINE)) == pages
    assert max(map(len, listed.splitlines())) <= 80
    assert "\nLook it up\n  cli " in listed, "not where the first link to one of its sections stands"
    for page in pages:
        beginning, whole = cliploc_("help", page).out, cliploc_("help", page, "--all").out
        title = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8").partition("\n")[0]
        assert beginning.startswith(f"{title}\n")
        assert whole.startswith(f"{title}\n")
        assert "<!--" not in whole
        assert len(beginning) <= len(whole) + 1000


def test_help_of_a_command_lists_its_options() -> None:
    assert "--save-maps" in cliploc_("help", "localize").out


def test_an_unknown_topic_is_one_line() -> None:
    said = refused("help", "mask")
    assert said.startswith("cliploc: unknown topic 'mask': did you mean masks")
    assert said.endswith("listed by: cliploc help\n")


def on_a_terminal(*words: str, **environment: str) -> str:
    """What a program shows on a terminal of 80 columns."""
    pty = pytest.importorskip("pty")  # there is none on Windows
    ours, theirs = pty.openpty()
    clean = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "cliploc", *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**clean, "TERM": "xterm-256color", "COLUMNS": "80", **environment},
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # how Linux says that nobody writes any more
            break
        if not part:
            break
        shown += part
    os.close(ours)
    assert process.wait() == 0
    return shown.decode()


def test_help_is_set_on_a_terminal_and_in_colours_only_where_they_are_wanted() -> None:
    colour = re.compile(r"\x1b\[[\d;]*\b(?:3[0-7]|4[0-7]|38|48|9[0-7])\b")
    shown = on_a_terminal("help", "api", "--all")
    assert colour.search(shown)
    assert "## Stable" not in shown
    plain = on_a_terminal("help", "api", "--all", NO_COLOR="1")
    assert not colour.search(plain)
    assert "Stable" in plain

"""What a shell and a terminal get: completion, and colours only where they are wanted."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cliploc.cli.terminal import Terminal

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

"""Runs the README's commands and Python, in order in an empty folder, and writes what they print into the README.

`python tools/readme_outputs.py`, after a change of a model or recipe. In a block of `console`, lines that begin with
`$ ` are commands, and what follows each is its output, without seconds; the output of a block of `python` is the block
of `text` after it. Also writes docs/methods/index.md's table. tests/test_site.py compares the README with the result.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from itertools import groupby
from pathlib import Path
from typing import get_args

ROOT = Path(__file__).parents[1]
README, METHODS = ROOT / "README.md", ROOT / "docs/methods/index.md"
BLOCK = re.compile(
    r"```console\n(?P<commands>.*?)```|```python\n(?P<code>.*?)```\n\n```text\n(?P<text>.*?)```", re.DOTALL
)
TABLE = re.compile(r"(?<=checked by tests/test_site.py -->\n\n).*?(?=\n\n<!-- end -->)", re.DOTALL)
CLIPLOC = [sys.executable, "-m", "cliploc"]


def with_outputs(page: str, folder: Path) -> str:
    """The page with what its blocks print now when they are run one after the other in this folder."""

    def again(block: re.Match[str]) -> str:
        if block["commands"] is None:
            printed = run([sys.executable, "-c", block["code"]], folder)
            return f"```python\n{block['code']}```\n\n```text\n{printed}```"
        commands = [line for line in block["commands"].splitlines() if line.startswith("$ ")]
        parts = [f"{line}\n{run(words(line), folder)}" for line in commands]
        return "```console\n" + "\n".join(parts) + "```"

    return BLOCK.sub(again, page)


def words(line: str) -> list[str]:
    """A line of a console as a command, run by this Python."""
    name, *rest = shlex.split(line.removeprefix("$ "))
    assert name == "cliploc", f"expected a command of cliploc, got {line!r}"
    return [*CLIPLOC, *rest]


def run(command: list[str], folder: Path) -> str:
    """What a command prints, on both streams as a terminal shows them: results first, as they are printed first."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_COLOR": "1", "PYTHONWARNINGS": "ignore"}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert ran.returncode == 0, ran.stderr
    return re.sub(r", \d+\.\d s\b", "", ran.stdout + ran.stderr)


def methods_table() -> str:
    """The saliency methods in Markdown, by family."""
    from cliploc.methods import Family, methods

    kinds = get_args(Family)
    lines = ["| method | `--method` | towers | paper |", "|---|---|---|---|"]
    for family, of_family in groupby(sorted(methods, key=lambda m: kinds.index(m.family)), lambda m: m.family):
        lines.append(f"| **{family}** | | | |")
        lines += [f"| {m.title} | `{m.name}` | {', '.join(sorted(m.towers))} | {m.paper} |" for m in of_family]
    return "\n".join(lines)


def main() -> None:
    METHODS.write_text(TABLE.sub(lambda _: methods_table(), METHODS.read_text(encoding="utf-8")), encoding="utf-8")
    page = README.read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        README.write_text(with_outputs(page, Path(folder)), encoding="utf-8")


if __name__ == "__main__":
    main()

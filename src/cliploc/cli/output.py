"""What all commands share: printing, writing results, and exit codes."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cliploc.cli.terminal import Terminal, grid, printable, styled, write_out
from cliploc.errors import CliplocError, UsageError
from cliploc.support.files import write_output

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from cliploc.support.reporter import Reporter
    from cliploc.values import Problem

DONE, SOME_FAILED, NOTHING_DONE, INTERRUPTED, NO_READER = 0, 1, 2, 130, 141
MOST_FAILURES, MOST_PROBLEMS = 20, 3  # listed one by one; more are only counted


# ------------------------------------------------------------------------------------------------------------ printed
def complain(line: str) -> None:
    """Prints an error in one line."""
    with suppress(OSError):  # there is no stderr either
        print(f"cliploc: {printable(line)}", file=sys.stderr)


def print_document(document: Mapping[str, Any]) -> None:
    """Prints the one JSON document of `--json`."""
    write_out(json_text(document) + "\n")


def json_text(document: Mapping[str, Any]) -> str:
    """Results as indented JSON."""
    return json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False)


def print_result(
    terminal: Terminal,
    document: Mapping[str, Any],
    table: RenderableType | list[Sequence[str | Text]],  # or rows, the first of titles
    legend: Iterable[str] = (),
    *,
    as_json: bool,
) -> None:
    """Prints a result as one JSON document, or as a table with the lines below it."""
    if as_json:
        print_document(document)
        return
    if isinstance(table, list):
        terminal.listing(table)
    else:
        terminal.data(table)
    for line in legend:
        terminal.data(printable(line))


LOCALIZE = ("cliploc", "localize", "photo.jpg", "-p", "cat")  # an example, to which options are added


def say_next(terminal: Terminal, step: str | Sequence[object], *, quiet: bool = False) -> None:
    """Says what most users do next: a sentence, or the words of a command to copy; nothing where `quiet`."""
    if not quiet:
        terminal.say(f"next: {step if isinstance(step, str) else shlex.join(map(str, step))}", style="dim")


def say_failures(terminal: Terminal, failed: Mapping[str, str]) -> None:
    """Prints the first failures, each with its reason."""
    for name, reason in list(failed.items())[:MOST_FAILURES]:
        terminal.say(f"failed: {name}: {reason}", style="red")


@contextmanager
def first_failures(terminal: Terminal, reporter: Reporter) -> Iterator[Reporter]:
    """A reporter that prints the first failures only, and at the end how many more there are."""
    count = 0

    def failed(source: str, error: CliplocError) -> None:
        nonlocal count
        count += 1
        if count <= MOST_FAILURES:
            reporter.failed(source, error)

    try:
        yield replace(reporter, failed=failed)
    finally:
        if count > MOST_FAILURES:
            terminal.say(f"and {count - MOST_FAILURES:,} more: --json lists all", style="red")


def say_problems(terminal: Terminal, problems: Sequence[Problem], all_of_them: str = "") -> None:
    """Prints a dataset's first problems, and where all of them are listed."""
    for problem in problems[:MOST_PROBLEMS]:
        terminal.say(f"{problem.kind}: {problem.source}: {problem.reason}", style="yellow")
    if all_of_them and len(problems) > MOST_PROBLEMS:
        terminal.say(f"{len(problems)} problems in all: {all_of_them}", style="yellow")


def title_row(*titles: str) -> list[Text]:
    """The first row of a table."""
    return [styled(title, "bold") for title in titles]


def titled(table: Sequence[Sequence[str]]) -> list[Sequence[str | Text]]:
    """The rows of a table whose first row has the titles, for `Terminal.listing`."""
    titles, *rows = table
    return [title_row(*titles), *([printable(cell) for cell in row] for row in rows)]


def facts(rows: Iterable[tuple[str, str]]) -> RenderableType:
    """A table whose first column has the titles."""
    return grid([(styled(title, "bold"), value) for title, value in rows])


def box_text(xyxy: Iterable[float]) -> str:
    """A box in whole pixels."""
    return " ".join(f"{value:.0f}" for value in xyxy)


# ------------------------------------------------------------------------------------------------------------ written
def writable(folder: Path) -> Path:
    """Makes the folder and checks that it can be written to, before anything is computed."""
    import tempfile

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot write to {folder}: {reason}: choose another folder with --out") from error
    return folder


def file_writable(path: Path) -> None:
    """The same for a file: checks its folder, which it makes, and that the path is not a folder itself."""
    if path.is_dir():
        raise UsageError(f"expected --out as a file, got the folder {path}: add the file's name")
    writable(path.resolve().parent)


write = partial(write_output, option="--out")

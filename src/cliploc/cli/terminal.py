"""What a person sees: data on stdout, everything else on stderr, nothing read as markup."""

import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache, partial
from typing import Any

from rich import progress as rich
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cliploc import CliplocError, Reporter
from cliploc.cli.output import print_document, printable, write_out
from cliploc.support.reporter import BANK, halved_note

GAP = 2  # columns between those of a table
WIDE = 10_000  # columns when nobody looks at them: lines stay whole for grep and cut
MOST_FAILURES, MOST_PROBLEMS = 20, 3  # listed one by one; more are only counted


class Terminal:
    """The streams of one command; on one screen progress and data share a console, else data goes to stdout alone."""

    def __init__(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a file name may hold what the terminal's encoding does not
                stream.reconfigure(errors="backslashreplace")
        self.err = Console(stderr=True, markup=False, highlight=False, emoji=False)
        self.one_screen = False
        with suppress(OSError):
            same = os.fstat(1).st_rdev == os.fstat(2).st_rdev
            self.one_screen = self.err.is_terminal and sys.stdout.isatty() and same
        width = None if sys.stdout.isatty() else WIDE
        self.out = self.err if self.one_screen else Console(markup=False, highlight=False, emoji=False, width=width)

    def data(self, what: RenderableType) -> None:
        """A line or table of results."""
        what = Text(what) if isinstance(what, str) else what
        if self.out.is_terminal:
            self.out.print(what)
            return
        with self.out.capture() as captured:  # tables are padded to their width: noise in a file
            self.out.print(what)
        write_out("\n".join(line.rstrip() for line in captured.get().split("\n")))

    def listing(
        self, rows: Sequence[Sequence[str | Text]], narrow: Sequence[Sequence[str | Text]] | None = None
    ) -> None:
        """A table with titles; on a screen that it does not fit `narrow`, or its cells are wrapped."""
        table = grid(rows)
        width = Measurement.get(self.out, self.out.options.update(width=WIDE), table).maximum
        self.data(grid(narrow) if narrow is not None and width > self.out.width else table)

    def say(self, line: str, style: str = "") -> None:
        """One line for the person who waits."""
        with suppress(OSError):  # a full disk under stderr must not end the run
            self.err.print(Text(printable(line), style), soft_wrap=True)

    @contextmanager
    def progress(self, label: str) -> Iterator[Reporter]:
        """Shows on stderr what long work reports: lines, and on a terminal a bar."""
        lines = Reporter(
            failed=lambda _, error: self.say(f"failed: {error}", style="red"),
            halved=lambda count: self.say(halved_note(count), style="yellow"),
            note=cache(lambda line: self.say(line, style="yellow")),  # once: several runs of a command say the same
        )
        if not self.err.is_terminal:
            once = f"embedding {{:,}} {BANK}, once for this text tower"
            yield replace(lines, bank=lambda done, left: None if done else self.say(once.format(left), style="dim"))
            return
        columns: list[rich.ProgressColumn] = [
            rich.SpinnerColumn(),
            rich.TextColumn("{task.description}", markup=False),
            rich.BarColumn(24),
            _Count(),
            rich.TimeRemainingColumn(compact=True),
        ]
        with rich.Progress(*columns, console=self.err, transient=True) as progress:
            bar = _Bar(progress, label)
            masked, bank = partial(bar.beside, "masked"), partial(bar.beside, BANK)
            yield replace(lines, phase=bar.phase, start=bar.start, images=bar.images, masked=masked, bank=bank)

    def say_next(self, step: str | Sequence[object], *, quiet: bool = False) -> None:
        """Says what most users do next: a sentence, or the words of a command to copy; nothing where `quiet`."""
        if not quiet:
            self.say(f"next: {step if isinstance(step, str) else shlex.join(map(str, step))}", style="dim")

    def say_failures(self, failed: Mapping[str, str]) -> None:
        """Prints the first failures, each with its reason."""
        for name, reason in list(failed.items())[:MOST_FAILURES]:
            self.say(f"failed: {name}: {reason}", style="red")

    @contextmanager
    def first_failures(self, reporter: Reporter) -> Iterator[Reporter]:
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
                self.say(f"and {count - MOST_FAILURES:,} more: --json lists all", style="red")

    def say_problems(self, problems: Sequence[Any], all_of_them: str = "") -> None:
        """Prints a dataset's first problems, and where all of them are listed."""
        for problem in problems[:MOST_PROBLEMS]:
            self.say(f"{problem.kind}: {problem.source}: {problem.reason}", style="yellow")
        if all_of_them and len(problems) > MOST_PROBLEMS:
            self.say(f"{len(problems)} problems in all: {all_of_them}", style="yellow")

    def print_result(
        self,
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
            self.listing(table)
        else:
            self.data(table)
        for line in legend:
            self.data(printable(line))


class _Count(rich.MofNCompleteColumn):
    def render(self, task: rich.Task) -> Text:
        return Text() if task.total is None else super().render(task)


class _Bar:
    """A progress bar that has the parts of a `Reporter` that count; see there."""

    def __init__(self, progress: rich.Progress, label: str) -> None:
        self._progress = progress
        self.phase(label)

    def phase(self, label: str) -> None:
        for task in self._progress.task_ids:  # rich cannot take a total away from a task that has one
            self._progress.remove_task(task)
        self._label = label
        self._counts: dict[str, int] = {}  # what is counted beside pictures → how many are done
        self._task = self._progress.add_task(label, total=None)

    def start(self, todo: int, total: int) -> None:
        self._progress.reset(self._task, total=total, completed=total - todo)

    def images(self, count: int) -> None:
        self._progress.advance(self._task, count)

    def beside(self, what: str, done: int, left: int) -> None:
        self._counts[what] = done + self._counts.get(what, 0)
        count = self._counts[what] if left else self._counts.pop(what)
        beside = f", {what} {count:,} of {count + left:,}" if left else ""
        self._progress.update(self._task, description=f"{self._label}{beside}")


def grid(rows: Sequence[Sequence[str | Text]], indent: int = 0) -> RenderableType:
    """Columns without lines around them; long cells are wrapped, never cut."""
    table = Table.grid(padding=(0, GAP))
    for index in range(max(map(len, rows))):
        table.add_column(overflow="fold", no_wrap=index == 0 and max(len(row[0]) for row in rows) <= 24)
    for row in rows:
        table.add_row(*(Text(printable(cell)) if isinstance(cell, str) else cell for cell in row))
    return Padding(table, (0, 0, 0, indent), expand=False)


def title_row(*titles: str) -> list[Text]:
    """The first row of a table."""
    return [Text(title, "bold") for title in titles]


def titled(table: Sequence[Sequence[str]]) -> list[Sequence[str | Text]]:
    """The rows of a table whose first row has the titles, for `Terminal.listing`."""
    titles, *rows = table
    return [title_row(*titles), *([printable(cell) for cell in row] for row in rows)]


def facts(rows: Iterable[tuple[str, str]]) -> RenderableType:
    """A table whose first column has the titles."""
    return grid([(Text(title, "bold"), value) for title, value in rows])

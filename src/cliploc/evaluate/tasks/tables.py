"""The tables of all reports: on the page, as Markdown and CSV."""

import csv
import io
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cliploc.evaluate.metrics import all_numbers
from cliploc.evaluate.tasks.report import SettingResult, TaskRun

Interval = Sequence[float] | None


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    value: float | None = None  # the value to sort by; None for text
    ends: str = ""  # of the 95 % interval


@dataclass(frozen=True)
class Table:
    """A table."""

    title: str  # its heading
    columns: Mapping[str, str]  # title → explanation ("" for none)
    rows: Sequence[Sequence[Cell]]
    words: Collection[str]  # the columns of words; the others have numbers
    notes: Sequence[str] = ()  # remarks below it

    @property
    def highest(self) -> Mapping[str, float]:
        """Column → its highest number; empty for a single row."""
        if len(self.rows) < 2:
            return {}
        best_of = {number.title for number in all_numbers().values()}
        columns = zip(self.columns, zip(*self.rows, strict=True), strict=True)
        values_of = {title: [cell.value for cell in cells if cell.value is not None] for title, cells in columns}
        return {title: max(values) for title, values in values_of.items() if values and title in best_of}


def percent(value: float | None, ends: Interval = None) -> Cell:
    """A percentage with two decimals, as the field prints it; a dash for none."""
    return decimal(value, 2, "" if ends is None else f"{ends[0]:.1f}–{ends[1]:.1f}")


def decimal(value: float | None, decimals: int, ends: str = "") -> Cell:
    """A number with so many decimals; a dash for none."""
    return Cell("–") if value is None else Cell(f"{value:.{decimals}f}", value, ends)


def counted(value: float | None) -> Cell:
    """How many; a dash for none."""
    return Cell("–") if value is None else Cell(f"{value:,.0f}", value)


def number_cell(value: float | None, ends: Interval = None) -> Cell:
    """A number with its interval, three decimals; tiny ones in powers of ten."""
    if value is None:
        return Cell("–")
    form = ".3f" if value == 0 or abs(value) >= 0.0005 else ".1e"
    return Cell(f"{value:{form}}", value, "" if ends is None else f"{ends[0]:{form}}–{ends[1]:{form}}")


def numbers_table(
    run: TaskRun,
    numbers: Mapping[str, tuple[str, str]],
    counts: Mapping[str, tuple[str, str]],
    notes: Sequence[str] = (),
    *,
    cell: Callable[[float | None, Interval], Cell] = number_cell,
    words: Mapping[str, tuple[str, Callable[[SettingResult], str]]] = {},  # title → meaning, and the text of a setting
) -> Table:
    """A row for each setting: words, its numbers with their intervals, and counts; key → title and meaning."""
    rows = [
        [
            Cell(setting.id),
            *(Cell(text_of(setting)) for _, text_of in words.values()),
            *(cell(setting.number(key), setting.interval(key)) for key in numbers),
            *(counted(setting.number(key)) for key in counts),
        ]
        for setting in run.settings
    ]
    columns = {"setting": "", **{title: about for title, (about, _) in words.items()}}
    columns |= {**dict(numbers.values()), **dict(counts.values())}
    return Table("All numbers, with 95 % intervals", columns, rows, {"setting", *words}, notes)


def numbers_csv(
    run: TaskRun,
    numbers: Iterable[str],
    counts: Iterable[str],
    more: Callable[[SettingResult], Mapping[str, Any]] = lambda _: {},  # further columns of a setting
) -> str:
    """A row for each setting: unrounded numbers, the ends of their intervals, counts, and the dataset."""
    rows = []
    for setting in run.settings:
        row = {"setting": setting.id, "model": setting.about.get("model"), "method": setting.about.get("method")}
        for key in numbers:
            low, high = setting.interval(key) or (None, None)
            row |= {key: setting.number(key), f"{key}_low": low, f"{key}_high": high}
        row |= {key: setting.numbers.get(key) for key in (*counts, "evaluated")}
        row |= {"failed": len(setting.failed), **more(setting)}
        rows.append(row | {"dataset": run.dataset.name, "split": run.dataset.split})
    return csv_text(rows)


# ----------------------------------------------------------------------------------------------------------- as files
def to_markdown(title: str, tables: Sequence[Table]) -> str:
    """The tables as one Markdown document."""
    lines = [f"# {_md(title)}", ""]
    for table in tables:
        rule = ["---" if title in table.words else "---:" for title in table.columns]
        lines += [f"## {table.title}", "", _pipe(table.columns), _pipe(rule)]
        lines += [
            _pipe(_md(f"{cell.text} ({cell.ends})" if cell.ends else cell.text) for cell in row) for row in table.rows
        ]
        lines += ["", *[f"{_md(note)}\n" for note in table.notes]]
    return "\n".join(lines)


def _pipe(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _md(text: str) -> str:
    text = " ".join(text.split())
    for mark in "\\|*_`[]<>":
        text = text.replace(mark, f"\\{mark}")
    return text


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV, with the columns that the first one has; numbers are not rounded."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()

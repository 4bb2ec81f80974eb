"""The tables of all reports, on the page, as Markdown, LaTeX and CSV; and their figures."""

import io
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cliploc.draw import colours
from cliploc.draw.html import LIGHT, data_uri
from cliploc.evaluate.metrics import all_numbers
from cliploc.evaluate.tasks.paired import Comparison
from cliploc.evaluate.tasks.report import SettingResult, TaskRun
from cliploc.support.files import csv_text
from cliploc.support.imports import install, not_installed

Interval = Sequence[float] | None
Best = Literal["low", "high", ""]  # which values are the best


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
    def bold(self) -> list[set[str]]:
        """The texts that are bold in each column: of metrics of boxes."""
        titles = {number.title for number in all_numbers().values()}
        return bold_texts(self.rows, ["high" if title in titles else "" for title in self.columns])


def percent(value: float | None, ends: Interval = None) -> Cell:
    """A percentage with two decimals, as the field prints it; a dash for none."""
    return decimal(value, 2, _ends(ends, ".1f"))


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
    return Cell(f"{value:{form}}", value, _ends(ends, form))


def _ends(ends: Interval, form: str) -> str:
    """The ends of an interval; with "to" where a dash would look like a second minus."""
    return "" if ends is None else f"{ends[0]:{form}}{'–' if ends[0] >= 0 else ' to '}{ends[1]:{form}}"


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
    by = next((numbers[one.compared.number][0] for one in run.settings if one.compared), None)
    rows = [
        [
            Cell(setting.id),
            *(Cell(text_of(setting)) for _, text_of in words.values()),
            *(cell(setting.number(key), setting.interval(key)) for key in numbers),
            *(_difference(setting.compared, cell) if by else ()),
            *(counted(setting.number(key)) for key in counts),
        ]
        for setting in run.settings
    ]
    columns = {"setting": "", **{title: about for title, (about, _) in words.items()}, **dict(numbers.values())}
    if by:
        columns["to the best"] = f"difference in {by} to the best setting, picture by picture"
        columns["p"] = "of this difference; Holm's, for all comparisons of the run"
    columns |= dict(counts.values())
    return Table("All numbers, with 95 % intervals", columns, rows, {"setting", *words}, notes)


def _difference(found: Comparison | None, cell: Callable[[float | None, Interval], Cell]) -> list[Cell]:
    """How a setting compares with the best one."""
    if found is None:
        return [Cell("–"), Cell("–")]
    return [cell(found.difference, found.confidence_95), decimal(found.p, 3)]


def numbers_csv(
    run: TaskRun,
    numbers: Iterable[str],
    counts: Iterable[str],
    more: Callable[[SettingResult], Mapping[str, Any]] = lambda _: {},  # further columns of a setting
) -> str:
    """A row for each setting: its numbers, the ends of their intervals, how it compares, counts, and the dataset."""
    rows = []
    for setting in run.settings:
        row: dict[str, Any] = {"setting": setting.id, "model": setting.about.model, "method": setting.about.method}
        for key in numbers:
            low, high = setting.interval(key) or (None, None)
            row |= {key: setting.number(key), f"{key}_low": low, f"{key}_high": high}
        if (found := setting.compared) is not None:
            low, high = found.confidence_95
            row |= {"to_best": found.difference, "to_best_low": low, "to_best_high": high, "to_best_p": found.p}
        row |= {key: setting.numbers.get(key) for key in (*counts, "evaluated")}
        row |= {"failed": len(setting.failed), **more(setting)}
        rows.append(row | {"dataset": run.dataset.name, "split": run.dataset.split})
    columns = dict.fromkeys(column for row in rows for column in row)  # those that any has
    return csv_text([*columns], map(seven_digits, rows))


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


def to_latex(titles: Sequence[str], rows: Sequence[Sequence[Cell]], best: Sequence[Best]) -> str:
    """A table for `booktabs`: words, then a column of numbers for each of `best`; the best of several are bold."""
    bold = bold_texts(rows, ["", *best])
    lines = [
        f"\\begin{{tabular}}{{l{'r' * len(best)}}}",
        "\\toprule",
        " & ".join(map(_tex, titles)) + r" \\",
        "\\midrule",
    ]
    for row in rows:
        texts = zip((cell.text for cell in row), bold, strict=True)
        cells = (f"\\textbf{{{_tex(text)}}}" if text in of_best else _tex(text) for text, of_best in texts)
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def bold_texts(rows: Sequence[Sequence[Cell]], best: Sequence[Best]) -> list[set[str]]:
    """How the best number of each column is printed; none of a single row."""
    texts: list[set[str]] = []
    for cells, which in zip(zip(*rows, strict=True), best, strict=bool(rows)):
        sign = {"high": 1, "low": -1, "": 0}[which] if len(rows) > 1 else 0
        numbers = [(sign * cell.value, cell.text) for cell in cells if cell.value is not None and sign]
        texts.append({max(numbers)[1]} if numbers else set())
    return texts


def _tex(text: str) -> str:
    escaped = re.sub(r"([&%$#_{}])", r"\\\1", text.replace("\\", "/"))
    for mark, command in {"τ": r"$\tau$", "–": "--", "≥": r"$\geq$", "<": "$<$", ">": "$>$"}.items():
        escaped = escaped.replace(mark, command)
    return escaped


def seven_digits(value: Any) -> Any:
    """A value with all numbers in it rounded: what follows in a float is the noise of its sums."""
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, Mapping):
        return {key: seven_digits(of) for key, of in value.items()}
    return [*map(seven_digits, value)] if isinstance(value, list | tuple) else value


# -------------------------------------------------------------------------------------------------------------- figures
# Used after the page's ink colour. Dashes distinguish lines of the same colour.
LINE_COLOURS = tuple(map(colours.as_hex, colours.LINE_COLOURS))
DASHES = ((), (6, 2), (2, 2), (7, 2, 2, 2))
MARKS = "osD^vPX"


Figure = dict[str, Any]  # as the macro `picture` shows it


def look(index: int, ink: str = LIGHT.ink) -> tuple[str, tuple[int, ...], str]:
    """Colour, dashes and marker of the setting with this index, the same in every figure; `ink`: the page's."""
    turn, place = divmod(index, 1 + len(LINE_COLOURS))
    return (ink, *LINE_COLOURS)[place], DASHES[turn % len(DASHES)], MARKS[place]


def plot(axes: Any, index: int, x: Any, y: Any, *, marked: bool = False) -> str:
    """Draws a line in the look of the setting with this index; `marked`: with its marker at each place. Its colour."""
    colour, dashes, marker = look(index)
    axes.plot(x, y, color=colour, linewidth=1.8, dashes=dashes or (None, None), marker=marker if marked else None)
    return colour


def legend(labels: Iterable[tuple[int, str]]) -> list[tuple[str, str, str]]:
    """The legend of lines by index and label: each one's colour and dashes, as in CSS, and its label."""
    looks = [(look(index, "var(--ink)"), label) for index, label in labels]
    return [(colour, " ".join(map(str, dashes)), label) for (colour, dashes, _), label in looks]


# ------------------------------------------------------------------------------------------------------------ drawing
PIXELS = 90  # of the page per inch of a figure
# The style of all figures as matplotlib settings. Text stays text; the same numbers give the same bytes.
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": LIGHT.soft,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": LIGHT.ink,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.constrained_layout.use": True,
    "font.size": 12.5,
    "grid.color": LIGHT.line,
    "grid.linewidth": 0.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "cliploc",
    "xtick.color": LIGHT.soft,
    "xtick.labelcolor": LIGHT.ink,
    "ytick.color": LIGHT.soft,
    "ytick.labelcolor": LIGHT.ink,
}


def figure(draw: Callable[[Any], None], says: str, inches: tuple[float, float]) -> Figure:
    """Draws one figure; `says` is its alternative text."""
    width, height = (round(PIXELS * side) for side in inches)
    uri = data_uri(_svg(draw, inches).encode(), "image/svg+xml")
    return {"uri": uri, "width": width, "height": height, "alt": says}


def _svg(draw: Callable[[Any], None], inches: tuple[float, float]) -> str:
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise not_installed(error, install("bench", "report", "matplotlib")) from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # ignore the user's own matplotlibrc
        matplotlib.rcParams.update(STYLE)
        drawn = Canvas(figsize=inches)
        draw(drawn.add_subplot())
        file = io.BytesIO()
        drawn.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return file.getvalue().decode()

"""What the page shows of a search: status lines, and results as HTML, whose template is in `templates/`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cliploc.localization import Localization
from cliploc.recipes import Recipe
from cliploc.report.colours import NAME_COLOURS
from cliploc.report.html import REPORT_TEMPLATES, Templates, count, embedded
from cliploc.report.overlay import draw_names, fit_within, heatmap_alt, scaled, verdict
from cliploc.reporter import BANK
from cliploc.web.service import SHOWN_SIDE, title_of

JPEG_QUALITY = 85
Status = dict[str, Any]  # of a status line: "kind" and "text", and of a search that is counted "progress" and "counted"
HERE = Path(__file__).parent
TEMPLATES = Templates(HERE / "templates", HERE / "static", *REPORT_TEMPLATES.folders)


def status(text: str, kind: str = "done") -> Status:
    """A status line: "done", "busy", or a "problem", which a screen reader reads out at once."""
    return {"kind": kind, "text": text}


def waiting(others: int) -> Status:
    """The status line of a search that waits for its turn."""
    return status(
        f"Waiting for a turn with {count(others, 'other')} …" if others > 0 else "Waiting for a turn …", "busy"
    )


def searching(done: int, left: int, seconds: float, bank: tuple[int, int] = (0, 0)) -> Status:
    """The status line of a search: masked photographs that are done and left, or names of the bank, once per model."""
    if bank[1]:
        text = f"Once for this model: {bank[0]:,} of {sum(bank):,} {BANK} done, {seconds:.0f} s"
        return status(text, "busy") | {"progress": bank[0] / sum(bank), "counted": BANK}
    if not done:
        return status("Searching …", "busy")
    text = f"Searching: {done:,} of about {done + left:,} masked pictures done, {seconds:.0f} s"
    return status(text, "busy") | {"progress": done / (done + left), "counted": "masked pictures"}


def summary(results: Mapping[str, Localization]) -> str:
    """One line for each method's result: the names found, their boxes, and how many names are unsure."""

    def line(method: str, one: Localization) -> str:
        unsure = len(set(one.unsure.label.tolist()))
        return (
            f"{title_of(method, one)}: {int(one.found.sum())} of {count(len(one.names), 'name')} found, "
            f"{count(len(one.boxes), 'box', 'boxes')}" + (f", {unsure} unsure" if unsure else "")
        )

    return " · ".join(line(method, one) for method, one in results.items())


def results_html(
    results: Mapping[str, Localization], opacity: float, recipe: Recipe | None = None, masks: bool = False
) -> str:
    """A figure for every name and method, a figure of all names together, and a table of scores and boxes."""
    several = len(results) > 1
    names = next(iter(results.values())).names
    shown = {method: scaled(one, fit_within(one.image.size, SHOWN_SIDE)) for method, one in results.items()}
    titles = {method: title_of(method, one) if several else "" for method, one in results.items()}
    rows = [
        [_figure_of_name(results[method], shown[method], index, opacity, titles[method], masks) for method in results]
        for index in range(len(names))
    ]
    if len(names) > 1:
        rows.append([_figure_of_all(shown[method], opacity, titles[method], masks) for method in results])
    if not several:
        rows = [[figure for row in rows for figure in row]]
    return TEMPLATES.render(
        "results.html",
        several=several,
        layout={1: "", 2: "paired"}.get(len(results), "many"),
        groups=rows,
        recipe=None if recipe is None else (recipe.name, recipe.flags),
        notes=list(dict.fromkeys(note for one in results.values() for note in one.notes)),
        rows=[
            _row(one, index, title_of(method, one))
            for method, one in results.items()
            for index in range(len(one.names))
        ],
    )


def _figure_of_name(
    whole: Localization, shown: Localization, index: int, opacity: float, method: str, masks: bool
) -> dict[str, Any]:
    image = draw_names(shown, [index], opacity, caption=True, masks=masks)
    return {
        "picture": embedded(image, heatmap_alt(whole, index, method, masks), quality=JPEG_QUALITY),
        "title": " · ".join(filter(None, (whole.names[index], method))),
        "verdict": verdict(whole, index),
        "legend": [],
    }


def _figure_of_all(shown: Localization, opacity: float, method: str, masks: bool) -> dict[str, Any]:
    image = draw_names(shown, list(range(len(shown.names))), opacity, caption=True, masks=masks)
    title = " · ".join(filter(None, ("All names", method)))
    found = [name for name, there in zip(shown.names, shown.found, strict=True) if there]
    alt = f"{title}; found: {', '.join(found) or 'none'}"
    return {
        "picture": embedded(image, alt, quality=JPEG_QUALITY),
        "title": title,
        "verdict": "",
        "legend": [(name, index % len(NAME_COLOURS)) for index, name in enumerate(shown.names)],
    }


def _row(result: Localization, index: int, method: str) -> dict[str, Any]:
    shown = result.shown.where(result.shown.label == index)
    return {
        "name": result.names[index],
        "method": method,
        "verdict": result.verdict(index),
        "cosine": result.scores[index],
        "presence": result.presence_text(index),
        "boxes": list(zip(shown.xyxy.tolist(), shown.score.tolist(), strict=True)),
        "reason": result.reasons[index],
    }

"""Draws methods beside each other on one sheet: a row for each method, a column for each name and model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image, ImageDraw

from cliploc.draw import overlay
from cliploc.draw.colours import COLORMAP, INK, PAPER
from cliploc.draw.sheet import Panel, Sheet, grid_of
from cliploc.errors import UsageError
from cliploc.localization import Localization
from cliploc.options import Colormap

MOST_CELLS = 400  # of a sheet; nobody reads a larger one
EMPTY = (238, 238, 238)
LEGEND = "Ring: the hottest place of the map. Line and boxes: what is hotter than τ, the threshold of the method."


@dataclass(frozen=True)
class ModelResults:
    """The results of all methods for one picture on one model."""

    model: str  # the model's name
    results: Mapping[str, Localization]  # method, as it was typed → its result
    missing: Mapping[str, str] = field(default_factory=dict)  # method → why it has no result on this model


def draw_comparison(models: Sequence[ModelResults], titles: Mapping[str, str], colormap: Colormap = COLORMAP) -> Sheet:
    """A sheet for a picture: methods × names by model, `titles` in the order of the rows; a cell's heat, boxes, peak.

    Where there is room, several methods share a row.
    """
    first = next(result for model in models for result in model.results.values())
    columns = len(models) * len(first.names)
    columns, size_wh = grid_of(first.image.size, len(titles) * columns, columns)
    cells = [
        cell for method, title in titles.items() for model in models
        for cell in _cells(model, method, title, size_wh, first.names, len(models) > 1, colormap)
    ]  # fmt: skip
    results = [(method, result) for model in models for method, result in model.results.items()]
    shared = [note for note in first.notes if all(note in result.notes for _, result in results)]
    own = [f"{titles[method]}: {note}" for method, result in results for note in result.notes if note not in shared]
    width, height = first.image.size
    names = ", ".join(model.model for model in models)
    about = [overlay.file_name(first), f"{width}×{height}", names, *dict.fromkeys([*shared, *own]), LEGEND]
    return Sheet(cells, columns, " · ".join(about), colormap)


def _cells(
    model: ModelResults,
    method: str,
    title: str,
    size_wh: tuple[int, int],
    names: Sequence[str],
    several: bool,
    colormap: Colormap,
) -> list[Panel]:
    """A cell for each name; empty ones with the reason where the method has no result on the model."""
    title = f"{title} · {model.model}" if several else title
    result = model.results.get(method)
    if result is None:
        reason = model.missing.get(method, "no result")
        return [Panel(Image.new("RGB", size_wh, EMPTY), title, reason) for _ in names]
    small = overlay.scaled(result, size_wh)
    cells = []
    for index, name in enumerate(names):
        picture, boxes = overlay.drawn_parts(small, [index], colormap=colormap)
        _ring(picture, small.peak(index))
        caption = cell_caption(result, index)
        cells.append(Panel(picture, title, f"{name}: {caption}" if len(names) > 1 else caption, None, boxes))
    return cells


def check_cells(methods: int, names: int, models: int = 1) -> None:
    """Refuses a sheet with too many cells, before anything is computed for it."""
    cells = methods * names * models
    if cells > MOST_CELLS:
        raise UsageError(
            f"expected at most {MOST_CELLS} cells (methods × names × models), got {methods} × {names} × {models} = "
            f"{cells}: ask for fewer names or methods at once"
        )


def cell_caption(result: Localization, index: int) -> str:
    """The text below a cell: "found · 2 boxes, best 0.93 · τ 0.30", or why a name was not found."""
    scores = result.boxes.score[result.boxes.label == index]
    if not result.found[index]:
        return " · ".join([result.verdict(index), *filter(None, [result.reasons[index]])])
    best = f", best {float(scores.max()):.2f}" if len(scores) and result.is_calibrated(index) else ""
    threshold = overlay.run_line(replace(result, method="", model=""))
    boxes = f"{len(scores)} box{'' if len(scores) == 1 else 'es'}{best}"
    return " · ".join(filter(None, ["found", boxes, threshold]))


def _ring(picture: Image.Image, peak: tuple[float, float, float] | None) -> None:
    """Marks the hottest place, if there is one."""
    if peak is None:
        return
    _, x, y = peak
    radius = max(3, min(picture.size) // 40)
    draw = ImageDraw.Draw(picture)
    for grow, colour, line in ((1, INK, 4), (0, PAPER, 2)):
        around = radius + grow
        draw.ellipse((x - around, y - around, x + around, y + around), outline=colour, width=line)

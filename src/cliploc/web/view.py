"""What the page shows: what can be chosen, status lines, and results as HTML, whose template is in `templates/`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cliploc import CliplocError, Localization
from cliploc.draw.colours import NAME_COLOURS
from cliploc.draw.html import Templates, count, embedded
from cliploc.draw.overlay import draw_names, fit_within, heatmap_alt, scaled, verdict
from cliploc.find.recipes import Recipe
from cliploc.methods import find
from cliploc.support.reporter import BANK
from cliploc.web.service import PAGE_SIDE, Service, slider_values, title_of
from cliploc.web.settings import LISTS, NONE, Settings

JPEG_QUALITY = 85
Status = dict[str, Any]  # of a status line: "kind" and "text", and of a search that is counted "progress" and "counted"
HERE = Path(__file__).parent
TEMPLATES = Templates(HERE / "templates", HERE / "static")


def menu_of(service: Service, settings: Settings) -> dict[str, Any]:
    """The menus for a model, the values of all controls by an address, and the method's own of sliders without one."""
    problem = ""
    try:
        label, menu = service.offer(settings.model).label, service.menu(settings.model)
    except CliplocError as error:
        problem, label = str(error), next(iter(service.offers))
        menu = service.menu(label)
    method = settings.method if settings.method in (*menu.recipes, *menu.methods) else menu.default
    refine = tuple(name for name in settings.refine or () if name in menu.refinements)
    usable = replace(
        settings,
        masks_by=settings.masks_by if settings.masks_by in service.mask_sources else "heat",
        model=label,
        method=method,
        compare=tuple(name for name in settings.compare if name in menu.methods),
        refine=refine if refine or settings.refine == () else None,
    )
    values = usable.of_page()
    values |= {name: values[name].split(",") for name in LISTS}
    methods = [(name, find(name).title) for name in menu.methods]
    recipes = [(name, f"{name.replace(':', ': ')} – {_parts(recipe)}") for name, recipe in menu.recipes.items()]
    choices = {"method": recipes + methods, "compare": methods}
    titles = {"heat": "heat", "grabcut": "GrabCut", "sam": "Segment Anything"}
    sources = [name.partition(":")[0] for name in ("heat", *service.mask_sources)]
    choices["masks_by"] = [(name, titles[name]) for name in sources]
    choices["refine"] = [(name, name) for name in (NONE, *menu.refinements)]
    choices["method"].sort(key=lambda choice: choice[0] != menu.default)  # what runs by default comes first
    return {
        "problem": problem,
        "choices": choices,
        "values": values,
        "own": slider_values(service.defaults(usable, method)),
    }


def _parts(recipe: Recipe) -> str:
    """The parts of a recipe in a few words."""
    options = recipe.options
    scales = options.get("scales", ())
    words = [find(recipe.method).title, *options.get("refine", ())]
    words += (
        [f"scale{'s' if len(scales) > 1 else ''} {' and '.join(f'{scale:g}' for scale in scales)}"] if scales else []
    )
    words += [word for name, word in (("windows", "windows"), ("flip", "mirrored")) if options.get(name)]
    return ", ".join(words)


def status(text: str, kind: str = "done") -> Status:
    """A status line: "done", "busy", or a "problem", which a screen reader reads out at once."""
    return {"kind": kind, "text": text}


def searching(steps: tuple[int, int], bank: tuple[int, int], seconds: float | None) -> Status:
    """The status line of a search: masked pictures, or names of the bank, done and left; None: it waits for a turn."""
    if seconds is None:
        return status("Waiting for a turn …", "busy")
    if bank[1]:
        text = f"Once for this model: {bank[0]:,} of {sum(bank):,} {BANK} done, {seconds:.0f} s"
        return status(text, "busy") | {"progress": bank[0] / sum(bank), "counted": BANK}
    if not steps[0]:
        return status("Searching …", "busy")
    text = f"Searching: {steps[0]:,} of about {sum(steps):,} masked pictures done, {seconds:.0f} s"
    return status(text, "busy") | {"progress": steps[0] / sum(steps), "counted": "masked pictures"}


def summary(results: Mapping[str, Localization]) -> str:
    """One line for each method's result: the names found, their boxes, and how many names are unsure."""
    lines = []
    for method, result in results.items():
        found_names, unsure = int(result.found.sum()), len(set(result.unsure.label.tolist()))
        line = f"{title_of(method, result)}: {found_names} of {count(len(result.names), 'name')} found, "
        line += count(len(result.boxes), "box", "boxes")
        lines.append(f"{line}, {unsure} unsure" if unsure else line)
    return " · ".join(lines)


def results_html(
    results: Mapping[str, Localization], opacity: float, recipe: Recipe | None = None, masks: bool = False
) -> str:
    """A figure for every name and method, a figure of all names together, and a table of scores and boxes."""
    several = len(results) > 1
    names = next(iter(results.values())).names
    small = {method: scaled(result, fit_within(result.image.size, PAGE_SIDE)) for method, result in results.items()}
    titles = {method: title_of(method, result) if several else "" for method, result in results.items()}
    groups = [
        [_figure_of_name(results[method], small[method], index, opacity, titles[method], masks) for method in results]
        for index in range(len(names))
    ]
    if len(names) > 1:
        groups.append([_figure_of_all(small[method], opacity, titles[method], masks) for method in results])
    if not several:
        groups = [[figure for group in groups for figure in group]]
    return TEMPLATES.render(
        "results.html",
        several=several,
        layout={1: "", 2: "paired"}.get(len(results), "many"),
        groups=groups,
        recipe=None if recipe is None else (recipe.name, recipe.flags),
        notes=list(dict.fromkeys(note for result in results.values() for note in result.notes)),
        rows=[
            _row(result, index, title_of(method, result))
            for method, result in results.items()
            for index in range(len(result.names))
        ],
    )


def _figure_of_name(
    result: Localization, small: Localization, index: int, opacity: float, method: str, masks: bool
) -> dict[str, Any]:
    image = draw_names(small, [index], opacity, caption=True, masks=masks)
    return {
        "picture": embedded(image, heatmap_alt(result, index, method, masks), quality=JPEG_QUALITY),
        "title": " · ".join(filter(None, (result.names[index], method))),
        "verdict": verdict(result, index),
        "legend": [],
    }


def _figure_of_all(small: Localization, opacity: float, method: str, masks: bool) -> dict[str, Any]:
    image = draw_names(small, list(range(len(small.names))), opacity, caption=True, masks=masks)
    title = " · ".join(filter(None, ("All names", method)))
    names = [name for name, found in zip(small.names, small.found, strict=True) if found]
    alt = f"{title}; found: {', '.join(names) or 'none'}"
    return {
        "picture": embedded(image, alt, quality=JPEG_QUALITY),
        "title": title,
        "verdict": "",
        "legend": [(name, index % len(NAME_COLOURS)) for index, name in enumerate(small.names)],
    }


def _row(result: Localization, index: int, method: str) -> dict[str, Any]:
    boxes = result.visible_boxes.where(result.visible_boxes.label == index)
    return {
        "name": result.names[index],
        "method": method,
        "verdict": result.verdict(index),
        "cosine": result.scores[index],
        "presence": result.presence_text(index),
        "boxes": [
            (xyxy, result.score_text(index, score))
            for xyxy, score in zip(boxes.xyxy.tolist(), boxes.score.tolist(), strict=True)
        ],
        "reason": result.reasons[index],
    }

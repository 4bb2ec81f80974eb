"""What the page shows: what can be chosen, status lines, and results as HTML, whose template is in `templates/`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from cliploc import CliplocError, Localization
from cliploc.draw.colours import NAME_COLOURS
from cliploc.draw.html import Templates, count, data_uri, embedded
from cliploc.draw.overlay import draw_names, file_name, fit_within, heat_layer, heatmap_alt, scaled
from cliploc.find.recipes import Recipe
from cliploc.images.reading import picture_bytes
from cliploc.methods import find
from cliploc.support.reporter import BANK
from cliploc.web.service import PAGE_SIDE, Service, slider_values, title_of
from cliploc.web.settings import LISTS, NONE, Settings

JPEG_QUALITY = 85
LAYER_SIDE = 320  # pixels of heat that is laid over the picture, where it is enlarged: it is smooth
VERDICTS = ("found", "unsure", "not found")
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
    sliders = slider_values(service.defaults(usable, method))
    return {"problem": problem, "choices": choices, "values": values, "own": sliders}


def _parts(recipe: Recipe) -> str:
    """The parts of a recipe in a few words."""
    options = recipe.options
    scales = options.get("scales", ())
    words = [find(recipe.method).title, *options.get("refine", ())]
    if scales:
        words.append(f"scale{'s' if len(scales) > 1 else ''} {' and '.join(f'{scale:g}' for scale in scales)}")
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
        line = f"{title_of(method, result)}: " if len(results) > 1 else ""
        line += f"{found_names} of {count(len(result.names), 'name')} found, {count(len(result.boxes), 'box', 'boxes')}"
        lines.append(f"{line}, {unsure} unsure" if unsure else line)
    return " · ".join(lines)


def results_html(
    results: Mapping[str, Localization], opacity: float, recipe: Recipe | None = None, masks: bool = False
) -> str:
    """All names in one picture, then a figure for each name that is found; scores and boxes are folded away."""
    names, several = next(iter(results.values())).names, len(results) > 1
    titles = {method: title_of(method, result) if several else "" for method, result in results.items()}
    small = {method: scaled(result, fit_within(result.image.size, PAGE_SIDE)) for method, result in results.items()}
    best = [min(VERDICTS.index(result.verdict(index)) for result in results.values()) for index in range(len(names))]
    order = sorted(range(len(names)), key=best.__getitem__)  # those that are found come first
    figures = [i for i in order if VERDICTS[best[i]] == "found"]
    if len(figures) == 1 and not several:  # the picture of all names shows its heat
        figures = []
    groups = [
        [_figure_of_name(results[method], small[method], index, opacity, titles[method], masks) for method in results]
        for index in figures
    ]
    if several and len(names) > 1:
        groups.insert(0, [_figure_of_all(small[method], opacity, titles[method], masks) for method in results])
    return TEMPLATES.render(
        "results.html",
        several=several,
        stages=[] if several else [_stage(small[method], order, opacity, masks) for method in results],
        groups=groups if several else [[figure for group in groups for figure in group]],
        absent=[names[i] for i in order if VERDICTS[best[i]] == "not found"],
        recipe=None if recipe is None else (recipe.name, recipe.flags),
        notes=list(dict.fromkeys(note for result in results.values() for note in result.notes)),
        rows=[_row(result, index, title_of(method, result)) for method, result in results.items() for index in order],
    )


def _stage(small: Localization, order: Sequence[int], opacity: float, masks: bool) -> dict[str, Any]:
    """The picture of all names: its boxes, and the heat of each name, which shows where somebody points at it."""
    width, height = small.image.size
    layers = scaled(small, fit_within(small.image.size, LAYER_SIDE))
    everything = list(range(len(small.names)))
    photo = draw_names(small, everything, opacity, boxes=False, masks=True) if masks else small.image.convert("RGB")
    boxes, sure = small.visible_boxes, len(small.boxes)
    columns = zip(boxes.xyxy.tolist(), boxes.score.tolist(), boxes.label.tolist(), strict=True)
    alt = ", ".join(name for name, found in zip(small.names, small.found, strict=True) if found) or "none"
    return {
        "photo": embedded(photo, f"{file_name(small)}; found: {alt}", quality=JPEG_QUALITY),
        "names": [
            {
                "index": index,
                "name": small.names[index],
                "place": index % len(NAME_COLOURS),
                "verdict": small.verdict(index),
                "boxes": int((boxes.label == index).sum()),
                "heat": ""
                if masks
                else data_uri(picture_bytes(heat_layer(layers, index, opacity), "PNG"), "image/png"),
                "alt": heatmap_alt(small, index),
            }
            for index in order
        ],
        "boxes": [
            {
                "index": label,
                "name": small.names[label],
                "place": label % len(NAME_COLOURS),
                "score": score,
                "unsure": number >= sure,
                "at": [100 * edge / side for edge, side in zip(xyxy, (width, height) * 2, strict=True)],
            }
            for number, (xyxy, score, label) in enumerate(columns)
        ],
    }


def _figure_of_name(
    result: Localization, small: Localization, index: int, opacity: float, method: str, masks: bool
) -> dict[str, Any]:
    image = draw_names(small, [index], opacity, masks=masks)
    boxes = int((result.visible_boxes.label == index).sum())
    verdict = result.verdict(index)
    outcome = verdict if verdict == "not found" else f"{verdict}, {count(boxes, 'box', 'boxes')}"
    title = " · ".join(filter(None, (result.names[index], method)))
    return _figure(image, heatmap_alt(result, index, method, masks), title, outcome)


def _figure_of_all(small: Localization, opacity: float, method: str, masks: bool) -> dict[str, Any]:
    image = draw_names(small, list(range(len(small.names))), opacity, masks=masks)
    names = ", ".join(name for name, found in zip(small.names, small.found, strict=True) if found) or "none"
    legend = [(name, index % len(NAME_COLOURS)) for index, name in enumerate(small.names)]
    return _figure(image, f"All names by {method}; found: {names}", f"All names · {method}", "", legend)


def _figure(
    image: Image.Image, alt: str, title: str, verdict: str, legend: Sequence[tuple[str, int]] = ()
) -> dict[str, Any]:
    picture = embedded(image, alt, quality=JPEG_QUALITY)
    return {"picture": picture, "title": title, "verdict": verdict, "legend": legend}


def _row(result: Localization, index: int, method: str) -> dict[str, Any]:
    boxes = result.visible_boxes.where(result.visible_boxes.label == index)
    columns = zip(boxes.xyxy.tolist(), boxes.score.tolist(), strict=True)
    scored = [(xyxy, result.score_text(index, score)) for xyxy, score in columns]
    row = {"name": result.names[index], "method": method, "verdict": result.verdict(index), "boxes": scored}
    values = {"cosine": result.scores[index], "presence": result.presence_text(index)}
    return {**row, **values, "reason": result.reasons[index]}

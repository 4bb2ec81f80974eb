"""What the page offers for a model, and the values of its controls: when it opens, and after each choice."""

from dataclasses import fields, replace
from typing import Any

from cliploc.errors import CliplocError
from cliploc.recipes import Recipe
from cliploc.saliency import find
from cliploc.web.service import Service
from cliploc.web.settings import NONE, Settings


def menu_of(service: Service, settings: Settings) -> dict[str, Any]:
    """The menus for a model, and the values of all controls: those of an address that run on it, else its own."""
    problem = ""
    try:
        label, menu = service.offer(settings.model).label, service.menu(settings.model)
    except CliplocError as error:
        problem, label = str(error), next(iter(service.offers))
        menu = service.menu(label)
    method = settings.method if settings.method in (*menu.recipes, *menu.methods) else menu.own
    refine = tuple(one for one in settings.refine or () if one in menu.refinements)
    usable = replace(
        settings,
        masks_by=settings.masks_by if settings.masks_by in service.mask_sources else "heat",
        model=label,
        method=method,
        compare=tuple(one for one in settings.compare if one in menu.methods),
        refine=refine if refine or settings.refine == () else None,
    )
    own = service.own(usable, method)
    second = service.own(usable, usable.compare[0] if usable.compare else "").threshold
    values = {one.name: getattr(usable, one.name) for one in fields(usable)} | {
        "refine": [NONE] if usable.refine == () else usable.refine or [],
        "flip": "" if usable.flip is None else str(usable.flip).lower(),
        "masks": str(usable.masks).lower(),
        "exemplar_text": str(usable.exemplar_text).lower(),
    }
    owned = {
        "threshold": own.threshold,
        "split_peaks": own.split_peaks,
        "min_score": own.slid_min_score,
        "min_presence": own.min_presence,
        "compare_threshold": second,
    }
    values |= {name: value for name, value in owned.items() if values[name] is None}
    methods = [(name, find(name).title) for name in menu.methods]
    recipes = [(name, f"{name.replace(':', ': ')} – {_parts(one)}") for name, one in menu.recipes.items()]
    choices = {"method": recipes + methods, "compare": methods}
    titles = {"heat": "heat", "grabcut": "GrabCut", "sam": "Segment Anything"}
    choices["masks_by"] = [(name, titles[name]) for name in ("heat", *service.mask_sources)]
    choices["refine"] = [(name, name) for name in (NONE, *menu.refinements)]
    choices["method"].sort(key=lambda choice: choice[0] != menu.own)  # what runs by default comes first
    return {"problem": problem, "choices": choices, "values": values}


def _parts(recipe: Recipe) -> str:
    """The parts of a recipe in a few words."""
    options = recipe.options
    scales = options.get("scales", ())
    words = [find(recipe.method).title, *options.get("refine", ())]
    words += [f"scale{'s' if len(scales) > 1 else ''} {' and '.join(f'{one:g}' for one in scales)}"] if scales else []
    words += [word for name, word in (("windows", "windows"), ("flip", "mirrored")) if options.get(name)]
    return ", ".join(words)

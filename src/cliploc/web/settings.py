"""The settings of the page as one value: read from the page or a URL, written as a URL, Python lines and a command."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

from cliploc.draw.overlay import MAX_SIDE, OPACITY, fit_within
from cliploc.errors import UsageError
from cliploc.find.prompts import TEMPLATE_SETS
from cliploc.images.exemplars import Exemplar
from cliploc.options import (
    OPTIONS,
    RECIPES,
    SAM,
    Options,
    choice,
    number,
    short,
    words_of,
)

SCALES = ("1", "1,1.5", "1,1.43,2")  # few choices, as each scale is a forward pass on a shared machine
WINDOWS = ("none", "2", "1,2")  # so is each window
MASKS_BY = ("heat", "grabcut", "sam")  # the last is that of the server, which may have none
NONE = "none"  # no windows or no refinement, also if the recipe has some
RECIPE = "recipe:"  # marks a recipe among methods: "recipe:fast"
OF_LOCALIZER = (
    "templates", "resize", "scales", "windows", "flip", "refine", "min_presence", "max_boxes", "split_peaks",
    "min_score",
)  # fmt: skip
CHECKS = {
    **{name: OPTIONS[name].check for name in ("resize", "min_presence", "max_boxes", "split_peaks")},
    "scales": choice("scales", SCALES),
    "windows": choice("windows", WINDOWS),
    "templates": choice("templates", tuple(TEMPLATE_SETS)),
    "masks_by": choice("masks_by", MASKS_BY),
    # Thresholds of the page are numbers, never "auto".
    **{name: number(name, 0, 1) for name in ("threshold", "compare_threshold", "min_score", "opacity")},
}
LIVE = (
    "threshold", "compare_threshold", "min_presence", "max_boxes", "split_peaks", "min_score", "opacity", "masks",
    "masks_by",
)  # no model runs for these  # fmt: skip
SWITCHES, LISTS = ("flip", "masks", "exemplar_text"), ("compare", "refine")
NUMBERS = tuple(name for name in LIVE if name not in (*SWITCHES, "masks_by"))
MOST_NAMES = 50  # nobody reads a longer page, and each name costs memory
MOST_WORDS = 200  # names and synonyms together: each is embedded in every template
MOST_CELLS = 120  # names × methods: each is a map in memory and a picture on the page
MOST_MASKED = 100_000_000  # pixels × names × methods of masks, which have the photograph's own size
MOST_WRITTEN = 50_000_000  # the same of heatmaps in files, which are at most `FILE_SIDE` pixels wide or high
FILE_SIDE = MAX_SIDE
MOST_LETTERS = 8_000  # of the text with all names
MOST_FIELDS = 64  # of a link
SIGNS = re.compile(r"[=|~@,\[\]\s]+")  # with a meaning in a list of names, or in a prompt on the command line


@dataclass(frozen=True)
class Settings:
    """All inputs of the page except the photograph; those of `Options` mean the same, defaults are the recipe's."""

    names: str = ""  # as typed: one per line, or separated by commas
    model: str = ""  # the model's key in the menu; "" for the first
    method: str = ""  # a method, which runs as published, or a recipe: "recipe:fast"; "" for the model's own
    compare: tuple[str, ...] = ()  # further methods beside it, any number; they run as published
    resize: str = ""  # as in `Options`; "" for the model's own
    scales: str = ""  # as in `Options`, as numbers separated by commas, one of `SCALES`; "" for the recipe's
    windows: str = ""  # as in `Options`, one of `WINDOWS`; "" for the recipe's
    flip: bool | None = None  # as in `Options`; None for the recipe's
    templates: str = "default"  # as in `Options`, but only the name of a set
    refine: tuple[str, ...] | None = None  # as in `Options`; None for the recipe's, () for none
    min_presence: float | None = None  # as in `Options`; None for the usual minimum
    threshold: float | None = None  # as in `Options`, but a number; None for the recipe's, or the method's own
    compare_threshold: float | None = None  # threshold of the further methods; None for each method's own
    max_boxes: int = 0  # as in `Options`; 0 for all
    split_peaks: float | None = None  # as in `Options`; None for the recipe's
    min_score: float | None = None  # as in `Options`, but a number; None for the recipe's, or 0 of a method
    opacity: float = OPACITY  # opacity of the hottest places, and of masks
    masks: bool = False  # whether masks are shown instead of heat, and are among the downloads
    masks_by: str = "heat"  # what draws masks, one of `MASKS_BY`
    # the name that a second upload stands for; "" for the name of its file. If it is not among the names, it is added
    exemplar_name: str = ""
    exemplar_box: str = ""  # the part of it that is used, "x0, y0, x1, y1" in pixels; "" for all of it
    exemplar_text: bool = False  # whether the name's text is used too

    @property
    def methods(self) -> tuple[str, ...]:
        """The method and the further ones, each once."""
        return tuple(dict.fromkeys((self.method, *self.compare)))

    @property
    def masks_source(self) -> str | None:
        """What draws the masks, as `Localizer` takes it, if masks are shown and the heat does not draw them."""
        by = f"{SAM}FOLDER" if self.masks_by == "sam" else self.masks_by  # visitors must not learn the server's folders
        return by if self.masks and by != "heat" else None

    @property
    def asked(self) -> list[str]:
        """The names, each once, in order."""
        parts = [" ".join(part.split()) for line in self.names.splitlines() for part in line.split(",")]
        names = list(dict.fromkeys(part for part in parts if part))
        if not names:
            raise UsageError("expected a name to look for, got none: type one, such as cat")
        if len(names) > MOST_NAMES:
            raise UsageError(f"expected at most {MOST_NAMES} names at once, got {len(names)}: leave some out")
        if files := [name for name in names if re.search(r"(^|[=|~])\s*@", name)]:  # as the command line has them
            raise UsageError(f"expected a name without @, got {short(files[0])}: the picture has a field of its own")
        words = sum(1 + len(re.findall("[|~]", name)) for name in names)
        if words > MOST_WORDS:
            raise UsageError(f"expected at most {MOST_WORDS} names and synonyms, got {words}: leave some out")
        return names

    def with_exemplar(self, file: str | None) -> Settings:
        """A search's settings with this file as exemplar, its name filled in; None resets those of an exemplar."""
        if not file:
            return replace(self, exemplar_name="", exemplar_box="", exemplar_text=False)
        name = " ".join(self.exemplar_name.split()) or SIGNS.sub(" ", Path(file).stem).strip() or "exemplar"
        if SIGNS.search(name.replace(" ", "")):
            raise UsageError(f"expected a name for the exemplar without = | ~ @ , [ ], got {short(name)}")
        parts = re.split(r"[,\n]", self.names)
        asked = any(" ".join(re.split("[|~]", part)[0].split()) == name for part in parts)
        return replace(self, exemplar_name=name, names=self.names if asked else f"{self.names}\n{name}".strip())

    def exemplar(self, image: Any) -> Exemplar:
        """This picture as an exemplar, with the name and box of these settings."""
        box = None
        if self.exemplar_box.strip():
            with suppress(ValueError):
                x0, y0, x1, y1 = (float(edge) for edge in self.exemplar_box.strip(" []()").split(","))
                box = (x0, y0, x1, y1)
            if box is None or not all(math.isfinite(edge) for edge in box):
                raise UsageError(
                    f"expected the exemplar's part as x0, y0, x1, y1 in pixels, got {short(self.exemplar_box)}"
                )
        return Exemplar(self.exemplar_name, image, box, self.exemplar_text)

    def check_work(self, size: tuple[int, int], files: bool) -> None:
        """Refuses more masks, or heatmaps in files, than one request may have of a picture of this width and height."""
        width, height = size
        file_width, file_height = fit_within(size, FILE_SIDE)
        limits = [("masks", MOST_MASKED // (width * height))] if self.masks else []
        limits += [("heatmaps", MOST_WRITTEN // (file_width * file_height))] if files else []
        cells = len(self.asked) * len(self.methods)
        for what, most in limits:
            if cells > most:
                raise UsageError(
                    f"expected {what} of at most {most} names × methods for a picture of {width}×{height} pixels, "
                    f"got {cells}: leave some out, or make the picture smaller"
                )

    @property
    def computed(self) -> Settings:
        """The settings with defaults for those that change only boxes and colours: equal if one model run is enough."""
        return replace(self, names="\n".join(self.asked), **{key: getattr(Settings(), key) for key in LIVE})

    def with_live(self, other: Settings) -> Settings:
        """These settings, with the other's values for those that change only boxes and colours."""
        return replace(self, **{key: getattr(other, key) for key in LIVE})

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `Localizer`, without model, method, threshold and defaults."""
        changed = {key: getattr(self, key) for key in OF_LOCALIZER if getattr(self, key) != getattr(Settings, key)}
        values: dict[str, Any] = {
            key: () if value == NONE else OPTIONS[key].parse(value) if isinstance(value, str) else value
            for key, value in changed.items()
        }
        return Options(**values).changed()


def from_mapping(values: Mapping[str, Any], base: Settings | None = None) -> Settings:
    """Makes settings from plain values, such as the JSON of a request."""
    base = base or Settings()
    known = {"recipe", *(setting.name for setting in fields(Settings))}
    for key in values:
        if key not in known:
            raise UsageError(f"expected one of the settings {', '.join(sorted(known))}, got {str(key)[:40]!r}")
    recipe, method = values.get("recipe"), values.get("method")
    values = {key: value for key, value in values.items() if key != "recipe"}
    if recipe is not None:
        choice("recipe", RECIPES)(recipe)
        if method not in (None, "", RECIPE + recipe):
            raise UsageError(
                f"expected a method or a recipe, got {short(method)} and {recipe}: a named method runs as published"
            )
        values["method"] = RECIPE + recipe
    return replace(base, **{key: _typed(key, value, getattr(base, key)) for key, value in values.items()})


def recipe_in(method: str) -> str | None:
    """The recipe that a value of `method` means; None for a method."""
    return method.removeprefix(RECIPE) if method.startswith(RECIPE) else None


def _typed(key: str, value: Any, default: Any) -> Any:
    """Converts a value from JSON or a URL to the setting's type; null means `default`, or no threshold."""
    own = getattr(Settings, key)
    if value is None or (own is None and value == ""):
        return None if own is None else default
    if key in SWITCHES:
        switched = {"true": True, "1": True, "false": False, "0": False}.get(str(value).lower())
        if switched is None:
            raise UsageError(f"expected {key} as true or false, got {short(value)}")
        return switched
    if key in LISTS:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
            raise UsageError(f"expected {key} as a list of names, got {short(value)}")
        return tuple(part.strip() for part in parts if part.strip() not in ("", NONE))
    if key in NUMBERS:
        with suppress(TypeError, ValueError, OverflowError):  # the check below refuses what is not a number
            share = float(value)
            value = int(share) if key == "max_boxes" and share.is_integer() else share
    elif not isinstance(value, str):
        raise UsageError(f"expected {key} as a text, got {short(value)}")
    elif len(value) > MOST_LETTERS:
        raise UsageError(f"expected {key} of at most {MOST_LETTERS} characters, got {len(value)}: shorten it")
    if key in CHECKS and value != own:  # its own default may stand for an option's None
        CHECKS[key](value)
    return value


def to_query(settings: Settings) -> str:
    """The query string of a URL with these settings, without defaults."""
    default = Settings()
    values = {setting.name: getattr(settings, setting.name) for setting in fields(settings)}
    return urlencode({key: _text(value) for key, value in values.items() if value != getattr(default, key)})


def from_query(query: str) -> Settings:
    """Makes settings from a URL's query string; values that cannot be used keep their defaults."""
    settings = Settings()
    try:
        given = parse_qsl(query, max_num_fields=MOST_FIELDS)
    except ValueError:  # more fields than any link of the page has
        return settings
    for key, value in given:
        try:
            settings = from_mapping({key: value}, settings)
        except UsageError:
            continue  # an old or mistyped link must still open the page
    return settings


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return (",".join(value) or NONE) if isinstance(value, tuple) else str(value)


def python_lines(
    settings: Settings,
    file: str,
    model: Mapping[str, Any],
    rules: Sequence[tuple[Mapping[str, Any], float]],
    exemplar: str = "",
) -> str:
    """The lines of a Python script that gives the same heatmaps and boxes."""
    lines = ["import cliploc", *(["from cliploc.images.exemplars import Exemplar"] if exemplar else []), ""]
    shown = {"exemplars": [settings.exemplar(exemplar)]} if exemplar else {}
    drawn = {} if settings.masks_source is None else {"masks_by": settings.masks_source}
    for place, (method, threshold) in enumerate(rules):
        of_model = ", ".join(f"{key}={value!r}" for key, value in model.items() if value is not None)
        rest = {**method, "threshold": threshold, **settings.arguments, **drawn, **shown}
        given = ", ".join(f"{key}={value!r}" for key, value in rest.items())
        name, of_model = ("localizer", of_model) if place == 0 else ("other", "localizer.backbone")
        variable = "found" if place == 0 else "compared"
        lines += [
            f"{name} = cliploc.Localizer({of_model}, {given})",
            f"{variable} = {name}({file!r}, {settings.asked!r})",
            f"print({variable}.boxes.xyxy, {variable}.heatmaps.shape)",
            f"{variable}.overlay(opacity={settings.opacity:g}{', masks=True' * settings.masks})"
            f".save({method.get('method', 'recipe') + '.png'!r})",
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def command_lines(
    settings: Settings,
    file: str,
    model: Mapping[str, Any],
    rules: Sequence[tuple[Mapping[str, Any], float]],
    exemplar: str = "",
) -> str:
    """One `cliploc localize` command for each method, with a folder of its own; arguments as for `python_lines`."""
    commands = []
    for place, (method, threshold) in enumerate(rules):
        options = [f"--prompt={_prompt(settings, name, exemplar)}" for name in settings.asked]
        options += words_of({**model, **method, "threshold": threshold, **settings.arguments})
        options += ["--masks"] if settings.masks else []
        options += [] if settings.masks_source is None else [f"--masks-by={settings.masks_source}"]
        options += ["--out=found" if place == 0 else f"--out=found-{method['method']}"]
        commands.append(shlex.join(["cliploc", "localize", *options, *(["--"] if file.startswith("-") else []), file]))
    return "\n".join(commands) + "\n"


def _prompt(settings: Settings, name: str, exemplar: str) -> str:
    """A name as the command line takes it, with its exemplar where it has one."""
    if not exemplar or re.split("[|~]", name)[0].strip() != settings.exemplar_name:
        return name
    box = settings.exemplar(exemplar).box
    part = "" if box is None else f"[{','.join(f'{edge:g}' for edge in box)}]"
    alone = "".join((settings.exemplar_name, *name.partition("~")[1:]))
    return f"{name}|@{exemplar}{part}" if settings.exemplar_text else f"{alone}=@{exemplar}{part}"

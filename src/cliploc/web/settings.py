"""The settings of the page as one value: read from the page or a URL, written as a URL, Python lines and a command."""

import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qsl, urlencode

from cliploc import Options, UsageError
from cliploc.draw.overlay import OPACITY
from cliploc.find.prompts import TEMPLATE_SETS
from cliploc.images.exemplars import Exemplar
from cliploc.options import OPTIONS, RECIPES, SAM, choice, number, parse, parse_list, short, words_of

SCALES = ("1", "1,1.5", "1,1.43,2")  # few choices, as each scale is a forward pass on a shared machine
WINDOWS = ("none", "2", "1,2")  # so is each window
MASKS_BY = ("heat", "grabcut", "sam")  # the last is that of the server, which may have none
NONE = "none"  # no windows or no refinement, also if the recipe has some
RECIPE = "recipe:"  # marks a recipe among methods: "recipe:fast"
CUT = ("threshold", "split_peaks", "min_score", "min_presence")  # of boxes; each method has defaults of its own
LIVE = (*CUT, "max_boxes", "opacity", "masks", "masks_by")  # no model runs for these
TEXTS = ("names", "model", "method", "resize", "exemplar_name", "exemplar_box")
LISTS, SWITCHES = ("compare", "refine"), ("flip", "masks")
NUMBERS = {**dict.fromkeys((*CUT, "opacity"), 1), "max_boxes": 1_000_000}  # up to which
CHOICES = {"scales": SCALES, "windows": WINDOWS, "templates": tuple(TEMPLATE_SETS), "masks_by": MASKS_BY}
KEYS = (*TEXTS, *LISTS, *SWITCHES, *NUMBERS, *CHOICES)  # what a visitor may set
# Choices whose values are not their texts; visitors must not learn the server's folders.
SPECIAL = {("windows", NONE): (), ("templates", "default"): None, ("masks_by", "sam"): f"{SAM}FOLDER"}
MOST_NAMES = 50  # nobody reads a longer page, and each name costs memory
MOST_CELLS = 120  # names × methods: each is a map in memory and a picture on the page
MOST_DRAWN = 100_000_000  # pixels × names × methods of masks, which have the photograph's own size
MOST_LETTERS = 8_000  # of the text with all names
MOST_FIELDS = 64  # of a link
SIGNS = re.compile(r"[=|~@,\[\]\s]+")  # with a meaning in a list of names, or in a prompt on the command line


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """All inputs of the page except the photograph: of `Options` those in `KEYS`, and those of the page alone."""

    names: str = ""  # as typed: one per line, or separated by commas
    model: str = ""  # the model's key in the menu; "" for the first
    # `method` may be a recipe, too: "recipe:fast"; None is the model's default
    compare: tuple[str, ...] = ()  # further methods beside it, any number; they run as published
    opacity: float = OPACITY  # of the hottest places, and of masks
    masks: bool = False  # whether masks are drawn instead of heat, and are among the downloads
    # the name that a second upload stands for; "" for the name of its file. If it is not among the names, it is added
    exemplar_name: str = ""
    exemplar_box: str = ""  # the part of it that is used, "x0 y0 x1 y1" in pixels; "" for all of it

    @property
    def methods(self) -> tuple[str, ...]:
        """The method and the further ones, each once."""
        return tuple(dict.fromkeys((self.method or "", *self.compare)))

    @property
    def prompts(self) -> list[str]:
        """The names, each once, in order."""
        parts = [" ".join(part.split()) for line in self.names.splitlines() for part in line.split(",")]
        names = list(dict.fromkeys(part for part in parts if part))
        if not names:
            raise UsageError("expected a name to look for, got none: type one, such as cat")
        if len(names) > MOST_NAMES:
            raise UsageError(f"expected at most {MOST_NAMES} names at once, got {len(names)}: leave some out")
        if files := [name for name in names if re.search(r"(^|[=|~])\s*@", name)]:  # as the command line has them
            raise UsageError(f"expected a name without @, got {short(files[0])}: the picture has a field of its own")
        return names

    def with_exemplar(self, file: str | None) -> Self:
        """A search's settings with this file as exemplar, its name filled in; None resets those of an exemplar."""
        if not file:
            return replace(self, exemplar_name="", exemplar_box="")
        name = " ".join(self.exemplar_name.split()) or SIGNS.sub(" ", Path(file).stem).strip() or "exemplar"
        if SIGNS.search(name.replace(" ", "")):
            raise UsageError(f"expected a name for the exemplar without = | ~ @ , [ ], got {short(name)}")
        parts = re.split(r"[,\n]", self.names)
        listed = any(" ".join(re.split("[|~]", part)[0].split()) == name for part in parts)
        return replace(self, exemplar_name=name, names=self.names if listed else f"{self.names}\n{name}".strip())

    def exemplar(self, image: Any) -> Exemplar:
        """This picture as an exemplar, with the name and box of these settings."""
        edges = re.split(r"[,\s]+", self.exemplar_box.strip(" []()")) if self.exemplar_box.strip() else []
        try:
            box: Any = tuple(float(edge) for edge in edges) or None
        except ValueError:
            box = self.exemplar_box
        return Exemplar(self.exemplar_name, image, box)

    def check_masks(self, size_wh: tuple[int, int]) -> None:
        """Refuses more masks than one request may have of a picture of this size."""
        if not self.masks:
            return
        cells, most = len(self.prompts) * len(self.methods), MOST_DRAWN // (size_wh[0] * size_wh[1])
        if cells > most:
            raise UsageError(
                f"expected masks of at most {most} names × methods for a picture of {size_wh[0]}×{size_wh[1]} pixels, "
                f"got {cells}: leave some out, or make the picture smaller"
            )

    @property
    def computed(self) -> Self:
        """The settings with defaults for those that change only boxes and colours: equal if one model run is enough."""
        return replace(self.with_live(DEFAULTS), names="\n".join(self.prompts))

    def with_live(self, other: Options) -> Self:
        """These settings, with the other's values for those that change only boxes and colours."""
        return replace(self, **{key: getattr(other, key) for key in LIVE})

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `Localizer`, without model, method, threshold, masks and defaults."""
        others = ("model", "method", "threshold", "masks_by")
        return {name: value for name, value in self.changed().items() if name not in others}

    def of_page(self) -> dict[str, Any]:
        """Each setting as the page and its links have it."""
        return {key: _page_value(key, getattr(self, key)) for key in KEYS}


DEFAULTS = Settings()


def _page_value(key: str, value: Any) -> Any:
    if value is None:
        return {"templates": "default", "max_boxes": 0}.get(key, "")
    if isinstance(value, bool):
        return str(value).lower()
    if key == "masks_by":
        return value.partition(":")[0]
    if isinstance(value, tuple):
        return OPTIONS[key].text(value) or NONE if key in OPTIONS else ",".join(value)
    return value


def _parsed(key: str, value: Any) -> Any:
    """A value of a form, a link or JSON as that of the setting; an empty one means the default."""
    if value is None or value == "":
        return getattr(DEFAULTS, key)
    if key in CHOICES:
        text = choice(key, CHOICES[key])(value)
        return SPECIAL[key, text] if (key, text) in SPECIAL else OPTIONS[key].parse(text)
    if key in LISTS:
        parts = parse_list(value) if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
            raise UsageError(f"expected {key} as a list of names, got {short(value)}")
        return tuple(part for part in parts if part not in ("", NONE))
    if key in SWITCHES:
        return choice(key, ("true", "false"))(str(value).lower()) == "true"
    if key in NUMBERS:
        share = number(key, 0, NUMBERS[key])(parse(float, value) if isinstance(value, str) else value)
        return float(share) if key != "max_boxes" else int(share) or None
    if not isinstance(value, str):
        raise UsageError(f"expected {key} as a text, got {short(value)}")
    return value


def from_mapping(values: Mapping[str, Any], base: Settings = DEFAULTS) -> Settings:
    """Makes settings from plain values, such as the JSON of a request."""
    for key, value in values.items():
        if key not in (*KEYS, "recipe"):
            known = ", ".join(sorted({"recipe", *KEYS}))
            raise UsageError(f"expected one of the settings {known}, got {str(key)[:40]!r}")
        if isinstance(value, str) and len(value) > MOST_LETTERS:
            raise UsageError(f"expected {key} of at most {MOST_LETTERS} characters, got {len(value)}: shorten it")
    recipe, method = values.get("recipe"), values.get("method")
    values = {key: value for key, value in values.items() if key != "recipe"}
    if recipe is not None:
        choice("recipe", RECIPES)(recipe)
        if method not in (None, "", RECIPE + recipe):
            both = f"{short(method)} and {recipe}"
            raise UsageError(f"expected a method or a recipe, got {both}: a named method runs as published")
        values["method"] = RECIPE + recipe
    return replace(base, **{key: _parsed(key, value) for key, value in values.items()})


def recipe_in(method: str | None) -> str | None:
    """The recipe that a value of `method` means; None for a method."""
    return method.removeprefix(RECIPE) if method is not None and method.startswith(RECIPE) else None


def to_query(settings: Settings) -> str:
    """The query string of a URL with these settings, without defaults."""
    plain = settings.of_page()
    return urlencode({key: plain[key] for key in plain if getattr(settings, key) != getattr(DEFAULTS, key)})


def from_query(query: str) -> Settings:
    """Makes settings from a URL's query string; values that cannot be used keep their defaults."""
    settings = DEFAULTS
    with suppress(ValueError):  # more fields than any link of the page has
        for key, value in parse_qsl(query, max_num_fields=MOST_FIELDS):
            with suppress(UsageError):  # an old or mistyped link must still open the page
                settings = from_mapping({key: value}, settings)
    return settings


# -------------------------------------------------------------------------------------------------- to do it elsewhere
Rules = Sequence[tuple[Mapping[str, Any], float]]  # each method as `Localizer` takes it, and its threshold


def python_lines(settings: Settings, file: str, model: Mapping[str, Any], rules: Rules, exemplar: str = "") -> str:
    """The lines of a Python script that gives the same heatmaps and boxes."""
    lines = ["import cliploc", *(["from cliploc.images.exemplars import Exemplar"] if exemplar else []), ""]
    shared = settings.arguments
    if settings.masks and settings.masks_by != "heat":
        shared["masks_by"] = settings.masks_by
    if exemplar:
        shared["exemplars"] = [settings.exemplar(exemplar)]
    for method, threshold in rules:
        given = {**model, **method, "threshold": threshold, **shared}
        arguments = ", ".join(f"{key}={value!r}" for key, value in given.items() if value is not None)
        lines += [
            f"localizer = cliploc.Localizer({arguments})",
            f"found = localizer({file!r}, {settings.prompts!r})",
            "print(found.boxes.xyxy, found.heatmaps.shape)",
            f"found.overlay(opacity={settings.opacity:g}{', masks=True' * settings.masks})"
            f".save({method.get('method', 'found') + '.png'!r})",
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def command_lines(settings: Settings, file: str, model: Mapping[str, Any], rules: Rules, exemplar: str = "") -> str:
    """One `cliploc localize` command for each method, with a folder of its own; arguments as for `python_lines`."""
    commands = []
    masks = ["--masks", *words_of({"masks_by": settings.masks_by})] if settings.masks else []
    for method, threshold in rules:
        options = [f"--prompt={_prompt(settings, name, exemplar)}" for name in settings.prompts]
        options += words_of({**model, **method, "threshold": threshold, **settings.arguments})
        options += [*masks, "--out=found" if len(rules) == 1 else f"--out=found-{method.get('method', 'recipe')}"]
        commands.append(shlex.join(["cliploc", "localize", *options, *(["--"] if file.startswith("-") else []), file]))
    return "\n".join(commands) + "\n"


def _prompt(settings: Settings, name: str, exemplar: str) -> str:
    """A name as the command line takes it, with its exemplar where it has one."""
    if not exemplar or re.split("[|~]", name)[0].strip() != settings.exemplar_name:
        return name
    box = settings.exemplar(exemplar).box
    part = "" if box is None else f"[{','.join(f'{edge:g}' for edge in box)}]"
    return f"{''.join((settings.exemplar_name, *name.partition('~')[1:]))}=@{exemplar}{part}"

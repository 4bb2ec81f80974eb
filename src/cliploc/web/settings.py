"""What a visitor chose, as one value: out of the page or an address, into an address, Python lines and a command."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from typing import Any
from urllib.parse import parse_qsl, urlencode

from cliploc.config import DEFAULTS, OPTIONS, UNREFINED, Options, choice, number, short, words_of
from cliploc.errors import UsageError
from cliploc.prompts import TEMPLATE_SETS
from cliploc.report.overlay import OPACITY

SCALES = ("1", "1,1.5", "1,1.43,2")  # each is a forward pass, and the machine is shared
OF_LOCALIZER = ("templates", "resize", "scales", "flip", "refine", "min_presence", "max_boxes", "split_peaks")
CHECKS = {
    **{name: OPTIONS[name].check for name in ("resize", "min_presence", "max_boxes", "split_peaks")},
    "scales": choice("scales", SCALES),
    "templates": choice("templates", tuple(TEMPLATE_SETS)),
    # The page's thresholds are numbers, never "auto".
    **{name: number(name, 0, 1) for name in ("threshold", "compare_threshold", "min_score", "opacity")},
}
LIVE = (
    "threshold",
    "compare_threshold",
    "min_presence",
    "max_boxes",
    "split_peaks",
    "min_score",
    "opacity",
)  # no model runs for these
MOST_NAMES = 50  # a page that long is read by nobody, and each name costs memory
MOST_WORDS = 200  # names and synonyms together: each is embedded in every template
MOST_CELLS = 120  # names × methods: each is a map in memory and a picture on the page
MOST_LETTERS = 8_000  # of all names as they were typed


@dataclass(frozen=True)
class Settings:
    """Everything but the photograph.

    Those that `cliploc.Options` has too mean the same there, and have its defaults.

    Attributes:
        names: as typed: one a line, or with commas.
        model: its place in the menu; "" for the first.
        method: "" for the tower's own.
        compare: further methods beside it, any number.
        resize: of `Options`; "" for the model's own.
        scales: of `Options`: numbers with commas, one of `SCALES`.
        flip: of `Options`.
        templates: of `Options`: the name of a set.
        refine: of `Options`.
        min_presence: of `Options`.
        threshold: of `Options`: a number; None for the method's own.
        compare_threshold: that of the further methods; None for the own one of each.
        max_boxes: of `Options`; 0 for all.
        split_peaks: of `Options`.
        min_score: boxes that score less are left out.
        opacity: of the hottest places.
    """

    names: str = ""
    model: str = ""
    method: str = ""
    compare: tuple[str, ...] = ()
    resize: str = ""
    scales: str = OPTIONS["scales"].text(UNREFINED["scales"])
    flip: bool = UNREFINED["flip"]
    templates: str = "default"
    refine: tuple[str, ...] = UNREFINED["refine"]
    min_presence: float = DEFAULTS.min_presence
    threshold: float | None = None
    compare_threshold: float | None = None
    max_boxes: int = 0
    split_peaks: float = UNREFINED["split_peaks"]
    min_score: float = 0.0
    opacity: float = OPACITY

    @property
    def methods(self) -> tuple[str, ...]:
        """The method and the further ones, each once."""
        return tuple(dict.fromkeys((self.method, *self.compare)))

    @property
    def asked(self) -> list[str]:
        """The names, each once, in order.

        Raises:
            UsageError: none, or too many, synonyms counted too.
        """
        parts = [" ".join(part.split()) for line in self.names.splitlines() for part in line.split(",")]
        found = list(dict.fromkeys(part for part in parts if part))
        if not found:
            raise UsageError("expected a name to look for, got none: type one, such as cat")
        if len(found) > MOST_NAMES:
            raise UsageError(f"expected at most {MOST_NAMES} names at once, got {len(found)}: leave some out")
        words = sum(1 + name.count("|") for name in found)
        if words > MOST_WORDS:
            raise UsageError(f"expected at most {MOST_WORDS} names and synonyms, got {words}: leave some out")
        return found

    @property
    def computed(self) -> Settings:
        """Without what only moves boxes and colours: equal where one run of the model serves both."""
        return replace(self, names="\n".join(self.asked), **{key: getattr(Settings(), key) for key in LIVE})

    def with_live(self, other: Settings) -> Settings:
        """These, but for what only moves boxes and colours, which is the other's."""
        return replace(self, **{key: getattr(other, key) for key in LIVE})

    @property
    def arguments(self) -> dict[str, Any]:
        """What `Localizer` takes, but for model, method and threshold; defaults left out."""
        changed = {key: getattr(self, key) for key in OF_LOCALIZER if getattr(self, key) != getattr(Settings, key)}
        values = {key: OPTIONS[key].parse(one) if isinstance(one, str) else one for key, one in changed.items()}
        return Options(**values).given()


def from_mapping(values: Mapping[str, Any], base: Settings | None = None) -> Settings:
    """Settings out of plain values, such as the JSON of a request.

    Raises:
        UsageError: a key that there is not, or a value that it cannot have.

    Example:
        >>> from_mapping({"names": "cat, dog", "max_boxes": 3}).asked
        ['cat', 'dog']
    """
    if not isinstance(values, Mapping):
        raise UsageError(f'expected the settings as an object such as {{"threshold": 0.4}}, got {str(values)[:40]!r}')
    base = base or Settings()
    known = {one.name for one in fields(Settings)}
    for key in values:
        if key not in known:
            raise UsageError(f"expected one of the settings {', '.join(sorted(known))}, got {str(key)[:40]!r}")
    return replace(base, **{key: _typed(key, value, getattr(base, key)) for key, value in values.items()})


def _typed(key: str, value: Any, default: Any) -> Any:
    """A value of JSON or of an address as the setting holds it; null leaves it as it is, or has no threshold."""
    own = getattr(Settings, key)
    if value is None or (own is None and value == ""):
        return None if own is None else default
    if isinstance(own, bool):
        switched = {"true": True, "1": True, "false": False, "0": False}.get(str(value).lower())
        if switched is None:
            raise UsageError(f"expected {key} as true or false, got {short(value)}")
        return switched
    if isinstance(own, tuple):
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
            raise UsageError(f"expected {key} as a list of names, got {short(value)}")
        return tuple(part.strip() for part in parts if part.strip())
    if not isinstance(own, str):
        with suppress(TypeError, ValueError, OverflowError):  # what is no number is left for the check
            share = float(value)
            value = int(share) if isinstance(own, int) and share.is_integer() else share
    elif not isinstance(value, str):
        raise UsageError(f"expected {key} as a text, got {short(value)}")
    elif len(value) > MOST_LETTERS:
        raise UsageError(f"expected {key} of at most {MOST_LETTERS} characters, got {len(value)}: shorten it")
    if key in CHECKS and value != own:  # its own default may stand for an option's None
        CHECKS[key](value)
    return value


def to_query(settings: Settings) -> str:
    """The part of an address behind the question mark; what stands at its default is left out.

    Example:
        >>> to_query(Settings(names="cat", flip=True))
        'names=cat&flip=true'
    """
    default = asdict(Settings())
    changed = {key: value for key, value in asdict(settings).items() if value != default[key]}
    return urlencode({key: _text(value) for key, value in changed.items()})


def from_query(query: str) -> Settings:
    """Settings out of an address; what cannot be used there is left at its default."""
    settings = Settings()
    for key, value in parse_qsl(query, max_num_fields=64):
        try:
            settings = from_mapping({key: value}, settings)
        except UsageError:
            continue  # somebody's old or mistyped link still opens the page
    return settings


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)


def python_lines(
    settings: Settings, file: str, model: Mapping[str, Any], rules: Sequence[tuple[Mapping[str, Any], float]]
) -> str:
    """A script that gives the same heatmaps and boxes.

    Args:
        settings: what was asked.
        file: the photograph's name.
        model: `model` and `pretrained` as `Localizer` takes them.
        rules: for each method what `Localizer` takes for it (`method`, `head`), and its threshold.
    """
    lines = ["import cliploc", ""]
    for place, (method, threshold) in enumerate(rules):
        of_model = ", ".join(f"{key}={value!r}" for key, value in model.items() if value is not None)
        rest = {**method, "threshold": threshold, **settings.arguments}
        given = ", ".join(f"{key}={value!r}" for key, value in rest.items())
        name, of_model = ("localizer", of_model) if place == 0 else ("other", "localizer.backbone")
        found = "found" if place == 0 else "compared"
        lines += [
            f"{name} = cliploc.Localizer({of_model}, {given})",
            f"{found} = {name}({file!r}, {settings.asked!r})",
        ]
        boxes = f"{found}.boxes"
        if settings.min_score:
            lines.append(f"keep = {boxes}.score >= {settings.min_score:g}")
            boxes = f"{boxes}.xyxy[keep]"
        else:
            boxes = f"{boxes}.xyxy"
        lines += [
            f"print({boxes}, {found}.heatmaps.shape)",
            f"{found}.overlay(opacity={settings.opacity:g}).save({method['method'] + '.png'!r})",
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def command_lines(
    settings: Settings, file: str, model: Mapping[str, Any], rules: Sequence[tuple[Mapping[str, Any], float]]
) -> str:
    """One `cliploc localize` for each method, with the arguments of `python_lines`."""
    commands = []
    for method, threshold in rules:
        options = [f"--prompt={name}" for name in settings.asked]
        options += words_of({**model, **method, "threshold": threshold, **settings.arguments})
        options += ["--out=found"]
        commands.append(shlex.join(["cliploc", "localize", *options, *(["--"] if file.startswith("-") else []), file]))
    return "\n".join(commands) + "\n"


def to_json(settings: Settings) -> dict[str, Any]:
    """Plain values, as a document holds them."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(settings)))
    return plain

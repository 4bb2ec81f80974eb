"""Every option of a localizer once: its name, type, default, check, help text, and whether it changes results.

`Localizer`, the command line, the page, `annotate`, `benchmark`, their manifests and run identities read `Options`. A
new option is one field here, and the code that uses it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from cliploc.errors import UsageError

if TYPE_CHECKING:
    from cliploc.memory import Memory
    from cliploc.schema import Backbone, ResizePolicy

POLICIES: tuple[ResizePolicy, ...] = ("squash", "crop", "pad")
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # by torch's names, as torch is not imported here
PRECISIONS = (*DTYPES, "auto")
MOST_SCALES = 16
MOST_SIDE = 4096  # pixels of a model's input


# ---------------------------------------------------------------------------------------------- checks: value → value
def _unchanged(value: Any) -> Any:
    return value


def number(name: str, low: float, high: float, *, above: bool = False, none: str = "") -> Callable[[Any], Any]:
    """A check for a number in a range.

    Args:
        name: of the option, as the error says it.
        low: the least value.
        high: the greatest.
        above: whether `low` itself is refused.
        none: what None means, if it is allowed.

    Example:
        >>> number("min_presence", 0, 1)(0.5)
        0.5
    """
    words = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
    hint = f": leave it out for {none}" if none else ""

    def check(value: Any) -> Any:
        if value is None and none:
            return None
        right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not right or not (low < value if above else low <= value) or value > high:
            raise UsageError(f"expected {name} {words}, got {value!r}{hint}")
        return value

    return check


def whole(name: str, low: int, high: int, *, none: str = "") -> Callable[[Any], Any]:
    """A check for a whole number in a range; arguments as for `number`."""
    hint = f": leave it out for {none}" if none else ""

    def check(value: Any) -> Any:
        if value is None and none:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise UsageError(f"expected {name}, a whole number from {low} to {high:,}, got {value!r}{hint}")
        return value

    return check


def choice(name: str, choices: Sequence[str], *, none: bool = False) -> Callable[[Any], Any]:
    """A check for one of several texts."""

    def check(value: Any) -> Any:
        if (value is None and none) or value in choices:
            return value
        raise UsageError(f"expected {name} of {', '.join(choices)}, got {value!r}")

    return check


def _flag(name: str) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        if not isinstance(value, bool):
            raise UsageError(f"expected {name} as True or False, got {value!r}")
        return value

    return check


def _checked_threshold(value: Any) -> Any:
    right = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
    if value is None or value == "auto" or right:
        return value
    raise UsageError(f"expected a threshold from 0 to 1, or auto, got {value!r}")


def _checked_scales(value: Any) -> tuple[float, ...]:
    right = isinstance(value, list | tuple) and 0 < len(value) <= MOST_SCALES
    if not right or not all(isinstance(one, int | float) and 0.25 <= one <= 8 for one in value):
        raise UsageError(f"expected a list of 1 to {MOST_SCALES} scales, each from 0.25 to 8, got {short(value)}")
    return tuple(float(one) for one in value)


def _checked_texts(name: str) -> Callable[[Any], tuple[str, ...]]:
    def check(value: Any) -> tuple[str, ...]:
        if isinstance(value, str):
            raise UsageError(f"expected a list of {name}, got the single text {value!r}: write [{value!r}]")
        if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
            raise UsageError(f"expected a list of {name}, got {short(value)}")
        return tuple(value)

    return check


def _checked_size(value: Any) -> Any:
    """One side, or height and width; whether a model takes them is the localizer's to say."""
    sides = tuple(value) if isinstance(value, list | tuple) else (value, value)
    whole_sides = all(isinstance(side, int) and 0 < side <= MOST_SIDE for side in sides)
    if value is not None and (len(sides) != 2 or not whole_sides):
        raise UsageError(
            f"expected an image_size of 1 to {MOST_SIDE} pixels, one side or (height, width), got {short(value)}"
        )
    return sides if isinstance(value, list | tuple) else value


def _checked_method_options(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"expected method_options as a mapping of names to values, got {short(value)}")
    return dict(value)


# ----------------------------------------------------------------------------- texts of the command line → values
def parse_number(option: str, words: str, kind: type[int] | type[float] = float) -> Callable[[str], Any]:
    """A parser of one number."""

    def parse(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise UsageError(f"expected {option} as {words}, got {short(text)}") from None

    return parse


def _parse_threshold(text: str) -> float | str:
    return text if text == "auto" else parse_number("--threshold", "a number from 0 to 1, or auto")(text)


def parse_list(text: str) -> tuple[str, ...]:
    """What stands between commas; nothing for an empty text.

    Example:
        >>> parse_list("caa, guided")
        ('caa', 'guided')
    """
    return tuple(part.strip() for part in text.split(",")) if text.strip() else ()


def parse_numbers(option: str) -> Callable[[str], tuple[float, ...]]:
    """A parser of numbers with commas between them."""

    def parse(text: str) -> tuple[float, ...]:
        try:
            return tuple(float(part) for part in text.split(","))
        except ValueError:
            raise UsageError(f"expected {option} as numbers with commas, such as 1,1.5,2, got {short(text)}") from None

    return parse


def _parse_size(text: str) -> int | tuple[int, int]:
    try:
        sides = [int(part) for part in text.lower().replace("×", "x").split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2):
        raise UsageError(
            f"expected --image-size as one side or height x width, such as 448 or 224x448, got {short(text)}"
        )
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def short(value: Any) -> str:
    """A value in an error's line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


# ---------------------------------------------------------------------------------------------------------- the options
Group = Literal["model", "method", "prompt", "view", "boxes", "run"]


@dataclass(frozen=True)
class Option:
    """What is known of one option beside its type and default, which are the field's.

    Attributes:
        help: one sentence for the command line.
        group: what it is about.
        metavar: its value as help shows it.
        check: value → the value as it is kept; raises a `UsageError`.
        parse: one text of the command line → value.
        flags: its names on the command line, where they are not made of its own.
        repeat: whether the command line takes it several times, for a list of values.
        harmless: why results do not depend on it; "" where they do, and it is part of a run's identity.
        python_only: whether it is an object that no command line can name.
    """

    help: str
    group: Group
    metavar: str = ""
    check: Callable[[Any], Any] = _unchanged
    parse: Callable[[str], Any] = _unchanged
    flags: tuple[str, ...] = ()
    repeat: bool = False
    harmless: str = ""
    python_only: bool = False


def option(default: Any, **facts: Any) -> Any:
    """A field of `Options`; `facts` are those of `Option`."""
    return field(default=default, metadata={"option": Option(**facts)})


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a `Localizer`; what each one does stands in its `help`, and in the docstring of `Localizer`.

    Raises:
        UsageError: a value outside its range.

    Example:
        >>> Options(scales=[1, 2]).scales
        (1.0, 2.0)
    """

    model: str | Backbone = option("mini", group="model", help="A name of `cliploc models`.")
    pretrained: str | None = option(
        None,
        group="model",
        help="Which weights of the model: a tag, a file, hf-hub:… or local-dir:…; its own when left out.",
    )
    method: str | None = option(
        None,
        group="method",
        help="A name of `cliploc methods`, or several: cam+layer_cam. [default: cam on CNN towers, naclip on ViTs]",
    )
    method_options: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={
            "option": Option(
                group="method",
                help="An option of the method; repeatable.",
                metavar="KEY=VALUE",
                flags=("--option", "-o"),
                repeat=True,
                check=_checked_method_options,
            )
        },
    )
    head: str | os.PathLike[str] | None = option(
        None, group="method", metavar="FILE", help="Trained layers for the method, made by `cliploc train`."
    )
    ensemble: Literal["minmax", "rank"] = option(
        "minmax",
        group="method",
        metavar="minmax|rank",
        check=choice("ensemble", ("minmax", "rank")),
        help="How the maps of several methods are averaged.",
    )
    templates: Sequence[str] | str | None = option(
        None,
        group="prompt",
        metavar="TEXT",
        flags=("--template",),
        repeat=True,
        help="A sentence with {} for the name (repeatable), a FILE.txt of them, or default, openai-80, openai-7, "
        "name-only.",
    )
    background: Sequence[str] = option(
        (),
        group="prompt",
        metavar="NAME",
        repeat=True,
        check=_checked_texts("background names"),
        help="What is around, as a contrast; repeatable.",
    )
    resize: ResizePolicy | None = option(
        None,
        group="view",
        metavar="squash|crop|pad",
        check=choice("a resize policy", POLICIES, none=True),
        help="How a photo meets the model's input. [default: the model's own]",
    )
    image_size: int | tuple[int, int] | None = option(
        None,
        group="view",
        metavar="N|HxW",
        check=_checked_size,
        parse=_parse_size,
        help="Input size in pixels. [default: the model's own]",
    )
    scales: Sequence[float] = option(
        (1.0,),
        group="view",
        metavar="1,1.5,2",
        check=_checked_scales,
        parse=parse_numbers("--scales"),
        help="Average the maps of these multiples of it.",
    )
    flip: bool = option(False, group="view", check=_flag("flip"), help="Average in the map of the mirrored photo.")
    refine: Sequence[str] = option(
        (),
        group="method",
        metavar="NAME,NAME",
        check=_checked_texts("refinements"),
        parse=parse_list,
        help="Steps that follow the method: names of `cliploc refinements`.",
    )
    threshold: float | Literal["auto"] | None = option(
        None,
        group="boxes",
        metavar="0-1|auto",
        check=_checked_threshold,
        parse=_parse_threshold,
        help="Boxes hold what is hotter than this share of the hottest. [default: the method's own]",
    )
    components: Literal["all", "largest"] = option(
        "all",
        group="boxes",
        metavar="all|largest",
        check=choice("components", ("all", "largest")),
        help="Which hot regions get a box.",
    )
    min_area: float = option(
        0.001,
        group="boxes",
        metavar="0-1",
        check=number("min_area, a share of the picture,", 0, 0.999),
        parse=parse_number("--min-area", "a share of the picture from 0 to 1"),
        help="Of a box's region: a share of the picture.",
    )
    max_boxes: int | None = option(
        None,
        group="boxes",
        metavar="N",
        check=whole("max_boxes", 1, 1_000_000, none="all boxes"),
        parse=parse_number("--max-boxes", "a whole number", int),
        help="At most so many boxes a name in a picture.",
    )
    nms_iou: float | None = option(
        0.5,
        group="boxes",
        metavar="0-1",
        check=number("nms_iou", 0, 1, above=True, none="no suppression"),
        parse=parse_number("--nms-iou", "a number above 0 and at most 1"),
        help="Of boxes of one name that overlap more than this, the better stays.",
    )
    min_presence: float = option(
        0.5,
        group="boxes",
        metavar="0-1",
        check=number("min_presence", 0, 1),
        parse=parse_number("--min-presence", "a number from 0 to 1"),
        help="Names with a lower presence score are not found; 0 boxes every name. It is no probability.",
    )
    device: str | None = option(
        None,
        group="model",
        help="cpu, cuda or mps; the best there is when left out.",
        harmless="devices differ in the last bits only; the manifest's sessions name the machine",
    )
    precision: str = option(
        "fp32",
        group="model",
        metavar="|".join(PRECISIONS),
        check=choice("precision", PRECISIONS),
        help="What the model's tower computes in.",
    )
    masked_precision: str | None = option(
        None,
        group="model",
        metavar="|".join(PRECISIONS),
        check=choice("masked_precision", PRECISIONS, none=True),
        help="What it computes the Score-CAM family's masked pictures in. [default: as the tower]",
    )
    batch_size: int = option(
        16,
        group="run",
        metavar="N",
        check=whole("batch_size", 1, 4096),
        parse=parse_number("--batch-size", "a whole number", int),
        help="Photos sent through the model at once.",
    )
    text_cache: bool = option(
        True,
        group="run",
        check=_flag("text_cache"),
        flags=("--text-cache/--no-text-cache",),
        help="Whether names' embeddings are read and kept on disk.",
        harmless="a kept embedding is the one that was computed",
    )
    memory: Memory | None = option(
        None,
        group="run",
        help="Keeps what the towers compute; see `cliploc.Memory`.",
        harmless="what is kept is what was computed",
        python_only=True,
    )

    def __post_init__(self) -> None:
        for name, one in OPTIONS.items():
            object.__setattr__(self, name, one.check(getattr(self, name)))

    @classmethod
    def of(cls, **values: Any) -> Options:
        """The options given, the others at their defaults.

        Raises:
            UsageError: a name that there is not, or a value outside its range.
        """
        for name in values:
            if name not in OPTIONS:
                raise UsageError(f"expected an option of {', '.join(OPTIONS)}, got {name!r}: check its name")
        return cls(**values)

    def but(self, **values: Any) -> Options:
        """The same with other values."""
        return replace(self, **values)

    def given(self) -> dict[str, Any]:
        """Those that are not at their defaults."""
        default = Options()
        values = {name: getattr(self, name) for name in OPTIONS}
        return {name: value for name, value in values.items() if value != getattr(default, name)}

    @classmethod
    def explain(cls) -> str:
        """A line for each option: its name, default and what it does.

        Example:
            >>> print(Options.explain().splitlines()[0])
            model='mini': A name of `cliploc models`.
        """
        return "\n".join(f"{name}={getattr(cls(), name)!r}: {one.help}" for name, one in OPTIONS.items())


def _option_of(one: Field[Any]) -> Option:
    found: Option = one.metadata["option"]
    return found


OPTIONS: Mapping[str, Option] = {one.name: _option_of(one) for one in fields(Options)}
RESULT_OPTIONS = tuple(name for name, one in OPTIONS.items() if not one.harmless)

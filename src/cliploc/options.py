"""Every option of a localizer once: its name, type, default, check, help text, and whether it changes results.

`Localizer`, the command line, the page, `annotate`, `benchmark`, their manifests and run identities read `Options`. A
new option is one field here, and the code that uses it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from cliploc.errors import UsageError
from cliploc.images.exemplars import Exemplar, exemplar_of

if TYPE_CHECKING:
    from cliploc.find.memory import Memory
    from cliploc.towers.tower import Backbone, Guide
    from cliploc.values import ResizePolicy

POLICIES: tuple[ResizePolicy, ...] = ("squash", "crop", "pad")
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # by torch's names, as torch is not imported here
PRECISIONS = (*DTYPES, "auto")
SAM, FILES = "sam:", "files:"  # before the folder of a SAM, or of a file for each picture
RECIPES = ("default", "fast")
UNREFINED: Mapping[str, Any] = {
    "refine": (),
    "scales": (1.0,),
    "windows": (),
    "flip": False,
    "split_peaks": 1.0,
    "min_score": 0.0,
    "second_look": False,
}
MIN_SCORE = 0.2  # few boxes that score less are right on the tuning pictures: docs/studies/box-score.md
IMAGE_URL = "/data/local-files/?d="  # of Label Studio
WAITING = 256  # searches that may wait for the page
FOUND = 0.32  # usual minimum of the chance that a name is in the picture; tools/second_look_study.py
MOST_SCALES = 16
MOST_WINDOW_SETS = 4
BASELINES = ("zero", "black", "blur", "mean", "noise", "inpaint")  # what replaces removed pixels
MOST_SIDE = 4096  # pixels of a model's input
LARGEST = sys.float_info.max
T = TypeVar("T")


def _recipes(otherwise: str) -> str:
    """What None means for an option that a recipe sets."""
    return f"the recipe's; {otherwise} with a named method"


# ---------------------------------------------------------------------------------------------- checks: value → value
def _unchanged(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Check:
    """A check, value → the value as it is kept, and what it knows of the option besides."""

    check: Callable[[Any], Any]
    facts: Mapping[str, Any]  # of `Option`: those that the option does not give itself

    def __call__(self, value: Any) -> Any:
        """Raises a `UsageError` that begins "expected NAME" and states the range."""
        return self.check(value)


def is_number(value: Any, low: float = -LARGEST, high: float = LARGEST, *, above: bool = False) -> bool:
    """Whether a value is a number in a range, or above its lower end; True and False are no numbers, nor is NaN."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return (low < value if above else low <= value) and value <= high


def is_whole(value: Any, low: float = -LARGEST, high: float = LARGEST) -> bool:
    """The same for a whole number."""
    return isinstance(value, int) and is_number(value, low, high)


def number(name: str, low: float, high: float, *, above: bool = False, none: str = "") -> Callable[[Any], Any]:
    """A number in a range, or above `low`; `none` is what None means, if it is allowed."""
    words = f"above {low:g} and at most {high:g}" if above else f"from {low:g} to {high:g}"
    return _where(lambda value: is_number(value, low, high, above=above), f"{name} {words}", none, parse=parse_float)


def whole(name: str, low: int, high: int, *, none: str = "") -> Callable[[Any], Any]:
    """A whole number in a range; arguments as for `number`."""
    expected = f"{name}, a whole number from {low} to {high:,}"
    return _where(lambda value: is_whole(value, low, high), expected, none, parse=parse_whole)


def _where(holds: Callable[[Any], object], expected: str, none: str | bool = False, **facts: Any) -> Check:
    """A value that something holds for, or None where that is allowed, or where a text says what it means."""
    hint = f": leave it out for {none}" if isinstance(none, str) and none else ""
    facts |= {"none": none} if isinstance(none, str) else {}

    def check(value: Any) -> Any:
        if (none and value is None) or holds(value):
            return value
        raise UsageError(f"expected {expected}, got {short(value)}{hint}")

    return Check(check, facts)


def choice(name: str, choices: Sequence[str], *, none: bool = False) -> Callable[[Any], Any]:
    """One of several texts, or None."""
    expected = f"{name} to be one of {', '.join(choices)}"
    return _where(lambda value: value in choices, expected, none, metavar="|".join(choices))


def _flag(name: str, *, none: bool = False, words: str = "True or False") -> Check:
    return _where(lambda value: isinstance(value, bool), f"{name} as {words}", none)


def share_or_auto(name: str, *, none: bool = False) -> Callable[[Any], Any]:
    """A number from 0 to 1 or the text "auto", or None."""
    expected = f"{name} from 0 to 1, or auto"
    facts = {"metavar": "0-1|auto", "parse": parse_float}
    return _where(lambda value: is_number(value, 0, 1) or value == "auto", expected, none, **facts)


def _numbers(name: str, count: range, low: float, high: float, example: str) -> Check:
    """A tuple of so many numbers in a range, or None."""
    least = f"{count[0]} to" if count[0] else "at most"
    expected = f"{name}, a list of {least} {count[-1]} numbers from {low:g} to {high:g} ({example})"

    def check(value: Any) -> tuple[float, ...] | None:
        if value is None:
            return None
        fits = isinstance(value, list | tuple) and len(value) in count
        if not fits or not all(is_number(item, low, high) for item in value):
            raise UsageError(f"expected {expected}, got {short(value)}")
        return tuple(float(item) for item in value)

    return Check(check, {"metavar": example, "parse": _or_text(lambda text: tuple(map(float, parse_list(text))))})


def _texts(name: str, *, none: bool = False) -> Callable[[Any], tuple[str, ...] | None]:
    def check(value: Any) -> tuple[str, ...] | None:
        if value is None and none:
            return None
        if isinstance(value, str):
            raise UsageError(f"expected a list of {name}, got the single text {value!r}: write [{value!r}]")
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise UsageError(f"expected a list of {name}, got {short(value)}")
        return tuple(value)

    return check


def _checked_exemplars(value: Any) -> tuple[str | Exemplar, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str | Exemplar) for item in value):
        raise UsageError(f"expected a list of exemplars, got {short(value)}: write [Exemplar('cup', 'cup.jpg')]")
    for item in value:
        if isinstance(item, str):
            exemplar_of(item)
    return tuple(value)


def _checked_size(value: Any) -> Any:
    """One side, or height and width; the localizer checks whether its model takes them."""
    sides = tuple(value) if isinstance(value, list | tuple) else (value, value)
    whole_sides = all(is_whole(side, 1, MOST_SIDE) for side in sides)
    if value is not None and (len(sides) != 2 or not whole_sides):
        raise UsageError(
            f"expected image_size of 1 to {MOST_SIDE} pixels, one side or height and width, got {short(value)}"
        )
    return sides if isinstance(value, list | tuple) else value


def _or_folder(name: str, choices: Sequence[str], kinds: Sequence[str] = (SAM,), *, none: bool = False) -> Check:
    """One of several texts, or a kind such as "sam:" and a folder; whoever loads it checks the folder."""
    *others, last = (*choices, *(f"{kind}FOLDER" for kind in kinds))

    def holds(value: Any) -> bool:
        of_folder = isinstance(value, str) and any(value.startswith(kind) and value != kind for kind in kinds)
        return of_folder or value in choices

    return _where(holds, f"{name} as {', '.join(others)} or {last}", none, metavar="|".join((*others, last)))


# A well-spelt device; the localizer, which imports torch, checks whether this machine has it.
_DEVICE = _where(
    lambda value: isinstance(value, str) and re.fullmatch(r"cpu|mps|cuda(:\d+)?", value, re.ASCII),
    "device as cpu, cuda, cuda:N or mps",
    "the best available",
)
# Objects are told by what is used of them, as their classes are not imported here.
_MODEL = _where(
    lambda value: isinstance(value, str) or hasattr(value, "pooling"),  # open_clip's models have `encode_image`, too
    "model, a name of `cliploc models` or a Backbone",
)
_METHOD = _where(lambda value: isinstance(value, str) and value.strip(), "method, a name", "the model's recipe")
_TEMPLATES = _where(lambda value: isinstance(value, Sequence), "templates, a text or a list of texts", "the default")
_GUIDE = _where(
    lambda value: value.partition("@")[0].strip() if isinstance(value, str) else hasattr(value, "features"),
    "guide, the name of a second image tower such as dinov2-s",
    none=True,
)
_MEMORY = _where(lambda value: hasattr(value, "shared"), "memory, a cliploc.Memory", none=True)


def _file(name: str) -> Check:
    """The path of a file, or None; whoever reads it checks the file."""
    return _where(lambda value: isinstance(value, str | os.PathLike), f"{name}, the path of a file", none=True)


def _checked_method_options(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UsageError(f"expected method_options as a mapping of names to values, got {short(value)}")
    return dict(value)


def _checked_shares(value: Any) -> dict[str, float]:
    expected = "expected share as a name with all, or with a number from 0 to 1 (raccoon=all)"
    if not isinstance(value, Mapping):
        raise UsageError(f"{expected}, got {short(value)}")
    for name, share in value.items():
        if not name or not is_number(share, 0, 1):
            raise UsageError(f"{expected}, got {f'{name}={share}'.lstrip('=') or 'nothing'}")
    return dict(value)


# ----------------------------------------------------------------------------- texts of the command line ⇄ values
# A text that cannot be parsed is returned as it is: the option's check refuses it, and its error states the range.
def _or_text(parse: Callable[[str], T]) -> Callable[[str], T | str]:
    def parsed(text: str) -> T | str:
        try:
            return parse(text)
        except ValueError:
            return text

    return parsed


parse_float, parse_whole = _or_text(float), _or_text(int)


def parse_list(text: str) -> tuple[str, ...]:
    """The parts between commas; nothing for an empty text."""
    return tuple(part.strip() for part in text.split(",")) if text.strip() else ()


@_or_text
def _parse_size(text: str) -> int | tuple[int, ...]:
    sides = tuple(int(part) for part in text.lower().replace("×", "x").split("x"))
    return sides[0] if len(sides) == 1 else sides


def parse_pair(text: str) -> tuple[str, str]:
    """Splits a method's option, KEY=VALUE on the command line; the method converts the value."""
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key:
        raise UsageError(f"expected --option as key=value, got {short(text)}")
    return key.replace("-", "_"), value


def parse_share(text: str, expected: str) -> float:
    """A number from 0 to 1; `expected` begins the error: where, and what was expected there."""
    with suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise UsageError(f"{expected}, got {text}")


def _parse_share(text: str) -> tuple[str, float | str]:
    """A name's share of the pictures, as raccoon=all or dog=0.3."""
    name, _, share = (part.strip() for part in text.rpartition("="))
    return name, 1.0 if share == "all" else parse_float(share)


def _parse_percent(text: str) -> float | str:
    """A share, as 5% or 0.05."""
    value = parse_float(text.removesuffix("%"))
    return value / 100 if isinstance(value, float) and text.endswith("%") else value


def _one_method(given: Sequence[str]) -> str:
    if len(given) > 1:
        raise UsageError(
            f"expected --method once, got it {len(given)} times: write --method {'+'.join(dict.fromkeys(given))} for "
            "the mean of their maps, or run the command once for each"
        )
    return given[0]


def text_of(value: Any) -> str:
    """A value as the command line takes it; the reverse of parsing.

    Example:
        >>> text_of(0.25), text_of((1.0, 1.5)), text_of("pad")
        ('0.25', '1,1.5', 'pad')
    """
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return ",".join(map(text_of, value)) if isinstance(value, list | tuple) else str(value)


def _size_text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def short(value: Any) -> str:
    """A value in an error's line."""
    text = re.sub(r"\s*\n\s*", " ", repr(value))  # of a module or an array it has several lines
    return text if len(text) <= 60 else f"{text[:57]}…"


# ---------------------------------------------------------------------------------------------------------- the options
Group = Literal[
    "input", "prompt", "model", "method", "view", "boxes", "training", "segmentation", "faithfulness", "serving",
    "output", "run",
]  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Option:
    """The facts of one option beside its type and default, which are the field's."""

    help: str  # one sentence for the command line
    group: Group  # what it is about
    about: str = ""  # what Python users need to know besides `help`
    none: str = ""  # what None means, where it is the default
    metavar: str = ""  # its value as help shows it
    check: Callable[[Any], Any] = _unchanged  # value → the value as it is kept; see `Check`
    parse: Callable[[str], Any] = _unchanged  # one text of the command line → value, or the text, for `check` to refuse
    text: Callable[[Any], str] = text_of  # value → one text of the command line, which `parse` reads
    flags: tuple[str, ...] = ()  # its names on the command line, if they are not made from its name
    usual: bool = False  # whether help lists it before those that few users need
    within: tuple[float, float] | None = None  # of a number that the command line parses by the field's type
    positional: bool = False  # whether the command line takes it without a flag
    repeat: bool = False  # whether the command line takes it several times
    gather: Callable[[Sequence[Any]], Any] = tuple  # joins the values of an option that repeats
    harmless: str = ""  # why results do not depend on it; "" if they do: then it is part of a run's identity
    python_only: bool = False  # whether it is an object that no command line can name


def option(default: Any = MISSING, *, factory: Any = MISSING, **facts: Any) -> Any:
    """A field of `Options`; `facts` are those of `Option`, also those that a `Check` knows."""
    known = dict(getattr(facts.get("check"), "facts", {}))
    if default is not None:
        known.pop("none", None)
    return field(default=default, default_factory=factory, metadata={"option": Option(**{**known, **facts})})


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a `Localizer`; `Options.explain()` describes each one.

    Raises:
        UsageError: a value outside its range.

    Example:
        >>> Options(scales=[1, 2]).scales
        (1.0, 2.0)
    """

    # Of each option: its facts in a line or two, then its texts.
    # fmt: off
    model: str | Backbone = option(
        "mini", group="model", usual=True, metavar="NAME", check=_MODEL,
        help="Model; `cliploc models` lists them.",
        about='Also "hf-hub:ORG/NAME", "local-dir:PATH" (of open_clip or transformers), or, in Python, a `Backbone`.',
    )
    pretrained: str | None = option(
        None, group="model", usual=True, metavar="TAG|FILE", none="the model's own",
        help="Weights of the model: a tag of `cliploc models NAME`, or a file.",
    )
    method: str | None = option(  # a second one is refused, not silently taken
        None, group="method", usual=True, metavar="NAME", repeat=True, gather=_one_method, check=_METHOD,
        help="Method, or several whose maps are averaged: cam+layer_cam. `cliploc methods` lists them.",
        about="A named method runs as published. If you name none, a trained head's method runs, or else the recipe's.",
    )
    recipe: Literal["default", "fast"] | None = option(
        None, group="method", usual=True, check=choice("recipe", RECIPES, none=True), none="default",
        help="What runs if you name no method: a method with settings that improve its boxes.",
        about='"default" balances quality and time, "fast" takes one forward pass. '
        "Options that you give override the recipe's. See `cliploc models NAME` and docs/recipes.md.",
        harmless="it stands for values of other options, which are part of the identity",
    )
    method_options: Mapping[str, Any] = option(
        factory=dict, group="method", metavar="KEY=VALUE", check=_checked_method_options, parse=parse_pair,
        text="=".join, flags=("--option", "-o"), repeat=True, gather=dict,
        help="An option of the method; repeatable.",
        about='In Python a mapping, such as {"temperature": 0.01}. Of several methods, {"score_cam.block": -2} '
        "is for one of them, and an option named alone is for all that have it. Texts are converted to the "
        "type that the method declares.",
    )
    head: str | os.PathLike[str] | None = option(
        None, group="method", metavar="FILE", check=_file("head"),
        help="Trained layers from `cliploc train`.",
        about="If you name no method, the file's method runs.",
    )
    ensemble: Literal["minmax", "rank"] = option(
        "minmax", group="method", check=choice("ensemble", ("minmax", "rank")),
        help="How the maps of several methods are averaged.",
        about='"minmax" first scales each map to 0-1; "rank" uses the rank of each place in its map.',
    )
    templates: Sequence[str] | str | None = option(
        None, group="prompt", metavar="TEXT", flags=("--template",), repeat=True, check=_TEMPLATES, none="",
        help="Sentence with {} for the name (repeatable), a FILE.txt of sentences, or default, openai-80, openai-7, "
        "name-only.",
        about="In Python one of these texts or a list of them. The embeddings of all sentences are averaged.",
    )
    background: Sequence[str] = option(
        (), group="prompt", metavar="NAME", check=_texts("background names"), repeat=True,
        help="Name of the background, as a contrast; repeatable.",
        about="The map shows where a name scores higher than these, and a name that scores lower than one of them is "
        "not found.",
    )
    exemplars: Sequence[str | Exemplar] = option(
        (), group="prompt", check=_checked_exemplars, python_only=True,
        help='Pictures that stand for names: `cliploc.images.exemplars.Exemplar`, or texts such as "cup=@photo.jpg".',
        about="On the command line -p @cup.jpg. See docs/prompts.md.",
    )
    resize: ResizePolicy | None = option(
        None, group="view", check=choice("resize", POLICIES, none=True),
        none="the model's own, but pad where that crops",
        help="How a picture is fitted to the model's input.",
        about='"squash" stretches it to the input, "crop" takes the middle as CLIP does, "pad" adds a border: '
        "of a 3:2 picture, a model that crops would not see a third.",
    )
    image_size: int | tuple[int, int] | None = option(
        None, group="view", metavar="N|HxW", check=_checked_size, parse=_parse_size, text=_size_text,
        none="the model's own",
        help="Input size in pixels.",
        about="In Python one side, or (height, width).",
    )
    scales: Sequence[float] | None = option(
        None, group="view", check=_numbers("scales", range(1, MOST_SCALES + 1), 0.25, 8, "1,1.5,2"), none=_recipes("1"),
        help="Average the maps at these multiples of the input size.",
        about=f"At most {MOST_SCALES}, each from 0.25 to 8; each is a forward pass. Scores and presence are read at "
        "the first one; if it is 2 or more, in a further pass of the input size.",
    )
    windows: Sequence[float] | None = option(
        None, group="view", check=_numbers("windows", range(MOST_WINDOW_SETS + 1), 1, 8, "1,2"), none=_recipes("none"),
        help="Also average the maps of overlapping windows; 2: windows of half the picture's shorter side.",
        about="Windows are as large as the input and are not stretched, so small things appear larger: with 2, the "
        "picture's shorter side is resized to two inputs. Each number is a set of windows, at most "
        f"{MOST_WINDOW_SETS}, each from 1 to 8. Each window is a forward pass.",
    )
    flip: bool | None = option(
        None, group="view", check=_flag("flip", none=True), flags=("--flip/--no-flip",), none=_recipes("no"),
        help="Also average the map of the flipped picture.",
    )
    refine: Sequence[str] | None = option(
        None, group="method", metavar="NAME,NAME", check=_texts("refinements", none=True), parse=parse_list,
        none=_recipes("none"),
        help="Refinements after the method: affinity, caa, guided, level, lposs, lposs_plus, pamr.",
        about='In Python a list, such as ("caa", "guided").',
    )
    threshold: float | Literal["auto"] | None = option(
        None, group="boxes", usual=True, check=share_or_auto("threshold", none=True),
        none="the recipe's, or the method's own",
        help="Boxes enclose regions hotter than this share of the maximum.",
        about="\"auto\" is Otsu's threshold of each map. The method's own changes with the refinements.",
    )
    components: Literal["all", "largest"] = option(
        "all", group="boxes", check=choice("components", ("all", "largest")),
        help="Which hot regions get a box.",
    )
    min_area: float = option(
        0.001, group="boxes", metavar="0-1", check=number("min_area, a share of the picture,", 0, 0.999),
        help="Hot regions smaller than this share of the picture get no box.",
    )
    max_boxes: int | None = option(
        None, group="boxes", usual=True, metavar="N", check=whole("max_boxes", 1, 1_000_000, none="all boxes"),
        none="all",
        help="Maximum number of boxes per name and picture, best first.",
    )
    nms_iou: float | None = option(
        0.5, group="boxes", metavar="0-1", check=number("nms_iou", 0, 1, above=True, none="no suppression"),
        help="NMS: of two boxes of one name above this IoU, keep the better; 1: keep all.",
        about="None means no suppression.",
    )
    split_peaks: float | None = option(
        None, group="boxes", metavar="0-1", check=number("split_peaks", 0, 1, none="the recipe's"), none=_recipes("1"),
        help="Split a hot region into one box per peak with this prominence, a share of the maximum; 1: never.",
        about="Prominence is the peak's height above the saddle to a higher peak. For things of one name that touch; "
        "see docs/boxes.md.",
    )
    min_score: float | Literal["auto"] | None = option(
        None, group="boxes", check=share_or_auto("min_score", none=True), none=_recipes("0"),
        help=f"Leave out boxes with a lower score; auto: {MIN_SCORE:g}, but a found name keeps its best box.",
        about="Recipes use auto. With a second look, a score is the estimated chance that the box is right; without "
        "one, that chance if its name is in the picture; see docs/mini.md. With a number, a name without such a "
        "box is unsure, or without a second look not found.",
    )
    min_presence: float | None = option(
        None, group="boxes", metavar="0-1", check=number("min_presence", 0, 1, none="the usual minimum"),
        none=f"{FOUND:g}; 0.5 without a second look",
        help="Names that are in the picture with a lower chance are unsure or not found; 0: box every name.",
        about="A name that the first look rules out is not found. Without a second look, presence is a score and no "
        "chance, and names below the minimum are not found. See docs/presence.md.",
    )
    second_look: bool | None = option(
        None, group="boxes", check=_flag("second_look", none=True), flags=("--second-look/--no-second-look",),
        none=_recipes("no"),
        help="Judge each box by what the model reads inside it.",
        about="It costs no further forward pass. Scores and presence are then chances. See docs/presence.md.",
    )
    calibration: str | os.PathLike[str] | None = option(
        None, group="boxes", metavar="FILE", check=_file("calibration"), none="the package's",
        help="How a second look is calibrated: a file of `cliploc calibrate`.",
    )
    learnt: str | os.PathLike[str] | None = option(
        None, group="boxes", metavar="FILE", check=_file("learnt"), none="nothing",
        help="What a folder has taught: learnt.safetensors of `cliploc annotate`.",
        about="Names in the file get the boxes that the folder's own drafts would have, also names that the model does "
        "not know. The file holds for the model and settings that it was learnt with. See docs/teaching.md.",
    )
    masks_by: str = option(
        "heat", group="output", check=_or_folder("masks_by", ("heat", "grabcut")),
        help="What draws masks; all but heat imply --masks.",
        about="grabcut starts from the heat and moves edges to edges of colour in the picture. sam:FOLDER gives each "
        "box to a Segment Anything, and needs `cliploc[sam]`. See docs/masks.md.",
    )
    device: str | None = option(
        None, group="model", metavar="cpu|cuda|mps", check=_DEVICE, none="the best available",
        help="Device to compute on.",
        about="Only for a model given by name; a `Backbone` stays on its device.",
        harmless="devices differ by rounding only; the manifest's sessions name the machine",
    )
    precision: str = option(
        "fp32", group="model", check=choice("precision", PRECISIONS),
        help="Precision of the model's tower; maps and scores are always float32.",
        about='"auto" is bf16 if the device supports it, else fp32. Only for a model given by name.',
    )
    masked_precision: str | None = option(
        None, group="model", check=choice("masked_precision", PRECISIONS, none=True), none="that of the tower",
        help="Precision for the masked pictures of the Score-CAM family.",
        about="Hundreds of forward passes take nearly all the time of these methods. bf16 halves it on processors "
        "with bfloat16. The features that maps are made of keep the tower's precision.",
    )
    guide: str | Guide | None = option(
        None, group="model", metavar="NAME[@FILE]", check=_GUIDE, none="the model itself",
        help="Second image tower, which compares places, for `proxyclip`, `corrclip`, `gla_clip`, `affinity`, `lposs`.",
        about='A guide of `cliploc models`, such as "dinov2-s", another model, such as "mini", or a tower of timm; '
        '"dinov2-s@FILE" reads its weights from a file. In Python also a `Guide`.',
    )
    batch_size: int = option(
        16, group="run", metavar="1-4096", check=whole("batch_size", 1, 4096),
        help="Pictures, or masked pictures, per forward pass.",
    )
    text_cache: bool = option(
        True, group="run", check=_flag("text_cache"),
        help="Cache the embeddings of names on disk.",
        about="See `cliploc.find.text_cache`.",
        harmless="a cached embedding is the one that was computed",
    )
    memory: Memory | None = option(
        None, group="run", python_only=True, check=_MEMORY,
        help="A `cliploc.Memory`, a cache of what the towers compute.",
        about="Other names, or methods that need the same features, then cost no forward pass on pictures seen before. "
        "Several localizers may use one memory, one after the other.",
        harmless="what is kept is what was computed",
    )
    # fmt: on

    def __post_init__(self) -> None:
        for name, facts in OPTIONS.items():
            object.__setattr__(self, name, facts.check(getattr(self, name)))

    @classmethod
    def of(cls, **values: Any) -> Options:
        """The options given, the others at their defaults; an unknown name is a `UsageError`."""
        for name in values:
            if name not in OPTIONS:
                raise UsageError(f"expected an option of {', '.join(OPTIONS)}, got {name!r}: check its name")
        return cls(**values)

    def but(self, **values: Any) -> Options:
        """The same options with other values."""
        return replace(self, **values)

    def filled(self, recipe: Mapping[str, Any]) -> Options:
        """The same options, with a recipe's values for those that were not given, and no refinement if it has none.

        Example:
            >>> Options(flip=True).filled({"scales": (1, 2)}).scales
            (1.0, 2.0)
        """
        values = {**UNREFINED, **recipe}
        return replace(self, **{name: value for name, value in values.items() if getattr(self, name) is None})

    def given(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        values = {name: getattr(self, name) for name in OPTIONS}
        return {name: value for name, value in values.items() if value != getattr(DEFAULTS, name)}

    @classmethod
    def explain(cls) -> str:
        """A line for each option: its name, default and what it does.

        Example:
            >>> print(Options.explain().splitlines()[14])
            flip=None (the recipe's; no with a named method): Also average the map of the flipped picture.
            >>> print(Options.explain().splitlines()[19])
            max_boxes=None (all): Maximum number of boxes per name and picture, best first.
        """
        lines = []
        for name, facts in OPTIONS.items():
            default = f"{getattr(DEFAULTS, name)!r}" + (f" ({facts.none})" if facts.none else "")
            lines.append(f"{name}={default}: {' '.join(filter(None, (facts.help, facts.about)))}")
        return "\n".join(lines)


def option_of(option_field: Field[Any]) -> Option:
    """The facts of a field that `option` made."""
    option: Option = option_field.metadata["option"]
    return option


@dataclass(frozen=True, kw_only=True)
class ProtocolOptions:
    """Base of a protocol's options: each is checked, and None keeps the protocol's own value."""

    def __post_init__(self) -> None:
        for own in fields(self):
            object.__setattr__(self, own.name, option_of(own).check(getattr(self, own.name)))

    def given(self) -> dict[str, Any]:
        """Those that are not None."""
        values = {own.name: getattr(self, own.name) for own in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class SegmentationOptions(ProtocolOptions):
    """Changes to a segmentation protocol; None keeps the dataset's own value (docs/segmentation.md)."""

    # Of each option: its facts in a line or two, then its texts.
    # fmt: off
    short_side: int | None = option(
        None, group="segmentation", metavar="N", check=whole("short_side", 32, MOST_SIDE, none="the protocol's"),
        help="Shorter side of the picture in pixels, before it is cut into windows.",
    )
    window: int | None = option(
        None, group="segmentation", metavar="N", check=whole("window", 0, MOST_SIDE, none="the protocol's"),
        help="Side of a window in pixels; 0: the whole picture at once.",
    )
    stride: int | None = option(
        None, group="segmentation", metavar="N", check=whole("stride", 1, MOST_SIDE, none="the protocol's"),
        help="Distance between windows in pixels.",
    )
    logit_scale: float | None = option(
        None, group="segmentation", metavar="N",
        check=number("logit_scale", 0, 1000, above=True, none="the protocol's"),
        help="Factor of the cosines before the softmax over names.",
    )
    background_threshold: float | None = option(
        None, group="segmentation", metavar="0-1", check=number("background_threshold", 0, 1, none="the protocol's"),
        help="Pixels whose best class has a lower probability are background.",
    )
    area_threshold: float | None = option(
        None, group="segmentation", metavar="0-1", check=number("area_threshold", 0, 1, none="the protocol's"),
        help="Leave out classes with a smaller share of the picture's foreground.",
    )
    regions: str | None = option(
        None, group="segmentation", metavar="KIND", none="none",
        check=_or_folder("regions", ("none", "colour"), (SAM, FILES), none=True),
        help="Each region gets the name that most of its pixels have.",
        about="colour divides the picture by its colours, and needs `cliploc[regions]`. sam:FOLDER takes the masks of "
        "a Segment Anything, and needs `cliploc[sam]`. files:FOLDER has a PNG for each picture, with a number for each "
        "region. Method corrclip reads the regions too.",
    )
    candidates: int | None = option(
        None, group="segmentation", metavar="N", check=whole("candidates", 0, 2**15, none="the protocol's"),
        help="Only the N classes that fit the picture best, or one of its windows, can be given; 0: all.",
        about="For long lists of names. The background is always one of them.",
    )
    propagation: Literal["none", "tlp"] | None = option(
        None, group="segmentation", check=choice("propagation", ("none", "tlp"), none=True), none="none",
        help="tlp: PEARL's second part spreads the cosines of all names over the picture, up to its edges.",
    )
    position_rule: Literal["antialiased", "dino"] | None = option(
        None, group="segmentation", check=choice("position_rule", ("antialiased", "dino"), none=True),
        none="the protocol's",
        help="How a ViT's position embeddings are resized for windows of another size.",
    )
    # fmt: on


@dataclass(frozen=True, kw_only=True)
class FaithfulnessOptions(ProtocolOptions):
    """Changes to the protocols of faithfulness (docs/faithfulness.md); None keeps the published value."""

    # Of each option: its facts in a line or two, then its texts.
    # fmt: off
    steps: int | None = option(
        None, group="faithfulness", metavar="N", check=whole("steps", 2, 50176, none="224"),
        help="Steps of deletion and insertion; fewer are faster.",
    )
    # With 0.02 a third of the scores gave areas that were 0.001 off: docs/studies/faithfulness.md.
    tolerance: float | None = option(
        None, group="faithfulness", metavar="0-1", check=number("tolerance", 0, 1, none="every step"),
        none="every step is scored",
        help="Deletion and insertion skip steps where the score is this near a straight line; 0.02 takes a third.",
    )
    baseline: Literal["zero", "black", "blur", "mean", "noise", "inpaint"] | None = option(
        None, group="faithfulness", check=choice("baseline", BASELINES, none=True),
        none="each metric's own: zero for deletion, blur for insertion",
        help="What replaces removed pixels.",
    )
    target: Literal["prediction", "label"] | None = option(
        None, group="faithfulness", check=choice("target", ("prediction", "label"), none=True), none="prediction",
        help="Name to map and score: the model's prediction, or the true label.",
    )
    # fmt: on


@dataclass(frozen=True, kw_only=True)
class AnnotateOptions(ProtocolOptions):
    """The options of `cliploc.annotate` besides those of a `Localizer`."""

    # Of each option: its facts in a line or two, then its texts.
    # fmt: off
    formats: Sequence[str] = option(
        ("coco",), group="output", usual=True, metavar="NAME,NAME", flags=("--format",), parse=parse_list,
        help="Output formats: coco, csv, cvat, labelstudio, voc, yolo.",
        about="Formats written before are updated too.",
    )
    nms_across: float | None = option(
        None, group="boxes", metavar="0-1", check=number("nms_across", 0, 1, above=True, none="boxes of all names"),
        none="keep both",
        help="NMS between names: keep the better box above this IoU.",
    )
    groups: Literal["keep", "split", "drop"] = option(
        "keep", group="boxes", check=choice("groups", ("keep", "split", "drop")),
        help="What to do with a large box around several things.",
    )
    share: Mapping[str, float] = option(
        factory=dict, group="boxes", metavar="NAME=all|0-1", check=_checked_shares, parse=_parse_share,
        text="=".join, flags=("--share",), repeat=True, gather=dict,
        help="Share of the pictures that show a name, if you know it; repeatable.",
        about='A mapping, such as {"raccoon": 1.0}; "all" on the command line is 1.',
    )
    max_false: float | None = option(
        None, group="boxes", metavar="5%",
        check=_where(
            lambda value: is_number(value, 0, 1, above=True),
            "max_false as 5% or 0.05, above 0 and at most 1", "no promise", parse=_parse_percent,
        ),
        help="Raise --min-score so that no larger share of drafts (5% or 0.05) is wrong, by the corrected pictures.",
    )
    masks: bool = option(
        False, group="output", usual=True, check=_flag("masks"),
        help="Also write the mask of each box, in formats that support it.",
        about="See docs/masks.md. With `masks_by` among the options each box always has it.",
    )
    polygons: bool = option(
        False, group="output", check=_flag("polygons"),
        help="With --masks: write polygons in coco.json, except for masks with holes.",
    )
    unsure: bool = option(
        False, group="output", usual=True, check=_flag("unsure"),
        help="Also export the boxes that are unsure.",
    )
    copy: bool = option(
        False, group="output", check=_flag("copy"),
        help="Copy the pictures into formats that include them, instead of linking.",
    )
    review: int = option(
        100, group="output", metavar="N", check=whole("review", 0, 100_000),
        help="Number of pictures on review.html, least certain first; 0: no page.",
    )
    decisions: str | os.PathLike[str] | None = option(
        None, group="input", usual=True, metavar="FILE|DIR", flags=("--apply",),
        help="Apply what review.html saved, or a corrected set: COCO, YOLO, VOC, Label Studio, CVAT.",
        about="Its boxes take the place of the drafts, also in later calls.",
    )
    limit: int | None = option(
        None, group="input", usual=True, metavar="N", check=whole("limit", 1, 10_000_000, none="all"),
        help="Use only the first N pictures.",
    )
    retry: bool = option(
        False, group="run", check=_flag("retry"),
        help="Retry pictures that failed before.",
    )
    image_url: str | None = option(
        None, group="output", metavar="TEXT", none=f"{IMAGE_URL}FOLDER/, or that of the run",
        help="Prefix of picture paths in Label Studio's file.",
    )
    teach: bool | None = option(
        None, group="boxes", usual=True, metavar="on|off", none="on, where the method allows it",
        check=_flag("teach", none=True, words="on or off"),
        parse=lambda text: {"on": True, "off": False}.get(text, text),
        help="Learn from the folder itself, and from corrections: docs/teaching.md.",
    )
    # fmt: on


OPTIONS: Mapping[str, Option] = {option.name: option_of(option) for option in fields(Options)}
RESULT_OPTIONS = tuple(name for name, facts in OPTIONS.items() if not facts.harmless)
DEFAULTS = Options()
# A benchmark's defaults: each name asked for is in its picture, and keeps all its boxes.
BENCHMARK = Options(min_presence=0, min_score=0, second_look=False)
OF_LOCALIZATION = {**BENCHMARK.given(), "resize": "squash"}  # in a benchmark of boxes, what was not asked for


# ---------------------------------------------------------------------------------------------------- the command line
def flags_of(name: str) -> tuple[str, ...]:
    """The names of an option on the command line, the longest first.

    Example:
        >>> flags_of("min_area"), flags_of("method_options"), flags_of("text_cache")
        (('--min-area',), ('--option', '-o'), ('--text-cache/--no-text-cache',))
    """
    dashed = name.replace("_", "-")
    both = f"--{dashed}/--no-{dashed}" if getattr(DEFAULTS, name, None) is True else f"--{dashed}"
    return OPTIONS[name].flags if name in OPTIONS and OPTIONS[name].flags else (both,)


def words_of(values: Mapping[str, Any]) -> list[str]:
    """Options as a command line has them; None is left out.

    Example:
        >>> words_of({"flip": True, "scales": (1.0, 1.5), "method": "cam", "method_options": {"block": -1}})
        ['--flip', '--scales=1,1.5', '--method=cam', '--option=block=-1']
    """
    words = []
    for name, value in values.items():
        facts, flag = OPTIONS[name], flags_of(name)[0]
        if isinstance(value, bool):
            on, _, off = flag.partition("/")
            words += [on if value else off] if value or off else []
        elif facts.repeat and isinstance(value, Mapping):
            words += [f"{flag}={facts.text((key, text_of(of_key)))}" for key, of_key in value.items()]
        elif facts.repeat and not isinstance(value, str):
            words += [f"{flag}={facts.text(item)}" for item in value or ()]
        elif value is not None:
            words.append(f"{flag}={facts.text(value)}")
    return words

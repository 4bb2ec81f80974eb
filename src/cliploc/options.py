"""Every option of a localizer once: its name, type with range, default, help text, and whether it changes results.

`Localizer`, the command line, the page, `annotate`, `benchmark`, their manifests and run identities read `Options`. A
new option is one field here, and the code that uses it. Its type says what is checked, and how a text is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from functools import partial, reduce
from operator import or_
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from cliploc.errors import UsageError
from cliploc.images.exemplars import Exemplar, exemplar_of
from cliploc.support.files import user_path

if TYPE_CHECKING:
    from cliploc.find.memory import Memory
    from cliploc.towers.tower import Backbone, Guide

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}  # by torch's names, as torch is not imported here
SAM, FILES = "sam:", "files:"  # before the folder of a SAM, or of a file for each picture
UNREFINED: Mapping[str, Any] = {  # what runs of a recipe's options with a named method
    "refine": (), "scales": (1.0,), "windows": (), "flip": False, "split_peaks": 1.0, "min_score": 0.0,
    "second_look": False,
}  # fmt: skip
MIN_SCORE = 0.2  # few boxes that score less are right on the tuning pictures: docs/studies/box-score.md
IMAGE_URL = "/data/local-files/?d="  # of Label Studio
WAITING = 256  # searches that may wait for the page
FOUND = 0.32  # usual minimum of the chance that a name is in the picture; tools/second_look_study.py
MOST_SCALES = 16
MOST_WINDOW_SETS = 4
MOST_SIDE = 4096  # pixels of a model's input
LARGEST_MAXIMUM = 2**16  # in help; a larger one is no limit that a person meets

# ------------------------------------------------------------------------------------------------------------ types
Resize = Literal["squash", "crop", "pad"]
RecipeName = Literal["default", "fast"]
Precision = Literal["fp32", "bf16", "fp16", "auto"]
Colormap = Literal["viridis", "plasma", "inferno", "magma", "cividis", "turbo"]  # of heat; all but the last perceptual
FigureKind = Literal["jpg", "png", "svg", "pdf"]  # of a drawing's file
Baseline = Literal["zero", "black", "blur", "mean"]  # what replaces removed pixels
POLICIES, RECIPES, PRECISIONS, BASELINES = map(get_args, (Resize, RecipeName, Precision, Baseline))
Share = Annotated[float, Meta(ge=0, le=1)]
PositiveShare = Annotated[float, Meta(gt=0, le=1)]
ShareOrAuto = Share | Literal["auto"]
Side = Annotated[int, Meta(ge=1, le=MOST_SIDE)]
if TYPE_CHECKING:
    HeightWidth = tuple[int, int]
else:  # with a tuple beside an integer in a range msgspec 0.23 crashes
    HeightWidth = Annotated[Sequence[Side], Meta(min_length=2, max_length=2)]
Scales = Annotated[Sequence[Annotated[float, Meta(ge=0.25, le=8)]], Meta(min_length=1, max_length=MOST_SCALES)]
Windows = Annotated[Sequence[Annotated[float, Meta(ge=1, le=8)]], Meta(max_length=MOST_WINDOW_SETS)]


def _kinds(kind: Any) -> list[Any]:
    """The types of a union, without None; a path is a text."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return [one for one in kinds if one is not NoneType and get_origin(one) is not os.PathLike]


def _range(kind: Any) -> tuple[Any, Meta]:
    """A plain type, such as `Sequence`, and what limits it."""
    plain, meta = get_args(kind) if get_origin(kind) is Annotated else (kind, Meta())
    return get_origin(plain) or plain, meta


def _item(kind: Any) -> Any:
    """The type of a sequence's items."""
    return get_args(get_args(kind)[0] if get_origin(kind) is Annotated else kind)[0]


def _in_words(kind: Any, metavar: str) -> str:
    """What a type allows, as it follows an option's name."""
    base, meta = _range(kind)
    if base is Literal:
        return f" to be one of {', '.join(map(str, get_args(kind)))}"
    if base is bool:
        return " as True or False"
    if base is float:
        low = f" from {meta.ge:g}" if meta.gt is None else f" above {meta.gt:g}"
        return low + (f" to {meta.le:g}" if meta.lt is None else f" to below {meta.lt:g}")
    if base is int:
        return f", a whole number from {meta.ge} to {meta.le:,}"
    if base is Sequence:
        of_item, limits = _range(_item(kind))
        if of_item is str:
            return ", a list of texts"
        count = f"{meta.min_length or 0} to {meta.max_length}"
        return f", a list of {count} numbers from {limits.ge:g} to {limits.le:g} ({metavar})"
    return f" as {metavar}"


def _plain(value: Any) -> Any:
    """Numpy's floats as Python's, paths as texts."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return float(value) if isinstance(value, float) else os.fspath(value) if isinstance(value, os.PathLike) else value


def check_value(name: str, kind: Any, value: Any, none: str = "", metavar: str = "a text") -> Any:
    """A value of a type, which msgspec checks; sequences become tuples. `none`: what None means.

    Raises:
        UsageError: "expected NAME from 0 to 1, got 2", say.
    """
    kinds, optional = _kinds(kind), NoneType in get_args(kind)
    try:
        converted = None if value is None and optional else msgspec.convert(_plain(value), reduce(or_, kinds))
    except msgspec.ValidationError:
        texts = [text for one in kinds if (text := _in_words(one, metavar))]
        words = texts[0] + "".join(f", or {text.removeprefix(' to be one of ').strip(' ,')}" for text in texts[1:])
        hint = f": leave it out ({none})" if optional and none else ""
        raise UsageError(f"expected {name}{words}, got {short(value)}{hint}") from None
    return tuple(converted) if isinstance(converted, list) else converted


def choice(name: str, choices: Sequence[str]) -> Callable[[Any], Any]:
    """Checks that a value is one of several texts."""
    return partial(check_value, name, Literal[tuple(choices)])


def number(name: str, low: float, high: float) -> Callable[[Any], Any]:
    """Checks that a value is a number in a range."""
    return partial(check_value, name, Annotated[float, Meta(ge=low, le=high)])


def is_integer(value: Any, low: int) -> bool:
    """Whether a value is an integer from `low` on; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def short(value: Any) -> str:
    """A value in an error's line."""
    text = re.sub(r"\s*\n\s*", " ", repr(value))  # of a module or an array it has several lines
    return text if len(text) <= 60 else f"{text[:57]}…"


# ----------------------------------------------------------------------------- texts of the command line ⇄ values
def parse(kind: Any, text: str) -> Any:
    """A text as a type says; one that cannot be read stays a text, which the check refuses with the range."""
    kinds = _kinds(kind)
    base = _range(kinds[0])[0]
    if base is Sequence and str not in kinds:
        of_item = _item(kinds[0])
        items = tuple(parse(of_item, part) for part in parse_list(text))
        return text if of_item is not str and any(isinstance(item, str) for item in items) else items
    with suppress(ValueError):
        return base(text) if base in (int, float) else text
    return text


def parse_list(text: str) -> tuple[str, ...]:
    """The parts between commas; nothing for an empty text."""
    return tuple(part.strip() for part in text.split(",")) if text.strip() else ()


def _parse_size(text: str) -> int | tuple[int, ...] | str:
    with suppress(ValueError):
        sides = tuple(int(part) for part in text.lower().replace("×", "x").split("x"))
        return sides[0] if len(sides) == 1 else sides
    return text


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
    return name, 1.0 if share == "all" else parse(Share, share)


def _parse_percent(text: str) -> float | str:
    """A share, as 5% or 0.05."""
    value: float | str = parse(float, text.removesuffix("%"))
    return value / 100 if isinstance(value, float) and text.endswith("%") else value


def _one_method(names: Sequence[str]) -> str:
    if len(names) > 1:
        raise UsageError(
            f"expected --method once, got it {len(names)} times: write --method {'+'.join(dict.fromkeys(names))} for "
            "the mean of their maps, or run the command once for each"
        )
    return names[0]


def text_of(value: Any) -> str:
    """A value as the command line takes it; the reverse of parsing."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return ",".join(map(text_of, value)) if isinstance(value, list | tuple) else str(value)


def _size_text(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


# ---------------------------------------------------------------------------------------------------------- the options
Group = Literal[
    "input", "prompt", "model", "method", "view", "boxes", "training", "segmentation", "faithfulness", "serving",
    "output", "run",
]  # fmt: skip


def _unchanged(value: Any) -> Any:
    return value


@dataclass(eq=False, repr=False)
class Option:
    """The facts of one option beside its type and default, which are the field's."""

    help: str  # one sentence for the command line
    group: Group  # what it is about
    about: str = ""  # what Python users need to know besides `help`
    none: str = ""  # what None means, where it is the default
    metavar: str = ""  # its value as help shows it; made from the type where it can be
    check: Callable[[Any], Any] = _unchanged  # value → the value that is stored; made from the type by default
    parse: Callable[[str], Any] = _unchanged  # one text of the command line → value, or the text; by default as `check`
    text: Callable[[Any], str] = text_of  # value → one text of the command line, which `parse` reads
    flags: tuple[str, ...] = ()  # its names on the command line, if they are not made from its name
    usual: bool = False  # whether help lists it before those that few users need
    positional: bool = False  # whether the command line takes it without a flag
    repeat: bool = False  # whether the command line takes it several times
    gather: Callable[[Sequence[Any]], Any] = tuple  # joins the values of an option that repeats
    harmless: str = ""  # why results do not depend on it; "" if they do: then it is part of a run's identity
    python_only: bool = False  # whether it is an object that no command line can name

    def bind(self, name: str, kind: Any) -> None:
        """Takes from a field's type what is not declared."""
        kinds = _kinds(kind)
        base, meta = _range(kinds[0])
        if not self.metavar and base is Literal:
            self.metavar = "|".join(get_args(kinds[0]))
        elif not self.metavar and base in (int, float):
            least = meta.gt if meta.ge is None else meta.ge
            self.metavar = "N" if meta.le is None or meta.le > LARGEST_MAXIMUM else f"{least:g}-{meta.le:g}"
            self.metavar += "|auto" * (len(kinds) > 1)
        if base is list:  # of texts or paths, as the command line has them
            base, self.repeat, self.gather = _item(kinds[0]), True, list
        elif self.check is _unchanged and base is not Path:
            self.check = partial(check_value, name, kind, none=self.none, metavar=self.metavar or "a text")
        if self.parse is _unchanged and (base is Path or not self.repeat):
            self.parse = user_path if base is Path else partial(parse, kind)


def option(default: Any = MISSING, *, factory: Any = MISSING, **facts: Any) -> Any:
    """A field of options; `facts` are those of `Option`."""
    return field(default=default, default_factory=factory, metadata={"option": Option(**facts)})


def option_of(option_field: Field[Any]) -> Option:
    """The facts of a field that `option` made."""
    made: Option = option_field.metadata["option"]
    return made


def _object(expected: str, attribute: str, text: bool = True) -> Callable[[Any], Any]:
    """Checks for a name, or an object that has an attribute: its class is not imported here."""

    def check(value: Any) -> Any:
        if hasattr(value, attribute) or (text and isinstance(value, str)) or (value is None and attribute != "pooling"):
            return value
        raise UsageError(f"expected {expected}, got {short(value)}")

    return check


def _check_exemplars(value: Any) -> tuple[str | Exemplar, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str | Exemplar) for item in value):
        raise UsageError(f"expected a list of exemplars, got {short(value)}: write [Exemplar('cup', 'cup.jpg')]")
    for item in value:
        if isinstance(item, str):
            exemplar_of(item)
    return tuple(value)


def _of_recipe(otherwise: str) -> str:
    """What None means for an option that a recipe sets."""
    return f"the recipe's; {otherwise} with a named method"


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Base of dataclasses of options: each value is checked."""

    def __init_subclass__(cls) -> None:
        objects = dict.fromkeys(("Backbone", "Guide", "Memory"), Any)
        for name, kind in get_type_hints(cls, localns=objects, include_extras=True).items():
            made = cls.__dict__.get(name)
            if isinstance(made, Field):
                option_of(made).bind(name, kind | None if made.default is None else kind)

    def __post_init__(self) -> None:
        for one in fields(self):
            if "option" in one.metadata:
                object.__setattr__(self, one.name, option_of(one).check(getattr(self, one.name)))


@dataclass(frozen=True, kw_only=True)
class Options(Checked):
    """The options of a `Localizer`; `Options.explain()` describes each one.

    Raises:
        UsageError: a value outside its range.

    Example:
        >>> Options(scales=[1, 2]).scales
        (1.0, 2.0)
    """

    # fmt: off
    model: str | Backbone = option(
        "mini", group="model", usual=True, metavar="NAME",
        check=_object("model, a name of `cliploc models` or a Backbone", "pooling"),
        help="Model; `cliploc models` lists them.",
        about='Also "hf-hub:ORG/NAME", "local-dir:PATH" (of open_clip or transformers), or, in Python, a `Backbone`.',
    )
    pretrained: str | None = option(
        None, group="model", usual=True, metavar="TAG|FILE", none="the model's own",
        help="Weights of the model: a tag of `cliploc models NAME`, or a file.",
    )
    method: Annotated[str, Meta(pattern=r"\S")] | None = option(  # a second one is refused, not silently taken
        None, group="method", usual=True, metavar="NAME", repeat=True, gather=_one_method, none="the model's recipe",
        help="Method, or several whose maps are averaged: cam+layer_cam. `cliploc methods` lists them.",
        about="A named method runs as published. Without one, a trained head's method runs, or else the recipe's.",
    )
    recipe: RecipeName | None = option(
        None, group="method", usual=True, none="default",
        help="What runs if you name no method: a method with settings that improve its boxes.",
        about='"default" balances quality and time, "fast" takes one forward pass. '
        "Options that you give override the recipe's. See `cliploc models NAME` and docs/recipes.md.",
        harmless="it stands for values of other options, which are part of the identity",
    )
    method_options: Mapping[str, Any] = option(
        factory=dict, group="method", metavar="KEY=VALUE", parse=parse_pair,
        text="=".join, flags=("--option", "-o"), repeat=True, gather=dict, help="An option of the method; repeatable.",
        about='In Python a mapping, such as {"temperature": 0.01}. Of several methods, {"score_cam.block": -2} '
        "is for one of them, and an option named alone is for all that have it. Texts are converted to the "
        "type that the method declares.",
    )
    head: str | os.PathLike[str] | None = option(
        None, group="method", metavar="FILE", help="Trained layers from `cliploc train`.",
        about="If you name no method, the file's method runs.",
    )
    templates: Sequence[str] | str | None = option(
        None, group="prompt", metavar="TEXT", flags=("--template",), repeat=True,
        help="Sentence with {} for the name (repeatable), a FILE.txt of sentences, or default, openai-80, openai-7, "
        "name-only.",
        about="In Python one of these texts or a list of them. The embeddings of all sentences are averaged.",
    )
    exemplars: Sequence[str | Exemplar] = option(
        (), group="prompt", check=_check_exemplars, python_only=True,
        help='Pictures that stand for names: `cliploc.images.exemplars.Exemplar`, or texts such as "cup=@photo.jpg".',
        about="On the command line -p @cup.jpg. See docs/prompts.md.",
    )
    resize: Resize | None = option(
        None, group="view", none="the model's own, but pad where that crops",
        help="How a picture is fitted to the model's input.",
        about='"squash" stretches it to the input, "crop" takes the middle as CLIP does, "pad" adds a border: '
        "of a 3:2 picture, a model that crops would not see a third.",
    )
    image_size: Side | HeightWidth | None = option(
        None, group="view", metavar="N|HxW", parse=_parse_size, text=_size_text, none="the model's own",
        help="Input size in pixels.", about="In Python one side, or (height, width).",
    )
    scales: Scales | None = option(
        None, group="view", metavar="1,1.5,2", none=_of_recipe("1"),
        help="Average the maps at these multiples of the input size.",
        about=f"At most {MOST_SCALES}, each from 0.25 to 8; each is a forward pass. Scores and presence are read at "
        "the first one; if it is 2 or more, in a further pass of the input size.",
    )
    windows: Windows | None = option(
        None, group="view", metavar="1,2", none=_of_recipe("none"),
        help="Also average the maps of overlapping windows; 2: windows of half the picture's shorter side.",
        about="Windows are as large as the input and are not stretched, so small things appear larger: with 2, the "
        "picture's shorter side is resized to two inputs. Each number is a set of windows, at most "
        f"{MOST_WINDOW_SETS}, each from 1 to 8. Each window is a forward pass.",
    )
    flip: bool | None = option(
        None, group="view", flags=("--flip/--no-flip",), none=_of_recipe("no"),
        help="Also average the map of the flipped picture.",
    )
    refine: Sequence[str] | None = option(
        None, group="method", metavar="NAME,NAME", none=_of_recipe("none"),
        help="Refinements after the method: affinity, caa, guided, level, lposs, lposs_plus, pamr.",
        about='In Python a list, such as ("caa", "guided").',
    )
    threshold: ShareOrAuto | None = option(
        None, group="boxes", usual=True, none="the recipe's, or the method's own",
        help="Boxes enclose regions hotter than this share of the maximum.",
        about="\"auto\" is Otsu's threshold of each map. The method's own changes with the refinements.",
    )
    components: Literal["all", "largest"] = option("all", group="boxes", help="Which hot regions get a box.")
    min_area: Annotated[float, Meta(ge=0, le=0.999)] = option(
        0.001, group="boxes", help="Hot regions smaller than this share of the picture get no box.",
    )
    max_boxes: Annotated[int, Meta(ge=1, le=1_000_000)] | None = option(
        None, group="boxes", usual=True, none="all", help="Maximum number of boxes per name and picture, best first.",
    )
    nms_iou: PositiveShare | None = option(
        0.5, group="boxes", help="NMS: of two boxes of one name above this IoU, keep the better; 1: keep all.",
        about="None means no suppression.",
    )
    split_peaks: Share | None = option(
        None, group="boxes", none=_of_recipe("1"),
        help="Split a hot region into one box per peak with this prominence, a share of the maximum; 1: never.",
        about="Prominence is the peak's height above the saddle to a higher peak. For things of one name that touch; "
        "see docs/boxes.md.",
    )
    min_score: ShareOrAuto | None = option(
        None, group="boxes", none=_of_recipe("0"),
        help=f"Leave out boxes with a lower score; auto: {MIN_SCORE:g}, but a found name keeps its best box.",
        about="Recipes use auto. A score is a chance only where it was fitted; see docs/presence.md. With a number, a "
        "name without such a box is unsure, or without a second look not found.",
    )
    min_presence: Share | None = option(
        None, group="boxes", none=f"{FOUND:g}",
        help="Names that are in the picture with a lower chance are unsure or not found; 0: box every name.",
        about="A name that the first look rules out is not found. Without a second look, names below the minimum are "
        "not found. See docs/presence.md.",
    )
    second_look: bool | None = option(
        None, group="boxes", flags=("--second-look/--no-second-look",), none=_of_recipe("no"),
        help="Judge each box by what the model reads inside it.",
        about="It costs no further forward pass. See docs/presence.md.",
    )
    calibration: str | os.PathLike[str] | None = option(
        None, group="boxes", metavar="FILE", none="the package's",
        help="How chances are calibrated: a file of `cliploc calibrate`.",
    )
    learnt: str | os.PathLike[str] | None = option(
        None, group="boxes", metavar="FILE", none="nothing",
        help="What a folder has taught: learnt.safetensors of `cliploc annotate`.",
        about="Names in the file get the boxes that the folder's own drafts would have, also names that the model does "
        "not know. The file holds for the model and settings that it was learnt with. See docs/teaching.md.",
    )
    masks_by: Annotated[str, Meta(pattern="^(heat|grabcut|sam:.+)$")] = option(
        "heat", group="output", metavar="heat|grabcut|sam:FOLDER", help="What draws masks; all but heat imply --masks.",
        about="grabcut starts from the heat and moves edges to edges of colour in the picture. sam:FOLDER gives each "
        "box to a Segment Anything, and needs `cliploc[sam]`. See docs/masks.md.",
    )
    device: Annotated[str, Meta(pattern=r"^(cpu|mps|cuda(:[0-9]+)?)$")] | None = option(
        None, group="model", metavar="cpu|cuda|mps", none="the best available", help="Device to compute on.",
        about="Only for a model given by name; a `Backbone` stays on its device.",
        harmless="devices differ by rounding only; the manifest's sessions name the machine",
    )
    precision: Precision = option(
        "fp32", group="model", help="Precision of the model's tower; maps and scores are always float32.",
        about='"auto" is bf16 if the device supports it, else fp32. Only for a model given by name.',
    )
    masked_precision: Precision | None = option(
        None, group="model", none="that of the tower",
        help="Precision for the masked pictures of the Score-CAM family.",
        about="Hundreds of forward passes take nearly all the time of these methods. bf16 halves it on processors "
        "with bfloat16. The features that maps are made of keep the tower's precision.",
    )
    guide: str | Guide | None = option(
        None, group="model", metavar="NAME[@FILE]", none="the model itself",
        check=_object("guide, the name of a second image tower such as dinov2-s", "features"),
        help="Second image tower, which compares places, for `proxyclip`, `corrclip`, `gla_clip`, `affinity`, `lposs`.",
        about='A guide of `cliploc models`, such as "dinov2-s", another model, such as "mini", or a tower of timm; '
        '"dinov2-s@FILE" reads its weights from a file. In Python also a `Guide`.',
    )
    batch_size: Annotated[int, Meta(ge=1, le=4096)] = option(
        16, group="run", metavar="1-4096", help="Pictures, or masked pictures, per forward pass.",
    )
    text_cache: bool = option(
        True, group="run", help="Cache the embeddings of names on disk.", about="See `cliploc.find.memory`.",
        harmless="a cached embedding is the one that was computed",
    )
    memory: Memory | None = option(
        None, group="run", python_only=True, check=_object("memory, a cliploc.Memory", "keep_text", text=False),
        help="A `cliploc.Memory`, a cache of what the towers compute.",
        about="Other names, or methods that need the same features, then cost no forward pass on pictures seen before. "
        "Several localizers may use one memory, one after the other.", harmless="what is stored is what was computed",
    )
    # fmt: on

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
        """The same options, with a recipe's values for those that were not given, and no refinement if it has none."""
        values = {**UNREFINED, **recipe}
        return replace(self, **{name: value for name, value in values.items() if getattr(self, name) is None})

    def changed(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        values = {name: getattr(self, name) for name in OPTIONS}
        return {name: value for name, value in values.items() if value != getattr(DEFAULTS, name)}

    @classmethod
    def explain(cls) -> str:
        """A line for each option: its name, default and what it does.

        Example:
            >>> print(Options.explain().splitlines()[12])
            flip=None (the recipe's; no with a named method): Also average the map of the flipped picture.
            >>> print(Options.explain().splitlines()[17])
            max_boxes=None (all): Maximum number of boxes per name and picture, best first.
        """
        lines = []
        for name, facts in OPTIONS.items():
            default = f"{getattr(DEFAULTS, name)!r}" + (f" ({facts.none})" if facts.none else "")
            lines.append(f"{name}={default}: {' '.join(filter(None, (facts.help, facts.about)))}")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class ProtocolOptions(Checked):
    """Base of a protocol's options: None is the protocol's value."""

    def changed(self) -> dict[str, Any]:
        """Those that are not None."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class SegmentationOptions(ProtocolOptions):
    """Changes to a segmentation protocol; None is the dataset's value (docs/segmentation.md)."""

    # fmt: off
    short_side: Annotated[int, Meta(ge=32, le=MOST_SIDE)] | None = option(
        None, group="segmentation", none="the protocol's",
        help="Shorter side of the picture in pixels, before it is cut into windows.",
    )
    window: Annotated[int, Meta(ge=0, le=MOST_SIDE)] | None = option(
        None, group="segmentation", none="the protocol's",
        help="Side of a window in pixels; 0: the whole picture at once.",
    )
    stride: Side | None = option(
        None, group="segmentation", none="the protocol's", help="Distance between windows in pixels.",
    )
    logit_scale: Annotated[float, Meta(gt=0, le=1000)] | None = option(
        None, group="segmentation", none="the protocol's", help="Factor of the cosines before the softmax over names.",
    )
    background_threshold: Share | None = option(
        None, group="segmentation", none="the protocol's",
        help="Pixels whose best class has a lower probability are background.",
    )
    area_threshold: Share | None = option(
        None, group="segmentation", none="the protocol's",
        help="Leave out classes with a smaller share of the picture's foreground.",
    )
    regions: Annotated[str, Meta(pattern="^(none|colour|sam:.+|files:.+)$")] | None = option(
        None, group="segmentation", metavar="none|colour|sam:FOLDER|files:FOLDER", none="none",
        help="Each region gets the name that most of its pixels have.",
        about="colour divides the picture by its colours, and needs `cliploc[regions]`. sam:FOLDER takes the masks of "
        "a Segment Anything, and needs `cliploc[sam]`. files:FOLDER has a PNG for each picture, with a number for each "
        "region. Method corrclip reads the regions too.",
    )
    candidates: Annotated[int, Meta(ge=0, le=2**15)] | None = option(
        None, group="segmentation", none="the protocol's",
        help="Only the N classes that fit the picture best, or one of its windows, can be given; 0: all.",
        about="For long lists of names. The background is always one of them.",
    )
    propagation: Literal["none", "tlp"] | None = option(
        None, group="segmentation", none="none",
        help="tlp: PEARL's second part spreads the cosines of all names over the picture, up to its edges.",
    )
    position_rule: Literal["antialiased", "dino"] | None = option(
        None, group="segmentation", none="the protocol's",
        help="How a ViT's position embeddings are resized for windows of another size.",
    )
    # fmt: on


@dataclass(frozen=True, kw_only=True)
class FaithfulnessOptions(ProtocolOptions):
    """Changes to the protocols of faithfulness (docs/faithfulness.md); None is the published value."""

    # fmt: off
    steps: Annotated[int, Meta(ge=2, le=50176)] | None = option(
        None, group="faithfulness", none="224", help="Steps of deletion and insertion; fewer are faster.",
    )
    baseline: Baseline | None = option(
        None, group="faithfulness", none="each metric's own: zero for deletion, blur for insertion",
        help="What replaces removed pixels.",
    )
    target: Literal["prediction", "label"] | None = option(
        None, group="faithfulness", none="prediction",
        help="Name to map and score: the model's prediction, or the true label.",
    )
    # fmt: on


@dataclass(frozen=True, kw_only=True)
class AnnotateOptions(ProtocolOptions):
    """The options of `cliploc.annotate` besides those of a `Localizer`."""

    # fmt: off
    formats: Sequence[str] = option(
        ("coco",), group="output", usual=True, metavar="NAME,NAME", flags=("--format",),
        help="Output formats: coco, csv, cvat, labelstudio, voc, yolo.",
        about="Formats written before are updated too.",
    )
    share: Mapping[Annotated[str, Meta(min_length=1)], Share] = option(
        factory=dict, group="boxes", metavar="NAME=all|0-1", parse=_parse_share,
        text="=".join, flags=("--share",), repeat=True, gather=dict,
        help="Share of the pictures that show a name, if you know it; repeatable.",
        about='A mapping, such as {"raccoon": 1.0}; "all" on the command line is 1.',
    )
    max_false: PositiveShare | None = option(
        None, group="boxes", metavar="5%", parse=_parse_percent, none="no promise",
        help="Leave only drafts that need no look: no larger share (5% or 0.05) of them is wrong, 95 % sure.",
        about="By pictures reviewed in random order: docs/annotate.md.",
    )
    rename: Mapping[Annotated[str, Meta(min_length=1)], Annotated[str, Meta(min_length=1)]] = option(
        factory=dict, group="input", metavar="OLD=NEW", text="=".join, flags=("--rename",), repeat=True, gather=dict,
        parse=lambda text: tuple(part.strip() for part in text.partition("=")[::2]),
        help="Call a name of the run otherwise, or merge it with another; repeatable. What people did stays.",
    )
    remove: Sequence[str] = option(
        (), group="input", metavar="NAME", repeat=True,
        help="Remove a name of the run with its boxes, also those that people drew; repeatable.",
    )
    as_typed: bool = option(
        False, group="input", help="Take names as they are typed, also where the model has a similar word only.",
    )
    masks: bool = option(
        False, group="output", usual=True, help="Also write the mask of each box, in formats that support it.",
        about="See docs/masks.md. With `masks_by` among the options each box always has it.",
    )
    unsure: bool = option(False, group="output", usual=True, help="Also export the boxes that are unsure.")
    reviewed: bool = option(False, group="output", usual=True, help="Export only the pictures that were reviewed.")
    val: Share = option(
        0.0, group="output", metavar="0-1", help="Share of the pictures for validation, in YOLO's and VOC's splits.",
    )
    copy: bool = option(
        False, group="output", help="Copy the pictures into formats that include them, instead of linking.",
    )
    decisions: str | os.PathLike[str] | None = option(
        None, group="input", usual=True, metavar="FILE|DIR", flags=("--apply",),
        help="Apply a corrected set: COCO, CSV, CVAT, Label Studio, VOC, YOLO.",
        about="Its boxes take the place of the drafts, also in later calls.",
    )
    limit: Annotated[int, Meta(ge=1, le=10_000_000)] | None = option(
        None, group="input", usual=True, none="all", help="Use only the first N pictures.",
    )
    retry: bool = option(False, group="run", help="Retry pictures that failed before.")
    image_url: str | None = option(
        None, group="output", metavar="TEXT", none=f"{IMAGE_URL}FOLDER/, or that of the run",
        help="Prefix of picture paths in Label Studio's file.",
    )
    teach: bool | None = option(
        None, group="boxes", usual=True, metavar="on|off", none="on, where the method allows it",
        parse=lambda text: {"on": True, "off": False}.get(text, text),
        help="Learn from the folder itself, and from corrections: docs/teaching.md.",
    )
    # fmt: on


OPTIONS: Mapping[str, Option] = {option.name: option_of(option) for option in fields(Options)}
RESULT_OPTIONS = tuple(name for name, facts in OPTIONS.items() if not facts.harmless)
DEFAULTS = Options()
# A benchmark's defaults: each name asked for is in its picture, and keeps all its boxes.
BENCHMARK = Options(min_presence=0, min_score=0, second_look=False)
OF_LOCALIZATION = {**BENCHMARK.changed(), "resize": "squash"}  # in a benchmark of boxes, what was not asked for


# ---------------------------------------------------------------------------------------------------- the command line
def flags_of(name: str) -> tuple[str, ...]:
    """The names of an option on the command line, the longest first."""
    dashed = name.replace("_", "-")
    both = f"--{dashed}/--no-{dashed}" if getattr(DEFAULTS, name, None) is True else f"--{dashed}"
    return OPTIONS[name].flags if name in OPTIONS and OPTIONS[name].flags else (both,)


def words_of(values: Mapping[str, Any]) -> list[str]:
    """Options as a command line has them; None is left out."""
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

"""Options that several commands have, and what their texts mean."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from cliploc._threads import MAX_THREADS
from cliploc._values import parse_share
from cliploc.config import PRECISIONS
from cliploc.errors import UsageError

if TYPE_CHECKING:
    from cliploc.jobs.engine import Engine

MAX_SCALES = 16  # each is a forward pass, and a copy of the picture


def whole_number(least: int, most: int, meaning: str) -> Any:
    """An option that takes a whole number in a range: its help shows the range, and it is checked before any work."""

    def check(parameter: typer.CallbackParam, value: int | None) -> int | None:
        if value is not None and not least <= value <= most:
            came = str(value) if len(str(value)) <= 24 else f"a number of {len(str(value))} digits"
            raise UsageError(f"expected {parameter.opts[0]} from {least} to {most}, got {came}")
        return value

    return typer.Option(metavar=f"{least}-{most}", help=meaning, callback=check)


Model = Annotated[str, typer.Option("--model", help="A name of `cliploc models`.")]
Pretrained = Annotated[
    str | None,
    typer.Option(
        metavar="TAG|FILE|FILE@TAG",
        help="Which weights: published ones, a file, or a file like a tag's weights. [default: the model's own]",
    ),
]
MethodName = Annotated[
    list[str] | None,  # so that a second one is refused (`one_method`), not silently taken
    typer.Option(
        "--method",
        metavar="NAME",
        help="A name of `cliploc methods`, or several: cam+layer_cam. [default: cam on CNN towers, naclip on ViTs]",
    ),
]
MethodOptions = Annotated[
    list[str] | None,
    typer.Option("--option", "-o", metavar="KEY=VALUE", help="An option of the method; repeatable."),
]
Names = Annotated[
    list[str] | None,
    typer.Option("--prompt", "-p", metavar="NAME", help='What to look for; once for each. "cat|kitten": synonyms.'),
]
Classes = Annotated[
    str | None, typer.Option(metavar="FILE|imagenet", help="Instead of --prompt: names out of a file, one a line.")
]
Templates = Annotated[
    list[str] | None,
    typer.Option(
        "--template",
        metavar="TEXT",
        help="A sentence with {} for the name (repeatable), a FILE.txt of them, or default, openai-80, openai-7, "
        "name-only.",
    ),
]
Threshold = Annotated[
    str | None,
    typer.Option(
        metavar="0-1|auto",
        help="Boxes hold what is hotter than this share of the hottest. [default: the method's own]",
    ),
]
Resize = Annotated[
    str | None,
    typer.Option(metavar="squash|crop|pad", help="How a photo meets the model's input. [default: the model's own]"),
]
ImageSize = Annotated[
    str | None, typer.Option(metavar="N|HxW", help="Input size in pixels. [default: the model's own]")
]
Scales = Annotated[str, typer.Option(metavar="1,1.5,2", help="Average the maps of these multiples of it.")]
Flip = Annotated[bool, typer.Option("--flip", help="Average in the map of the mirrored photo.")]
Refine = Annotated[
    str, typer.Option(metavar="NAME,NAME", help="Steps that follow the method: names of `cliploc refinements`.")
]
Precision = Annotated[str, typer.Option(metavar="|".join(PRECISIONS), help="What the model's tower computes in.")]
NoTextCache = Annotated[bool, typer.Option("--no-text-cache", help="Neither read nor keep names' embeddings on disk.")]
BatchSize = Annotated[int, whole_number(1, 4096, "Photos sent through the model at once.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or mps; the best there is when left out.")]
EngineName = Annotated[str, typer.Option(metavar="local|ray", help="What carries the run out.")]
Address = Annotated[
    str | None, typer.Option(metavar="HOST:PORT|auto", help="Of a running Ray cluster. [default: this machine]")
]


Threads = Annotated[
    int | None, whole_number(1, MAX_THREADS, "Processors that a model computes with. [default: all; ray: as here]")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of lines.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show a traceback when something goes wrong.")]


# -------------------------------------------------------------------------------------------------- what texts mean
def asked_names(prompt: Sequence[str] | None, classes: str | None) -> list[str]:
    """The names asked for, by `--prompt` or by `--classes`."""
    from cliploc import prompts

    if prompt and classes:
        raise UsageError("expected --prompt or --classes, got both: write all names into the file")
    if classes == "imagenet":
        return [one.name for one in prompts.imagenet_classes()]
    return prompts.read_classes(classes) if classes else list(prompt or [])


def parse_list(text: str) -> list[str]:
    """What stands between commas."""
    return [part.strip() for part in text.split(",")]


def class_names(text: str) -> list[str]:
    """Names separated by commas, or the lines of a file."""
    if not Path(text).is_file():
        return parse_list(text)
    lines = [line.strip() for line in Path(text).read_text(encoding="utf-8-sig").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def one_method(given: Sequence[str] | None) -> str | None:
    """What `--method` names, where a command runs one method or the mean of several.

    Raises:
        UsageError: it was given more than once.
    """
    if given and len(given) > 1:
        raise UsageError(
            f"expected --method once, got it {len(given)} times: write --method {'+'.join(dict.fromkeys(given))} for "
            "the mean of their maps, or run the command once for each"
        )
    return given[0] if given else None


def parse_templates(given: Sequence[str] | None) -> list[str] | None:
    """All sentences of what `--template` was given."""
    from cliploc import prompts

    return [one for text in given for one in prompts.resolve_templates(text)] if given else None


def pair_weights(models: Sequence[str], pretrained: Sequence[str] | None) -> list[tuple[str, str | None]]:
    """Each model with its weights, given once for all or once for each; None for its own."""
    tags = list(pretrained or ["own"])
    if len(tags) not in (1, len(models)):
        raise UsageError(f"expected --pretrained once, or for each of {len(models)} models, got {len(tags)}")
    tags = tags * len(models) if len(tags) == 1 else tags
    return [(model, None if tag == "own" else tag) for model, tag in zip(models, tags, strict=True)]


def parse_threshold(text: str | None) -> float | str | None:
    """A share of the hottest, or "auto"."""
    if text is None or text == "auto":
        return text
    return parse_share(text, "expected --threshold from 0 to 1, or auto")


def parse_scales(text: str) -> list[float]:
    """Numbers with commas between them."""
    parts = text.split(",")
    if len(parts) > MAX_SCALES:
        raise UsageError(f"expected at most {MAX_SCALES} --scales, got {len(parts)}")
    try:
        return [float(part) for part in parts]
    except ValueError:
        raise UsageError(f"expected --scales as numbers with commas, such as 1,1.5,2, got {text!r}") from None


def parse_image_size(text: str | None) -> int | tuple[int, int] | None:
    """One side, or height and width."""
    if text is None:
        return None
    try:
        sides = [int(part) for part in text.lower().replace("×", "x").split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2):
        raise UsageError(f"expected --image-size as one side or height x width, such as 448 or 224x448, got {text!r}")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def parse_method_options(method: str, pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts → values of the types that the method's function declares; `name.key` for one of several."""
    from cliploc.saliency import find

    found = find(method)
    types: dict[str, Any] = {}
    for member in (found.members or (found,)) if pairs else ():
        hints = get_type_hints(member.function)
        types |= hints | {f"{member.name}.{key}": hint for key, hint in hints.items()}
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = (part.strip() for part in pair.partition("="))
        if not equals or not key:
            raise UsageError(f"expected --option as key=value, got {pair!r}")
        key = key.replace("-", "_")
        options[key] = _typed(f"{method}'s option {key}", text, types.get(key, str))
    return options


def _typed(what: str, text: str, wanted: Any) -> Any:
    """A text as the type wanted: bool, int, float, str, several of one of them, or a union."""
    if get_origin(wanted) in (tuple, list, Sequence):
        return tuple(_typed(what, part.strip(), get_args(wanted)[0]) for part in text.strip("()[]").split(",") if part)
    if get_origin(wanted) in (Union, UnionType):
        kinds = [kind for kind in get_args(wanted) if kind is not NoneType]
        if text.lower() == "none" and len(kinds) < len(get_args(wanted)):
            return None
        for kind in kinds[:-1]:
            try:
                return _typed(what, text, kind)
            except UsageError:
                continue
        return _typed(what, text, kinds[-1])
    words = {bool: "true or false", int: "a whole number", float: "a number"}
    try:
        if wanted is bool:
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        return wanted(text) if wanted in (int, float) else text
    except (KeyError, ValueError):
        raise UsageError(f"expected {what} to be {words[wanted]}, got {text!r}") from None


def use_threads(threads: int | None) -> None:
    """Has torch compute with so many threads in this process; None leaves the choice to torch."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def parse_engine(name: str, address: str | None, threads: int | None) -> Engine:
    """What carries a run out."""
    if name == "local":
        from cliploc.jobs import local

        if address is not None:
            raise UsageError("expected --address with --engine ray only: leave it out, or add --engine ray")
        return partial(local.run, threads=threads)
    if name == "ray":
        from cliploc.jobs import ray

        return partial(ray.run, address=address, threads=threads)
    raise UsageError(f"expected --engine of local, ray, got {name!r}")

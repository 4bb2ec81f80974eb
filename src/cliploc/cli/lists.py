"""`cliploc models` and `methods`: the registries, listed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

from rich.console import RenderableType
from rich.text import Text

from cliploc import UsageError
from cliploc.cli import options as cli
from cliploc.cli.output import DONE
from cliploc.cli.terminal import Terminal, facts, grid, title_row
from cliploc.options import RECIPES
from cliploc.registry import Registry

T = TypeVar("T")


class ModelsFlags(cli.Flags):
    """What `models` has."""

    part: str = cli.flag("A model to describe, or a part of a name to search for.", "", metavar="NAME", positional=True)
    download: bool = cli.flag("Download NAME's weights and tokenizer now, and check that they load.", False)
    pretrained: str | None = cli.flag("Weights to download, if there are several.", None, metavar="TAG")


class MethodsFlags(cli.Flags):
    """What `methods` has."""

    part: str = cli.flag("A part of a name to search for.", "", metavar="NAME", positional=True)


def _chosen(registry: Registry[T], part: str) -> list[T]:
    """The things with this part in their name; if there are none, the error has the nearest names."""
    known = [name for name in registry.known_names() if part.lower() in name.lower()]
    if not known:
        registry.check_known(part)
    return [registry.get(name) for name in known]


@cli.command()
def models(flags: ModelsFlags) -> int:
    """List or describe models, or download weights."""
    part, pretrained = flags.part, flags.pretrained
    if flags.download:
        return _download(part, pretrained)
    if pretrained is not None:
        raise UsageError(
            f"expected --download with --pretrained {pretrained}, got none: add it, or leave --pretrained out"
        )
    from cliploc.towers import models as registry

    chosen = _chosen(registry, wanted := part.replace("/", "-"))
    from cliploc import methods as saliency
    from cliploc.towers import guides

    terminal = Terminal()

    def runs(model: Any) -> tuple[str, ...]:
        return saliency.fitting(model, guided=True) if model.usable else ()

    exact = [entry for entry in chosen if entry.name == wanted]
    if exact or len(chosen) == 1:
        (model,) = exact or chosen
        terminal.data(_about_model(model, runs(model)))
        if others := [entry.name for entry in chosen if entry is not model]:
            terminal.data(facts([("", ""), ("see also", " · ".join(others))]))
        return DONE
    titles = ("name", "tower", "input", "parameters", "licence", "methods", "about", "weights")
    rows: list[Sequence[str | Text]] = [title_row(*titles)]
    for m in chosen:
        number, weights = f"{len(runs(m))} of {m.kind}" if m.usable else "none", " · ".join(m.weights) or "–"
        rows.append((m.name, m.kind, _by(m.input_hw), _size(m), m.licence, number, m.about, weights))
    narrow = [(row[0], row[1], row[3], row[7]) for row in rows]
    terminal.listing(rows, narrow)
    terminal.data("")
    legend = {f"methods of {kind}": [m.name for m in saliency.methods if kind in m.towers] for kind in ("cnn", "vit")}
    for what, pooling in (("average", "global average"), ("attention", "attention")):
        legend[f"not on {what}-pooled vits"] = [m.name for m in saliency.methods if pooling not in m.poolings]
    legend["only with --guide"] = [m.name for m in saliency.methods if m.needs().guide]
    terminal.data(grid([(title, " · ".join(names)) for title, names in legend.items()]))
    terminal.say("all about one: cliploc models NAME", style="dim")
    if part:
        return DONE
    terminal.data("")
    rows = [title_row("--guide", "stride", "parameters", "licence", "tower of timm")]
    rows += [(one.name, str(one.stride), f"{one.parameters:.1f} M", one.licence, one.timm) for one in guides]
    terminal.listing(rows)
    return DONE


def _download(name: str, pretrained: str | None) -> int:
    """Fetches a model's files into the caches by building it, which also shows that they fit together."""
    from cliploc.towers import create

    if not name:
        raise UsageError("expected a model name with --download, got none: cliploc models lists them")
    cli.check_known([name])
    backbone = create(name, pretrained)
    file = backbone.weights_file
    where = "comes with its weights: nothing to download" if file is None else f"is there: {file}"
    Terminal().data(f"{backbone.name} {where}")
    return DONE


def _about_model(model: Any, methods: Sequence[str]) -> RenderableType:
    from cliploc.find.recipes import recipe_of

    weights = " · ".join(model.weights)
    first, *others = [text for text, _ in Counter(model.preprocessing.values()).most_common()]
    tags = {one: " · ".join(tag for tag, text in model.preprocessing.items() if text == one) for one in others}
    about = {
        "name": model.name,
        "tower": f"{model.kind}: {model.about}",
        "pooling": model.pooling,
        "input": _by(model.input_hw),
        "parameters": _size(model),
        "weights": f"--pretrained {weights}" if weights else "its own" if model.parameters else "none published",
        "preprocessing": "; ".join([first, *(f"{names}: {other}" for other, names in tags.items())]),
        "licence": model.licence,
        "methods": " · ".join(methods) or "none",
    }
    if methods:
        recipes = [recipe_of(model.name, name) for name in RECIPES]
        about |= {f"--recipe {recipe.name}": str(recipe) for recipe in recipes} | {"recipes": recipes[0].basis}
    return facts(about.items())


def _size(model: Any) -> str:
    return "–" if model.parameters is None else f"{model.parameters:.1f} M"


def _by(hw: tuple[int, int]) -> str:
    return f"{hw[0]}×{hw[1]}"


@cli.command()
def methods(flags: MethodsFlags) -> int:
    """List the saliency methods, with their options."""
    from cliploc.methods import methods as registry

    chosen = _chosen(registry, flags.part)
    rows: list[Sequence[str | Text]] = [title_row("name", "title", "family", "towers", "options", "paper")]
    for m in chosen:
        options = ", ".join(f"{key}={value}" for key, value in m.options.items()) or "–"
        rows.append((m.name, m.title, m.family, ", ".join(sorted(m.towers)), options, m.paper))
    Terminal().listing(rows)
    return DONE

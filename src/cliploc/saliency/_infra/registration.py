"""The registry of saliency methods and its decorator `@saliency(...)`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar, get_args

from cliploc.errors import UsageError
from cliploc.method import Family, Method
from cliploc.registry import Registry, module_names
from cliploc.tower import Needs, Pooling, TowerKind

methods: Registry[Method] = Registry(
    "method",
    "cliploc.saliency",
    "cliploc.methods",
    home=lambda method: method.function.__module__,
    listed=lambda: module_names("cliploc.saliency"),  # each file has its method's name
)

F = TypeVar("F", bound=Callable[..., Any])


def saliency(
    name: str,
    *,
    title: str,
    paper: str,
    family: Family,
    towers: Iterable[TowerKind],
    needs: Needs | Callable[..., Needs],
    relu: bool,
    threshold: float,
    prompts_interact: bool = False,
    reads_text: bool = True,
    reads_picture: bool = True,
    cosines: bool = False,
    poolings: Iterable[Pooling] = get_args(Pooling),
) -> Callable[[F], F]:
    """Registers a function `Context, **options → [B, P, h, w]` as a saliency method.

    The function returns raw saliency in float32. The `Localizer` does the rest: ReLU (when `relu`), min–max to 0–1,
    upsampling, and mapping back to the original picture. A flat map means "not found".

    Args:
        name: as typed on the command line.
        title: the name as papers write it.
        paper: authors, year, and where.
        family: how it works.
        towers: the tower kinds it is defined on.
        needs: what it reads from the trace; a function of its options where it depends on them.
        relu: whether negative values are set to 0 before the map is normalised.
        threshold: default τ of its boxes, a share of the map's maximum.
        prompts_interact: whether a prompt's map depends on the other prompts it is asked with.
        reads_text: False for a map that is the same for every prompt.
        reads_picture: False for a map that is the same for every picture.
        cosines: whether raw maps are cosines of places with prompts, so that maps of different prompts compare.
        poolings: the kinds of pooling that a ViT may have.
    """

    def register(function: F) -> F:
        parameters = list(inspect.signature(function).parameters.values())
        options = {p.name: p.default for p in parameters[1:]}
        if inspect.Parameter.empty in options.values():
            raise TypeError(f"method {name!r}: every option needs a default value")
        methods.register(
            name,
            Method(
                name=name,
                function=function,
                title=title,
                paper=paper,
                family=family,
                towers=frozenset(towers),
                needs=needs if callable(needs) else lambda **_: needs,
                relu=relu,
                threshold=threshold,
                options=options,
                prompts_interact=prompts_interact,
                reads_text=reads_text,
                reads_picture=reads_picture,
                cosines=cosines,
                poolings=frozenset(poolings),
            ),
        )
        return function

    return register


def baselines() -> tuple[str, ...]:
    """The names of the baselines without a model whose boxes every benchmark shows beside the other methods.

    Their maps are fixed. A map of random numbers (it has the option `seed`) is no baseline for boxes.

    Example:
        >>> baselines()
        ('centre_box', 'centre_gaussian')
    """
    return tuple(method.name for method in methods if method.family == "baseline" and "seed" not in method.options)


def check_options(method: Method, options: dict[str, Any]) -> None:
    """Refuses options that a method does not have.

    Raises:
        UsageError: an unknown option; the message lists the method's options.
    """
    for option in options:
        if option not in method.options:
            there = ", ".join(method.options) or "none"
            raise UsageError(f"{method.name} has no option {option!r}: it has {there}")

"""The registry of saliency methods: `@saliency(...)`, names such as "gem+legrad", and what runs on which tower."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, get_args

from cliploc.errors import UsageError
from cliploc.method import Family, Method
from cliploc.registry import Registry, module_names
from cliploc.saliency._infra.libra import with_libra
from cliploc.tower import Needs, Pooling, TowerKind

if TYPE_CHECKING:
    from torch import Tensor

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
    threshold: float,
    relu: bool = False,
    prompts_interact: bool = False,
    reads_text: bool = True,
    reads_picture: bool = True,
    cosines: bool = False,
    poolings: Iterable[Pooling] = get_args(Pooling),
    libra: bool = True,
) -> Callable[[F], F]:
    """Registers a function `Context, **options → [B, P, h, w]` as a saliency method.

    The function returns raw saliency in float32. The `Localizer` does the rest: ReLU (when `relu`), min–max to 0–1,
    upsampling, and mapping back to the original picture. A flat map means "not found". The arguments are the attributes
    of `cliploc.method.Method`; `needs` is a function of the options only where it depends on them. `libra` is False for
    a gradient method that has rules of its own for the backward pass; any other gradient method on ViTs has the option
    of this name (`with_libra`).
    """

    def register(function: F) -> F:
        parameters = list(inspect.signature(function).parameters.values())
        options = {p.name: p.default for p in parameters[1:]}
        if inspect.Parameter.empty in options.values():
            raise TypeError(f"method {name!r}: every option needs a default value")
        called: Callable[..., Any] = function
        asked: Callable[..., Needs] = needs if callable(needs) else lambda **_: needs
        if libra and family == "gradient" and "vit" in towers:
            called, asked = with_libra(function, asked)
            options["libra"] = False
        methods.register(
            name,
            Method(
                name=name,
                function=called,
                title=title,
                paper=paper,
                family=family,
                towers=frozenset(towers),
                needs=asked,
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
    """The methods without a model, of fixed maps (so without `seed`), shown beside others in benchmarks."""
    return tuple(method.name for method in methods if method.family == "baseline" and "seed" not in method.options)


def baseline(name: str, *, title: str, threshold: float) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Registers a method without a model; arguments as for `saliency`."""
    return saliency(
        name,
        title=title,
        paper="no paper: a baseline without a model",
        family="baseline",
        towers=("cnn", "vit"),
        needs=Needs(),
        threshold=threshold,
        reads_text=False,
        reads_picture=False,
    )


def names_in(spec: str) -> list[str]:
    """The method names that "+" joins."""
    if "," in spec:
        joined = "+".join(name.strip() for name in spec.split(","))
        raise UsageError(
            f"expected one method, got several, {spec!r}: write {joined} for the mean of their maps, or ask for one "
            "after the other"
        )
    return [name.strip() for name in spec.split("+")]


def refuse_unknown(spec: str) -> None:
    """Refuses unknown method names, as `find` does, without importing the methods."""
    for name in names_in(spec):
        methods.refuse_unknown(name)


class Tower(Protocol):
    """The facts about a model that decide which methods run on it: a loaded one (`Backbone`) or a listed one."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> TowerKind: ...

    @property
    def pooling(self) -> Pooling: ...


def unfit_reason(
    method: Method,
    tower: Tower,
    options: Mapping[str, Any] | None = None,
    trained: Collection[str] = (),
    guided: bool = False,
) -> str | None:
    """Why a method (an ensemble: any member) with options does not run on a tower; None where it runs."""
    for member in method.members or (method,):
        if tower.kind not in member.towers and member.name not in trained:
            return f"{method.name} does not work on {tower.name}, a {tower.kind} tower"
        if tower.kind == "vit" and tower.pooling not in member.poolings:
            return f"{method.name} does not work on {tower.name}, a {tower.kind} tower with {tower.pooling} pooling"
        if member.needs().guide and not guided:
            return f"{method.name} needs a guide, a second image tower, such as --guide dinov2-s or --guide mini"
    if options and tower.kind != "vit" and method.needs(**options).only_vit:
        given = ", ".join(f"{key}={value}" for key, value in options.items())
        return f"{method.name} with {given} needs a vit tower, and {tower.name} is a {tower.kind} tower"
    return None


def fitting(tower: Tower, trained: Collection[str] = (), guided: bool = False) -> tuple[str, ...]:
    """The names of all methods that run on a tower; `trained` and `guided` as for `unfit_reason`."""
    reasons = {method.name: unfit_reason(method, tower, trained=trained, guided=guided) for method in methods}
    return tuple(name for name, reason in reasons.items() if reason is None)

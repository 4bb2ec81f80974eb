"""The registry of saliency methods: `@saliency(...)`, names such as "gem+legrad", options, what runs on which tower."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

from cliploc.errors import UsageError
from cliploc.methods._infra.method import Context, Family, Method
from cliploc.options import short
from cliploc.registry import Registry, module_names
from cliploc.towers.tower import Needs, Pooling, TowerKind

if TYPE_CHECKING:
    from torch import Tensor


methods: Registry[Method] = Registry(
    "method",
    "cliploc.methods",
    "cliploc.methods",
    home=lambda method: method.function.__module__,
    listed=lambda: module_names("cliploc.methods"),  # each file has its method's name
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
    of `Method`; `needs` is a function of the options only where it depends on them. `libra` is False for a gradient
    method that has rules of its own for the backward pass; any other gradient method on ViTs has the option of this
    name (`with_libra`).
    """

    def register(function: F) -> F:
        kinds = frozenset(towers)
        if not kinds <= {*get_args(TowerKind)}:
            raise ValueError(f"method {name!r}: expected towers such as ('cnn', 'vit'), got {towers!r}")
        if not callable(needs) and not isinstance(needs, Needs):
            raise TypeError(f"method {name!r}: expected needs as Needs(…), got {short(needs)}")
        parameters = list(inspect.signature(function).parameters.values())
        options = {p.name: p.default for p in parameters[1:]}
        if inspect.Parameter.empty in options.values():
            raise TypeError(f"method {name!r}: every option needs a default value")
        called: Callable[..., Any] = function
        asked: Callable[..., Needs] = needs if callable(needs) else lambda **_: needs
        if libra and family == "gradient" and "vit" in kinds:
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
                towers=kinds,
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


def patch_cosines(
    name: str, *, title: str, paper: str, threshold: float, needs: Needs | Callable[..., Needs] = Needs(dense=1)
) -> Callable[[F], F]:
    """Registers a ViT's method whose maps are cosines of the texts with readings of the patches; see `saliency`."""
    return saliency(
        name,
        title=title,
        paper=paper,
        family="attention",
        towers=("vit",),
        needs=needs,
        threshold=threshold,
        cosines=True,
    )


def names_in(spec: str) -> list[str]:
    """The method names that "+" joins."""
    if not isinstance(spec, str):
        raise UsageError(f"expected the name of a method, got {short(spec)}: write 'cam'")
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


class TowerFacts(Protocol):
    """The facts about a model that decide which methods run on it: a loaded one (`Backbone`) or a listed one."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> TowerKind: ...

    @property
    def pooling(self) -> Pooling: ...


def unfit_reason(
    method: Method,
    tower: TowerFacts,
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


def fitting(tower: TowerFacts, trained: Collection[str] = (), guided: bool = False) -> tuple[str, ...]:
    """The names of all methods that run on a tower; `trained` and `guided` as for `unfit_reason`."""
    reasons = {method.name: unfit_reason(method, tower, trained=trained, guided=guided) for method in methods}
    return tuple(name for name, reason in reasons.items() if reason is None)


def with_libra(
    function: Callable[..., Any], needs: Callable[..., Needs]
) -> tuple[Callable[..., Any], Callable[..., Needs]]:
    """Function and needs with the option `libra`: LibraGrad's gradients (Mehri, Baghshah & Pilehvar 2025, CVPR)."""

    @functools.wraps(function)
    def balanced(ctx: Context, *args: Any, libra: bool = False, **options: Any) -> Any:
        if not libra:
            return function(ctx, *args, **options)
        from cliploc.methods._infra.backward import LIBRA, Backward  # here: the registry is read without torch

        with Backward(LIBRA):
            # The graphs that the trace holds were recorded without the rules: blocks are run again.
            return function(replace(ctx, trace=replace(ctx.trace, ends={})), *args, **options)

    def balanced_needs(libra: bool = False, **options: Any) -> Needs:
        own = needs(**options)
        if not libra:
            return own
        blocks = {*own.features, *own.ends, *(() if own.tokens == "all" else own.tokens)} or {-1}  # which no CNN has
        return replace(own, ends=(), tokens="all" if own.tokens == "all" else tuple(sorted(blocks)))

    balanced.__annotations__ = {**function.__annotations__, "libra": bool}
    return balanced, balanced_needs


WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", NoneType: "none"}


def resolve_options(method: Method, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the method's function takes them: a bare name goes to every member that has such an option."""
    if not isinstance(options, Mapping):
        raise UsageError(f"expected options of {method.name} by name, got {short(options)}: write {{'option': value}}")
    resolved: dict[str, Any] = {}
    for given, value in options.items():
        option = str(given).removeprefix(f"{method.name}.")
        keys = [f"{m.name}.{option}" for m in method.members if option in m.options] or [option]
        resolved |= {key: value for key in keys if key not in options or key == option}  # exact name wins
    for key in resolved:
        if key not in method.options:
            there = ", ".join(method.options) or "none"
            raise UsageError(f"{method.name} has no option {key!r}: it has {there}")
    for key, value in resolved.items():  # in the types that the functions declare
        member = next((m for m in method.members if key.startswith(f"{m.name}.")), method)
        option = key.removeprefix(f"{member.name}.")
        what = f"{member.name}'s option {option}"
        if isinstance(value, str):  # as on a command line
            resolved[key] = typed(what, value, get_type_hints(member.function).get(option, str))
            continue
        try:
            wanted = get_type_hints(member.function).get(option, Any)
        except (NameError, TypeError):  # of a plugin, whose types may be known to its type checker only
            continue
        if not _fits(value, wanted):
            raise UsageError(f"expected {what} to be {_in_words(wanted)}, got {short(value)}")
    return resolved


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a value that is no text has a type; True for types that only the method can judge, such as heads."""
    if get_origin(wanted) in (Union, UnionType):
        return any(_fits(value, kind) for kind in get_args(wanted))
    if get_origin(wanted) in (tuple, list, Sequence):
        item = get_args(wanted)[0]
        return isinstance(value, tuple | list) and all(_fits(part, item) for part in value)
    if get_origin(wanted) is Literal:
        return value in get_args(wanted)
    if wanted in (int, float):  # numpy's numbers too
        return isinstance(value, Integral if wanted is int else Real) and not isinstance(value, bool)
    return not isinstance(wanted, type) or wanted not in WORDS or isinstance(value, wanted)


def _in_words(wanted: Any) -> str:
    """A type in words."""
    if get_origin(wanted) in (Union, UnionType):
        return " or ".join(_in_words(kind) for kind in get_args(wanted))
    if get_origin(wanted) in (tuple, list, Sequence):
        return f"a list, each of its items {_in_words(get_args(wanted)[0])}"
    if get_origin(wanted) is Literal:
        return " or ".join(map(str, get_args(wanted)))
    return WORDS.get(wanted) or str(getattr(wanted, "__name__", wanted))


def typed(what: str, text: str, wanted: Any) -> Any:
    """Converts a text to a type: bool, int, float, str, a sequence of one of them, or a union."""
    if get_origin(wanted) in (tuple, list, Sequence):
        return tuple(typed(what, part.strip(), get_args(wanted)[0]) for part in text.strip("()[]").split(",") if part)
    if get_origin(wanted) in (Union, UnionType):
        kinds = [kind for kind in get_args(wanted) if kind is not NoneType]
        if text.lower() == "none" and len(kinds) < len(get_args(wanted)):
            return None
        for kind in kinds[:-1]:
            try:
                return typed(what, text, kind)
            except UsageError:
                continue
        return typed(what, text, kinds[-1])
    try:
        if wanted is bool:
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]
        return wanted(text) if wanted in (int, float) else text
    except (KeyError, ValueError):
        raise UsageError(f"expected {what} to be {WORDS[wanted]}, got {text!r}") from None

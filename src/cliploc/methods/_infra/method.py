"""What a saliency method is (`Method`), all that it may look at (`Context`), and the registry, without torch.

The letters of the shapes are those of `cliploc.towers.tower`.
"""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta

from cliploc.errors import UsageError
from cliploc.options import parse_list, parse_pair, short
from cliploc.registry import Registry, module_names
from cliploc.towers.tower import All, BlockEnd, DenseReading, Needs, Pooling, TowerKind, Trace, as_transformer

if TYPE_CHECKING:
    from torch import Tensor

    from cliploc.towers import ModelEntry
    from cliploc.towers.tower import Backbone, TransformerBackbone

Family = Literal["activation", "gradient", "perturbation", "attention", "baseline", "ensemble"]
# Types of options, whose ranges `resolve_options` checks.
Count = Annotated[int, Meta(ge=1)]
FromEnd = Annotated[int, Meta(le=-1)]  # a stage or block: −1 is the last
Stages = Annotated[tuple[FromEnd, ...], Meta(min_length=1)]
Blocks = Count | All  # how many of the last blocks
Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]


@dataclass(frozen=True, eq=False)
class Context:
    """Everything a saliency method may look at, for one batch.

    Tensors with rows and columns may lie with the channels last in memory: use `reshape` or `flatten`, as `view` fails.
    """

    # Makes `images`; called only if a method reads them, which a remembered trace can make needless.
    make_images: Callable[[], Tensor]
    text: Tensor  # `[B, P, D]` float32: the direction each prompt asks for (unit norm, unless something is subtracted)
    trace: Trace  # the forward pass with what the method's `needs` asked for
    backbone: Backbone  # the model
    batch_size: int = 32  # how many images a perturbation method sends through the tower at once
    # Called with the number of masked images just done, and about how many are left, by methods that make many.
    progress: Callable[[int, int], None] | None = None
    # What embeds masked images instead of `backbone.encode_image`, such as the tower in bfloat16.
    encode_masked: Callable[[Tensor], Tensor] | None = None
    # Results that depend on the images alone (masked embeddings), shared by all methods that run on this batch, and,
    # with a `cliploc.Memory`, by later runs on the same images. A refinement that reads the features of windows has one
    # of its own, for these windows.
    cache: dict[Any, Any] = field(default_factory=dict)
    # Computes `redundant` with the prompts' templates; None: the embedding of "" without a template.
    empty_name: Callable[[], Tensor] | None = None
    # For each image, the synonyms of each prompt, by which a closed head finds its class.
    words: Sequence[Sequence[tuple[str, ...]]] = ()
    # Gives the guide's features `[B, C, h, w]` float32, computed once; None: there is no guide.
    guide: Callable[[], Tensor] | None = None
    # `[B, H, W]`, the region of each pixel of the images, −1 in none; None: nothing divides the pictures.
    regions: Tensor | None = None
    windows: bool = False  # whether the images are all windows of one picture, as `Needs.windows` asks for
    # For refinements on the grid: whether the features that they read are those of a picture's windows, stitched, and
    # so finer than the tower's own of the whole picture.
    from_windows: bool = False
    threshold: float = 0.5  # for refinements on the grid: the τ that boxes of the maps before the step would have

    @property
    def images(self) -> Tensor:
        """`[B, 3, H, W]` normalised."""
        return self.make_images()

    @property
    def features(self) -> Tensor:
        """`[B, C, h, w]` of the last stage, in the tower's precision."""
        return self.trace.features[-1]

    @property
    def places(self) -> Tensor:
        """`[B, C, h, w]` by which places are compared: the guide's features, else those of the tower's middle stage."""
        return self.trace.features[self.backbone.middle_stage] if self.guide is None else self.guide()

    def head(self, features: Tensor, stage: int = -1) -> Tensor:
        """Finishes the tower from a stage's features: `[B, D]` unit norm, differentiable."""
        return self.backbone.head(features, self.trace, stage)

    def dense(self, reading: DenseReading = DenseReading()) -> Tensor:
        """The joint-space reading of every location, `[B, D, h, w]`; see `Backbone.dense`."""
        return self.backbone.dense(self.trace, reading)

    @property
    def patch_text(self) -> Tensor:
        """`[B, P, D]` what a ViT's patches are compared with; see `TransformerBackbone.patch_texts`."""
        return self.transformer.patch_texts(self.text)

    @property
    def redundant(self) -> Tensor:
        """What every text has in common, whatever it names: the empty name's embedding, computed at each call.

        `[D]`, `[P, D]` or `[B, P, D]`. Zero where a contrast was subtracted from a prompt, because that
        has removed it already.
        """
        return self.backbone.encode_text([""])[0] if self.empty_name is None else self.empty_name()

    @property
    def transformer(self) -> TransformerBackbone:
        """The backbone, known to be a ViT: for `resume`, `read_tokens`, `depth` and `prefix_tokens`."""
        return as_transformer(self.backbone)

    def resume(self, tokens: Tensor, block: int, needs: Needs, last: int = -1) -> Trace:
        """Runs a ViT from the tokens entering a block to its end; see `TransformerBackbone.resume`."""
        return self.transformer.resume(tokens, block, needs, self.trace.grid, last)

    def end(self, block: int) -> BlockEnd:
        """The end of a ViT's block, differentiable: the trace's, or run again on the tokens entering the block."""
        if block in self.trace.ends:
            return self.trace.ends[block]
        return self.transformer.end(self.trace.entering[block], block, self.trace.grid)

    def embed(self, images: Tensor) -> Tensor:
        """Masked images, `[n, 3, H, W]` normalised → `[n, D]` unit norm, in batches of `batch_size`."""
        import torch

        encode = self.encode_masked or self.backbone.encode_image
        chunks = [encode(chunk) for chunk in torch.split(images, self.batch_size)]
        return torch.cat(chunks)  # [n, D]


@typing.runtime_checkable
class TrainedHead(Protocol):
    """Layers trained on image labels, whose maps replace a method's semantic maps; see `cliploc.evaluate.train`."""

    method: str  # the saliency method it is trained for
    tower_kind: TowerKind  # of the tower it is trained on
    closed: bool  # whether it knows only the classes of its training set; an open head takes any name

    def digest(self) -> str:
        """A checksum of everything that its maps depend on, which tells heads apart."""

    def needs(self) -> Needs:
        """What it reads from the trace."""

    def semantics(self, ctx: Context) -> Tensor:
        """S, `[B, P, h, w]` float32: how much each place speaks for each prompt."""

    def unknown_reason(self, words: tuple[str, ...]) -> str | None:
        """Why the head cannot know a name by any of its synonyms, in one line; None when it can."""


@dataclass(frozen=True)
class Method:
    """A saliency method and what is known of it; made by `cliploc.methods.saliency`."""

    name: str  # as typed on the command line
    function: Callable[..., Tensor]  # `Context` and options → raw maps `[B, P, h, w]`
    title: str  # the name as papers write it
    paper: str  # authors, year, title or number
    # "activation", "gradient", "perturbation" or "attention"; "baseline" for one without a model; "ensemble" of
    # several.
    family: Family
    towers: frozenset[TowerKind]  # the tower kinds it is defined on
    needs: Callable[..., Needs]  # what it reads from the trace, given its options
    threshold: float  # the default τ of its boxes, a share of the map's maximum
    options: Mapping[str, Any]  # option name → default value
    relu: bool = False  # whether negative evidence is cut before the map is normalised
    prompts_interact: bool = False  # whether a prompt's map depends on the other prompts it is asked with
    reads_text: bool = True  # False for a map that is the same for every prompt (raw attention)
    # False for a map that is the same for every picture (a baseline). It may have another size than the feature grid,
    # and no refinement follows it.
    reads_picture: bool = True
    # Whether its raw map holds the cosine of each place with each prompt: one scale for all of them.
    cosines: bool = False
    members: tuple[Method, ...] = ()  # of an ensemble, the methods whose maps it averages
    # The poolings that a ViT may have; any CNN of `towers` fits.
    poolings: frozenset[Pooling] = frozenset(get_args(Pooling))
    # Options that stand in its name, as in "grad_cam(block=-3)", and whether its threshold does.
    preset: Mapping[str, Any] = field(default_factory=dict)
    threshold_preset: bool = False


# -------------------------------------------------------------------------------------------------- the registry
methods: Registry[Method] = Registry(
    "method",
    "cliploc.methods",
    "cliploc.methods",
    home=lambda method: method.function.__module__,
    listed=lambda: module_names("cliploc.methods"),  # each file has its method's name
    listed_by="methods",
)

F = TypeVar("F", bound=Callable[..., Any])


def saliency(
    name: str,
    *,
    towers: Iterable[TowerKind] = ("cnn", "vit"),
    needs: Needs | Callable[..., Needs] = Needs(),
    poolings: Iterable[Pooling] = get_args(Pooling),
    libra: bool = True,
    **facts: Any,
) -> Callable[[F], F]:
    """Registers a function `Context, **options → [B, P, h, w]` as a saliency method.

    The function returns raw saliency in float32. The `Localizer` does the rest: ReLU (when `relu`), min–max to 0–1,
    upsampling, and mapping back to the original picture. A flat map means "not found". The arguments are the attributes
    of `Method`; `needs` is a function of those options on which it depends. Types of options may have ranges,
    as `Annotated` and `msgspec.Meta` state them. `libra` is False for a gradient method that has rules of its own for
    the backward pass; any other gradient method on ViTs has the option of this name (`with_libra`).
    """

    def register(function: F) -> F:
        kinds = frozenset(towers)
        if not kinds <= {*get_args(TowerKind)}:
            raise ValueError(f"method {name!r}: expected towers such as ('cnn', 'vit'), got {towers!r}")
        options = {p.name: p.default for p in [*inspect.signature(function).parameters.values()][1:]}
        if inspect.Parameter.empty in options.values():
            raise TypeError(f"method {name!r}: every option needs a default value")
        run: Callable[..., Any] = function
        needs_of = _by_options(name, needs, options) if callable(needs) else lambda **_: needs
        if libra and facts["family"] == "gradient" and "vit" in kinds:
            run, needs_of = with_libra(function, needs_of)
            options["libra"] = False
        item = Method(name, run, towers=kinds, needs=needs_of, options=options, poolings=frozenset(poolings), **facts)
        methods.register(name, item)
        return function

    return register


def _by_options(name: str, needs: Callable[..., Needs], options: Mapping[str, Any]) -> Callable[..., Needs]:
    """`needs` of the options that it takes, with the method's defaults for those that are not given."""
    taken = {p.name: p.default for p in inspect.signature(needs).parameters.values()}
    if wrong := [one for one, value in taken.items() if one not in options and value is inspect.Parameter.empty]:
        raise TypeError(f"method {name!r}: expected needs of its options, {', '.join(options)}, got one of {wrong[0]}")

    def of(**given: Any) -> Needs:
        return needs(**{one: value for one, value in {**options, **given}.items() if one in taken})

    return of


def baselines() -> tuple[str, ...]:
    """The methods without a model, of fixed maps (so without `seed`), listed beside others in benchmarks."""
    return tuple(method.name for method in methods if method.family == "baseline" and "seed" not in method.options)


# Arguments that several methods share; the rest as for `saliency`.
baseline = functools.partial(
    saliency, paper="no paper: a baseline without a model", family="baseline", reads_text=False, reads_picture=False
)
# A ViT's maps that are cosines of the texts with readings of the patches.
patch_cosines = functools.partial(saliency, family="attention", towers=("vit",), needs=Needs(dense=1), cosines=True)


def parse_spec(spec: str) -> list[tuple[str, dict[str, str]]]:
    """The methods that "+" joins, each with its options as texts: "grad_cam(block=-3)+legrad"."""
    parsed = []
    for part in re.split(r"\+(?![^()]*\))", str(spec)):
        match = re.fullmatch(r"\s*([^()]*?)\s*(?:\(([^()]*)\)\s*)?", part)
        if match is None:
            raise UsageError(f"expected a method such as cam or grad_cam(block=-3), got {short(spec)}")
        parsed.append((match[1], dict(map(parse_pair, parse_list(match[2] or "")))))
    return parsed


def check_method(spec: str) -> None:
    """Refuses unknown method names, as `find` does, without importing the methods."""
    for name, _ in parse_spec(spec):
        methods.check_known(name)


def unfit_reason(
    method: Method,
    tower: Backbone | ModelEntry,
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
    if options and tower.kind != "vit" and method.needs(**options).only_vit:  # `libra`
        chosen = ", ".join(f"{key}={value}" for key, value in options.items())
        return f"{method.name} with {chosen} needs a vit tower, and {tower.name} is a {tower.kind} tower"
    return None


def fitting(tower: Backbone | ModelEntry, trained: Collection[str] = (), guided: bool = False) -> tuple[str, ...]:
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
        plain = needs(**options)
        if not libra or plain.tokens == "all":
            return replace(plain, ends=()) if libra else plain
        blocks = {*plain.features, *plain.ends, *plain.tokens} or {-1}  # which no CNN has
        return replace(plain, ends=(), tokens=tuple(sorted(blocks)))

    balanced.__annotations__ = {**function.__annotations__, "libra": bool}
    return balanced, balanced_needs


def resolve_options(method: Method, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as the method's function takes them: a bare name goes to every member that has such an option."""
    if not isinstance(options, Mapping):
        raise UsageError(f"expected options of {method.name} by name, got {short(options)}: write {{'option': value}}")
    resolved: dict[str, Any] = {}
    for name, value in {**options, **method.preset}.items():
        option = str(name).removeprefix(f"{method.name}.")
        keys = [f"{m.name}.{option}" for m in method.members if option in m.options] or [option]
        resolved |= {key: value for key in keys if key not in options or key == option}  # exact name wins
    for key, value in resolved.items():
        if key not in method.options:
            raise UsageError(f"{method.name} has no option {key!r}: it has {', '.join(method.options) or 'none'}")
        member = next((m for m in method.members if key.startswith(f"{m.name}.")), method)
        resolved[key] = _converted(member, key.removeprefix(f"{member.name}."), value)
    return resolved


def _converted(method: Method, option: str, value: Any) -> Any:
    """A value of Python or JSON, or a text of the command line, in the type that the function declares."""
    try:
        kind = typing.get_type_hints(method.function, include_extras=True)[option]
    except (NameError, TypeError, KeyError):  # of a plugin, whose types may be known to its type checker only
        return value
    if not _plain(kind):  # such as a trained head, which only the method can judge
        return value
    is_text = isinstance(value, str)
    parsed = value.item() if hasattr(value, "item") else value  # of NumPy
    if is_text and value.lower() == "none" and NoneType in get_args(kind):
        parsed = None
    elif is_text and any(get_origin(part) is tuple for part in (kind, *get_args(kind))):
        parsed = [part for part in re.split(r"[,\s]+", value.strip("()[] ")) if part]
    try:
        return msgspec.convert(parsed, kind, strict=not is_text)
    except msgspec.ValidationError as error:
        what = str(error).removeprefix("Expected ")
        raise UsageError(f"expected {method.name}'s option {option} as {what}, got {short(value)}") from None


def _plain(kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return True
    arguments = [part for part in get_args(kind) if part is not Ellipsis and not isinstance(part, Meta)]
    return all(map(_plain, arguments)) if arguments else kind in (bool, int, float, str, NoneType)

"""The registry of refinements and its decorator `@refinement(...)`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from cliploc._imports import refuse_without
from cliploc.errors import UsageError
from cliploc.registry import Registry, module_names
from cliploc.tower import Backbone, Needs, TowerKind

if TYPE_CHECKING:  # importing torch takes longer than refusing a name
    from torch import Tensor

    from cliploc.method import Context

LONGEST = 1024  # most pixels on the longer side of the picture that a step works on: a map takes up to 4 MB


@dataclass(frozen=True)
class Refinement:
    """A step after a saliency method: its function and the facts about it.

    Attributes:
        name: as typed on the command line.
        function: on the "grid": takes the `Context` and maps `[B, P, h, w]` in 0–1 on the step's grid (see `grid`);
            returns `[B, P, h, w]`, not below 0. On the "picture": takes the picture `[B, 3, H, W]` in 0–1 (reduced to
            `LONGEST` pixels on its longer side where that is more), maps `[B, P, H, W]` in 0–1 over it, and the height
            and width of a grid cell in pixels; returns `[B, P, H, W]`, not below 0. A flat map stays flat.
        title: the name as papers write it.
        paper: authors, year, title, where.
        on: where it works; steps on the picture follow those on the grid.
        towers: the tower kinds it is defined on.
        needs: model → what it reads from the trace; a step that asks for features compares `Context.places` and works
            on their grid.
        threshold: model and a method's box threshold τ → the τ for maps after this step.
        package: a package that must be installed for it, besides cliploc's own dependencies.
    """

    name: str
    function: Callable[..., Tensor]
    title: str
    paper: str
    on: Literal["grid", "picture"]
    towers: frozenset[TowerKind]
    needs: Callable[[Backbone], Needs]
    threshold: Callable[[Backbone, float], float]
    package: str | None

    def grid(self, ctx: Context) -> tuple[int, int]:
        """`(h, w)` of the maps that a step on the grid takes: the grid of the places it compares, else the trace's."""
        if not self.needs(ctx.backbone).features:
            return ctx.trace.grid
        h, w = ctx.places.shape[-2:]
        return h, w


refinements: Registry[Refinement] = Registry(
    "refinement",
    "cliploc.refine",
    listed=lambda: module_names("cliploc.refine"),  # each file has its refinement's name
)

F = TypeVar("F", bound="Callable[..., Tensor]")


def refinement(
    name: str,
    *,
    title: str,
    paper: str,
    on: Literal["grid", "picture"],
    towers: Iterable[TowerKind] = ("cnn", "vit"),
    needs: Callable[[Backbone], Needs] = lambda _: Needs(),
    threshold: Callable[[Backbone, float], float] = lambda _, tau: tau,
    package: str | None = None,
) -> Callable[[F], F]:
    """Registers a function as a refinement; see `Refinement` for its arguments and result."""

    def register(function: F) -> F:
        item = Refinement(name, function, title, paper, on, frozenset(towers), needs, threshold, package)
        refinements.register(name, item)
        return function

    return register


def find_refinements(names: Sequence[str]) -> list[Refinement]:
    """The refinements of these names, whatever the model.

    Raises:
        UnknownNameError: an unknown name.
        UsageError: a refinement whose package is not installed.
    """
    if isinstance(names, str):
        raise UsageError(f"expected a list of refinements, got the single text {names!r}: write [{names!r}]")
    steps = [refinements.get(name) for name in names]
    for step in steps:
        if step.package is not None:
            refuse_without("refine", step.name, step.package)
    return steps


def resolve_refinements(names: Sequence[str], backbone: Backbone) -> tuple[Refinement, ...]:
    """The refinements of these names on a model, in order, those on the grid first.

    Raises:
        UnknownNameError: an unknown name.
        UsageError: a refinement that does not work on this tower, or whose package is not installed.
    """
    steps = find_refinements(names)
    for step in steps:
        if backbone.kind not in step.towers:
            fitting = ", ".join(r.name for r in refinements if backbone.kind in r.towers)
            raise UsageError(
                f"{step.name} does not work on {backbone.name}, a {backbone.kind} tower: use one of {fitting}"
            )
    return tuple(sorted(steps, key=lambda step: step.on))  # "grid" before "picture"; the sort is stable

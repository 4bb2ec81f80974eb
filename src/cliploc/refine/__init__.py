"""Refinements of the maps of any saliency method, one file each. `refinements.get("caa")` gives one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from cliploc.errors import UsageError
from cliploc.registry import Registry, module_names
from cliploc.support.imports import check_installed
from cliploc.towers.tower import Needs, TowerKind

if TYPE_CHECKING:  # importing torch takes longer than refusing a name
    from torch import Tensor

    from cliploc.methods import Context
    from cliploc.towers.tower import Backbone

LONGEST = 1024  # most pixels on the longer side of the picture that a step works on: a map takes up to 4 MB


@dataclass(frozen=True)
class Refinement:
    """A step after a saliency method: its function and the facts about it."""

    name: str  # as typed on the command line
    # On the "grid": the `Context` and maps [B, P, h, w] in 0–1 on the step's grid → [B, P, h, w], not below 0.
    # On the "picture": the picture [B, 3, H, W] RGB in 0–1 (at most `LONGEST` pixels on its longer side), maps
    # [B, P, H, W] in 0–1 over it, height and width of a grid cell in pixels → [B, P, H, W], not below 0.
    # A flat map stays flat.
    function: Callable[..., Tensor]
    title: str  # the name as papers write it
    paper: str  # authors, year, title, where
    on: Literal["grid", "picture"]  # where it works; steps on the picture follow those on the grid
    towers: frozenset[TowerKind]  # the tower kinds it is defined on
    # model → what it reads from the trace; a step that asks for features compares `Context.places`, on their grid
    needs: Callable[[Backbone], Needs]
    threshold: Callable[[Backbone, float], float]  # model and box threshold τ → the τ for maps after this step
    package: str | None  # what must be installed for it, besides cliploc's own dependencies

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
    """The refinements of these names, whatever the model; refuses those whose package is not installed."""
    steps = [refinements.get(name) for name in names]
    for step in steps:
        if step.package is not None:
            check_installed("refine", step.name, step.package)
    return steps


def resolve_refinements(names: Sequence[str], backbone: Backbone) -> tuple[Refinement, ...]:
    """The refinements of these names on a model, in order, those on the grid first."""
    steps = find_refinements(names)
    for step in steps:
        if backbone.kind not in step.towers:
            fitting = ", ".join(r.name for r in refinements if backbone.kind in r.towers)
            tower = f"{backbone.name}, a {backbone.kind} tower"
            raise UsageError(f"{step.name} does not work on {tower}: use one of {fitting}")
    return tuple(sorted(steps, key=lambda step: step.on))  # "grid" before "picture"; the sort is stable

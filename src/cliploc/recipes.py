"""Recipes: what a model runs where no method is named: a method, with options that make its boxes better.

A method that is named runs as published, so that papers can be compared. Where none is named, the model's recipe runs:
method, refinement, scales, windows, flips and threshold together. The recipes of `mini` and `mini-vit` were chosen on
the tuning pictures (tools/recipe_study.py, docs/studies/recipes.md). Those of other towers are unmeasured: they follow
these two by analogy, or were chosen by how the tower's patches are pooled and trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cliploc import backbones
from cliploc.config import RECIPES, choice, words_of

if TYPE_CHECKING:
    from cliploc.backbones import ModelEntry, Structure
    from cliploc.tower import Backbone

MEASURED = "chosen on the tuning pictures: `cliploc help recipes`"
POOLED = "chosen by how its attention pool reads the patches; unmeasured"
READ_BY_PATCHES = "chosen by what its patches were trained for; unmeasured"
BY_ANALOGY = "by analogy with mini and mini-vit; unmeasured"


@dataclass(frozen=True)
class Recipe:
    """A method, with options that make its boxes better."""

    name: str  # "default", "fast" or "best"
    method: str  # a name of `cliploc methods`
    # values of `cliploc.Options`; values that a user gives take their place
    options: Mapping[str, Any] = field(default_factory=dict)
    basis: str = BY_ANALOGY  # how it was chosen

    @property
    def flags(self) -> list[str]:
        """The options of the command line that do the same."""
        return [word.replace("=", " ", 1) for word in words_of({"method": self.method, **self.options})]

    def __str__(self) -> str:
        return " ".join(self.flags)


def _recipes(basis: str, **recipes: tuple[str, Mapping[str, Any]]) -> dict[str, Recipe]:
    return {name: Recipe(name, method, {**options, **_BOXES}, basis) for name, (method, options) in recipes.items()}


_BOXES: Mapping[str, Any] = {"min_score": "auto", "second_look": True}  # of every recipe
_WINDOWS: Mapping[str, Any] = {"windows": (1.5, 2.0)}
_BEST: Mapping[str, Any] = {**_WINDOWS, "flip": True}
_SPREAD: Mapping[str, Any] = {"refine": ("affinity",), "split_peaks": 0.4}
_MINI: Mapping[str, Any] = {**_SPREAD, "refine": ("affinity", "level"), "scales": (1.43,)}
_MINI_VIT: Mapping[str, Any] = {"scales": (1.43,)}
_OF: Mapping[str, Mapping[str, Recipe]] = {
    "mini": _recipes(
        MEASURED,
        default=("cam", {**_MINI, **_WINDOWS}),
        fast=("cam", {"refine": ("affinity",)}),
        best=("cam", {**_MINI, **_BEST}),
    ),
    "mini-vit": _recipes(
        MEASURED,
        default=("naclip", {**_MINI_VIT, "windows": (2.0,)}),
        fast=("naclip", {}),
        best=("naclip", {**_MINI_VIT, **_BEST}),
    ),
    "cnn": _recipes(
        BY_ANALOGY,
        default=("cam", {**_SPREAD, **_WINDOWS}),
        fast=("cam", {"refine": ("affinity",)}),
        best=("cam", {**_SPREAD, **_BEST}),
    ),
    "vit": _recipes(
        BY_ANALOGY,
        default=("naclip", {"windows": (2.0,)}),
        fast=("naclip", {}),
        best=("naclip", _BEST),
    ),
    # An attention pool is trained on the tokens that leave the last block. NACLIP gives it tokens without that block's
    # residual and MLP. LeGrad's authors give a form for this pool: they take the gradient at the pool's own attention.
    "vit with an attention pool": _recipes(
        POOLED,
        default=("legrad", {"windows": (2.0,)}),
        fast=("legrad", {}),
        best=("legrad", _BEST),
    ),
    # dino.txt trains the mean of the patches against texts, so the patches are read as they leave its head.
    "vit with class token and mean": _recipes(
        READ_BY_PATCHES,
        default=("patch_tokens", {"windows": (2.0,)}),
        fast=("patch_tokens", {}),
        best=("patch_tokens", _BEST),
    ),
    # For a plugin's model whose kind of tower is not known before it is loaded: a method that runs on both kinds.
    "any": _recipes(
        BY_ANALOGY,
        default=("grad_cam", {"windows": (2.0,)}),
        fast=("grad_cam", {}),
        best=("grad_cam", _BEST),
    ),
}


def recipe_of(model: str | Backbone, name: str = "default") -> Recipe:
    """The recipe of a model: its own, else that of its kind of tower.

    Of a repository or folder, the configuration is read (and downloaded if needed), as the tower's structure decides.

    Example:
        >>> recipe_of("RN50").method, recipe_of("ViT-B-16").method
        ('cam', 'naclip')
        >>> recipe_of("ViT-B-16-SigLIP2").method
        'legrad'
    """
    choice("recipe", RECIPES)(name)
    if isinstance(model, str):
        return _OF.get(model, _OF[_kind_of(backbones.structure_of(model))])[name]
    return _OF.get(model.name, _OF[_kind_of(model)])[name]


def _kind_of(tower: Backbone | ModelEntry | Structure | None) -> str:
    """Which recipes a tower has: by its structure, whatever it is called."""
    if tower is None:
        return "any"
    special = {"attention": "vit with an attention pool", "class token and mean": "vit with class token and mean"}
    return special.get(tower.pooling, "vit") if tower.kind == "vit" else "cnn"

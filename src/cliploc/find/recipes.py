"""Recipes: what a model runs where no method is named: a method, with options that make its boxes better.

A method that is named runs as published, so that papers can be compared. Where none is named, the model's recipe runs:
method, refinement, scales, windows, flips and threshold together. The recipes of `mini` and `mini-vit` were chosen on
sets for tuning (docs/studies/recipes.md). Those of other towers are unmeasured: they follow
these two by analogy, or were chosen by how the tower's patches are pooled and trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cliploc import methods as saliency
from cliploc import towers
from cliploc.methods import Family
from cliploc.options import RECIPES, Options, choice, words_of
from cliploc.towers.tower import TowerKind

if TYPE_CHECKING:
    from cliploc.towers.tower import Backbone

MEASURED = "chosen on sets for tuning: docs/recipes.md"
POOLED = "chosen by how its attention pool reads the patches; unmeasured"
READ_BY_PATCHES = "chosen by what its patches were trained for; unmeasured"
BY_ANALOGY = "by analogy with mini and mini-vit; unmeasured"


@dataclass(frozen=True)
class Recipe:
    """A method, with options that make its boxes better."""

    name: str  # "default" or "fast"
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


def _windowed(basis: str, method: str) -> dict[str, Recipe]:
    """By default the method sees windows too; the fast recipe is the method alone."""
    return _recipes(basis, default=(method, {"windows": (2.0,)}), fast=(method, {}))


_BOXES: Mapping[str, Any] = {"min_score": "auto", "second_look": True}  # of every recipe
_SPREAD: Mapping[str, Any] = {"refine": ("affinity",), "split_peaks": 0.4}
_LEVEL: Mapping[str, Any] = {"refine": ("affinity", "level")}
_OF: Mapping[str, Mapping[str, Recipe]] = {
    "mini": _recipes(
        MEASURED, default=("cam", {**_SPREAD, **_LEVEL, "scales": (2.0,)}), fast=("cam", {**_LEVEL, "scales": (1.43,)})
    ),
    "mini-vit": _recipes(MEASURED, default=("naclip", {"scales": (1.43,), "windows": (2.0,)}), fast=("naclip", {})),
    "cnn": _recipes(
        BY_ANALOGY, default=("cam", {**_SPREAD, "windows": (1.5, 2.0)}), fast=("cam", {"refine": ("affinity",)})
    ),
    "vit": _windowed(BY_ANALOGY, "naclip"),
    # An attention pool is trained on the tokens that leave the last block. NACLIP gives it tokens without that block's
    # residual and MLP. LeGrad's authors give a form for this pool: they take the gradient at the pool's own attention.
    "vit with an attention pool": _windowed(POOLED, "legrad"),
    # dino.txt trains the mean of the patches against texts, so the patches are read as they leave its head.
    "vit with class token and mean": _windowed(READ_BY_PATCHES, "patch_tokens"),
}


# What the scores of boxes depend on, besides the model and the method.
_OF_BOXES = (
    "refine", "scales", "windows", "flip", "resize", "image_size", "threshold", "components", "min_area", "nms_iou",
    "split_peaks",
)  # fmt: skip


def settings_of(method: str, options: Options) -> dict[str, Any]:
    """What scores of boxes are calibrated for, besides the model."""
    values = {name: getattr(options, name) for name in _OF_BOXES}
    return {"method": method} | {key: list(one) if isinstance(one, tuple) else one for key, one in values.items()}


def settings_of_recipes(model: str | Backbone) -> list[dict[str, Any]]:
    """Those of a model's recipes."""
    recipes = (recipe_of(model, name) for name in RECIPES)
    return [settings_of(recipe.method, Options().filled(recipe.options)) for recipe in recipes]


def recipe_of(model: str | Backbone, name: str = "default") -> Recipe:
    """A model's recipe: its own, else its kind of tower's, whose configuration is read."""
    choice("recipe", RECIPES)(name)
    known, tower = (model, towers.structure_of(model)) if isinstance(model, str) else (model.name, model)
    special = {"attention": "vit with an attention pool", "class token and mean": "vit with class token and mean"}
    kind = special.get(tower.pooling, "vit") if tower.kind == "vit" else "cnn"  # whatever it is called
    return _OF.get(known, _OF[kind])[name]


# -------------------------------------------------------------------------------------------------------------- listing
def list_models(*, kind: TowerKind | None = None, method: str | None = None, usable: bool = True) -> list[str]:
    """The names that `Localizer(model=…)` takes, besides `hf-hub:…` and `local-dir:…`.

    Args:
        kind: only those with this image tower, "cnn" or "vit".
        method: only those that this method runs on.
        usable: only those whose image tower an adapter supports; False for all that are known.

    Raises:
        UnknownNameError: an unknown method.

    Example:
        >>> "mini" in list_models(kind="cnn", method="cam")
        True
    """
    runs = None if method is None else saliency.find(method)
    known = [model for model in towers.models if kind in (None, model.kind) and (model.usable or not usable)]
    return [model.name for model in known if runs is None or saliency.unfit_reason(runs, model) is None]


def list_methods(*, model: str | None = None, family: Family | None = None) -> list[str]:
    """The names that `Localizer(method=…)` takes.

    Args:
        model: only those that run on this model, a name of `list_models()`.
        family: only those of this family, such as "gradient".

    Raises:
        UnknownNameError: an unknown model.

    Example:
        >>> list_methods(model="mini", family="activation")
        ['cam']
    """
    entry = None if model is None else towers.models.get(model.replace("/", "-"))
    known = [method for method in saliency.methods if family in (None, method.family)]
    return [method.name for method in known if entry is None or saliency.unfit_reason(method, entry) is None]

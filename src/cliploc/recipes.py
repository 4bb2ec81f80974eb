"""Recipes: what a model runs where no method is named: a method, with options that make its boxes better.

A method that is named runs as published, so that papers can be compared. Where none is named, the model's recipe runs:
method, refinement, scales, windows, flips and threshold together. The recipes of `mini` and `mini-vit` were chosen on
sets for tuning (docs/studies/recipes.md). Those of other towers are unmeasured: they follow
these two by analogy, or were chosen by how the tower's patches are pooled and trained.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from msgspec import Struct

from cliploc import backbones
from cliploc._documents import DocumentError, parse_json, read_bytes
from cliploc._files import user_path, write_whole
from cliploc.calibration import Calibration, load_calibration
from cliploc.config import OPTIONS, RECIPES, UNREFINED, choice, is_file_name, words_of
from cliploc.errors import InputError, UsageError

if TYPE_CHECKING:
    from cliploc.tower import Backbone

MEASURED = "chosen on sets for tuning: `cliploc help recipes`"
POOLED = "chosen by how its attention pool reads the patches; unmeasured"
READ_BY_PATCHES = "chosen by what its patches were trained for; unmeasured"
BY_ANALOGY = "by analogy with mini and mini-vit; unmeasured"


@dataclass(frozen=True)
class Tower:
    """Which model a recipe was tuned for."""

    model: str  # its name
    weights: str  # their checksum


@dataclass(frozen=True)
class Recipe:
    """A method, with options that make its boxes better."""

    name: str  # "default" or "fast", or the path of a file
    method: str  # a name of `cliploc methods`
    # values of `cliploc.Options`; values that a user gives take their place
    options: Mapping[str, Any] = field(default_factory=dict)
    basis: str = BY_ANALOGY  # how it was chosen
    tower: Tower | None = None  # the only one that it holds for; None for any that it is the recipe of

    def misfit(self, tower: Backbone) -> str | None:
        """Why it does not hold for a tower, in one line; None where it does."""
        if self.tower is None:
            return None
        if self.tower.model != tower.name:
            return f"expected a recipe for {tower.name}, {self.name} was tuned for {self.tower.model}: tune this model"
        if self.tower.weights != tower.weights_id:
            return f"expected a recipe for these weights of {tower.name}, {self.name} was tuned for others: tune these"
        return None

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
        MEASURED,
        default=("cam", {**_SPREAD, **_LEVEL, "scales": (2.0,)}),
        fast=("cam", {**_LEVEL, "scales": (1.43,)}),
    ),
    "mini-vit": _recipes(
        MEASURED,
        default=("naclip", {"scales": (1.43,), "windows": (2.0,)}),
        fast=("naclip", {}),
    ),
    "cnn": _recipes(
        BY_ANALOGY,
        default=("cam", {**_SPREAD, "windows": (1.5, 2.0)}),
        fast=("cam", {"refine": ("affinity",)}),
    ),
    "vit": _windowed(BY_ANALOGY, "naclip"),
    # An attention pool is trained on the tokens that leave the last block. NACLIP gives it tokens without that block's
    # residual and MLP. LeGrad's authors give a form for this pool: they take the gradient at the pool's own attention.
    "vit with an attention pool": _windowed(POOLED, "legrad"),
    # dino.txt trains the mean of the patches against texts, so the patches are read as they leave its head.
    "vit with class token and mean": _windowed(READ_BY_PATCHES, "patch_tokens"),
    # For a plugin's model whose kind of tower is not known before it is loaded: a method that runs on both kinds.
    "any": _windowed(BY_ANALOGY, "grad_cam"),
}


KIND = "cliploc recipe"
TUNED = (*UNREFINED, "threshold", "resize", "image_size")  # the options that a file may set


class _RecipeFile(Struct):
    kind: Literal["cliploc recipe"]
    version: Literal[1]
    tower: Tower
    method: str
    options: dict[str, Any]
    about: str
    calibration: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if others := [name for name in self.options if name not in TUNED]:
            raise ValueError(f"options has {others[0]}, expected some of {', '.join(TUNED)}")


def save_recipe(
    path: Path, recipe: Recipe, calibration: Calibration | None, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes a recipe's file for `--recipe` and returns it; `facts`: the pictures that chose it, its gain."""
    assert recipe.tower is not None
    content = {
        "kind": KIND,
        "version": 1,
        "tower": asdict(recipe.tower),
        "method": recipe.method,
        "options": dict(recipe.options),
        "calibration": None if calibration is None else calibration.document(),
        "about": recipe.basis,
        **facts,
    }
    text = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return content


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Reads the file of `save_recipe`, or an `InputError`; its calibration becomes the option `calibration`."""
    name = os.fspath(user_path(path))
    try:
        read = parse_json(read_bytes(name, 2**20), _RecipeFile)
        options = {key: OPTIONS[key].check(value) for key, value in read["options"].items()}
    except (OSError, DocumentError, UsageError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"expected a file of `cliploc tune`: {error}"
        raise InputError(f"{name}: {reason}: check the path") from None
    if read.get("calibration") is not None:
        load_calibration(name)  # refused before a model is built
        options["calibration"] = name
    return Recipe(name, read["method"], options, read["about"], Tower(**read["tower"]))


def recipe_of(model: str | Backbone, name: str | os.PathLike[str] = "default") -> Recipe:
    """The recipe in a file, or of a model: its own, else its kind of tower's, whose configuration is read."""
    if is_file_name(name):
        return load_recipe(name)
    choice("recipe", RECIPES)(name)
    assert isinstance(name, str)
    known, tower = (model, backbones.structure_of(model)) if isinstance(model, str) else (model.name, model)
    kind = "any"  # of tower: by its structure, whatever it is called
    if tower is not None:
        special = {"attention": "vit with an attention pool", "class token and mean": "vit with class token and mean"}
        kind = special.get(tower.pooling, "vit") if tower.kind == "vit" else "cnn"
    return _OF.get(known, _OF[kind])[name]

"""Recipes: what runs where no method is named, and that a named method runs as published."""

from __future__ import annotations

import json

import numpy as np
import pytest

from cliploc.backbones import models
from cliploc.config import OPTIONS, RECIPES, UNREFINED, Options
from cliploc.errors import UnknownNameError, UsageError
from cliploc.localizer import Localizer
from cliploc.recipes import recipe_of
from cliploc.saliency import fitting
from tests.commands import CAT, cliploc_
from tests.tiny import KINDS, tower

NAMES = ["cat", "remote control"]


@pytest.fixture(scope="module")
def mini():
    return Localizer("mini", method="cam").backbone


def same(one, other):
    np.testing.assert_array_equal(one.maps, other.maps)
    np.testing.assert_array_equal(one.boxes.xyxy, other.boxes.xyxy)
    assert (one.method, one.threshold, one.reasons) == (other.method, other.threshold, other.reasons)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_its_method_with_its_options(mini, name):
    recipe = recipe_of("mini", name)
    by_recipe = Localizer(mini, recipe=name)
    by_hand = Localizer(mini, method=recipe.method, **recipe.options)
    same(by_recipe(CAT, NAMES), by_hand(CAT, NAMES))
    assert by_recipe.describe() == by_hand.describe()
    assert (by_recipe.recipe, by_hand.recipe) == (recipe, None)


def test_a_named_method_runs_as_published(mini):
    published = Localizer(mini, method="cam")
    assert (published.refine, published.options.windows, published.options.scales) == ((), (), (1.0,))
    assert published.box_rule.threshold == published.method.threshold
    by_recipe = Localizer(mini)
    [compared] = by_recipe.compare(CAT, NAMES, ["cam"])
    same(compared["cam"], published(CAT, NAMES))
    assert by_recipe.describe("cam") == published.describe("cam")
    assert by_recipe.box_rule_of("cam") == published.box_rule
    maps = [one(CAT, NAMES).maps_over_picture((64, 64)) for one in (by_recipe, published)]
    assert np.abs(maps[0] - maps[1]).max() > 0.1


def test_what_is_given_goes_before_the_recipe(mini):
    given = {"threshold": 0.4, "flip": True, "windows": (), "refine": (), "scales": (1,), "split_peaks": 1.0}
    localizer = Localizer(mini, **given)
    assert localizer.recipe == recipe_of("mini")
    assert {name: getattr(localizer.options, name) for name in given} == {**given, "scales": (1.0,)}
    same(localizer(CAT, NAMES), Localizer(mini, method="cam", threshold=0.4, flip=True)(CAT, NAMES))


def test_a_method_and_a_recipe_are_refused(mini):
    with pytest.raises(UsageError, match="expected a method or a recipe, got cam and fast"):
        Localizer(mini, method="cam", recipe="fast")
    with pytest.raises(UsageError, match="expected recipe of default, fast, best"):
        Localizer(mini, recipe="quick")


@pytest.mark.parametrize("name", RECIPES)
def test_every_model_has_a_recipe_that_runs_on_it(name):
    for model in models:
        if model.usable:
            recipe = recipe_of(model.name, name)
            assert recipe.method in fitting(model), model.name
            assert recipe.options.keys() <= UNREFINED.keys() | {"threshold", "image_size", "resize"}
            Options().filled(recipe.options)  # each value passes its check
    assert recipe_of("hf-hub:some/model", name).method == "grad_cam"


def test_an_unknown_model_has_no_recipe():
    with pytest.raises(UnknownNameError, match="ViT-B-33"):
        recipe_of("ViT-B-33")
    assert recipe_of("ViT-B/32") == recipe_of("ViT-B-32")


@pytest.mark.parametrize("kind", KINDS)
def test_a_tower_in_memory_has_the_recipe_of_its_kind(kind):
    backbone = tower(kind, (8, 8))
    localizer = Localizer(backbone, templates="a {} thing")
    assert localizer.recipe == recipe_of({"cnn": "RN50", "vit": "ViT-B-32"}[backbone.kind])
    assert localizer(np.zeros((40, 60, 3), np.uint8), ["red"]).method == localizer.method.title


def test_the_command_line_says_what_ran(tmp_path):
    result = cliploc_("localize", str(CAT), "-p", "cat", "--recipe", "fast", "--json")
    settings = json.loads(result.out)["settings"]
    recipe = recipe_of("mini", "fast")
    own = Localizer("mini", method=recipe.method, **recipe.options).box_rule.threshold
    assert (settings["recipe"], settings["method"], settings["threshold"]) == ("fast", recipe.method, own)
    assert settings["refine"] == list(recipe.options["refine"])
    about = cliploc_("models", "mini").out
    for name in RECIPES:
        assert f"--recipe {name}" in about
    refused = cliploc_("localize", str(CAT), "-p", "cat", "--recipe", "fast", "--method", "cam")
    assert refused.code == 2
    assert "expected a method or a recipe" in refused.err


def test_the_options_that_a_recipe_sets_say_so():
    for name in UNREFINED:
        assert OPTIONS[name].none.startswith("the recipe's; ")

"""Recipes: what runs where no method is named, and that a named method runs as published."""

import json
import re
from pathlib import Path

import numpy as np
import open_clip
import pytest

from cliploc.find.recipes import recipe_of
from cliploc.localizer import Localizer
from cliploc.methods import fitting
from cliploc.options import BENCHMARK, MIN_SCORE, RECIPES, UNREFINED, Options
from cliploc.towers import models
from tests.commands import CAT, localizer_of
from tests.tiny import KINDS, tower

NAMES = ["cat", "remote control"]


def same(one, other):
    np.testing.assert_array_equal(one.maps, other.maps)
    np.testing.assert_array_equal(one.boxes.xyxy, other.boxes.xyxy)
    assert (one.method, one.threshold, one.reasons) == (other.method, other.threshold, other.reasons)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_its_method_with_its_options(name):
    recipe = recipe_of("mini", name)
    by_recipe = localizer_of("mini", recipe=name)
    by_hand = localizer_of("mini", method=recipe.method, **recipe.options)
    same(by_recipe(CAT, NAMES), by_hand(CAT, NAMES))
    assert by_recipe.describe() == by_hand.describe()
    assert (by_recipe.recipe, by_hand.recipe) == (recipe, None)


def test_the_page_says_what_the_recipes_of_the_bundled_models_are():
    page = (Path(__file__).parents[2] / "docs/recipes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (?:`([\w-]+)`)? ?\| `(\w+)` \| `(--.*)` \|$", page, re.MULTILINE)
    models = [model for model in ("mini", "mini-vit") for _ in RECIPES]
    written = [
        (model, name, f"{flags} --min-score auto --second-look")
        for model, (_, name, flags) in zip(models, rows, strict=True)
    ]
    assert written == [
        (model, name, str(recipe_of(model, name))) for model, (_, name, _) in zip(models, rows, strict=True)
    ]
    assert [model for model, *_ in rows] == ["mini", "", "mini-vit", ""]


def test_a_named_method_runs_as_published():
    published = localizer_of("mini", method="cam")
    options = published.options
    assert (options.refine, options.windows, options.scales, options.second_look) == ((), (), (1.0,), False)
    assert published.box_rule.threshold == published.method.threshold
    by_recipe = localizer_of("mini")
    [compared] = by_recipe.compare(CAT, NAMES, ["cam"])
    same(compared["cam"], published(CAT, NAMES))
    assert by_recipe.describe("cam") == published.describe("cam")
    assert by_recipe.box_rule_of("cam") == published.box_rule
    maps = [one(CAT, NAMES).maps_over_picture((64, 64)) for one in (by_recipe, published)]
    assert np.abs(maps[0] - maps[1]).max() > 0.1


def test_what_is_given_goes_before_the_recipe():
    given = {"threshold": 0.4, "flip": True, "windows": (), "refine": (), "scales": (1,), "split_peaks": 1.0}
    localizer = localizer_of("mini", **given)
    assert localizer.recipe == recipe_of("mini")
    assert {name: getattr(localizer.options, name) for name in given} == {**given, "scales": (1.0,)}
    plain = localizer_of("mini", method="cam", threshold=0.4, flip=True, second_look=True, min_score="auto")
    same(localizer(CAT, NAMES), plain(CAT, NAMES))


ASKED = ["cat", "dog", "sofa"]


@pytest.mark.parametrize("tau", [{}, {"threshold": 0.8, "refine": ("affinity",)}])  # there two names have no box of 0.2
def test_a_recipe_leaves_out_low_boxes_but_the_best_of_each_name(tau):
    every = localizer_of("mini", min_presence=0, min_score=0, **tau)(CAT, ASKED)
    found = localizer_of("mini", min_presence=0, **tau)(CAT, ASKED)
    best = [np.flatnonzero(every.boxes.label == p)[0] for p in range(len(ASKED))]
    kept = [i for i in range(len(every.boxes)) if i in best or every.boxes.score[i] >= MIN_SCORE]
    assert len(kept) < len(every.boxes)
    assert not tau or (every.boxes.score[best] < MIN_SCORE).sum() == 2
    np.testing.assert_array_equal(found.boxes.xyxy, every.boxes.xyxy[kept])
    np.testing.assert_array_equal(found.boxes.label, every.boxes.label[kept])
    assert found.found.all()
    assert found.reasons == every.reasons == (None,) * len(ASKED)
    same(found, localizer_of("mini", min_presence=0, min_score="auto", **tau)(CAT, ASKED))
    np.testing.assert_array_equal(
        every.boxes.xyxy, found.boxes_by(localizer_of("mini", min_score=0, **tau).box_rule).xyxy
    )


def test_a_minimum_score_that_is_stated_holds_for_the_best_box_too():
    every = localizer_of("mini", min_presence=0, min_score=0)(CAT, ASKED)
    best = [float(every.boxes.score[every.boxes.label == p].max()) for p in range(len(ASKED))]
    least = max(best)
    found = localizer_of("mini", min_presence=0, min_score=least)(CAT, ASKED)
    assert found.found.tolist() == [one >= least for one in best]
    assert [reason for reason in found.reasons if reason] == [f"no box scores {least:g} or more"] * 2
    np.testing.assert_array_equal(found.boxes.xyxy, every.boxes.xyxy[every.boxes.score >= np.float32(least)])
    huge = localizer_of("mini", min_presence=0, min_score=1.0, min_area=0.999)(CAT, ASKED)
    assert huge.reasons == ("no region of its map reaches 0.999 of the picture",) * len(ASKED)


def test_a_named_method_keeps_all_its_boxes():
    for options in ({"method": "cam"}, {"method": "cam+layer_cam"}):
        one, other = (localizer_of("mini", **options, **least, min_presence=0) for least in ({}, {"min_score": 0}))
        assert one.box_rule.min_score == 0
        same(one(CAT, ASKED), other(CAT, ASKED))
        assert one.describe() == other.describe()
    assert localizer_of("mini").box_rule_of("cam").min_score == 0
    assert BENCHMARK.filled(recipe_of("mini").options).min_score == 0  # nor do a benchmark's boxes depend on it
    assert localizer_of("mini", min_score=0.3).box_rule_of("cam").min_score == 0.3


@pytest.mark.parametrize("name", RECIPES)
def test_every_model_has_a_recipe_that_runs_on_it(name):
    for model in models:
        if model.usable:
            recipe = recipe_of(model.name, name)
            assert recipe.method in fitting(model), model.name
            assert recipe.options.keys() <= UNREFINED.keys()
            Options().filled(recipe.options)  # each value passes its check


@pytest.mark.parametrize(
    "model", ["RN50", "ViT-B-32", "convnext_base", "ViT-B-16-SigLIP", "coca_ViT-B-32", "EVA02-B-16"]
)
def test_a_folder_has_the_recipe_of_its_towers_structure(tmp_path, model):
    """Whatever it is called, and before its weights are read: here there are none."""
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": open_clip.get_model_config(model)}))
    assert recipe_of(f"local-dir:{tmp_path}", "fast") == recipe_of(model, "fast")
    assert recipe_of(f"local-dir:{tmp_path}").basis.endswith("; unmeasured")


@pytest.mark.parametrize("kind", KINDS)
def test_a_tower_in_memory_has_the_recipe_of_its_kind(kind):
    backbone = tower(kind, (8, 8))
    localizer = Localizer(backbone, templates="a {} thing")
    assert localizer.recipe == recipe_of({"cnn": "RN50", "vit": "ViT-B-32"}[backbone.kind])
    assert localizer(np.zeros((40, 60, 3), np.uint8), ["red"]).method == localizer.method.title

"""`cliploc explain`: one photo, its page and its document, as a user runs it."""

import json

import numpy as np
import pytest

from cliploc.evaluate.tasks.faithfulness.judged import area
from tests.commands import CAT, document_of

FAST = ("--method", "cam", "--no-baselines", "--steps", "2")


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    out = tmp_path_factory.mktemp("explain")
    words = ("-p", "cat", "-p", "pizza", "--method", "cam", "--steps", "4", "--out", out)
    return out, document_of("explain", CAT, *words)


def test_the_document_has_the_numbers_of_its_curves(explained):
    out, document = explained
    assert json.loads((out / "explain.json").read_text()) == document
    assert (document["score"], document["among"], document["protocol"]["steps"]) == ("probability", 2, 4)
    cat, pizza = document["names"]
    assert cat["name"] == "cat"
    assert cat["probability"] + pizza["probability"] == pytest.approx(1)
    for name in (cat, pizza):
        assert list(name["methods"]) == ["cam", "centre_gaussian", "random"], "beside the baselines"
        for one in name["methods"].values():
            assert 0 < one["share"] < 1
            for which in ("deletion", "insertion"):
                assert len(one["curves"][which]) == 5
                assert one[which] == pytest.approx(area(one["curves"][which]), abs=1e-6)
            assert one["curves"]["deletion"][0] == pytest.approx(name["probability"], abs=1e-4)


def test_the_marked_region_is_that_of_the_threshold(explained):
    """The Gaussian's region is known: where it exceeds τ of its largest value."""
    _, document = explained
    one = document["names"][0]["methods"]["centre_gaussian"]
    y, x = np.mgrid[0:224, 0:224] / 224 + 0.5 / 224 - 0.5
    heat = np.exp(-(x**2 + y**2) / (2 * 0.25**2))
    heat = (heat - heat.min()) / (heat.max() - heat.min())
    assert one["share"] == pytest.approx((heat > one["threshold"]).mean(), abs=0.005)


def test_without_a_method_it_is_that_of_the_models_recipe(tmp_path):
    asked = ("-p", "cat", "--no-baselines", "--steps", "2", "--image-size", "64", "--out", tmp_path)
    for model, method in (("mini", "cam"), ("mini-vit", "naclip")):
        assert list(document_of("explain", CAT, *asked, "--model", model)["methods"]) == [method]


def test_of_a_single_name_the_score_is_its_cosine(tmp_path):
    document = document_of("explain", CAT, "-p", "cat", *FAST, "--out", tmp_path)
    [name] = document["names"]
    assert (document["score"], name["probability"]) == ("cosine", None)
    assert name["methods"]["cam"]["curves"]["deletion"][0] == pytest.approx(name["cosine"], abs=1e-4)


def test_other_names_take_part_in_the_softmax(tmp_path):
    (tmp_path / "names.txt").write_text("dog\nbus\ncat|tabby\n")  # the last is what is explained, by other synonyms
    among = ("--among", tmp_path / "names.txt")
    document = document_of("explain", CAT, "-p", "cat|kitten", *among, *FAST, "--out", tmp_path)
    assert (document["score"], document["among"]) == ("probability", 3)
    assert len(document["names"]) == 1

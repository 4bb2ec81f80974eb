"""`cliploc classify`, and names, templates and precision as the command line takes them."""

import json

import pytest

from cliploc.find import prompts
from cliploc.localizer import Localizer
from tests.commands import CAT, COFFEE, cliploc_, create_once, document_of
from tests.tiny import tower


def test_lines_say_what_json_and_python_say():
    asked = ("-p", "bicycle", "-p", "cat|kitten", "-p", "cup")
    lines = cliploc_("classify", CAT, COFFEE, *asked, "--top-k", 2).out.splitlines()
    document = document_of("classify", CAT, COFFEE, *asked, "--top-k", 2)
    python = Localizer(create_once("mini", None, "cpu", precision="fp32")).classify(
        [CAT, COFFEE], ["bicycle", "cat|kitten", "cup"], 2
    )
    rows = iter(lines)
    for picture, path, found in zip(document["pictures"], (CAT, COFFEE), python, strict=True):
        assert picture["file"] == str(path)
        assert next(rows).startswith(f"{path}  ")
        for rank, (entry, one) in enumerate(zip(picture["names"], found, strict=True), start=1):
            assert entry["name"] == one.name
            assert entry["probability"] == pytest.approx(one.probability, abs=1e-4)
            assert entry["cosine"] == pytest.approx(one.cosine, abs=1e-4)
            assert next(rows).split() == [
                str(rank), one.name, f"{one.probability:.4f}", "cosine", f"{one.cosine:.4f}",
            ]  # fmt: skip
    assert [picture["names"][0]["name"] for picture in document["pictures"]] == ["cat", "cup"]
    assert (document["pictures"][0]["width"], document["pictures"][0]["height"]) == (451, 300)
    assert document["settings"]["top_k"] == 2
    assert document["settings"]["names"] == ["bicycle", "cat|kitten", "cup"]


def test_names_that_the_model_cannot_know_take_no_part():
    result = cliploc_("classify", "no.jpg", CAT, "-p", "猫", "-p", "cat", "--json")
    assert "left out: mini reads English nouns, and finds none in '猫'" in result.err
    document = json.loads(result.out)
    assert [one["name"] for one in document["pictures"][0]["names"]] == ["cat"]
    assert (result.code, [one["file"] for one in document["failures"]]) == (1, ["no.jpg"])
    none = cliploc_("classify", CAT, "-p", "猫")
    assert (none.code, none.out) == (2, "")
    said = "cliploc: expected a name that mini knows: mini reads English nouns, and finds none in '猫'"
    assert none.err.splitlines()[-1] == said


def test_imagenet_is_what_is_asked_when_nothing_is():
    document = document_of("classify", CAT)
    assert document == document_of("classify", CAT, "--labels", "imagenet")
    assert document["settings"]["names"] == [one.name for one in prompts.imagenet_classes()]
    names = document["pictures"][0]["names"]
    assert [one["rank"] for one in names] == [1, 2, 3, 4, 5]
    assert "cat" in names[0]["name"].lower() or names[0]["name"] == "Egyptian Mau"


@pytest.mark.parametrize("command", ["classify", "localize"])
def test_class_and_template_files(command, tmp_path):
    (tmp_path / "classes.txt").write_text("# animals\ncat|kitten\n\nn02106662\n")
    (tmp_path / "templates.txt").write_text("a photo of a {}.\nthe {}.\n")
    fast = ("--recipe", "fast") if command == "localize" else ()
    document = document_of(
        *(command, CAT, *fast, "--labels", tmp_path / "classes.txt", "--template", tmp_path / "templates.txt"),
        *("--template", "itap of a {}.", "--precision", "bf16", "--no-text-cache"),
    )
    settings = document["settings"]
    assert settings["names"][0] == "cat|kitten"
    assert settings["names"][1].startswith("German Shepherd Dog|")
    assert settings["templates"] == ["a photo of a {}.", "the {}.", "itap of a {}."]
    assert (settings["precision"], settings["text_cache"]) == ("bf16", False)
    assert document["pictures"][0]["names"][0]["name"] == "cat"


def test_pictures_are_fitted_in_the_models_own_way_unless_one_says_how(monkeypatch):
    cropping = tower("gap_cnn", (8, 8))
    cropping.resize_policy = "crop"
    monkeypatch.setattr("tests.commands.create_once", lambda *_, **__: cropping)
    fitted = {}
    for asked in ((), ("--resize", "pad")):
        document = document_of("classify", CAT, "-p", "red", "-p", "green", "--device", "cpu", *asked)
        fitted[asked] = document["settings"]["resize"]
    assert list(fitted.values()) == ["crop", "pad"]

"""A look at a photograph: the localizer's own results, thresholds without another run, and refusals."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cliploc.errors import InputError, UsageError
from cliploc.localizer import Localizer
from cliploc.saliency import methods
from cliploc.web import pictures
from cliploc.web.engine import Engine, Offer
from cliploc.web.runs import StoppedError
from cliploc.web.settings import Settings, command_lines, python_lines
from tests.commands import cliploc_

DEMO = Path(__file__).parents[2] / "src/cliploc/demo_photos"
CAT = str(DEMO / "cat.jpg")


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine([Offer("mini")], device="cpu")


@pytest.fixture(scope="module")
def look(engine):
    return engine.look(CAT, Settings(names="cat, dog"))


def test_boxes_are_the_localizers_at_every_threshold(engine, look, monkeypatch):
    monkeypatch.setattr(engine, "backbone", None)  # no model may run from here on
    for threshold, most in ((None, 0), (0.1, 0), (0.6, 1), (0.9, 2)):
        settings = Settings(names="cat, dog", threshold=threshold, max_boxes=most)
        [(method, found)] = look.cut(settings).items()
        wanted = Localizer("mini", method="cam", threshold=threshold, max_boxes=most or None)(CAT, ["cat", "dog"])
        assert method == "cam"
        np.testing.assert_array_equal(found.boxes.xyxy, wanted.boxes.xyxy)
        np.testing.assert_array_equal(found.boxes.score, wanted.boxes.score)
        assert found.found.tolist() == wanted.found.tolist() == [True, False]
        assert found.reasons == wanted.reasons
        np.testing.assert_allclose(found.maps, wanted.maps, atol=1e-6)


def test_a_least_score_leaves_boxes_out_and_says_so(look):
    whole = look.cut(Settings(names="cat, dog", threshold=0.6))["cam"]
    best = float(whole.boxes.score.max())
    found = look.cut(Settings(names="cat, dog", threshold=0.6, min_score=best))["cam"]
    assert len(found.boxes) == int((whole.boxes.score >= best).sum())
    none = look.cut(Settings(names="cat, dog", min_score=1.0))["cam"]
    if best < 1:
        assert none.reasons[0] == "no box scores 1 or more"
        assert not none.found[0]


def test_the_same_again_is_not_computed_again(engine, look):
    again = engine.look(CAT, Settings(names="cat,dog", threshold=0.7, opacity=0.2), look)
    assert again is look
    assert engine.look(CAT, Settings(names="cat"), look) is not look


def test_two_methods_out_of_one_pass(engine):
    look = engine.look(CAT, Settings(names="cat", method="grad_cam", compare="layer_cam", compare_threshold=0.5))
    assert list(look.results) == ["grad_cam", "layer_cam"]
    assert [tau for _, tau in look.rules(Settings(compare_threshold=0.5))] == [look.own["grad_cam"], 0.5]
    html = pictures.results_html(look.cut(Settings(names="cat")), 0.5)
    assert html.count("<figure>") == 2
    assert "LayerCAM" in html


def test_the_menu_holds_what_runs(engine):
    menu = engine.menu("mini")
    assert set(menu.methods) == {one.name for one in methods if "cnn" in one.towers}
    assert menu.own_method == "cam"
    with pytest.raises(UsageError, match="does not run on mini: use one of"):
        engine.look(CAT, Settings(names="cat", method="legrad"))


@pytest.mark.parametrize("model", ["RN50", "local-dir:/etc", "hf-hub:some/thing", "/etc/passwd"])
def test_no_model_but_those_offered(engine, model):
    with pytest.raises(UsageError, match="expected a model of the menu"):
        engine.look(CAT, Settings(names="cat", model=model))


def test_refusals_name_the_photograph_and_no_folder(engine, tmp_path):
    bad = tmp_path / "notes.jpg"
    bad.write_text("no picture")
    with pytest.raises(InputError, match=r"^notes\.jpg: not a picture") as caught:
        engine.look(str(bad), Settings(names="cat"))
    assert str(tmp_path) not in str(caught.value)
    with pytest.raises(UsageError, match="drop one on the page"):
        engine.look(None, Settings(names="cat"))
    with pytest.raises(UsageError, match="type one"):
        engine.look(CAT, Settings(names=" "))


def test_a_photograph_of_too_many_pixels_is_not_decoded(tmp_path, monkeypatch):
    large = tmp_path / "large.png"
    Image.new("L", (2000, 1001)).save(large)
    small = Engine([Offer("mini")], max_pixels=2_000_000)
    monkeypatch.setattr("cliploc.web.engine.load", lambda _: pytest.fail("decoded"))
    with pytest.raises(InputError, match=r"large\.png: 2000×1001 pixels, expected at most 2 million"):
        small.read(str(large))


def test_a_long_method_counts_and_stops(engine):
    counted = []

    def count(number):
        counted.append(number)
        raise StoppedError("stopped")

    with pytest.raises(StoppedError):
        engine.look(CAT, Settings(names="cat", method="score_cam"), on_masked=count)
    assert len(counted) == 1
    assert engine.look(CAT, Settings(names="cat")).results["cam"].found[0]  # the model is as before


def test_nothing_typed_becomes_markup(engine):
    name = "<script>alert(1)</script>"
    html = pictures.results_html(engine.look(CAT, Settings(names=name)).cut(Settings(names=name)), 0.5)
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_files_hold_the_photographs_own_size(look, tmp_path):
    settings = Settings(names="cat, dog")
    found = look.cut(settings)
    paths = {Path(path).name: Path(path) for path in pictures.write_files(tmp_path, found, settings)}
    assert list(paths) == ["cat_overlay.png", "cat_heatmaps.npy", "cat_1_cat.png", "cat_2_dog.png", "results.json"]
    heatmaps = np.load(paths["cat_heatmaps.npy"], allow_pickle=False)
    assert heatmaps.shape == (2, 300, 451)
    grey = np.asarray(Image.open(paths["cat_1_cat.png"]))
    assert grey.dtype == np.uint16
    np.testing.assert_allclose(grey / 65535, heatmaps[0].clip(0, 1), atol=1e-5)
    assert Image.open(paths["cat_overlay.png"]).size == (451, 300)
    assert '"method": "cam"' in paths["results.json"].read_text()


def test_the_lines_reproduce_what_is_shown(look, tmp_path, monkeypatch):
    settings = Settings(names="cat, dog", threshold=0.45, max_boxes=1)
    found = look.cut(settings)["cam"]
    lines = (settings, "cat.jpg", look.offer.arguments, look.rules(settings), settings.max_boxes)
    shutil.copy(CAT, tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(python_lines(*lines), scope)
    np.testing.assert_array_equal(scope["found"].boxes.xyxy, found.boxes.xyxy)
    assert (tmp_path / "cam.png").exists()
    words = command_lines(*lines).split()
    printed = cliploc_(*words[1:], "--json").out
    box = re.search(r'"xyxy": \[([^\]]+)\]', printed).group(1)
    np.testing.assert_allclose([float(part) for part in box.split(",")], found.boxes.xyxy[0], atol=0.01)

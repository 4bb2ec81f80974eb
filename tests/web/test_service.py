"""A look at a photograph: the localizer's own results, thresholds without another run, and refusals."""

import json
import os
import re
import shutil
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cliploc import towers
from cliploc.errors import InputError, ModelError, UsageError
from cliploc.find.recipes import recipe_of
from cliploc.images import rle
from cliploc.images.demo import demo_photos
from cliploc.images.geometry import iou_matrix
from cliploc.localizer import Localizer
from cliploc.methods import methods
from cliploc.web import downloads, view
from cliploc.web.find import EXAMPLES
from cliploc.web.service import Offer, Service, with_heads
from cliploc.web.settings import MOST_CELLS, Settings, command_lines, from_mapping, from_query, python_lines
from tests.commands import cliploc_, localizer_of
from tests.tiny import write_head

DEMO = Path(__file__).parents[2] / "src/cliploc/demo_photos"
CAT = str(DEMO / "cat.jpg")


@pytest.fixture(scope="module")
def service() -> Service:
    return Service([Offer("mini")], device="cpu")


@pytest.fixture(scope="module")
def look(service):
    """By a method, as published."""
    return service.look(CAT, Settings(names="cat, dog", method="cam"))


@pytest.fixture(scope="module")
def by_recipe(service):
    return service.look(CAT, Settings(names="cat, dog"))


@pytest.mark.parametrize(("fixture", "by"), [("look", {"method": "cam"}), ("by_recipe", {})])
def test_boxes_are_the_localizers_at_every_threshold(service, request, fixture, by, monkeypatch):
    look = request.getfixturevalue(fixture)
    monkeypatch.setattr(service, "backbone", None)  # no model may run from here on
    rules = [(None, 0, None), (0.1, 0, 0.02), (0.6, 1, 1)]
    for threshold, most, split in [*rules, (0.1, 0, 1), (0.9, 2, 1)] if by else rules:  # a recipe runs the tower often
        settings = Settings(names="cat, dog", threshold=threshold, max_boxes=most or None, split_peaks=split)
        [(method, found)] = look.cut(settings).items()
        asked = {"threshold": threshold, "max_boxes": most or None, "split_peaks": split}
        wanted = localizer_of("mini", **by, **asked)(CAT, ["cat", "dog"])
        if split == 0.02 and by:
            assert len(wanted.boxes.xyxy) > len(look.cut(replace(settings, split_peaks=1))[method].boxes.xyxy)
        assert method == by.get("method", "recipe:default")
        np.testing.assert_array_equal(found.boxes.xyxy, wanted.boxes.xyxy)
        np.testing.assert_allclose(found.boxes.score, wanted.boxes.score, rtol=1e-5)  # the bank: other batches
        assert found.found.tolist() == wanted.found.tolist() == [True, False]
        assert found.reasons == wanted.reasons
        np.testing.assert_allclose(found.maps, wanted.maps, atol=1e-6)


def test_what_a_visitor_sets_goes_before_the_recipe(service):
    given = {"scales": (1, 1.5), "windows": (), "flip": True, "refine": (), "split_peaks": 1.0, "threshold": 0.3}
    query = "names=cat&scales=1,1.5&windows=none&flip=true&refine=none&split_peaks=1&threshold=0.3"
    settings = from_query(query)
    assert {key: one for key, one in settings.arguments.items() if key in given} == {
        key: one for key, one in given.items() if key != "threshold"
    }
    look = service.look(CAT, settings)
    wanted = localizer_of("mini", **given)(CAT, ["cat"])
    np.testing.assert_array_equal(look.cut(settings)["recipe:default"].boxes.xyxy, wanted.boxes.xyxy)
    ran = set(str(look.ran(settings)).split(" --"))
    assert {"--method cam", "scales 1,1.5", "threshold 0.3", "flip"} <= ran
    assert not {one.split()[0] for one in ran} & {"windows", "refine"}


def test_beside_a_recipe_methods_run_as_published(service):
    settings = Settings(names="cat, dog", compare=("cam", "layer_cam"))
    look = service.look(CAT, settings)
    found = look.cut(settings)
    wanted = {"recipe:default": localizer_of("mini")} | {
        method: localizer_of("mini", method=method) for method in settings.compare
    }
    assert list(found) == list(wanted)
    for method, localizer in wanted.items():
        alone = localizer(CAT, ["cat", "dog"])
        np.testing.assert_array_equal(found[method].boxes.xyxy, alone.boxes.xyxy)
        assert found[method].threshold == alone.threshold
    assert view.summary(found).startswith("CAM, recipe default: 1 of 2 names found, 1 box · CAM: 1 of 2")
    [of_recipe, of_cam, _] = downloads.document(found, settings, look.ran(settings))["pictures"]
    assert (of_recipe["method"], of_cam["method"]) == ("cam", "cam")
    assert of_recipe["recipe"] == {"name": "default", "options": str(recipe_of("mini"))}
    assert of_cam["recipe"] is None
    with pytest.raises(UsageError, match="'recipe:fast' does not run on mini"):
        service.look(CAT, replace(settings, compare=("recipe:fast",)))


def test_a_model_is_loaded_once_for_all_and_again_after_an_error(monkeypatch):
    begun, go_on = [], threading.Event()

    def broken(model, *_, **__):
        begun.append(model)
        assert go_on.wait(60)
        raise ModelError("the connection broke")

    service = Service([Offer("mini")], device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(towers, "create", broken)
        waiting = [service.load("mini") for _ in range(5)]
        go_on.set()
        for one in waiting:
            with pytest.raises(ModelError, match="the connection broke"):
                one.result()
    assert begun == ["mini"]
    assert service.backbone("mini") is service.backbone("mini")


def test_the_menu_holds_what_runs_and_a_server_may_begin_with_another_recipe(service):
    menu = service.menu("mini")
    assert set(menu.methods) == {one.name for one in methods if "cnn" in one.towers}
    assert menu.default == "recipe:default"
    assert list(menu.recipes) == ["recipe:default", "recipe:fast"]
    fast = Service([Offer("mini")], device="cpu", recipe="fast")
    assert fast.menu("").default == "recipe:fast"
    assert list(fast.look(CAT, Settings(names="cat")).results) == ["recipe:fast"]


def test_a_recipes_least_score_keeps_each_names_best_box_until_another_is_set(by_recipe):
    every = Settings(names="cat, dog", threshold=0.1, min_presence=0.0)
    for given, options in ((None, {}), (0.0, {"min_score": 0}), (0.5, {"min_score": 0.5})):
        found = by_recipe.cut(replace(every, min_score=given))["recipe:default"]
        wanted = localizer_of("mini", threshold=0.1, min_presence=0, **options)(CAT, ["cat", "dog"])
        np.testing.assert_array_equal(found.boxes.xyxy, wanted.boxes.xyxy)
        assert (found.found.tolist(), found.reasons) == (wanted.found.tolist(), wanted.reasons)
        assert given is not None or found.found.all()
    assert "--min-score auto" in str(by_recipe.ran(every))
    assert "--min-score 0.5" in str(by_recipe.ran(replace(every, min_score=0.5)))


def test_what_is_kept_for_a_visitor_holds_a_small_photograph_and_the_same_boxes(service, tmp_path):
    large = tmp_path / "large.png"
    with Image.open(CAT) as photo:
        photo.resize((1804, 1200)).save(large)
    settings = Settings(names="cat, dog", method="cam", min_presence=0.0)
    kept = service.look(str(large), settings)
    assert kept.results["cam"].image.size == (1080, 718)
    assert kept.size == kept.results["cam"].maps.nbytes + 3 * 1080 * 718
    whole = localizer_of("mini", method="cam", min_presence=0.0)(str(large), settings.prompts)
    small = kept.cut(settings)["cam"]
    np.testing.assert_array_equal(small.boxes.xyxy, whole.boxes.xyxy)
    assert small.boxes.xyxy.max() > 1000  # the photograph's own pixels


def test_the_same_again_is_not_computed_again(service, look):
    again = service.look(CAT, Settings(names="cat,dog", method="cam", threshold=0.7, opacity=0.2), look)
    assert again is look
    assert service.look(CAT, Settings(names="cat", method="layer_cam"), look) is not look


def test_new_names_on_a_photograph_run_no_tower(service, by_recipe, monkeypatch):
    mini = service.backbone("mini")
    monkeypatch.setattr(mini, "trace", lambda *_: pytest.fail("the image tower ran"))
    again = service.look(CAT, Settings(names="remote control, cat"), by_recipe)
    wanted = localizer_of("mini")(CAT, ["remote control", "cat"])
    np.testing.assert_array_equal(again.cut(Settings())["recipe:default"].boxes.xyxy, wanted.boxes.xyxy)
    monkeypatch.setattr(mini, "encode_text", lambda _: pytest.fail("the text tower ran"))
    service.look(CAT, Settings(names="cat"))  # another visitor


def test_more_heatmaps_than_a_page_holds_are_refused_before_the_model_runs(service, monkeypatch):
    methods = service.menu("mini").methods
    names = ", ".join(f"n{i}" for i in range(MOST_CELLS // len(methods) + 1))
    monkeypatch.setattr(service, "localizer", None)
    with pytest.raises(UsageError, match=rf"at most {MOST_CELLS} heatmaps \(names × methods\), got"):
        service.look(CAT, Settings(names=names, compare=methods))


@pytest.mark.parametrize("kind", ["open", "closed"])
def test_a_trained_head_is_its_models_method(service, tmp_path, kind):
    mini = service.backbone("mini")
    file = write_head(tmp_path / "head.safetensors", mini, kind)
    [offer] = with_heads([Offer("mini")], [str(file)])
    trained = Service([offer], device="cpu")
    assert trained.menu("mini").default == "ts_cam"
    look = trained.look(CAT, Settings(names="cat, dog", compare=("cam",)))
    found = look.cut(Settings(names="cat, dog", threshold=0.3))
    wanted = Localizer("mini", head=str(file), threshold=0.3)(CAT, ["cat", "dog"])
    np.testing.assert_allclose(found["ts_cam"].maps, wanted.maps, atol=1e-6)
    assert found["ts_cam"].reasons == wanted.reasons
    np.testing.assert_array_equal(found["ts_cam"].boxes.xyxy, wanted.boxes.xyxy)
    assert found["cam"].reasons[1].startswith("not in the picture: presence")
    lines = python_lines(Settings(names="cat"), "cat.jpg", offer.arguments, [(offer.arguments_of("ts_cam"), 0.3)])
    assert "method='ts_cam', head='head.safetensors'" in lines
    assert list(trained.look(CAT, from_mapping({"names": "cat", "recipe": "fast"})).results) == ["recipe:fast"]
    with pytest.raises(UsageError, match="was trained on mini, which is not offered: add --model mini"):
        with_heads([Offer("RN50")], [str(file)])
    with pytest.raises(UsageError, match="are both for ts_cam"):
        with_heads([Offer("mini")], [str(file), str(file)])


def test_files_hold_the_photographs_own_size(look, tmp_path):
    settings = Settings(names="cat, dog")
    found = look.cut(settings)
    written = downloads.write_files(tmp_path, found, settings, look.offer.label)
    paths = {path.name: path for path in written}
    assert {*tmp_path.iterdir()} == {*written}
    assert zipfile.ZipFile(paths["cat.zip"]).namelist() == list(paths)[1:]
    heatmaps = np.load(paths["cat_heatmaps.npy"], allow_pickle=False)
    assert heatmaps.shape == (2, 300, 451)
    grey = np.asarray(Image.open(paths["cat_1_cat.png"]))
    assert grey.dtype == np.uint16
    np.testing.assert_allclose(grey / 65535, heatmaps[0].clip(0, 1), atol=1e-5)
    assert Image.open(paths["cat_overlay.png"]).size == (451, 300)
    [box] = found["cam"].boxes.xyxy.tolist()
    [annotation] = json.loads(paths["coco.json"].read_text())["annotations"]
    left, top, width, height = annotation["bbox"]
    np.testing.assert_allclose([left, top, left + width, top + height], box, atol=1e-3)


def test_files_with_masks(look, tmp_path):
    settings = Settings(names="cat, dog", masks=True)
    found = look.cut(settings)
    written = downloads.write_files(tmp_path, found, settings, look.offer.label)
    paths = {path.name: path for path in written}
    assert {*tmp_path.iterdir()} == {*written}
    assert {"cat_labels.png", "labels.json"} < set(paths)
    [mask] = found["cam"].masks.of_boxes
    assert (np.asarray(Image.open(paths["cat_labels.png"])) == found["cam"].label_map()).all()
    [box] = json.loads(paths["results.json"].read_text())["pictures"][0]["names"][0]["boxes"]
    assert (rle.decode(box["mask"]) == mask).all()
    [annotation] = json.loads(paths["coco.json"].read_text())["annotations"]
    assert annotation["segmentation"]
    assert b"<mask " in paths["cvat.xml"].read_bytes()
    heat, masks = (view.results_html(found, 0.5, masks=chosen) for chosen in (False, True))
    assert ['class="heat"' in one for one in (heat, masks)] == [True, False]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Settings(method="cam"), "--method=cam"),
        (Settings(), None),
        (Settings(method="recipe:fast", windows=(1,)), "--recipe=fast"),
        (Settings(refine=(), flip=False, scales=(1,), windows=()), "--windows="),
    ],
)
def test_the_lines_reproduce_what_is_shown(service, asked, said, tmp_path, monkeypatch):
    settings = replace(asked, names="cat, dog", threshold=0.45, max_boxes=1)
    look = service.look(CAT, settings)
    [found] = look.cut(settings).values()
    rules = [(look.offer.arguments_of(method), tau) for method, tau in look.rules(settings)]
    lines = (settings, "cat.jpg", look.offer.arguments, rules)
    shutil.copy(CAT, tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(python_lines(*lines), scope)
    np.testing.assert_array_equal(scope["found"].boxes.xyxy, found.boxes.xyxy)
    assert (tmp_path / f"{asked.method if said == '--method=cam' else 'found'}.png").exists()
    words = command_lines(*lines).split()
    assert said in words or not any(word.startswith(("--method", "--recipe")) for word in words)
    printed = cliploc_(*words[1:], "--json").out
    box = re.search(r'"xyxy": \[([^\]]+)\]', printed).group(1)
    np.testing.assert_allclose([float(part) for part in box.split(",")], found.boxes.xyxy[0], atol=0.01)


def test_on_each_example_of_the_page_a_name_is_found_where_it_is(service):
    photos = {photo.path.stem: photo for photo in demo_photos()}
    for name in EXAMPLES:
        found = service.look(str(photos[name].path), Settings(names=", ".join(photos[name].ask))).cut(Settings())
        [result] = found.values()
        ious = [iou_matrix(result.boxes.of(one)[:1], true).max() for one, true in photos[name].truth.items()
                if one in result.names and len(result.boxes.of(one))]  # fmt: skip
        assert max(ious) >= 0.5, name


def test_more_masks_than_one_request_may_have_are_refused_before_the_model_runs(service, monkeypatch):
    monkeypatch.setattr("cliploc.web.settings.MOST_DRAWN", 200_000)  # the photograph has 135,300 pixels
    monkeypatch.setattr(service, "localizer", None)
    with pytest.raises(UsageError, match="masks of at most 1 names × methods for a picture of 451×300 pixels, got 2"):
        service.look(CAT, Settings(names="cat, dog", masks=True))


def test_a_photograph_is_decoded_once_and_another_file_is_another_photograph(service, tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (10, 10)).save(path)
    before = service.read(str(path))
    assert service.read(str(path)) is before
    Image.new("RGB", (20, 20)).save(path)
    os.utime(path, ns=(1, 1))
    assert service.read(str(path)).image.size == (20, 20) != before.image.size
    path.unlink()
    with pytest.raises(InputError, match=r"^a\.png: it is not kept any longer"):
        service.read(str(path))

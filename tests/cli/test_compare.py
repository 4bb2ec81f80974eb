"""`cliploc compare`: the published methods beside each other, on one or more models."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cliploc.localizer import Localizer
from cliploc.methods import methods
from tests.commands import CAT, COFFEE, cliploc_, create_once, document_of, refused
from tests.tiny import write_head


@pytest.fixture(scope="module")
def mini():
    return create_once("mini", None, "cpu", precision="fp32")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("compared")
    return out, document_of("compare", *ASKED, "--method", "cam,layer_cam", "--method", "grad_cam", "--out", out)


ASKED = (CAT, "-p", "cat", "-p", "pizza")


def test_each_method_is_the_published_one_alone(mini, compared):
    out, document = compared
    assert (document["schema_version"], document["failures"]) == (1, [])
    [picture] = document["pictures"]
    assert [one["method"] for one in picture["results"]] == ["cam", "layer_cam", "grad_cam"]
    for one in picture["results"]:
        alone = document_of("localize", *ASKED, "--method", one["method"])
        names = [{key: value for key, value in name.items() if key != "peak"} for name in one["names"]]
        assert names == alone["pictures"][0]["names"]
        settings = document["settings"]["models"][0]["methods"][one["method"]]
        assert settings["threshold"] == alone["settings"]["threshold"] == methods.get(one["method"]).threshold
        assert (one["model"], one["missing"], one["notes"]) == ("mini", None, [])
        heat = Localizer(mini, method=one["method"])(CAT, ["cat"]).heatmaps[0]
        y, x = np.unravel_index(int(heat.argmax()), heat.shape)
        assert one["names"][0]["peak"]["heat"] == pytest.approx(heat.max(), abs=0.02)
        np.testing.assert_allclose(one["names"][0]["peak"]["xy"], (x + 0.5, y + 0.5), atol=2.5)
    settings = document["settings"]
    assert settings["models"][0]["refine"] == []
    assert settings["models"][0]["min_score"] == 0
    assert settings["methods"] == {"cam": "CAM", "layer_cam": "LayerCAM", "grad_cam": "Grad-CAM"}
    assert json.loads((out / "results.json").read_text()) == document
    assert picture["figure"] == "cat-compare.png"
    with Image.open(out / "cat-compare.png") as sheet:
        assert sheet.format == "PNG"
    assert sorted(path.name for path in out.iterdir()) == ["cat-compare.png", "results.json"]


def test_lines_say_what_json_says(compared, tmp_path):
    text = cliploc_("compare", *ASKED, "--method", "cam,layer_cam,grad_cam", "--out", tmp_path)
    first, *rest = text.out.splitlines()
    assert first == f"{CAT}  451×300"
    [picture] = compared[1]["pictures"]
    boxes = [box for one in picture["results"] for name in one["names"] for box in name["boxes"]]
    shown = [line for line in rest if "box" in line]
    for line, box in zip(shown, boxes, strict=True):
        assert line.endswith(f"uncalibrated {box['score']:.2f}  box {' '.join(f'{edge:.0f}' for edge in box['xyxy'])}")
    assert rest[0].split()[:3] == ["cam", "cat", "found"]
    assert "3 of 6 maps have boxes" in text.err
    assert f"sheets and results.json in {tmp_path}" in text.err


def test_a_photo_that_cannot_be_read_is_named_and_the_others_are_done(tmp_path):
    again = tmp_path / "again/cat.jpg"
    again.parent.mkdir()
    shutil.copy(CAT, again)
    out = tmp_path / "out"
    result = cliploc_(
        "compare", CAT, "no.jpg", again, COFFEE, "-p", "cat", "--method", "cam,layer_cam", "--out", out, "--json"
    )
    document = json.loads(result.out)
    assert result.code == 1
    assert document["failures"] == [{"file": "no.jpg", "error": "no.jpg: no such file: check the path"}]
    assert [one["figure"] for one in document["pictures"]] == [
        "cat-compare.png", "cat-compare-2.png", "coffee-compare.png",
    ]  # fmt: skip
    assert result.err.count("no.jpg: no such file") == 1


def test_a_method_that_is_unfit_for_one_of_the_models_is_missing_there(tmp_path):
    both = ("--model", "mini", "--model", "mini-vit", "--out", tmp_path)
    document = document_of("compare", CAT, "-p", "cat", "--method", "cam,grad_cam,gem", *both)
    [picture] = document["pictures"]
    cells = {(one["model"], one["method"]): one for one in picture["results"]}
    assert len(cells) == 6
    missing = {where: one["missing"] for where, one in cells.items() if one["missing"]}
    assert missing == {
        ("mini", "gem"): "gem does not work on mini, a cnn tower",
        ("mini-vit", "cam"): "cam does not work on mini-vit, a vit tower",
    }
    assert all(bool(one["names"]) == (one["missing"] is None) for one in cells.values())
    alone = document_of("localize", CAT, "-p", "cat", "--model", "mini-vit", "--method", "gem")
    assert cells["mini-vit", "gem"]["names"][0]["boxes"] == alone["pictures"][0]["names"][0]["boxes"]
    fitting = [["cam", "grad_cam"], ["grad_cam", "gem"]]
    assert [list(one["methods"]) for one in document["settings"]["models"]] == fitting


def test_options_of_the_localizer_and_of_the_methods_reach_them(tmp_path):
    document = document_of(
        *("compare", CAT, "-p", "cat", "--method", "cam,layer_cam"),
        *("-o", "layer_cam.stages=-1,-2", "--threshold", "0.6"),
        *("--flip", "--scales", "1,1.5", "--refine", "guided", "--max-boxes", "1", "--out", tmp_path),
    )
    [model] = document["settings"]["models"]
    assert model["methods"]["layer_cam"]["options"]["stages"] == [-1, -2]
    assert model["methods"]["cam"]["threshold"] == 0.6
    assert model["refine"] == ["guided"]
    localizer = Localizer(
        "mini", method="layer_cam", method_options={"stages": (-1, -2)}, threshold=0.6, flip=True, scales=(1, 1.5),
        refine=["guided"], max_boxes=1,
    )  # fmt: skip
    wanted = localizer(CAT, ["cat"])
    [box] = document["pictures"][0]["results"][1]["names"][0]["boxes"]
    np.testing.assert_allclose(box["xyxy"], wanted.boxes.xyxy[0], atol=0.01)


def test_a_head_is_for_the_model_that_it_was_trained_on(mini, tmp_path):
    head = write_head(tmp_path / "head.safetensors", mini)
    asked = (CAT, "-p", "cat", "--head", head, "--out", tmp_path / "out")
    document = document_of("compare", *asked, "--method", "ts_cam,cam", "--model", "mini", "--model", "mini-vit")
    cells = {(one["model"], one["method"]): one for one in document["pictures"][0]["results"]}
    assert cells["mini", "ts_cam"]["missing"] is None
    assert cells["mini-vit", "ts_cam"]["missing"] is None  # the published one, without layers of its own
    alone = document_of("localize", CAT, "-p", "cat", "--head", head)
    assert cells["mini", "ts_cam"]["names"][0]["boxes"] == alone["pictures"][0]["names"][0]["boxes"]
    for words, said in (
        (("--method", "cam"), "is trained for ts_cam: add --method ts_cam"),
        (("--method", "ts_cam", "--model", "mini-vit"), "is trained for mini: add --model mini"),
    ):
        assert said in refused("compare", *asked, *words)


def test_drawings_for_papers_by_the_command_line(tmp_path):
    asked = (CAT, "-p", "cat", "--figures", "svg", "--colormap", "plasma")
    for words, file in (
        (("localize", *asked, "--recipe", "fast", "--out", tmp_path / "a"), tmp_path / "a" / "cat_overlay.svg"),
        (("compare", *asked, "--method", "cam", "--out", tmp_path / "b"), tmp_path / "b" / "cat-compare.svg"),
    ):
        assert cliploc_(*words).code == 0
        text = file.read_text()
        assert "its maximum" in text
        assert ">cat<" in text
    assert "'jet'" in refused("localize", CAT, "-p", "cat", "--colormap", "jet", "--out", tmp_path)

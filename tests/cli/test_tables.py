"""What `compare`, `demo`, `classify` and `segment` print and write."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cliploc.cli.demo import IOU_RULE
from cliploc.draw.colours import NAME_COLOURS
from cliploc.find import prompts
from cliploc.find.segmentation.protocol import protocol_for
from cliploc.find.segmentation.segmenter import Segmenter
from cliploc.images.demo import demo_photos
from cliploc.images.geometry import iou_matrix
from cliploc.images.reading import load
from cliploc.localizer import Localizer
from cliploc.methods import methods
from cliploc.options import SegmentationOptions
from tests.commands import CAT, COFFEE, Outcome, cliploc_, create_once, document_of, refused, succeeded
from tests.tiny import tower, write_head


@pytest.fixture(scope="module")
def mini():
    return create_once("mini", None, "cpu", precision="fp32")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("compared")
    return out, document_of("compare", *COMPARED, "--method", "cam,layer_cam", "--method", "grad_cam", "--out", out)


COMPARED = (CAT, "-p", "cat", "-p", "pizza")


def test_each_method_is_the_published_one_alone(mini, compared):
    out, document = compared
    assert (document["schema_version"], document["failures"]) == (1, [])
    [picture] = document["pictures"]
    assert [one["method"] for one in picture["results"]] == ["cam", "layer_cam", "grad_cam"]
    for one in picture["results"]:
        alone = document_of("localize", *COMPARED, "--method", one["method"])
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
    text = cliploc_("compare", *COMPARED, "--method", "cam,layer_cam,grad_cam", "--out", tmp_path)
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


# ---------------------------- The demo: every photo and name in the table, IoU as its rule says, a sheet for each photo
@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> tuple[Outcome, Path]:
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    # The recipe that sees a photo once: the table is made in the same way of any boxes.
    return cliploc_("demo", "--recipe", "fast", "--out", out), out


@pytest.fixture(scope="module")
def rows(demo) -> list[list[str]]:
    """The table's cells: photo, name, found, score, box, IoU."""
    table = demo[0].out.split("\nfound ")[0].splitlines()
    return [re.split(r"  +", line) for line in table[1:] if line]


def test_every_name_of_every_photo_has_a_row(demo, rows):
    assert demo[0].code == 0, demo[0].err
    assert [(row[0], row[1]) for row in rows] == [(p.path.name, name) for p in demo_photos() for name in p.ask]
    assert len({row[0] for row in rows}) >= 8
    assert max(map(len, demo[0].out.split("\nfound ")[0].splitlines())) <= 80, "the table fits a screen of 80 columns"


def test_iou_is_that_of_the_best_box_with_the_true_box_it_overlaps_most(rows):
    truth = {(p.path.name, name): p.truth.get(name) for p in demo_photos() for name in p.ask}
    compared = 0
    for photo, name, found, _, box, overlap in rows:
        true = truth[photo, name]
        if true is None:
            assert overlap == "absent"
        elif found.startswith("no"):
            assert overlap == "0.00 ✗"
        else:
            best = [float(value) for value in box.split(" (")[0].split()]
            expected = iou_matrix([best], true).max()
            assert float(overlap.split()[0]) == pytest.approx(expected, abs=0.02)  # the box is printed in whole pixels
            compared += 1
    assert compared >= 8


def test_the_summary_is_that_of_the_rows(demo, rows):
    overlaps = [float(row[5].split()[0]) for row in rows if row[5] != "absent"]
    absent = [row for row in rows if row[5] == "absent"]
    alarms = sum(row[2].startswith("yes") for row in absent)
    line = next(line for line in demo[0].out.splitlines() if line.startswith("found "))
    good, total, missed, mean = re.match(r"found (\d+) of (\d+) .*, missed (\d+), .*mean IoU ([\d.]+);", line).groups()
    assert float(mean) == pytest.approx(sum(overlaps) / len(overlaps), abs=0.011)
    assert int(total) == len(overlaps)
    assert int(good) == sum("✗" not in row[5] for row in rows if row[5] != "absent")
    unsure = sum(row[2] == "unsure" for row in rows)
    assert int(missed) == int(total) - int(good)
    assert f", invented {alarms} of {len(absent)};" in line
    assert line.endswith(f"; {unsure} unsure")
    assert IOU_RULE in demo[0].out
    assert "OpenAI's CLIP" in demo[0].out.splitlines()[-1]


def test_a_sheet_for_each_photo(demo):
    _, out = demo
    photos = list(demo_photos())
    assert {path.name for path in out.iterdir()} == {p.path.name for p in photos}
    for photo in photos:
        with Image.open(out / photo.path.name) as sheet:
            sheet.load()
            assert min(sheet.size) > 300


# `cliploc classify` and `cliploc segment`; names, templates and precision as the command line takes them
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
    (tmp_path / "templates.txt").write_text("# mine\na photo of a {}.\n\nthe {}.\n")
    fast = ("--recipe", "fast") if command == "localize" else ()
    files = ("--labels", tmp_path / "classes.txt", "--template", tmp_path / "templates.txt")
    more = ("--template", "itap of a {}.", "--precision", "bf16", "--no-text-cache")
    document = document_of(command, CAT, "-p", "sofa", *fast, *files, *more)
    settings = document["settings"]
    assert settings["names"][:2] == ["sofa", "cat|kitten"]
    assert settings["names"][2].startswith("German Shepherd Dog|")
    assert settings["templates"] == ["a photo of a {}.", "the {}.", "itap of a {}."]
    assert (settings["precision"], settings["text_cache"]) == ("bf16", False)
    names = [one["name"] for one in document["pictures"][0]["names"]]
    assert names[0] == "cat" if command == "classify" else names[:2] == ["sofa", "cat"]


def test_pictures_are_fitted_in_the_models_own_way_unless_one_says_how(monkeypatch):
    cropping = tower("gap_cnn", (8, 8))
    cropping.resize_policy = "crop"
    monkeypatch.setattr("tests.commands.create_once", lambda *_, **__: cropping)
    fitted = {}
    for asked in ((), ("--resize", "pad")):
        document = document_of("classify", CAT, "-p", "red", "-p", "green", "--device", "cpu", *asked)
        fitted[asked] = document["settings"]["resize"]
    assert list(fitted.values()) == ["crop", "pad"]


# -------------------------------------------------------------------------------------------------------------- segment
NAMES = ("-p", "cup|mug", "-p", "spoon")
ASKED = (*NAMES, "--background", "table", "--background-threshold", "0.6", "--window", "0")
FAST = ("--template", "name-only", "--no-text-cache")


def test_the_files_hold_the_label_map_of_the_segmenter(tmp_path):
    document = document_of("segment", COFFEE, *ASKED, *FAST, "--out", tmp_path)
    assert document == json.loads((tmp_path / "results.json").read_text())
    protocol = protocol_for(["cup|mug", "spoon"], ["table"], SegmentationOptions(window=0, background_threshold=0.6))
    localizer = Localizer(create_once("mini", None, "cpu", precision="fp32"), method="cam", templates="name-only")
    wanted = Segmenter(localizer, protocol, {"cam": {}}).label_maps(load(COFFEE).image)["cam"]

    [record] = document["pictures"]
    with Image.open(tmp_path / record["label_map"]) as written:
        assert (written.mode, written.size) == ("P", (600, 400))
        assert (np.asarray(written) == wanted).all()
        assert written.getpalette()[:9] == [0, 0, 0, *NAME_COLOURS[0], *NAME_COLOURS[1]]
    with Image.open(tmp_path / record["segments"]) as drawn:
        assert drawn.width == 600
        assert drawn.height > 400  # the legend
    assert len(np.unique(wanted)) == 3
    read = pytest.importorskip("pycocotools.mask").decode
    assert [one["name"] for one in record["names"]] == ["background", "cup", "spoon"]
    for value, one in enumerate(record["names"]):
        assert (one["value"], one["pixels"]) == (value, int((wanted == value).sum()))
        assert one["share"] == pytest.approx(one["pixels"] / wanted.size, abs=1e-6)
        assert (read(one["mask"]).astype(bool) == (wanted == value)).all()
    legend = json.loads((tmp_path / "labels.json").read_text())["labels"]
    assert [one["name"] for one in legend] == [None, "cup", "spoon"]
    settings = document["settings"]
    assert (settings["method"], settings["cosines"], settings["refine"]) == ("cam", False, [])
    assert (settings["protocol"]["window"], settings["protocol"]["logit_scale"]) == (0, 40)
    assert settings["labels"] == legend
    for more, kept in ((["--rle"], True), ([], False)):  # where nothing is printed, the masks are written on request
        assert cliploc_("segment", COFFEE, *ASKED, *FAST, *more, "--out", tmp_path).code == 0
        [other] = json.loads((tmp_path / "results.json").read_text())["pictures"]
        assert (other["names"] == record["names"]) == kept


def test_lines_have_the_share_of_each_name_and_a_bad_photo_does_not_end_the_run(tmp_path):
    thin = tmp_path / "thin.png"
    Image.new("RGB", (3000, 9)).save(thin)
    result = cliploc_("segment", CAT, "no.jpg", thin, *NAMES, "-p", "sofa", "--window", "0", *FAST)
    assert result.code == 1
    assert result.out.splitlines()[0] == f"{CAT}  451×300"
    names, shares = zip(*(line.rsplit(None, 2)[:2] for line in result.out.splitlines()[1:4]), strict=True)
    assert [name.strip() for name in names] == ["cup", "spoon", "sofa"]  # no background was asked for
    assert sum(map(float, shares)) == pytest.approx(100, abs=0.2)
    assert "failed: no.jpg: no such file" in result.err
    assert f"failed: {thin}: expected a picture of at least 32 pixels a side" in result.err
    assert list(tmp_path.iterdir()) == [thin]


def test_names_that_the_model_does_not_know_are_said():
    result = succeeded("segment", COFFEE, "-p", "cup", "-p", "qwxz", "--window", "0", *FAST, "--json")
    assert "left out: mini does not know 'qwxz'" in result.err
    assert "cup is the only name that mini knows: it gets every pixel" in result.err
    document = json.loads(result.out)
    assert list(document["settings"]["unknown"]) == ["qwxz"]
    assert [one["share"] for one in document["pictures"][0]["names"]] == [0, 1, 0]

"""`cliploc classify` and `cliploc segment`; names, templates and precision as the command line takes them."""

import json

import numpy as np
import pytest
from PIL import Image

from cliploc.draw.colours import NAME_COLOURS
from cliploc.find import prompts
from cliploc.find.segmentation.protocol import protocol_for
from cliploc.find.segmentation.segmenter import Segmenter
from cliploc.images.reading import load
from cliploc.localizer import Localizer
from cliploc.options import SegmentationOptions
from tests.commands import CAT, COFFEE, cliploc_, create_once, document_of, succeeded
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

"""cliploc as a model of other libraries, by their own classes where they are installed, else by stand-ins."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from cliploc.errors import UsageError
from cliploc.localizer import Localizer
from tests.tiny import tower

SOURCE = Path(__file__).parents[1] / "integrations/fiftyone"
HOMES = {
    "fiftyone": "cliploc.label.fiftyone",
    "autodistill": "cliploc.label.autodistill",
    "quantus": "cliploc.evaluate.tasks.faithfulness.quantus",
}
NAMES = ["red|dark red", "blue thing"]
OPTIONS = {"method": "cam", "min_presence": 0, "text_cache": False, "threshold": 0.5, "templates": ("{}",)}


def picture() -> np.ndarray:
    image = Image.new("RGB", (121, 97), (128, 128, 128))
    ImageDraw.Draw(image).rectangle((20, 20, 39, 39), fill=(255, 0, 0))
    ImageDraw.Draw(image).rectangle((80, 60, 99, 79), fill=(0, 0, 255))
    return np.asarray(image)


def module(name: str, **content: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(content)
    return made


def stand_ins() -> dict[str, ModuleType]:
    """What the two libraries publish, as far as cliploc's files name it."""

    class Model:
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    labels = {
        name: type(name, (SimpleNamespace,), {}) for name in ("Detection", "Detections", "Heatmap", "Segmentation")
    }
    models = module("fiftyone.core.models", Model=Model)
    core = module("fiftyone.core", models=models)

    class CaptionOntology:
        def __init__(self, ontology: dict[str, str]) -> None:
            self.promptMap = list(ontology.items())

        def prompts(self) -> list[str]:
            return [prompt for prompt, _ in self.promptMap]

    detection = module("autodistill.detection", CaptionOntology=CaptionOntology, DetectionBaseModel=object)
    made = [module("fiftyone", core=core, **labels), core, models, module("autodistill"), detection]
    return {one.__name__: one for one in made}


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that needs a library, with that or its stand-in."""

    def loaded(name: str) -> Any:
        try:
            importlib.import_module(name)
        except ImportError:
            for key, made in stand_ins().items():
                monkeypatch.setitem(sys.modules, key, made)
        mine = HOMES[name]
        monkeypatch.delitem(sys.modules, mine, raising=False)
        found = importlib.import_module(mine)
        monkeypatch.delitem(sys.modules, mine)  # the next test may have another library
        return found

    return loaded


@pytest.mark.parametrize("name", ["fiftyone", "autodistill", "quantus"])
def test_without_the_library_one_line_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, HOMES[name], raising=False)
    with pytest.raises(UsageError, match=rf"pip install 'cliploc\[{name}\]'"):
        importlib.import_module(HOMES[name])


def test_fiftyone_gets_the_localizers_boxes_masks_and_maps(library: Any) -> None:
    fiftyone, backbone = library("fiftyone"), tower("gap_cnn")
    found = Localizer(model=backbone, **OPTIONS)(picture(), NAMES)
    outputs = fiftyone.OUTPUTS
    model = fiftyone.load_model("cliploc", "", classes=NAMES, outputs=outputs, model=backbone, **OPTIONS)
    assert (model.media_type, model.transforms, model.ragged_batches, model.preprocess) == ("image", None, False, False)
    with model:
        labels = model.predict(picture())
        assert len(model.predict_all([picture(), picture()[:50]])) == 2
    assert sorted(labels) == ["detections", "heatmap_blue_thing", "heatmap_red", "instances", "segmentation"]
    size = np.array([121, 97, 121, 97])
    masks = dict(found.box_masks())
    assert len(found.boxes) >= 2
    for kind in ("detections", "instances"):
        assert len(labels[kind].detections) == len(found.boxes)
        for i, one in enumerate(labels[kind].detections):
            x, y, w, h = np.array(one.bounding_box) * size
            loose = 1e-3 if kind == "detections" else 1  # masks have whole pixels
            assert [x, y, x + w, y + h] == pytest.approx(found.boxes.xyxy[i].tolist(), abs=loose)
            assert one.label == found.names[found.boxes.label[i]]
            assert one.confidence == pytest.approx(float(found.boxes.score[i]))
    for i, one in enumerate(labels["instances"].detections):
        x, y, w, h = (np.array(one.bounding_box) * size).round().astype(int)
        drawn = np.zeros((97, 121), bool)
        drawn[y : y + h, x : x + w] = one.mask
        assert (drawn == masks[i]).all()
    assert (labels["segmentation"].mask == found.label_map()).all()
    assert model.mask_targets == {0: "background", 1: "red", 2: "blue thing"}
    for name, heat in zip(("red", "blue_thing"), found.heatmaps, strict=True):
        assert (labels[f"heatmap_{name}"].map == heat).all()
    alone = fiftyone.load_model("cliploc", "", classes=["red"], model=backbone, **OPTIONS).predict(picture())
    assert [one.label for one in alone.detections] == ["red"]


@pytest.mark.parametrize("given", [{"classes": []}, {"classes": "cat"}, {"classes": ["a"], "outputs": ["box"]}])
def test_what_fiftyone_cannot_have_is_refused(library: Any, given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"expected (classes|outputs)"):
        library("fiftyone").load_model("cliploc-mini", "", **given)


def test_the_zoos_source_names_every_model(library: Any, tmp_path: Path) -> None:
    fiftyone = library("fiftyone")
    manifest = json.loads((SOURCE / "manifest.json").read_text())
    assert manifest["name"]
    assert {one["base_name"] for one in manifest["models"]} == set(fiftyone.ZOO)
    for one in manifest["models"]:
        fiftyone.download_model(one["base_name"], str(tmp_path / one["base_filename"]))
        assert (tmp_path / one["base_filename"]).exists()


def test_autodistill_gets_the_localizers_boxes(library: Any, tmp_path: Path) -> None:
    autodistill, backbone = library("autodistill"), tower("gap_cnn")
    ontology = autodistill.CaptionOntology({NAMES[0]: "scarlet", NAMES[1]: "azure"})
    base = autodistill.Cliploc(ontology, model=backbone, **OPTIONS)
    found = Localizer(model=backbone, **OPTIONS)(picture(), NAMES)
    Image.fromarray(picture()).save(tmp_path / "a.png")
    for given in (picture()[..., ::-1], str(tmp_path / "a.png"), Image.fromarray(picture())):
        detections = base.predict(given)
        assert detections.xyxy.tolist() == found.boxes.xyxy.tolist()
        assert detections.class_id.tolist() == found.boxes.label.tolist()


@pytest.mark.parametrize("masks", [False, True])
def test_supervisions_slicer_gets_the_same_one_by_one_in_batches_and_in_threads(masks: bool) -> None:
    from supervision import InferenceSlicer

    from cliploc import Detector

    localizer = Localizer(model=tower("gap_cnn"), **OPTIONS)
    detector = Detector(localizer, ["red", "blue"], masks=masks)
    large = np.full((200, 240, 3), 128, np.uint8)
    large[20:50, 20:50], large[130:170, 180:210] = (255, 0, 0), (0, 0, 255)
    ways: list[dict[str, Any]] = [{}, {"batch_size": 4}, {"batch_size": 3, "thread_workers": 2}]
    if masks:
        ways.append({"batch_size": 4, "compact_masks": True})
    first = None
    for given in ways:
        for seen in (large[..., ::-1], Image.fromarray(large)):
            found = InferenceSlicer(detector, slice_wh=100, overlap_wh=20, **given)(seen)
            order = np.argsort(found.xyxy[:, 0])
            told = (found.xyxy[order].round(2).tolist(), found.data["class_name"][order].tolist())
            first = first or told
            assert told == first
            if masks:
                pixels = np.asarray(found.mask, bool)[order]
                assert pixels[0, 30:40, 30:40].all()
                assert pixels[1, 140:160, 190:200].all()
                assert not pixels[0, 100:].any()
    assert first is not None
    assert first[1] == ["red", "blue"]


QUANTUS = {"resize": "squash", "min_presence": 0, "text_cache": False, "templates": ("{}",)}


def test_quantus_gets_the_localizers_maps_and_the_models_scores() -> None:
    quantus = pytest.importorskip("quantus", reason="needs quantus")
    from cliploc.evaluate.tasks.faithfulness.quantus import QuantusModel, explain

    backbone = tower("gap_cnn", (6, 6))
    backbone.interpolation = "bilinear"
    localizer = Localizer(model=backbone, method="cam", image_size=32, **QUANTUS)
    model = QuantusModel(localizer, ["red", "blue"])
    x = model.pictures([Image.fromarray(picture()), Image.fromarray(picture()[::-1])])
    targets = np.array([0, 1])
    maps = explain(model, x, targets, method="layer_cam")
    assert maps.shape == (2, 1, *x.shape[-2:])
    for heat, name, seen in zip(maps, ("red", "blue"), (picture(), picture()[::-1]), strict=True):
        [found] = localizer.compare([seen], [name], {"layer_cam": {}})
        assert np.allclose(heat, found["layer_cam"].maps_over_picture(x.shape[-2:]), atol=1e-5)
    # A metric that asks for maps of changed pictures, and one that asks for maps of changed models.
    sensitivity = quantus.MaxSensitivity(nr_samples=2, lower_bound=0.1, normalise=False, disable_warnings=True)
    asked = {
        "model": model, "x_batch": x, "y_batch": targets, "a_batch": maps, "explain_func": explain,
        "explain_func_kwargs": {"method": "layer_cam"}, "channel_first": True, "device": "cpu",
    }  # fmt: skip
    scores = sensitivity(**asked)
    assert all(0 < score < 10 for score in scores)
    before = [one.clone() for one in model.backbone.parameters()]
    random = quantus.MPRT(skip_layers=True, return_last_correlation=True, normalise=False, disable_warnings=True)
    found = random(**asked)
    assert all(-1 <= score < 0.99 for score in found)
    assert all(one.equal(old) for one, old in zip(model.backbone.parameters(), before, strict=True))


def test_a_metric_of_quantus_gives_the_benchmarks_numbers() -> None:
    quantus = pytest.importorskip("quantus", reason="needs quantus")
    from cliploc.evaluate.tasks.faithfulness.measure import Faithfulness
    from cliploc.evaluate.tasks.faithfulness.metrics import chosen_metrics, faithfulness_metrics
    from cliploc.evaluate.tasks.faithfulness.quantus import QuantusModel, explain, quantus_metric

    def flips() -> Any:
        return quantus.PixelFlipping(features_in_step=96, perturb_baseline="black", disable_warnings=True)

    def sensitivity() -> Any:
        return quantus.MaxSensitivity(nr_samples=1, lower_bound=0.1, normalise=False, disable_warnings=True)

    quantus_metric("quantus_gini", lambda: quantus.Sparseness(disable_warnings=True), "Gini", "of the heat")
    quantus_metric("quantus_flips", flips, "flips", "a curve")
    quantus_metric("quantus_max", sensitivity, "max", "largest change", best="low", needs_method=True)
    try:
        localizer = Localizer(model=tower("gap_cnn", (6, 6)), method="cam", **QUANTUS)
        metrics = chosen_metrics(["quantus_gini", "quantus_max"])
        of = Faithfulness(localizer, ["red", "blue"], metrics, {"cam": {}})
        seen = of.see("a", picture(), target="red")
        values = of.measure(seen)["cam"].values
        assert 0 < values["quantus_gini"] < 1
        assert 0 < values["quantus_max"] < 10
        model = QuantusModel(localizer, ["red", "blue"])
        logits = model(seen.images)
        assert float(logits.softmax(dim=1)[0, 0]) == pytest.approx(seen.probability, abs=1e-5)
        assert np.allclose(explain(model, seen.images.numpy(), np.array([0]))[0, 0], of.maps(seen)["cam"], atol=0.05)
        several = Faithfulness(localizer, ["red", "blue"], chosen_metrics(["quantus_flips"]), {"cam": {}})
        with pytest.raises(UsageError, match=r"^expected one number for a picture from quantus_flips, got 18"):
            several.measure(seen)
    finally:
        for name in ("quantus_gini", "quantus_flips", "quantus_max"):
            faithfulness_metrics._items.pop(name)


def test_what_quantus_cannot_have_is_refused() -> None:
    pytest.importorskip("quantus", reason="needs quantus")
    from cliploc.evaluate.tasks.faithfulness.quantus import QuantusModel

    localizer = Localizer(model=tower("gap_cnn"), method="cam", **{**QUANTUS, "resize": "crop"})
    with pytest.raises(UsageError, match=r"^expected resize squash, got crop"):
        QuantusModel(localizer, ["red"])
    with pytest.raises(UsageError, match=r"^expected names that mini knows, got 'xqzzt'"):
        QuantusModel(Localizer("mini", method="cam", **QUANTUS), ["cat", "xqzzt"])

"""The public names: lists, errors, and what a notebook shows."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cliploc
from cliploc.errors import CliplocError
from cliploc.methods import fitting
from cliploc.runs.label_store import LabellingRun
from tests.html_reader import Reader

DOCS = Path(__file__).parents[1] / "docs"
HOSTILE = '<img src=x onerror="alert(1)">&</li><script>alert(2)</script>'


def test_lists_hold_names_and_filter_them():
    assert {"mini", "mini-vit", "ViT-B-16"} <= set(cliploc.list_models())
    assert "mini-vit" in cliploc.list_models(kind="vit")
    assert "mini" not in cliploc.list_models(kind="vit")
    assert "mini" not in cliploc.list_models(method="gem")
    assert set(cliploc.list_models()) < set(cliploc.list_models(usable=False))
    assert {"cam", "gem"} <= set(cliploc.list_methods())
    assert cliploc.list_methods(model="ViT-B/16") == cliploc.list_methods(model="ViT-B-16")
    from cliploc.towers import models

    assert tuple(cliploc.list_methods(model="ViT-B-16")) == fitting(models.get("ViT-B-16"))
    perturbing = {"score_cam", "gscore_cam", "vl_score", "rise", "occlusion", "m2ib"}
    assert set(cliploc.list_methods(family="perturbation")) == perturbing
    for role in ("report", "tune"):  # whichever of their splits it is
        assert {"wsol", "coco"} <= set(cliploc.list_datasets(role=role))
    assert cliploc.list_metrics()[0] == "localization"
    assert cliploc.list_metrics(truth="masks") == ["pxap", "energy_in_masks", "relevance_rank_masks"]
    assert {"coco", "yolo"} <= set(cliploc.list_exports())


def test_errors_are_pythons_own_too():
    for kind in (CliplocError, cliploc.UsageError, ValueError):
        with pytest.raises(kind):
            cliploc.Options(threshold=2)
    for kind in (cliploc.UsageError, ValueError, KeyError):
        with pytest.raises(kind):
            cliploc.Localizer(method="no such method")
    assert not issubclass(cliploc.InputError, ValueError)


def test_every_public_name_is_there_and_completes():
    assert set(cliploc.__all__) <= set(dir(cliploc))
    assert cliploc.__all__ == sorted(cliploc.__all__)


def test_the_document_of_the_api_names_every_public_name():
    said = set(re.findall(r"`(?:cliploc\.)?([A-Za-z_]+)", (DOCS / "api.md").read_text(encoding="utf-8")))
    assert set(cliploc.__all__) <= said


@pytest.fixture(scope="module")
def found() -> cliploc.Localization:
    picture = Image.new("RGB", (64, 48), "red")
    return cliploc.Localizer(recipe="fast")(picture, ["cat", HOSTILE, "dog"])


def test_what_a_notebook_shows_has_a_picture_and_a_line_for_each_name_whatever_they_are(found):
    page = Reader(found._repr_html_())
    assert [tag for tag, _ in page.tags] == ["img", "ul", "li", "li", "li"]
    [picture] = page.all("img")
    assert set(picture) == {"alt", "src"}
    assert picture["src"].startswith("data:image/jpeg;base64,")
    assert picture["alt"] == repr(found)
    assert re.fullmatch(r"<Localization of image 0, 64×48: cat.*dog.*>", repr(found))
    assert HOSTILE in page.text
    assert "1 boxes" not in page.text


def test_an_overlay_takes_what_it_names(found):
    assert found.overlay(["cat"], opacity=0.2, heatmap=False, boxes=False).getpixel((3, 3)) == (255, 0, 0)
    assert np.array_equal(found.overlay(), found.overlay(None, None, True, True))
    with pytest.raises(TypeError):
        found.overlay(colour="red")


def test_annotate_takes_options_as_one_value_and_one_by_one(tmp_path):
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.png")
    options = cliploc.Options(method="layer_cam", batch_size=2, device="cpu")
    for name, more in (("a", {"options": options}), ("b", {"options": options, "method": "cam"}), ("c", {})):
        cliploc.annotate([tmp_path / "a.png"], ["cat"], tmp_path / name, formats=["csv"], **more)
    methods = []
    for name in "abc":
        with LabellingRun.open(tmp_path / name) as run:
            methods.append(run.settings["method"])
    assert methods == ["layer_cam", "cam", "cam"]
    for wrong in ({"colour": 3}, {"options": cliploc.Options(text_cache=False)}, {"background": ["grass"]}):
        with pytest.raises(cliploc.UsageError, match="option of"):
            cliploc.annotate([tmp_path / "a.png"], ["cat"], tmp_path / "d", **wrong)


@pytest.mark.parametrize("name", ["", ".towers", ".methods"])
def test_what_is_imported_on_first_use_is_what_type_checkers_see(name):
    name = f"cliploc{name}"
    package = importlib.import_module(name)
    imports = [one for one in ast.walk(ast.parse(inspect.getsource(package))) if isinstance(one, ast.ImportFrom)]
    names = {alias.name for one in imports if one.module not in ("__future__", "typing") for alias in one.names} - {"*"}
    assert len(names) > 5
    assert all(getattr(package, one) is not None for one in names)
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing_of_the_kind'"):
        _ = package.nothing_of_the_kind

"""`cliploc doctor`: a sound installation, a broken one, weights that are there, missing, damaged or random."""

import math
import re

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from cliploc import backbones
from cliploc.backbones import models
from cliploc.backbones.open_clip import _entry
from cliploc.demo import demo_photos
from cliploc.errors import ModelError
from cliploc.localizer import Classified, Localizer
from tests.backbones.small_clip import CONFIG, small_clip
from tests.backbones.test_weights import home, in_hub_cache  # noqa: F401 - a fixture
from tests.commands import cliploc_, succeeded


def line_of(result, name):
    (line,) = [line for line in result.out.splitlines() if line.split()[1] == name]
    return line


def test_this_installation_is_sound():
    result = succeeded("doctor")
    lines = result.out.splitlines()
    assert all(line.startswith("ok ") for line in lines[:-1])
    photos = list(demo_photos())
    names = len({name for photo in photos for name in photo.ask})
    right = f"{len(photos)} of {len(photos)} named right, out of {names} names"
    assert right in line_of(result, "pictures")
    assert re.search(r"boxes of the cat: [1-9], of a pizza: 0$", line_of(result, "boxes"))
    assert [line.split()[1] for line in lines[-5:-1]] == ["device", "weights", "pictures", "boxes"]
    assert lines[-1] == "everything is as it should be"


def test_what_is_broken_is_said(monkeypatch):
    def broken(*arguments: object, **options: object) -> None:
        raise ModelError("mini's weights are damaged")

    monkeypatch.setattr(backbones, "create", broken)
    monkeypatch.setattr("tests.commands.create_once", broken)
    monkeypatch.setattr("cliploc.doctor.PACKAGES", ("numpy", "no-such-package"))
    result = cliploc_("doctor")
    assert result.code == 1
    failed = [line for line in result.out.splitlines() if line.startswith("FAILED")]
    assert [line.split()[1] for line in failed] == ["no-such-package", "weights"]
    assert "pip install no-such-package" in failed[0]
    assert "mini's weights are damaged): install cliploc again" in failed[1]


@pytest.mark.parametrize("good", [True, False])
def test_the_verdict_is_counted(monkeypatch, good):
    """The fewest photographs that are 70%, and one less."""
    photos = list(demo_photos())
    right = math.ceil(0.7 * len(photos)) - (not good)
    answers = [next(iter(photo.truth)) if i < right else "elephant" for i, photo in enumerate(photos)]
    monkeypatch.setattr(Localizer, "classify", lambda *a, **k: [[Classified(name, 1.0, 0.2)] for name in answers])
    result = cliploc_("doctor")
    line = line_of(result, "pictures")
    assert line.startswith("ok " if good else "FAILED ")
    assert f"{right} of {len(photos)} named right" in line
    assert f"{photos[right].path.name} is called elephant" in line
    assert (f": {right / len(photos):.0%}, expected 70% or more, guessing reaches" in line) != good
    assert result.code == (0 if good else 1)


@pytest.fixture
def small(monkeypatch):
    """A ResNet of open_clip, by name, as small as can be."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "RN-small", CONFIG)
    monkeypatch.setitem(models._items, "RN-small", _entry("RN-small"))


def test_random_weights_load_and_do_not_pass(small, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(small_clip(seed=5).state_dict(), path)
    result = cliploc_("doctor", "--model", "RN-small", "--pretrained", path)
    assert result.code == 1, result.err
    weights = line_of(result, "weights")
    assert weights.startswith("ok ")
    assert f"RN-small:w.safetensors: {path} ({path.stat().st_size / 1e6:,.1f} MB), loaded in " in weights
    line = line_of(result, "pictures")
    assert line.startswith("FAILED")
    assert "these weights are random, or not of this model: download trained ones" in line
    assert result.out.endswith("\n1 check failed\n")


def test_damaged_weights_those_of_another_model_and_missing_ones_fail(small, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(small_clip(seed=5).state_dict(), path)
    cut = path.read_bytes()[:5000]
    save_file({"visual.conv1.weight": torch.zeros(3, 3)}, path)
    for content, said in ((cut, "is cut short or damaged"), (path.read_bytes(), "does not hold weights of RN-small")):
        path.write_bytes(content)
        result = cliploc_("doctor", "--model", "RN-small", "--pretrained", path)
        assert result.code == 1
        assert said in line_of(result, "weights")
    result = cliploc_("doctor", "--model", "RN-small", "--pretrained", tmp_path / "none.pt")
    assert result.code == 1
    assert f"expected a file of weights, found none at {tmp_path / 'none.pt'}: check" in line_of(result, "weights")


def test_a_tag_is_found_in_the_cache(small, home, monkeypatch, tmp_path):  # noqa: F811
    torch.save(small_clip(seed=5).state_dict(), tmp_path / "w.bin")
    link = in_hub_cache(home, "org/rn-small", "open_clip_model.bin", (tmp_path / "w.bin").read_bytes())
    published = {"hf_hub": "org/rn-small/open_clip_model.bin"}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda model, tag: published if tag == "mine" else {})
    result = cliploc_("doctor", "--model", "RN-small", "--pretrained", "mine")
    assert result.code == 1, result.err  # they are there, and random
    assert f"RN-small:mine: {link} (" in line_of(result, "weights")


def test_unknown_names_and_values_are_usage():
    for arguments, said in (
        (("--model", "RN50", "--pretrained", "no"), "unknown weights of RN50 'no'"),
        (("--precision", "int4"), "expected --precision to be one of"),
        (("--device", "cuda:99"), "expected a device of this machine"),
    ):
        result = cliploc_("doctor", *arguments)
        assert result.code == 2, arguments
        assert said in result.err


def test_a_tower_that_gives_nan_fails(small, tmp_path):
    path = tmp_path / "w.safetensors"
    state = small_clip(seed=5).state_dict()
    save_file(state | {"visual.conv1.weight": state["visual.conv1.weight"] * float("nan")}, path)
    result = cliploc_("doctor", "--model", "RN-small", "--pretrained", path)
    assert result.code == 1
    assert "gave an embedding that is not a number" in line_of(result, "pictures")

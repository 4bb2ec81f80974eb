"""`cliploc doctor`: a sound installation, a broken one, weights that are there, missing, damaged or random."""

from __future__ import annotations

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
from tests.commands import cliploc_


def line_of(result, name):
    (line,) = [line for line in result.out.splitlines() if line.split()[1] == name]
    return line


def ended(*arguments):
    """The one line with which it ends, after the checks that it has made."""
    result = cliploc_("doctor", *arguments)
    assert (result.code, result.err.count("\n")) == (2, 1)
    return result.err


# ------------------------------------------------------------------------------------------------------- installation
def test_this_installation_is_sound():
    result = cliploc_("doctor")
    assert result.code == 0, result.out
    lines = result.out.splitlines()
    assert all(line.startswith("ok ") for line in lines[:-1])
    photos = list(demo_photos())
    names = len({name for photo in photos for name in photo.ask})
    right = f"{len(photos)} of {len(photos)} (100%) called by a name of what they show, out of {names} names"
    assert right in line_of(result, "photographs")
    assert re.search(r"boxes of the cat: [1-9], of a pizza: 0$", line_of(result, "boxes"))
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
    line = line_of(result, "photographs")
    assert line.startswith("ok " if good else "FAILED ")
    assert f"{right} of {len(photos)} ({right / len(photos):.0%})" in line
    assert f"{photos[right].path.name} is called elephant" in line
    assert ("expected 70% or more, guessing reaches" in line) != good
    assert result.code == (0 if good else 1)


# ------------------------------------------------------------------------------------------------------------ weights
@pytest.fixture
def small(monkeypatch):
    """A ResNet of open_clip, by name, as small as can be."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "RN-small", CONFIG)
    monkeypatch.setitem(models._items, "RN-small", _entry("RN-small"))


def as_safetensors(path):
    save_file(small_clip(seed=5).state_dict(), path)


def test_random_weights_load_and_do_not_pass(small, tmp_path):
    path = tmp_path / "w.safetensors"
    as_safetensors(path)
    result = cliploc_("doctor", "--model", "RN-small", "--pretrained", path)
    assert result.code == 1, result.err
    weights = line_of(result, "weights")
    assert weights.startswith("ok ")
    assert f"RN-small:w.safetensors: {path} ({path.stat().st_size / 1e6:,.1f} MB), loaded in " in weights
    line = line_of(result, "photographs")
    assert line.startswith("FAILED")
    assert "these weights are random, or not of this model: download trained ones" in line
    assert result.out.endswith("\n1 check failed\n")


@pytest.mark.parametrize(
    ("change", "check", "said"),
    [
        ("cut", "weights", "is cut short or damaged"),
        ("another model's", "weights", "does not hold weights of RN-small"),
        ("not a number", "photographs", "gave an embedding that is not a number"),
    ],
)
def test_weights_that_are_of_no_use_fail(change, check, said, small, tmp_path):
    path = tmp_path / "w.safetensors"
    as_safetensors(path)
    first = "visual.conv1.weight"
    if change == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif change == "not a number":
        state = small_clip(seed=5).state_dict()
        save_file(state | {first: state[first] * float("nan")}, path)
    else:
        save_file({first: torch.zeros(3, 3)}, path)
    result = cliploc_("doctor", "--model", "RN-small", "--pretrained", path)
    assert result.code == 1
    assert said in line_of(result, check)


def test_missing_weights_end_it(small, tmp_path):
    said = ended("--model", "RN-small", "--pretrained", tmp_path / "none.pt")
    assert said == f"cliploc: expected a file of weights, found none at {tmp_path / 'none.pt'}: check the path\n"


def test_missing_tags_say_what_to_fetch_and_where_to_put_it(home):  # noqa: F811
    """Offline (HF_HUB_OFFLINE is set for all tests), with an empty cache."""
    said = ended("--model", "RN50", "--pretrained", "openai")
    for part in (
        "the weights 'openai' of RN50 are not on this machine and HF_HUB_OFFLINE forbids the network",
        "https://huggingface.co/timm/resnet50_clip.openai",
        f"as {home}/home/.cache/clip/RN50.pt",
    ):
        assert part in said


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
        assert said in ended(*arguments)

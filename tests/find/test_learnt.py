"""A file of what a folder has taught: other runs draw with it as the folder does, and no other model takes it."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from cliploc import towers
from cliploc.boxes.sides import LENGTH, READINGS
from cliploc.errors import InputError, UsageError
from cliploc.find.learnt import Learnt, load_learnt
from cliploc.images.rle import decode, encode
from cliploc.label.annotate import annotate
from cliploc.label.results import LEARNT
from cliploc.label.teach import teach as teaching
from cliploc.label.worker import LEAST_FIT
from cliploc.localizer import Localizer
from cliploc.options import FOUND
from cliploc.runs.label_store import Correction, LabellingRun, TaughtPicture
from tests.label.labelled import correct
from tests.tiny import tower

NAMES = ["red|scarlet", "blicket"]  # the tiny towers know the colour, and not the other
MODELS = {"mini": "gap_cnn", "mini-vit": "vit"}
HOW: dict[str, Any] = {"device": "cpu", "batch_size": 3}
# Features are kept in eight bits. In another batch the last bit of a float may differ, and with it a step of some of
# them; an edge of a box then moves by a pixel of the input, of which a picture has 44 across.
STEP = 0.025
SIDES = np.concatenate([[0.1, 0.2, -0.05, 0.15], np.linspace(0.3, -0.3, READINGS)])


def create(model: str = "mini", pretrained: str | None = None, device: str = "cpu", *, precision: str = "fp32") -> Any:
    """A tiny tower that does not know the word "blicket"."""
    made = tower(MODELS[model], (8, 8), seed=0 if pretrained is None else 1)
    made.unknown_reason = lambda word: f"no such word: {word!r}" if word == "blicket" else None
    return made


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towers, "create", create)


@dataclass(frozen=True)
class Run:
    """A run with three corrected pictures, that has taught both names."""

    out: Path
    model: str
    options: dict[str, Any]
    found: dict[str, TaughtPicture]  # what is taught of each picture

    @property
    def file(self) -> Path:
        return self.out / LEARNT

    def localizer(self, **more: Any) -> Localizer:
        return Localizer(self.model, **HOW, **{**self.options, "learnt": self.file, **more})


def drawn_picture(seed: int) -> tuple[np.ndarray, list[list[float]]]:
    """A grey picture with a red and a blue square, and where these are."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(100, 150, (44, 60, 3), dtype=np.uint8)
    boxes = []
    for left, channel in ((2, 0), (34, 2)):
        x, y, side = left + rng.integers(0, 8), rng.integers(0, 22), rng.integers(12, 18)
        pixels[y : y + side, x : x + side] = 30
        pixels[y : y + side, x : x + side, channel] = 250
        boxes.append([float(x), float(y), float(x + side), float(y + side)])
    return pixels, boxes


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for seed in range(7):
        Image.fromarray(drawn_picture(seed)[0]).save(root / f"{seed}.png")
    return root


def taught(photos: Path, out: Path, model: str, options: dict[str, Any], patch: pytest.MonkeyPatch) -> Run:
    patch.setattr(towers, "create", create)
    # Whether teaching is worth it is not asked here. Sides are moved far enough to be seen.
    patch.setattr(teaching, "gains", lambda *_: True)
    patch.setattr(teaching, "learnt", lambda pairs: SIDES)

    def again() -> Any:
        how = {"formats": ["csv"], "min_presence": 0, "masks": True}  # each name has a map in each picture
        return annotate(photos, NAMES, out, model=model, **how, **HOW, **options)

    again()
    masks = [encode(np.ones((44, 60), bool))["counts"]] * 2  # of which nothing is learnt
    of_three = {f"{seed}.png": Correction(drawn_picture(seed)[1], [0, 1], masks) for seed in range(3)}
    correct(out, of_three)
    again()
    with LabellingRun.open(out) as run:
        every = [run.taught(one, run.saved(one).generation) for one in run.pictures().values()]
    return Run(out, model, options, {one.picture: one for one in every if one is not None})


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "cnn": ("mini", {"recipe": "default"}),
    "level, flipped, padded": ("mini", {"refine": ("affinity", "level"), "flip": True, "resize": "pad"}),
    "whole pictures": ("mini", {"recipe": "fast"}),
    "vit": ("mini-vit", {"windows": (2.0,)}),  # without steps on the grid
}


@pytest.fixture(scope="module")
def runs(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, Run] = {}

    def run(case: str) -> Run:
        if case not in made:  # its patches end before those of the test that asks for it
            with pytest.MonkeyPatch.context() as patch:
                made[case] = taught(photos, tmp_path_factory.mktemp("run"), *CASES[case], patch)
        return made[case]

    return run


@pytest.mark.parametrize("case", CASES)
def test_a_picture_of_the_run_gets_the_boxes_of_its_drafts(case: str, runs: Any, photos: Path) -> None:
    run = runs(case)
    localizer = run.localizer(min_presence=0, min_score=0, second_look=False)
    pictures = [f"{seed}.png" for seed in range(3, 7)]
    results = localizer.stream([photos / one for one in pictures], ["green", "blicket", "red|scarlet"])
    compared = []
    for picture, found in zip(pictures, results, strict=True):
        drafts = run.found[picture].boxes
        for label, asked in ((0, 2), (1, 1)):
            if label not in {box.label for box in drafts}:  # it was not asked for there
                continue
            own = found.boxes.where(found.boxes.label == asked)
            own = own.where((own.score >= LEAST_FIT) | (np.arange(len(own)) == 0))
            boxes = [box.xyxy for box in drafts if box.label == label]
            fits = [box.fit for box in drafts if box.label == label]
            np.testing.assert_allclose(own.xyxy, boxes, atol=STEP * 60)
            np.testing.assert_allclose(own.score, fits, atol=STEP)
            codes = [box.mask for box in drafts if box.label == label]
            for i, mask in replace(found, boxes=own).box_masks():
                assert (decode({"size": [44, 60], "counts": codes[i]}) == mask).mean() > 0.97
            compared.append(label)
    assert {*compared} == {0, 1}


@pytest.mark.parametrize("case", CASES)
def test_other_names_run_as_before(case: str, runs: Any, photos: Path) -> None:
    run, picture, names = runs(case), photos / "4.png", ["green", "red", "blue"]
    with_file, without = (run.localizer(**how)(picture, names) for how in ({}, {"learnt": None}))
    np.testing.assert_array_equal(with_file.maps[[0, 2]], without.maps[[0, 2]])
    assert not np.array_equal(with_file.maps[1], without.maps[1])
    for p in (0, 2):
        own, before = (one.visible_boxes.where(one.visible_boxes.label == p) for one in (with_file, without))
        np.testing.assert_array_equal(own.xyxy, before.xyxy)
        np.testing.assert_array_equal(own.score, before.score)
        assert with_file.presence[p] == without.presence[p]


@pytest.mark.parametrize("second_look", [True, False])
def test_a_name_that_the_model_does_not_know_is_found_by_its_map(second_look: bool, runs: Any) -> None:
    run = runs("cnn")
    assert run.localizer(learnt=None).unknown_names(["blicket"])
    localizer = run.localizer(second_look=second_look)
    assert not localizer.unknown_names(["blicket"])
    pixels, (_, true) = drawn_picture(5)
    found = localizer(pixels, ["blicket", "red"])
    assert found.verdict(0) == "found"
    assert np.isnan(found.presence[0])
    assert found.presence_text(0) == "–"
    assert "presence is not known of names that were learnt without text: blicket" in found.notes
    [best, *_] = found.boxes.xyxy[found.boxes.label == 0]
    x, y = (best[:2] + best[2:]) / 2
    assert true[0] < x < true[2]
    assert true[1] < y < true[3]
    again = found.by(found.rule, 0.9)
    np.testing.assert_array_equal(again.boxes.xyxy[again.boxes.label == 0], found.boxes.xyxy[found.boxes.label == 0])


def test_a_name_that_was_learnt_without_its_text_is_not_said_to_be_missing(runs: Any, tmp_path: Path) -> None:
    """As "part 4711", which the model reads as "part" and finds nowhere; "red" is such a name here."""
    run, pixels = runs("cnn"), drawn_picture(5)[0]
    (tmp_path / LEARNT).write_bytes(replace(load_learnt(run.file), share=(0.0, 0.0)).content())
    found = run.localizer(learnt=tmp_path / LEARNT, min_presence=1)(pixels, ["red"])
    assert (found.verdict(0), bool(np.isnan(found.presence[0]))) == ("found", True)


def test_the_score_of_a_learnt_box_is_that_of_its_map_times_the_presence(runs: Any, photos: Path) -> None:
    found = runs("cnn").localizer(min_presence=0, min_score=0)(photos / "4.png", ["red", "blicket"])
    judged = found.judged
    assert {*judged.candidates.label.tolist()} == {0, 1}
    there = np.array([found.presence[0], 1.0])[judged.candidates.label]
    np.testing.assert_allclose(judged.candidates.score, judged.map_scores * there, rtol=1e-5)


def test_a_new_folder_gets_drafts_of_what_another_has_taught(runs: Any, photos: Path, tmp_path: Path) -> None:
    run = runs("cnn")
    how = {"formats": ["csv"], "model": run.model, **HOW, **run.options}
    result = annotate(photos, ["blicket"], tmp_path, learnt=run.file, teach=False, **how)
    assert sum(result.boxes.values()) >= 7
    with LabellingRun.open(tmp_path) as opened:
        assert opened.settings["learnt"] == load_learnt(run.file).digest()


def test_pictures_of_a_batch_may_have_other_names(runs: Any, photos: Path) -> None:
    localizer = runs("cnn").localizer(second_look=False, min_presence=0)
    pictures, names = [photos / f"{seed}.png" for seed in (3, 4, 5)], [["blicket"], ["green"], ["red"]]
    for found, picture, own in zip(localizer(pictures, names), pictures, names, strict=True):
        np.testing.assert_allclose(found.maps, localizer(picture, own).maps, atol=STEP)


@pytest.mark.parametrize("second_look", [True, False])
@pytest.mark.parametrize("name", ["blicket", "red"])
def test_a_picture_shows_a_name_if_it_looks_like_those_that_do(
    name: str, second_look: bool, runs: Any, tmp_path: Path
) -> None:
    """The chance is 0.32 at the first cosine and 0.95 at the second; the model's own counts if it is higher."""
    run = runs("cnn")
    learnt, pixels = load_learnt(run.file), drawn_picture(5)[0]
    row = learnt.row(name)
    without = run.localizer(second_look=second_look)(pixels, [name, "green"])
    cosine = float(torch.nn.functional.cosine_similarity(learnt.embedding[row], torch.tensor(without.embedding), dim=0))
    before = float(np.nan_to_num(without.presence[0]))
    for low, chance in ((cosine, FOUND), (cosine - 0.1, 0.95), (cosine + 0.3, 0.0)):
        (tmp_path / LEARNT).write_bytes(replace(learnt, alike=torch.tensor([[low, low + 0.1]]).expand(2, 2)).content())
        how = {"second_look": second_look, "learnt": tmp_path / LEARNT, "min_score": 0, "min_presence": 0.3}
        found = run.localizer(**how)(pixels, [name, "green"])
        assert found.presence[0] == pytest.approx(max(chance, before), abs=0.001)
        assert found.verdict(0) == ("found" if max(chance, before) > 0.3 else "not found")
        assert found.presence[1] == without.presence[1]
        assert not any("presence is not known" in note for note in found.notes)


# ------------------------------------------------------------------------------------------------------------ refused
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model": "mini-vit"}, r"learnt with model \"gap_cnn\", and model is \"vit\" here"),
        ({"pretrained": "other"}, "learnt with other weights of gap_cnn"),
        ({"method": "layer_cam"}, r"learnt with method \"cam\", and method is \"layer_cam\" here"),
    ],
)
def test_a_file_of_another_model_or_of_other_settings_is_refused(
    changed: dict[str, Any], said: str, runs: Any, photos: Path
) -> None:
    run = runs("cnn")
    with pytest.raises(UsageError, match=said) as error:
        Localizer(**{**HOW, "model": run.model, "learnt": run.file, **changed})(photos / "0.png", ["red"])
    assert "\n" not in str(error.value)


def test_a_file_of_another_version_says_so(tmp_path: Path) -> None:
    facts = {"kind": "cliploc learnt", "version": 1, "names": ["cup"], "about": {}}
    (tmp_path / "learnt.safetensors").write_bytes(save({"sides": torch.zeros(1, 4)}, {"cliploc": json.dumps(facts)}))
    with pytest.raises(InputError, match=r"of this version, .*annotate its folder again$"):
        load_learnt(tmp_path / "learnt.safetensors")


def test_a_file_holds_what_was_learnt(tmp_path: Path) -> None:
    values = torch.arange(6.0).view(2, 3)
    sides, alike, about = torch.ones(2, LENGTH), values[:, :2], {"model": "mini"}
    learnt = Learnt(("Cup~bowl", "cup"), values, values[:, 0], (0.5, 0.0), values[:, :2], sides, about, alike)
    (tmp_path / "a.safetensors").write_bytes(learnt.content())
    again = load_learnt(tmp_path / "a.safetensors")
    assert again.digest() == learnt.digest()
    assert again.alike.tolist() == alike.tolist()
    changes = ({"embedding": values[:, 1:]}, {"alike": values[:, 1:]}, {"sides": torch.zeros(2, LENGTH)})
    for change in (*changes, {"share": (0.5, 0.1)}):
        assert again.digest() != replace(learnt, **change).digest()
    assert (again.names, again.share, again.about) == (learnt.names, learnt.share, learnt.about)
    assert (again.row("CUP"), again.row("bowl")) == (0, None)  # of two with the same word the first
    for wrong in ({"alike": values + 1}, {"sides": values + 1}, {"bias": values[0] + 1}, {"bias": values[0, :2] / 0}):
        (tmp_path / "a.safetensors").write_bytes(replace(learnt, **wrong).content())
        with pytest.raises(InputError, match=r"cannot use it \((tensors of other sizes|values that cannot be used)\)"):
            load_learnt(tmp_path / "a.safetensors")


# ------------------------------------------------------------------------------------------------------- command line

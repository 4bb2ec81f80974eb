"""A second look: what the tower reads inside a box, the chances made of it, and what is said of a name."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from cliploc.boxes import BoxRule
from cliploc.cli.photos import rows_of
from cliploc.document import to_document
from cliploc.draw.overlay import run_line
from cliploc.errors import InputError
from cliploc.find import prompts
from cliploc.find.calibration import (
    OF_BOX,
    Calibration,
    Logistic,
    fit_logistic,
    load_calibration,
    logit,
    package_calibration,
    reliability,
)
from cliploc.find.presence import RELATED_SHARE, Bank, BankCosines, Rivals, in_bank
from cliploc.find.recipes import settings_of
from cliploc.find.second_look import SecondLook, best_of_names, mean_in, regions_of
from cliploc.find.texts import Texts
from cliploc.images.geometry import Frame
from cliploc.localizer import Localizer
from cliploc.options import FOUND
from cliploc.values import Boxes
from tests.commands import CAT, create_once, localizer_of
from tests.test_localizer import build
from tests.tiny import KINDS
from tests.tolerances import assert_rounded


# ------------------------------------------------------------------------------------------------- inside of a box
@given(st.tuples(st.integers(1, 5), st.integers(1, 5)), st.lists(st.floats(0, 1, width=16), min_size=4, max_size=4))
def test_the_mean_in_a_box_weighs_each_place_by_how_much_of_it_is_inside(grid, edges):
    height, width = grid
    places = torch.from_numpy(np.random.default_rng(0).normal(size=(3, height, width))).float()
    frame = Frame.fit("squash", (60, 80), (32, 32))
    (x0, x1), (y0, y1) = sorted(edges[:2]), sorted(edges[2:])
    box = np.array([[80 * x0, 60 * y0, 80 * x1 + 1, 60 * y1 + 1]], np.float32).clip(0, [80, 60, 80, 60])
    total, weight = np.zeros(3), 0.0
    for row in range(height):
        for column in range(width):
            left, right = column * 80 / width, (column + 1) * 80 / width
            top, bottom = row * 60 / height, (row + 1) * 60 / height
            across = max(0.0, min(right, box[0, 2]) - max(left, box[0, 0]))
            inside = across * max(0.0, min(bottom, box[0, 3]) - max(top, box[0, 1]))
            total, weight = total + inside * places[:, row, column].numpy(), weight + inside
    if weight > 1e-3:
        np.testing.assert_allclose(mean_in(places, frame, box)[0].numpy(), total / weight, atol=1e-3)


@pytest.mark.parametrize("policy", ["squash", "crop", "pad"])
def test_regions_are_squares_of_a_third_that_overlap_by_half_over_what_the_model_sees(policy):
    """A picture twice as wide as high; a crop shows its middle square."""
    frame = Frame.fit(policy, (60, 120), (36, 36))
    height = 18 if policy == "pad" else 36
    seen = torch.zeros(3, 36, 36)
    seen[0, (36 - height) // 2 : (36 + height) // 2] = torch.linspace(-1, 1, 36)
    seen[1, (36 - height) // 2 : (36 + height) // 2] = torch.linspace(-1, 1, height)[:, None]
    seen[2] = 1
    [found] = regions_of([frame], seen[None])
    across, down = (3 if policy == "crop" else 6), 3
    rows, columns = ((np.arange(2 * n - 1) + 1) / n - 1 for n in (down, across))  # the middles of regions, in −1 to 1
    expected = np.array([[x, y, 1] for y in rows for x in columns])
    expected[:, :2] *= [36 / 35, height / (height - 1)]  # the outermost middles of cells are −1 and 1
    np.testing.assert_allclose(found.numpy(), expected / np.linalg.norm(expected, axis=1)[:, None], atol=1e-4)


def test_a_large_input_is_read_at_the_models_own_size_and_looked_at_in_regions():
    views = {"scales": (1,)}, {"scales": (2,)}, {"windows": (2,)}
    usual, large, cut = (Localizer(create_once("mini"), method="cam", second_look=True, **view) for view in views)
    one, two, windowed = (localizer(CAT, ["cat", "dog"]) for localizer in (usual, large, cut))
    assert large.describe()["scales"] == (2,)
    assert_rounded(two.second_look.places, one.second_look.places, 1280, one.second_look.places.abs().max())
    assert_rounded(two.embedding, one.embedding, 1280, 1)
    assert (one.second_look.of_names[:, 0] >= one.second_look.of_names[:, 1]).all()
    assert (one.second_look.of_names[:, 0] > one.second_look.of_names[:, 1]).any()  # a region is better than the whole
    np.testing.assert_allclose(one.second_look.of_names[:, 1], two.second_look.of_names[:, 1], atol=1e-3)
    for other in (two, windowed):  # windows take the place of regions
        assert not np.allclose(one.second_look.of_names[:, 0], other.second_look.of_names[:, 0], atol=1e-3)


@pytest.fixture(scope="module")
def rivals():
    generator = torch.Generator().manual_seed(1)
    names, bank = (F.normalize(torch.randn(n, 8, generator=generator), dim=1) for n in (3, 20))
    return Rivals(names, bank, torch.rand(3, 20, generator=generator) > 0.3, np.arange(6.0).reshape(3, 2))


def test_how_far_a_name_lies_above_its_rivals(rivals):
    views = F.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(2)), dim=1)
    above = rivals.z_scores(views)
    label = torch.tensor([0, 2, 1, 2])
    within, rank = rivals.z_scores_of(views, label)
    for v, view in enumerate(views.double()):
        for p, name in enumerate(rivals.names.double()):
            cosines = (rivals.bank.double() @ view)[rivals.are_rivals[p]]
            expected = (view @ name - cosines.mean()) / cosines.std(correction=0)
            assert_rounded(above[v, p], expected, 8 * 20, scale=10)
            if label[v] == p:
                assert_rounded(within[v], expected, 8 * 20, scale=10)
                assert rank[v] == 1 + (cosines > view @ name).sum()


def test_how_a_name_stands_over_the_bank_is_what_it_would_be_in_pictures_of_its_other_texts(rivals):
    others = torch.rand(3, 20, generator=torch.Generator().manual_seed(4)) > 0.1
    crowd = BankCosines.of(rivals.bank @ rivals.bank.T)
    found = in_bank(rivals.bank @ rivals.names.T, crowd, others, rivals.are_rivals)
    above = rivals.z_scores(rivals.bank).double().numpy()  # of each text as a view
    for p in range(3):
        counted = np.sort(above[others[p].numpy(), p])
        kin = counted[-int(RELATED_SHARE * 20) :].mean()
        assert_rounded(found[p].astype(np.float32), np.array([counted.mean(), kin]), 8 * 20, scale=10)


def test_what_is_read_of_a_box(rivals, monkeypatch):
    monkeypatch.setattr("cliploc.find.second_look.MOST_BOXES", 3)  # so they are read in two parts
    places = torch.randn(8, 4, 4, generator=torch.Generator().manual_seed(3))
    seen = look(rivals)
    features = dict(zip(OF_BOX, seen.features(SCORED).T.astype(np.float32), strict=True))
    view = F.normalize(mean_in(places, seen.frame, SCORED.xyxy), dim=-1)
    above, rank = rivals.z_scores_of(view, torch.from_numpy(SCORED.label))
    assert_rounded(features["inside"], above, 8 * 20, scale=10)
    assert_rounded(features["inside_rank"], rank.log(), 8 * 20, scale=10)
    best = np.array([max(features["inside"][:2]), max(features["inside"][2:])])[SCORED.label]
    assert_rounded(features["behind"], features["inside"] - best, 8 * 20, scale=10)
    assert features["bank_related"].tolist() == rivals.in_bank[SCORED.label, 1].tolist()
    assert_rounded(features["area"], np.log(np.full(4, 29 * 38 / (60 * 80))), 8 * 20, scale=10)
    point = dataclasses.replace(SCORED, xyxy=SCORED.xyxy[:, [0, 1, 0, 1]])
    assert np.isfinite(seen.features(point)).all()


def test_a_lift_is_added_to_all_that_says_how_far_a_name_lies_above_its_rivals(rivals):
    lifted = rivals._replace(lift=torch.tensor([0.0, 1.5, -0.5]))
    views, label = F.normalize(torch.ones(2, 8), dim=1), torch.tensor([1, 2])
    torch.testing.assert_close(lifted.z_scores(views), rivals.z_scores(views) + lifted.lift)
    (above, rank), (plain, plain_rank) = (one.z_scores_of(views, label) for one in (lifted, rivals))
    torch.testing.assert_close(above, plain + lifted.lift[label])
    assert rank.equal(plain_rank)


@pytest.fixture(scope="module")
def bank():
    return Bank(Texts(localizer_of("mini").backbone, prompts.DEFAULT_TEMPLATES))


def test_a_lift_is_that_of_every_name_that_is_read_alike(bank):
    asked = (("person",), ("astronaut",), ("cat",), ("sky", "cat"))
    lifted = bank.rivals(asked, lifts={"person": 2.0, "sky": -1.0})
    assert lifted.lift.tolist() == [2, 2, 0, 0]  # the last one is read as both
    assert bank.rivals(asked).lift is None


def test_lifts_of_the_package_touch_none_of_imagenets_names(bank):
    lifts = package_calibration("mini").lifts
    assert lifts["person"] > 0
    names = tuple((one.name,) for one in prompts.imagenet_classes())
    assert not bank.rivals(names, lifts=lifts).lift.any()


def test_lifts_change_what_is_found(tmp_path):
    """As if the name lay higher above its rivals, in views and in boxes: by its lift in each chance."""
    own, found = package_calibration("mini"), []
    for lift in (0.0, 3.0):
        dataclasses.replace(own, lifts={"sofa": lift}).save(tmp_path / "lifted.json")
        found.append(localizer_of("mini", calibration=tmp_path / "lifted.json", min_presence=0)(CAT, ["cat", "sofa"]))
    one, other = (np.log(each.presence / (1 - each.presence)) for each in found)
    weights = own.there.weights
    by = 3 * sum(weights[OF_BOX.index(feature)] for feature in ("best_view", "whole", "inside"))
    np.testing.assert_allclose(other - one, [0, by], atol=1e-3)


def test_the_best_of_a_name_is_taken_feature_by_feature_and_of_ranks_the_least():
    features = np.array([[1, 5, 0, 0, 2, 3.0], [2, 4, 1, -1, 0, 1], [0, 0, 9, 9, 9, 7]])
    labels, best = best_of_names(features, np.array([4, 4, 1]))
    assert labels.tolist() == [1, 4]
    assert best.tolist() == [[0, 0, 9, 9, 9, 7], [2, 5, 1, 0, 2, 1]]


# -------------------------------------------------------------------------------------------------------- verdicts
FIT = OF_BOX.index("map_score")


def look(rivals, there=(7.0, 5.0, 5.0), competes=(True, True, True), least=0.0):
    """A second look whose chances are known: of a box that of its map, of a name what is given."""
    weights = np.eye(len(OF_BOX))
    chances = [Logistic(0.0, tuple(weights[FIT])), Logistic(-5.0, tuple(weights[0])), Logistic(-5.0, (1.0, 0.0))]
    calibration = Calibration(*chances, models=(), about="")
    of_names = np.stack([np.array(there), np.zeros(3)], axis=1)
    frame = Frame.fit("squash", (60, 80), (32, 32))
    places = torch.randn(8, 4, 4, generator=torch.Generator().manual_seed(3))
    rest = {"contrasts": [()] * 3, "learnt": (), "alike": np.full(3, np.nan), "min_presence": least}
    return SecondLook(calibration, frame, places, rivals, of_names, np.array(competes), rule="calibrated", **rest)


def boxes_of(*scored):
    xyxy = np.array([[1.0, 2, 30, 40]] * len(scored), np.float32) + np.arange(len(scored))[:, None]
    label, score = np.array([one for one, _ in scored], np.int64), np.array([one for _, one in scored], np.float32)
    return Boxes(xyxy.astype(np.float32), score, label, ("a", "b", "c"))


SCORED = boxes_of((0, 0.3), (0, 0.9), (1, 0.6), (1, 0.1))
REASONS = (None, None, "absent")
# A presence of 0.88 for "a"; for "b" one of 0.12, or one of 0.05 and too near its rivals to be looked at again.
FOUND_AND_UNSURE, FOUND_AND_RULED_OUT = (7.0, 3.0, -4.0), (7.0, 2.0, -4.0)


def test_a_name_is_found_unsure_or_ruled_out_by_its_chance(rivals):
    judged = look(rivals, FOUND_AND_UNSURE, least=0.12).judge(SCORED, REASONS, BoxRule(min_score=0.2))
    assert judged.reasons == (None, "presence 0.1192 is below 0.12", "absent")
    np.testing.assert_allclose(judged.presence, 1 / (1 + np.exp([-2.0, 2, 9])), rtol=1e-5)
    np.testing.assert_allclose(judged.boxes.score, [0.9, 0.3], atol=1e-5)  # best first
    np.testing.assert_allclose(judged.unsure.score, [0.6], atol=1e-5)  # without what no setting would keep
    assert len(judged.candidates) == len(judged.map_scores) == 4
    gone = look(rivals, FOUND_AND_RULED_OUT, least=0.5).judge(SCORED, REASONS, BoxRule())
    assert gone.reasons[1] == "not in the picture: presence 0.05 is below 0.5"
    assert gone.unsure.label.tolist() == []
    everything = look(rivals, FOUND_AND_RULED_OUT).judge(SCORED, REASONS, BoxRule())
    assert everything.boxes.label.tolist() == [0, 0, 1, 1]


def test_a_name_whose_boxes_are_all_below_the_minimum_is_unsure(rivals):
    judged = look(rivals).judge(SCORED, REASONS, BoxRule(min_score=0.7))
    assert judged.reasons == (None, "no box scores 0.7 or more", "absent")
    np.testing.assert_allclose(judged.boxes.score, [0.9], atol=1e-5)
    np.testing.assert_allclose(judged.unsure.score, [0.6], atol=1e-5)
    best = look(rivals).judge(SCORED, REASONS, BoxRule(min_score="auto", max_boxes=1))
    np.testing.assert_allclose(best.boxes.score, [0.9, 0.6], atol=1e-5)
    assert len(best.unsure) == 0


def test_pictures_that_stand_for_a_name_do_not_compete(rivals):
    second = look(rivals, (-9.0, -9, -9), (False, True, True))
    unlikely = dataclasses.replace(second.calibration, right=second.calibration.there)
    judged = dataclasses.replace(second, calibration=unlikely, min_presence=0.5).judge(SCORED, REASONS, BoxRule())
    assert judged.presence[0] == 1
    np.testing.assert_array_equal(judged.boxes.score, np.float32([0.9, 0.3]))


# ------------------------------------------------------------------------------------------------------- in the flow
def test_what_is_said_of_a_name_does_not_depend_on_the_other_names():
    localizer = localizer_of("mini")
    alone, among = localizer(CAT, ["cat"]), localizer(CAT, ["dog", "sofa", "cat", "banana"])
    p = among.names.index("cat")
    np.testing.assert_allclose(among.presence[p], alone.presence[0], atol=1e-4)
    np.testing.assert_allclose(among.boxes.score[among.boxes.label == p], alone.boxes.score, atol=1e-4)
    assert (alone.verdict(0), among.verdict(p)) == ("found", "found")
    assert among.verdict(among.names.index("banana")) != "found"


def test_other_settings_judge_the_same_boxes_without_the_model():
    localizer, names = localizer_of("mini"), ["cat", "fox", "sofa", "dog~cat"]  # the last is ruled out at first sight
    found = localizer(CAT, names)
    again = found.by(localizer.box_rule, FOUND)
    np.testing.assert_array_equal(again.boxes.xyxy, found.boxes.xyxy)
    np.testing.assert_array_equal(again.boxes.score, found.boxes.score)
    assert (again.reasons, again.found.tolist()) == (found.reasons, found.found.tolist())
    assert found.verdict(names.index("fox")) == "unsure"
    np.testing.assert_array_equal(found.boxes_by(localizer.box_rule).xyxy, found.boxes.xyxy)
    strict = found.by(localizer.box_rule, 1.0)
    assert not strict.found.any()
    assert len(strict.boxes) == len(strict.boxes_by(localizer.box_rule)) == 0
    back = strict.by(localizer.box_rule, FOUND)
    assert back.reasons == found.reasons
    rule = dataclasses.replace(localizer.box_rule, threshold=0.8)  # several boxes of the cat
    every, best = (found.by(dataclasses.replace(rule, max_boxes=most), 0).judged.candidates for most in (None, 1))
    assert len(every) > 1
    np.testing.assert_array_equal(best.xyxy, every.xyxy)
    between = float(found.judged.map_scores[0] + found.boxes.score[0]) / 2  # a minimum is one of chances, not of fits
    assert found.judged.map_scores[0] < between < found.boxes.score[0]
    assert len(found.boxes_by(dataclasses.replace(localizer.box_rule, min_score=between))) == 1
    other = localizer_of("mini", threshold=0.8, max_boxes=1, min_score=between)(CAT, names)
    np.testing.assert_array_equal(found.by(other.rule, 0.32).judged.candidates.xyxy, other.judged.candidates.xyxy)
    [uncut] = localizer.stream([CAT], names, boxes=False)
    assert len(uncut.boxes) == 0
    cut = uncut.by(localizer.box_rule, FOUND)
    np.testing.assert_array_equal(cut.boxes.xyxy, found.boxes.xyxy)
    np.testing.assert_array_equal(cut.boxes.score, found.boxes.score)
    assert (cut.reasons, cut.found.tolist()) == (found.reasons, found.found.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_look_runs_on_every_kind_of_tower(kind, photo, backbones):
    model, method = backbones[kind], "naclip" if kind == "vit" else "cam"
    how = {"method": method, "second_look": True, "min_presence": 0, "min_score": 0, "windows": (2,), "flip": True}
    found = build(model, **how)(photo, ["red", "blue"])
    assert found.presence_rule == "bank"  # calibrated on other models
    assert ((found.boxes.score > 0) & (found.boxes.score < 1)).all()
    plain = build(model, **{**how, "second_look": False})(photo, ["red", "blue"])
    assert (plain.judged, plain.second_look, len(plain.unsure)) == (None, None, 0)
    np.testing.assert_array_equal(np.sort(plain.boxes.xyxy, axis=0), np.sort(found.boxes.xyxy, axis=0))
    np.testing.assert_array_equal(plain.maps, found.maps)


# ------------------------------------------------------------------------------------------------------ calibration
@pytest.mark.parametrize(
    ("how", "calibrated"),
    [
        ({"recipe": "fast"}, True),
        ({"recipe": "fast", "threshold": 0.4}, False),
        ({"method": "cam"}, False),
        ({"method": "grad_cam", "second_look": True}, False),
    ],
)
def test_a_score_is_a_chance_only_where_it_was_fitted(how, calibrated):
    """To this model, method and settings; elsewhere no line, sheet or document calls it one."""
    found = localizer_of("mini", **how)(CAT, ["cat"])
    assert found.is_calibrated(0) == calibrated
    [name] = to_document([found], [], {})["pictures"][0]["names"]
    assert name["calibrated"] == calibrated
    [(_, _, line), *_] = rows_of(found)
    assert line.startswith("score " if calibrated else "uncalibrated ")
    assert ("scores uncalibrated" in run_line(found)) != calibrated
    moved = found.by(dataclasses.replace(found.rule, threshold=0.3), 0.0)
    assert not moved.is_calibrated(0)


def test_a_calibration_holds_for_what_it_was_fitted_with(tmp_path):
    how = {"method": "layer_cam", "second_look": True}
    settings = settings_of("layer_cam", localizer_of("mini", **how).options)
    dataclasses.replace(package_calibration("mini"), settings=settings).save(tmp_path / "own.json")
    for other, calibrated in (({}, True), ({"flip": True}, False)):
        localizer = localizer_of("mini", **how, **other, calibration=tmp_path / "own.json")
        assert localizer.flow.is_calibrated("layer_cam") == calibrated


def test_a_calibration_is_a_file(tmp_path):
    path, own = tmp_path / "calibration.json", package_calibration("mini")
    own.save(path)
    assert load_calibration(path) == own
    assert package_calibration("mini").models == ("mini",)
    assert package_calibration("RN50").models == ()  # a guess
    shifted = dataclasses.replace(own, right=dataclasses.replace(own.right, bias=own.right.bias + 5))
    shifted.save(path)
    one, other = (localizer_of("mini", **how)(CAT, ["cat"]) for how in ({}, {"calibration": path}))
    assert other.boxes.score[0] > one.boxes.score[0]


@pytest.mark.parametrize(
    "changed", [{"kind": "another"}, {"version": 1}, {"right": {"bias": 0, "weights": [1.0]}}, {"first": {"bias": 0}}]
)
def test_a_file_that_is_none_is_refused(changed, tmp_path):
    path, nowhere = tmp_path / "calibration.json", tmp_path / "nowhere.json"
    path.write_text(json.dumps(package_calibration("mini").document() | changed))
    for file in (path, nowhere):
        with pytest.raises(InputError, match=rf"^{file}: expected a file of `cliploc calibrate`[^\n]+$"):
            load_calibration(file)


def test_a_fit_finds_the_model_that_the_examples_are_drawn_from():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(20_000, 2)) * [1, 10] + [0, 5]
    model = Logistic(-1.0, (1.5, 0.2))
    true = rng.random(len(features)) < model(features)
    fitted = fit_logistic(features, true, np.ones(len(features)))
    np.testing.assert_allclose([fitted.bias, *fitted.weights], [model.bias, *model.weights], atol=0.1)
    assert reliability(fitted(features), true) < 0.02
    heavy = fit_logistic(features, true, np.where(true, 3.0, 1.0))
    assert heavy(features).mean() > fitted(features).mean() + 0.1


def test_the_logit_is_finite_and_the_calibration_error_that_of_its_definition():
    assert np.isfinite(logit(np.array([0.0, 0.5, 1.0]))).all()
    rng = np.random.default_rng(1)
    chance, true = rng.random(500), rng.random(500) < 0.3
    bins = [(chance >= k / 10) & (chance < (k + 1) / 10) for k in range(10)]
    expected = sum(one.mean() * abs(chance[one].mean() - true[one].mean()) for one in bins if one.any())
    assert reliability(chance, true) == pytest.approx(expected)
    assert reliability([1.0], [False]) == 1

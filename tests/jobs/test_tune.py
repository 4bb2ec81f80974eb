"""`cliploc tune`: the arithmetic of the gain, what is chosen, one forward pass for a view, a kill, and the file."""

import json
from unittest import mock

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from cliploc import backbones
from cliploc.boxes import BoxRule
from cliploc.datasets import open_asked
from cliploc.errors import InputError, UsageError
from cliploc.jobs import calibrate as calibration_job
from cliploc.jobs import tune as job
from cliploc.jobs.tune import (
    TuningJudge,
    best_of,
    cross_fitted,
    neighbours,
    quality,
    rules_of,
    steps_for,
    tune,
    variants_of,
)
from cliploc.localizer import Localizer
from cliploc.recipes import load_recipe, recipe_of
from cliploc.refine import refinements
from cliploc.values import Boxes
from tests import commands
from tests.commands import cliploc_, refused
from tests.jobs.samples import boxes_folder
from tests.jobs.stopping import stopped_and_resumed
from tests.tiny import tower

PICTURES = 6


def test_the_gain_is_of_pictures_that_did_not_choose():
    values = np.random.default_rng(0).normal(size=(23, 40))  # noise, in which each fold has another best
    found = cross_fitted(values)
    gains, chosen = [], []
    for fold in range(5):
        others = [row for i, row in enumerate(values.tolist()) if i % 5 != fold]
        means = [sum(column) / len(others) for column in zip(*others, strict=True)]
        chosen.append(means.index(max(means)))
        gains += [row[chosen[-1]] - row[0] for i, row in enumerate(values.tolist()) if i % 5 == fold]
    assert found.chosen == tuple(chosen)
    assert len({*chosen, best_of(values)}) > 1
    assert found.mean == pytest.approx(np.mean(gains))
    assert found.error == pytest.approx(np.sqrt(np.var(gains, ddof=1) / 23))
    low, high = found.interval
    assert low == pytest.approx(found.mean - 1.96 * found.error, abs=0.3 * found.error)  # of a bootstrap
    assert high == pytest.approx(found.mean + 1.96 * found.error, abs=0.3 * found.error)
    assert found.sure == (low > 0)
    assert best_of(np.ones((3, 4))) == 0  # equal ones keep the present recipe


def boxes_of(*rows):
    xyxy, score, label = zip(*rows, strict=True)
    return Boxes(np.array(xyxy, np.float32), np.array(score, np.float32), np.array(label), ("a", "b"))


def test_quality_by_hand():
    things = np.array([[0, 0, 10, 10], [20, 0, 30, 10]])
    found = boxes_of(
        ([0, 0, 10, 9], 0.5, 0),  # right, second of "a"
        ([50, 50, 60, 60], 0.9, 0),  # wrong, first
        ([0, 0, 9, 10], 0.4, 0),  # of a thing that is taken
        ([0, 0, 10, 10], 0.1, 1),
    )
    # "a" finds one of two things, at precision 1/2; "b" its only thing at once
    assert quality(found, {0: things, 1: things[:1]}) == pytest.approx((0.5 / 2 + 1) / 2)
    assert quality(found, {1: things[1:]}) == 0
    both = boxes_of(([0, 0, 10, 9], 0.5, 0), ([20, 0, 30, 9], 0.2, 0))
    assert quality(both, {0: things}) == 1


def test_rules_begin_with_the_own_one_and_keep_every_box():
    rules = rules_of(BoxRule(0.47, split_peaks=0.3, min_score="auto", max_boxes=2, min_area=0.01))
    assert (rules[0].threshold, rules[0].split_peaks, rules[0].min_area) == (0.47, 0.3, 0.01)
    assert {(one.min_score, one.max_boxes) for one in rules} == {(0.0, None)}
    assert len(set(rules)) == len(rules) == (1 + len(job.TAUS)) * (1 + len(job.SPLITS))


def test_refinements_are_those_of_the_registry_one_edit_away():
    assert neighbours((), ["a", "b"]) == [("a",), ("b",)]
    assert set(neighbours(("a", "b"), ["a", "b", "c"])) == {
        (), ("a",), ("b",), ("c", "b"), ("a", "c"), ("a", "b", "c")
    }  # fmt: skip
    vit = tower("vit", (8, 8))
    assert set(steps_for(vit)) == {one.name for one in refinements if one.on == "grid" and "vit" in one.towers}
    assert "caa" not in steps_for(tower("gap_cnn", (8, 8)))


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    for place in (f"{backbones.__name__}.create", f"{commands.__name__}.create_once"):
        monkeypatch.setattr(place, lambda *_, **__: tower("gap_cnn", (8, 8)))
    monkeypatch.setattr(calibration_job, "FEWEST_PICTURES", PICTURES)
    monkeypatch.setattr(calibration_job, "FEWEST_RIGHT", 10**6)  # the calibration has its own tests
    monkeypatch.setattr(job, "VIEWS", (((1.0,), ()), ((1.43,), ()), ((1.43,), (1.5, 2.0))))
    monkeypatch.setattr(job, "steps_for", lambda _: ["affinity", "level"])
    monkeypatch.setattr(job, "TAUS", (0.3, 0.7))
    monkeypatch.setattr(job, "SHARD", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return boxes_folder(tmp_path_factory.mktemp("set"), PICTURES)


def test_a_view_takes_one_forward_pass_for_all_variants(folder, tmp_path, monkeypatch):
    localizer, seen = Localizer("mini", device="cpu"), []
    trace = localizer.backbone.trace

    def counted(images, needs):
        seen.append(images.shape)
        return trace(images, needs)

    monkeypatch.setattr(localizer.backbone, "trace", counted)
    values, candidates, failed = job._measured(localizer, open_asked("folder", folder), tmp_path, job.SILENT)
    passes = 5  # scales 1, 1.43 and 2, the last of which is read apart, and windows 1.5 and 2
    assert len(seen) == passes * PICTURES
    variants = variants_of(localizer)
    assert len(variants) == 1 + 3 + 3  # present; views; none, affinity, level
    assert values.shape == (PICTURES, len(candidates))
    assert failed == 0
    own = recipe_of("mini").options
    assert {name: candidates[0][name] for name in job.VARIED} == {name: own.get(name, ()) for name in job.VARIED}
    assert (candidates[0]["threshold"], candidates[0]["split_peaks"]) == (localizer.box_rule.threshold, 0.4)


def test_a_candidate_is_worth_what_a_localizer_with_its_options_finds(folder, tmp_path):
    localizer, dataset = Localizer("mini", device="cpu"), open_asked("folder", folder)
    values, candidates, _ = job._measured(localizer, dataset, tmp_path, job.SILENT)
    every = {"min_presence": 0, "min_score": 0, "second_look": False, "device": "cpu"}
    names = {label: one.synonyms[0] for label, one in enumerate(dataset.classes)}
    for k in (0, len(candidates) // 2, len(candidates) - 1):
        alone = Localizer("mini", **candidates[k], **every)
        for sample, row in zip(dataset.samples, values, strict=True):
            [(label, true)] = sample.truth.items()
            assert row[k] == pytest.approx(quality(alone(sample.path, [names[label]]).boxes, {0: true})), candidates[k]


def test_a_run_that_was_stopped_goes_on_with_the_same_result(folder, tmp_path, monkeypatch):
    command = ("tune", folder, "--truth", "folder", "--device", "cpu")
    ran, judged = stopped_and_resumed(command, tmp_path, TuningJudge, 20, monkeypatch)
    assert set(judged) == {"2.png", "3.png", "4.png", "5.png"}  # the first part is kept
    assert "present recipe" in ran.out
    assert ran.err.endswith(f"\nnext: cliploc localize photo.jpg -p cat --device=cpu --recipe={tmp_path / 'a.json'}\n")
    assert "gain on pictures that did not choose: " in ran.out
    assert "calibration: none of these pictures: expected at least" in ran.out
    again = cliploc_(*command, "--out", tmp_path / "c.json", "--json")
    assert json.loads(again.out) == json.loads((tmp_path / "a.json").read_text())


def test_a_resumed_run_that_chooses_another_recipe_calibrates_that(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "cross_fitted", lambda values: job.Gain(1.0, 0.1, (0.8, 1.2), (3,) * 5))
    command, said = ("tune", folder, "--truth", "folder", "--device", "cpu", "--out", tmp_path / "a.json"), []
    for best in (3, 9):
        monkeypatch.setattr(job, "best_of", lambda values, best=best: min(best, values.shape[1] - 1))
        with monkeypatch.context() as patch:
            if best == 3:
                patch.setattr(calibration_job, "fitted", mock.Mock(side_effect=KeyboardInterrupt))
            said.append(cliploc_(*command))
    assert (said[0].code, said[1].code) == (130, 0)
    assert "calibration: none of these pictures: expected at least" in said[1].out


def test_names_that_the_model_does_not_know_leave_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "FOLDS", PICTURES + 1)
    assert "take more pictures" in refused("tune", folder, "--truth", "folder", "--out", tmp_path / "a.json")
    assert not list(tmp_path.iterdir())  # more pictures are another run


def test_what_is_chosen_runs_by_its_file(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(job, "cross_fitted", lambda values: job.Gain(1.0, 0.1, (0.8, 1.2), (3,) * 5))
    monkeypatch.setattr(job, "best_of", lambda values: min(3, values.shape[1] - 1))
    localizer = Localizer("mini", device="cpu")
    result = tune(localizer, open_asked("folder", folder), tmp_path / "work")
    out = tmp_path / "chosen.json"
    content = result.save(out)
    assert result.better
    assert f"chosen: {job.words_of_candidate(result.candidates[3])}" in list(result.legend())
    tuned = Localizer("mini", recipe=out, device="cpu")
    assert {name: tuned.options.given().get(name, getattr(tuned.options, name)) for name in result.candidates[3]} == {
        **result.candidates[3]
    }
    assert (tuned.options.min_score, tuned.options.second_look) == ("auto", True)
    assert content["gain"]["folds"] == {job.words_of_candidate(result.candidates[3]): 5}
    by_hand = Localizer("mini", method="cam", device="cpu", **load_recipe(out).options)
    assert tuned.describe() == by_hand.describe() != localizer.describe()
    ran = cliploc_("localize", folder / "1.png", "-p", "red", "--recipe", out, "--device", "cpu", "--json")
    assert json.loads(ran.out)["settings"]["recipe"] == str(out), ran.err
    monkeypatch.setattr(backbones, "create", lambda *_, **__: tower("gap_cnn", (8, 8), seed=1))
    with pytest.raises(UsageError, match=r"for these weights of .*, .*chosen\.json was tuned for others"):
        Localizer("mini", recipe=out, device="cpu")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "{tmp}/r.toml"], "expected --out as FILE.json"),
        (["--out", "{tmp}/r.json", "--limit", "3"], f"expected at least {PICTURES} pictures, got 3"),
        (["--out", "{tmp}/r.json", "--recipe", "{tmp}/no.json"], "no.json: No such file or directory"),
        (["--out", "{tmp}/r.json", "--recipe", "quick"], "expected --recipe to be one of default, fast, or FILE"),
    ],
)
def test_what_is_refused_is_one_line_and_nothing_is_written(folder, tmp_path, arguments, said):
    assert said in refused("tune", folder, "--truth", "folder", *(one.format(tmp=tmp_path) for one in arguments))
    assert not list(tmp_path.iterdir())


WHOLE = {
    "kind": "cliploc recipe", "version": 1, "tower": {"model": "mini", "weights": "0"}, "method": "cam",
    "options": {"scales": [1.43], "threshold": 0.4}, "about": "by hand", "calibration": None,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"version": 2}, "expected a file of `cliploc tune`: Invalid enum value 2"),
        ({"options": {"device": "cpu"}}, "options has device, expected some of refine, scales"),
        ({"options": {"threshold": 7}}, "expected threshold from 0 to 1, or auto, got 7"),
        ({"calibration": {"kind": "x"}}, "expected a file of `cliploc calibrate`"),
    ],
)
def test_a_damaged_recipe_is_refused(tmp_path, changed, said):
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(WHOLE))
    recipe = load_recipe(path)
    assert (recipe.options, recipe.method, recipe.basis) == ({"scales": (1.43,), "threshold": 0.4}, "cam", "by hand")
    with pytest.raises(UsageError, match=r"expected a recipe for gap_cnn, .*recipe\.json was tuned for mini"):
        Localizer("mini", recipe=path, device="cpu")
    path.write_text(json.dumps({**WHOLE, **changed}))
    with pytest.raises(InputError) as raised:
        load_recipe(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert said in str(raised.value)

"""Which candidates are drafts, and how common names are, by hand-made rows."""

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cliploc.errors import UsageError
from cliploc.jobs.drafts import FEWEST, SHARES, DraftRule, Prior, choose

BASE = 0.1
NO_FOLDER = Prior(BASE)  # too few pictures: nothing is adjusted


def row(*candidates: tuple[int, float], presence: tuple[float | None, ...] = (0.8, 0.2, 0.01), **more: Any) -> Any:
    """Candidates side by side, each with label and score."""
    boxes = [[10 * i, 0, 10 * i + 8, 8] for i in range(len(candidates))]
    labels, scores = [one for one, _ in candidates], [score for _, score in candidates]
    rest = {"fits": [0.7] * len(boxes), "groups": [0] * len(boxes), "presence": [*presence]}
    return {"boxes": boxes, "labels": labels, "scores": scores, **rest, **more}


CANDIDATES = row((0, 0.6), (1, 0.5), (0, 0.3), (1, 0.1), (0, 0.05), (2, 0.9))
RULE = DraftRule((0.35, 0.35, 0.35), min_score=0.2)


def test_names_that_are_there_give_drafts_and_doubtful_ones_are_unsure():
    chosen = choose(CANDIDATES, RULE, NO_FOLDER)
    assert (chosen.drafts, chosen.unsure) == ((0, 2), (1,))  # 2 is hidden: its name's chance is below that of unsure
    np.testing.assert_array_equal(chosen.scores, CANDIDATES["scores"])
    assert chosen.margin == pytest.approx(0.15)
    assert (chosen.shown(False), chosen.shown(True)) == ([0, 2], [0, 1, 2])  # unsure boxes only if asked for


@pytest.mark.parametrize(
    ("changed", "drafts", "unsure"),
    [
        ({"min_score": 0.55}, (0,), (1, 2)),
        ({"min_score": 0.0}, (0, 2, 4), (1,)),
        ({"min_score": 0.7}, (), (0, 1, 2)),
        ({"max_boxes": 1}, (0,), (1,)),
        ({"thresholds": (0.9, 0.35, 0.35)}, (), (0, 1, 2)),
        ({"thresholds": (0.35, 0.2, 0.35)}, (0, 1, 2), ()),
        ({"thresholds": (0.35, 0.35, 0.0)}, (5, 0, 2), (1,)),
    ],
)
def test_each_option_chooses_again(changed, drafts, unsure):
    chosen = choose(CANDIDATES, replace(RULE, **changed), NO_FOLDER)
    assert (set(chosen.drafts), set(chosen.unsure)) == (set(drafts), set(unsure))
    for shown in (chosen.drafts, chosen.unsure):
        assert list(shown) == sorted(shown, key=lambda i: -CANDIDATES["scores"][i]), "the best first"


def test_auto_keeps_the_best_box_of_a_name_that_is_there():
    low = row((0, 0.1), (0, 0.05))
    assert choose(low, replace(RULE, min_score="auto"), NO_FOLDER).drafts == (0,)
    assert choose(low, RULE, NO_FOLDER).drafts == ()
    assert choose(low, RULE, NO_FOLDER).unsure == (0,)


def test_of_drafts_of_two_names_that_overlap_the_better_stays():
    overlapping = row((0, 0.6), (1, 0.5), (0, 0.4), presence=(0.8, 0.8, 0.01))
    overlapping["boxes"] = [[0, 0, 8, 8], [0, 0, 8, 7], [0, 0, 8, 8]]
    chosen = choose(overlapping, replace(RULE, nms_across=0.5), NO_FOLDER)
    assert chosen.drafts == (0, 2)  # boxes of one name have been compared before
    hidden = {**overlapping, "presence": [0.1, 0.8, 0.01]}  # a name that is not there removes nothing
    assert choose(hidden, replace(RULE, nms_across=0.5), NO_FOLDER).drafts == (1,)


def test_without_a_second_look_nothing_is_unsure_and_presence_counts_in_the_order():
    two = row((0, 0.6), (1, 0.5), (2, 0.9), presence=(0.5, 0.9, 0.3))
    chosen = choose(two, replace(RULE, thresholds=(0.5, 0.5, 0.5)), None)
    assert (chosen.drafts, chosen.unsure) == ((1, 0), ())


def test_of_a_taught_name_only_taught_boxes_count_and_their_scores_mean_the_same():
    both = row((0, 0.6), (1, 0.9), (1, 0.5), presence=(0.5, 0.9), taught={"1": 0.7}, untaught=2)
    rule = DraftRule((0.35, 0.35))
    chosen = choose(both, rule, None)
    assert (chosen.drafts, chosen.scores[[0, 2]].tolist()) == ((2, 0), [0.6, 0.5])  # 0.5 · 0.7 > 0.6 · 0.5
    chosen = choose(both, rule, NO_FOLDER)
    assert (chosen.drafts, chosen.scores[[0, 2]].tolist()) == ((0, 2), [0.6, 0.5 * 0.7])
    np.testing.assert_array_equal(chosen.presence, [0.5, 0.7])


def test_what_a_person_should_look_at_first():
    assert choose(row((1, 0.5)), RULE, NO_FOLDER).margin == 0  # nothing but unsure boxes
    assert choose(row((0, 0.5), groups=[1]), RULE, NO_FOLDER).margin == 0
    assert choose(row((0, 0.5), (2, 0.5), groups=[0, 1]), RULE, NO_FOLDER).margin > 0  # the group is not shown
    assert choose(row((0, 0.5), presence=(0.4, None, None)), RULE, NO_FOLDER).margin == pytest.approx(0.05)
    assert choose(row(presence=(None, None, None)), RULE, NO_FOLDER).margin == 0


def test_options_that_are_refused():
    for wrong in ({"min_score": 2}, {"max_boxes": 0}, {"nms_across": 0}):
        with pytest.raises(UsageError, match="expected "):
            replace(RULE, **wrong)


def likeliest_share(chances: np.ndarray) -> float:
    """By search: the share of a mixture with the greatest likelihood (what EM climbs to; Saerens 2002, section 2.2)."""
    ratio = chances / (1 - chances) * (1 - BASE) / BASE
    shares = np.linspace(*SHARES, 9701)
    return shares[np.log(shares[:, None] * ratio + 1 - shares[:, None]).sum(axis=1).argmax()]


@pytest.mark.parametrize("true", [0.0, 0.05, 0.3, 0.7, 1.0])
def test_shares_are_the_likeliest(true):
    random = np.random.default_rng(0)
    there = random.random(400) < true
    evidence = random.normal(np.where(there, 1.0, -1.0), 1.0)  # its logarithm of the likelihood ratio is 2 × itself
    chances = 1 / (1 + np.exp(-(2 * evidence + math.log(BASE / (1 - BASE)))))
    prior = Prior.of(list(chances[:, None]), BASE)
    assert prior.shares[0] == pytest.approx(likeliest_share(chances), abs=2e-3)
    assert prior.shares[0] == pytest.approx(np.clip(true, *SHARES), abs=0.08)
    there_now = prior.adjusted(chances[:, None]).mean()
    assert there_now == pytest.approx(prior.shares[0], abs=0.02), "a fixed point, or one of the ends"


def test_shares_do_not_depend_on_the_order_of_pictures_and_need_enough_of_them():
    chances = list(np.random.default_rng(1).random((50, 3)))
    shares = Prior.of(chances, BASE).shares
    for order in itertools.islice(itertools.permutations(range(50)), 1, 40, 13):
        np.testing.assert_array_equal(Prior.of([chances[i] for i in order], BASE).shares, shares)
    assert Prior.of(chances[: FEWEST - 1], BASE) == NO_FOLDER
    assert Prior.of(chances[:FEWEST], BASE).shares is not None


def test_a_name_that_the_model_does_not_know_has_no_share():
    prior = Prior.of([np.array([0.5, np.nan])] * FEWEST, BASE)
    assert np.isnan(prior.shares).tolist() == [False, True]
    assert choose(row((0, 0.5), presence=(0.5, None)), DraftRule((0.35, 0.35)), prior).drafts == (0,)


def test_what_is_common_in_the_folder_is_a_draft_where_it_would_be_unsure_alone():
    """A name known by relatives only: doubtful everywhere, so that every picture says a little for all others."""
    alone = row((0, 0.03), presence=(0.25,))
    rule = DraftRule((0.35,), min_score=0.2)
    assert choose(alone, rule, NO_FOLDER).drafts == ()
    prior = Prior.of([np.array([0.25])] * FEWEST, BASE)
    chosen = choose(alone, rule, prior)
    assert chosen.drafts == (0,)
    there = 0.25 * 49 * 9 / (0.25 * 49 * 9 + 0.75)  # odds of 0.98, divided by those of the base
    moved = (there - 0.25) / 0.75
    np.testing.assert_allclose(chosen.presence, [there])
    np.testing.assert_allclose(chosen.scores, [(1 - moved) * 0.03 + moved * 0.7])


def test_what_the_folder_says_of_a_name_changes_the_order_of_its_boxes_and_what_is_unsure():
    prior = Prior(BASE, np.array([0.3]))  # odds are 3/7 · 9 times those of a picture alone
    swapped = row((0, 0.03), (0, 0.02), fits=[0.2, 0.9], presence=(0.25,))
    assert choose(swapped, DraftRule((0.35,), min_score=0, max_boxes=1), prior).drafts == (1,)
    rare = row((0, 0.03), presence=(0.03,))
    assert choose(rare, RULE, NO_FOLDER).unsure == ()
    assert choose(rare, DraftRule((0.35,), min_score=0), prior).unsure == (0,)


def test_what_is_rare_in_the_folder_is_doubted_and_certain_names_stay():
    prior = Prior.of([np.array([0.05, 1.0])] * FEWEST, BASE)
    chosen = choose(row((0, 0.5), (1, 0.5), presence=(0.36, 1.0)), DraftRule((0.35, 1.0)), prior)
    assert chosen.drafts == (1,)
    assert chosen.presence[0] < 0.05
    assert chosen.unsure == (0,), "the folder hides nothing"
    assert chosen.presence[1] == 1
    np.testing.assert_array_equal(chosen.scores, [0.5, 0.5])

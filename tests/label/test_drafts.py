"""Which candidates are drafts, and how common names are, by hand-made rows."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cliploc.label.drafts import FEWEST, SHARES, SPREAD, DraftRule, Prior, choose
from cliploc.runs.label_store import Candidate, Candidates

NO_FOLDER = Prior(np.zeros(1))  # nothing is known of it


def row(*candidates: tuple[int, float], presence: tuple[float | None, ...] = (0.8, 0.2, 0.01), **more: Any) -> Any:
    """Candidates side by side, each with label and score."""
    boxes = [Candidate(label, (10 * i, 0, 10 * i + 8, 8), score, 0.7) for i, (label, score) in enumerate(candidates)]
    found = Candidates.of((100, 10), np.array(presence, float), boxes, False)
    return replace(found, **{key: np.array(one) if isinstance(one, list) else one for key, one in more.items()})


CANDIDATES = row((0, 0.6), (1, 0.5), (0, 0.3), (1, 0.1), (0, 0.05), (2, 0.9))
RULE = DraftRule((0.35, 0.35, 0.35), min_score=0.2)


def test_names_that_are_there_give_drafts_and_doubtful_ones_are_unsure():
    chosen = choose(CANDIDATES, RULE, NO_FOLDER)
    assert (chosen.drafts, chosen.unsure) == ((0, 2), (1,))  # 2 is hidden: its name's chance is below that of unsure
    np.testing.assert_array_equal(chosen.scores, CANDIDATES.scores)
    assert chosen.margin == pytest.approx(0.15)
    assert (chosen.visible(False), chosen.visible(True)) == ([0, 2], [0, 1, 2])  # unsure boxes only if asked for


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
    for displayed in (chosen.drafts, chosen.unsure):
        assert list(displayed) == sorted(displayed, key=lambda i: -CANDIDATES.scores[i]), "the best first"


def test_auto_keeps_the_best_box_of_a_name_that_is_there():
    low = row((0, 0.1), (0, 0.05))
    assert choose(low, replace(RULE, min_score="auto"), NO_FOLDER).drafts == (0,)
    assert choose(low, RULE, NO_FOLDER).drafts == ()
    assert choose(low, RULE, NO_FOLDER).unsure == (0,)


def test_without_a_second_look_nothing_is_unsure_and_presence_counts_in_the_order():
    two = row((0, 0.6), (1, 0.5), (2, 0.9), presence=(0.5, 0.9, 0.3))
    chosen = choose(two, replace(RULE, thresholds=(0.5, 0.5, 0.5)), None)
    assert (chosen.drafts, chosen.unsure) == ((1, 0), ())


def test_of_a_taught_name_only_taught_boxes_count_and_their_scores_mean_the_same():
    both = row((0, 0.6), (1, 0.9), (1, 0.5), presence=(0.5, 0.9), taught={1: 0.7}, untaught=2)
    rule = DraftRule((0.35, 0.35))
    chosen = choose(both, rule, None)
    assert (chosen.drafts, chosen.scores[[0, 2]].tolist()) == ((2, 0), [0.6, 0.5])  # 0.5 · 0.7 > 0.6 · 0.5
    chosen = choose(both, rule, NO_FOLDER)
    assert (chosen.drafts, chosen.scores[[0, 2]].tolist()) == ((0, 2), [0.6, 0.5 * 0.7])
    np.testing.assert_array_equal(chosen.presence, [0.5, 0.7])


def test_what_a_person_should_look_at_first():
    assert choose(row((1, 0.5)), RULE, NO_FOLDER).margin == 0  # nothing but unsure boxes
    assert choose(row((0, 0.5), presence=(0.4, None, None)), RULE, NO_FOLDER).margin == pytest.approx(0.05)
    assert choose(row(presence=(None, None, None)), RULE, NO_FOLDER).margin == 0


def chances_of(log_odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-log_odds))


def prior_of(presence: Any, shares: Any = None, true: Any = None) -> Prior:
    """`presence` `[n, P]`; nothing said, and nothing reviewed, unless it is given."""
    presence = np.array(presence, np.float64)
    unknown = np.full(presence.shape, np.nan)
    return Prior.of(presence, shares or [None] * presence.shape[1], unknown if true is None else np.array(true, float))


RANDOM = np.random.default_rng(0)
DOUBTFUL = chances_of(RANDOM.normal(-1.8, 1.2, (200, 1)))  # one heap, as of a name known by relatives only
MIXED = chances_of(np.concatenate([RANDOM.normal(-2.3, 1, (110, 1)), RANDOM.normal(2, 1, (64, 1))]))  # as of a person


def test_in_a_mixed_folder_nothing_is_moved_whatever_is_asked():
    assert prior_of(MIXED).shifts == [0]
    assert prior_of(np.hstack([MIXED, DOUBTFUL[:174]])).shifts.tolist() == [0, 0], "two names are in some pictures"
    rare = chances_of(np.random.default_rng(1).normal(-5, 1, (200, 1)))
    assert prior_of(rare).shifts == [0], "one heap of pictures without it"
    assert prior_of(DOUBTFUL[: FEWEST - 1]).shifts == [0]
    assert not prior_of(MIXED).everywhere


def test_the_only_name_that_is_doubtful_everywhere_is_taken_to_be_everywhere_until_reviews_say_otherwise():
    prior = prior_of(DOUBTFUL)
    assert prior.everywhere
    assert prior.adjusted(DOUBTFUL).mean() == pytest.approx(SHARES[1], abs=1e-3)
    assert prior_of([[0.25]] * FEWEST).everywhere, "all alike"
    true = np.full(DOUBTFUL.shape, np.nan)
    true[:10, 0] = [1] * 5 + [0] * 5
    assert prior_of(DOUBTFUL, true=true).adjusted(DOUBTFUL).mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("message", "share"), [(1.0, SHARES[1]), (0.3, 0.3), (0.0, SHARES[0])])
def test_with_a_share_that_a_person_says_the_chances_add_up_to_it(message, share):
    two = np.hstack([MIXED, DOUBTFUL[:174]])
    prior = prior_of(two, [None, message])
    assert prior.shifts[0] == 0
    assert prior.adjusted(two)[:, 1].mean() == pytest.approx(share, abs=1e-3)


def test_reviewed_pictures_count_by_what_the_model_said_of_them():
    doubtful, true = np.full((30, 2), 0.2), np.full((30, 2), np.nan)
    true[:10] = [1, 0]
    first, second = prior_of(doubtful, true=true).shifts
    likelihood = [-0.5 * (moved / SPREAD) ** 2 + 10 * np.log(chances_of(math.log(0.25) + moved)) for moved in GRID]
    assert first == pytest.approx(GRID[int(np.argmax(likelihood))], abs=2e-3)
    assert -0.5 < second < 0
    as_foreseen = np.full((30, 2), 0.5)
    true[:10] = [[1, 0]] * 5 + [[0, 1]] * 5
    np.testing.assert_allclose(prior_of(as_foreseen, true=true).shifts, 0, atol=1e-3)


GRID = np.linspace(-5, 5, 10_001)


def test_a_name_that_the_model_does_not_know_is_not_moved():
    prior = prior_of([[0.5, np.nan]] * FEWEST, true=[[1, 1]] * FEWEST)
    assert prior.shifts[0] > 0
    assert prior.shifts[1] == 0
    assert choose(row((0, 0.5), presence=(0.5, None)), DraftRule((0.35, 0.35)), prior).drafts == (0,)


def test_what_is_known_of_a_name_moves_its_scores_their_order_and_what_is_unsure():
    alone = row((0, 0.03), presence=(0.25,))
    rule = DraftRule((0.35,), min_score=0.2)
    assert choose(alone, rule, Prior(np.zeros(1))).drafts == ()
    prior = Prior(np.array([math.log(441)]))
    chosen = choose(alone, rule, prior)
    assert chosen.drafts == (0,)
    existing = 0.25 * 441 / (0.25 * 441 + 0.75)
    moved = (existing - 0.25) / 0.75
    np.testing.assert_allclose(chosen.presence, [existing])
    np.testing.assert_allclose(chosen.scores, [(1 - moved) * 0.03 + moved * 0.7])

    prior = Prior(np.array([math.log(27 / 7)]))
    swapped = row((0, 0.03), (0, 0.02), fits=[0.2, 0.9], presence=(0.25,))
    assert choose(swapped, DraftRule((0.35,), min_score=0, max_boxes=1), prior).drafts == (1,)
    rare = row((0, 0.03), presence=(0.03,))
    assert choose(rare, RULE, Prior(np.zeros(1))).unsure == ()
    assert choose(rare, DraftRule((0.35,), min_score=0), prior).unsure == (0,)


def test_what_is_rare_in_the_folder_is_doubted_and_certain_names_stay():
    prior = Prior(np.array([-3.0, -3.0]))
    chosen = choose(row((0, 0.5), (1, 0.5), presence=(0.36, 1.0)), DraftRule((0.35, 1.0)), prior)
    assert chosen.drafts == (1,)
    assert chosen.presence[0] < 0.05
    assert chosen.unsure == (0,), "the folder hides nothing"
    assert chosen.presence[1] == 1
    np.testing.assert_array_equal(chosen.scores, [0.5, 0.5])

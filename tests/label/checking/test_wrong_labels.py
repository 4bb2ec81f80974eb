"""The mathematics on made-up regions, whose truth is known."""

from typing import NamedTuple

import numpy as np
import pytest

from cliploc.label.checking import wrong_labels

P, D = 5, 24


class Made(NamedTuple):
    features: np.ndarray
    text: np.ndarray
    sizes: np.ndarray
    given: np.ndarray
    pictures: np.ndarray
    wrong: np.ndarray

    def judged(self) -> wrong_labels.Names:
        return wrong_labels.wrong_names(*self[:-1], 40.0)


def made(count: int, share: float = 0.1, noise: float = 0.16, seed: int = 0) -> Made:
    """Regions around a direction for each name, and labels of which a share is another name."""
    rng = np.random.default_rng(seed)
    text = np.linalg.qr(rng.standard_normal((D, P)))[0].T
    true = rng.integers(P, size=count)
    features = text[true] + noise * rng.standard_normal((count, D))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    wrong = rng.random(count) < share
    given = np.where(wrong, (true + rng.integers(1, P, size=count)) % P, true)
    twice = np.hstack([features, features])
    return Made(
        twice, 0.3 * text, rng.uniform(0.1, 0.5, (count, 2)), given, np.arange(count) // 3, wrong
    )  # texts tell little


def auroc(wrong: np.ndarray, chance: np.ndarray) -> float:
    return float((chance[wrong][:, None] > chance[~wrong]).mean())


def test_planted_names_rank_first_with_chances_near_the_truth() -> None:
    of = made(400)
    names = of.judged()
    assert auroc(of.wrong, names.chance) > 0.97
    assert names.chance.sum() == pytest.approx(of.wrong.sum(), rel=0.35)
    first = np.argsort(-names.chance)[:30]
    assert names.chance[first].sum() == pytest.approx(of.wrong[first].sum(), abs=5)
    assert (names.likelier != of.given).all()


def test_the_sets_labels_teach_names_that_no_text_tells() -> None:
    of = made(400)
    unknown = of.text.copy()
    unknown[1] = np.nan
    for text in (unknown, np.full_like(unknown, np.nan)):
        assert auroc(of.wrong, of._replace(text=text).judged().chance) > 0.95


def test_with_few_boxes_the_text_alone_judges() -> None:
    of = made(20, share=0.2, seed=1)
    assert of.wrong.any()
    assert auroc(of.wrong, of.judged().chance) > 0.9


def test_what_nothing_can_be_told_of_has_no_chance() -> None:
    of = made(40, share=0)
    assert np.isnan(of._replace(given=np.zeros_like(of.given)).judged().chance).all()  # one name
    alone = of.given.copy()
    alone[alone == 2] = 0
    alone[5] = 2  # once, and the model does not know it
    unknown = of.text.copy()
    unknown[2] = np.nan
    chance = of._replace(given=alone, text=unknown).judged().chance
    assert np.isnan(chance[5])
    assert np.isfinite(np.delete(chance, 5)).all()


def test_drafts_are_read_and_not_learnt_from() -> None:
    of = made(200)
    drafts = of.given.copy()
    drafts[150:] = wrong_labels.DRAFT
    names = of._replace(given=drafts).judged()
    assert np.isnan(names.chance[150:]).all()
    right = ~of.wrong[150:]
    assert (names.logits[150:].argmax(axis=1) == of.given[150:])[right].mean() > 0.9


def test_planted_places_rank_first_and_too_few_are_not_judged() -> None:
    rng = np.random.default_rng(0)
    edges, planted, pictures = rng.standard_normal((300, 6)), 1.5 + rng.standard_normal((300, 6)), np.arange(300) // 4
    bad = rng.random(300) < 0.1
    edges[bad] += 1.5
    chance = wrong_labels.wrong_places(edges, pictures, planted, pictures)
    assert auroc(bad, chance) > 0.95
    assert ((chance >= 0) & (chance <= 1)).all()
    few = wrong_labels.LEAST_PLACED - 1
    assert np.isnan(wrong_labels.wrong_places(edges[:few], pictures[:few], planted[:few], pictures[:few])).all()
    one = np.zeros(300, int)  # picture
    assert np.isnan(wrong_labels.wrong_places(edges, one, planted, one)).all()


def test_a_draft_misses_a_label_only_where_none_explains_it() -> None:
    edges = np.array([[0, 0, 10, 10], [2, 2, 8, 8], [50, 50, 60, 60.0], [0, 0, 10, 10]])
    found = np.column_stack([edges, [0, 0, 0, 1], np.full(4, 0.5)])
    explained, matched, apart = wrong_labels.compare(found, np.array([[0, 0, 10, 10.0]]), np.array([0]))
    assert explained.tolist() == [True, True, False, False]
    assert matched.tolist() == [True, False, False, False]
    np.testing.assert_allclose(apart, [0, 0.64, 1, 0])
    rng = np.random.default_rng(0)
    logits, drafts = np.zeros((200, 3)), np.tile(found[:1], (200, 1))
    matched, explained = np.arange(200) < 80, np.arange(200) < 100
    missing = np.arange(200) >= 185
    logits[:, 0] = rng.standard_normal(200) + 4.0 * (matched | missing)
    chance = wrong_labels.missing_labels(logits, drafts, explained, matched, np.ones(200))
    assert not chance[explained].any()
    assert auroc(missing[100:], chance[100:]) > 0.95
    none = np.zeros(20, bool)
    assert np.isnan(wrong_labels.missing_labels(logits[:20], drafts[:20], none, none, np.ones(20))).all()


def test_names_of_other_things_in_the_picture_are_likelier_errors() -> None:
    of = made(400)
    pictures = np.arange(400) // 4
    alone = of._replace(pictures=np.arange(400)).judged().chance
    beside = of._replace(pictures=pictures).judged().chance
    again = np.array([(of.given[pictures == pictures[i]] == of.given[i]).sum() > 1 for i in range(400)])
    doubtful = (alone > 0.02) & (alone < 0.98)
    assert (beside - alone)[again & doubtful].mean() > (beside - alone)[~again & doubtful].mean()

"""The mathematics on made-up regions, whose truth is known."""

from typing import NamedTuple

import numpy as np
import pytest

from cliploc.label.checking import wrong_labels

P, D = 5, 24


class Made(NamedTuple):
    features: np.ndarray
    text: np.ndarray
    xyxy: np.ndarray
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
    xyxy = np.hstack([np.zeros((count, 2)), rng.uniform(0.1, 0.5, (count, 2))])
    # Texts tell little.
    return Made(np.hstack([features, features]), 0.3 * text, xyxy, given, np.arange(count) // 3, wrong)


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


def test_regions_are_read_and_not_learnt_from() -> None:
    of = made(200)
    given = of.given.copy()
    given[150:] = wrong_labels.UNLABELLED
    names = of._replace(given=given).judged()
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


def test_regions_that_show_a_thing_without_a_label_come_first() -> None:
    of, rng, none = made(320, share=0), np.random.default_rng(2), np.zeros((0, 3))
    things = np.array([(x, y, x + 0.4, y + 0.4) for x in (0, 0.5) for y in (0, 0.5)])  # of each picture
    gaps = np.array([(0.41, 0, 0.49, 1), (0, 0.41, 1, 0.49)])
    hidden, of_pictures = rng.random((80, 4)) < 0.1, np.split(np.arange(320), 80)
    readings = []
    for some, unseen in zip(of_pictures, hidden, strict=True):
        nothing = rng.standard_normal((2, D))
        of_gaps = nothing / np.linalg.norm(nothing, axis=1, keepdims=True)
        regions = np.vstack([things, gaps]), np.vstack([of.features[some, :D], of_gaps])
        readings.append(wrong_labels.Reading(of.features[some[~unseen]], none, none, *regions))
    boxes, given = (
        [things[~unseen] for unseen in hidden],
        np.split(of.given[~hidden.ravel()], np.cumsum((~hidden).sum(axis=1))[:-1]),
    )
    found = wrong_labels.missing_labels(readings, boxes, given, of.text, 40.0)
    chances, right = [], []
    for some, unseen, missing in zip(of_pictures, hidden, found, strict=True):
        expected = {(*box, name) for box, name in zip(things[unseen], of.given[some[unseen]], strict=True)}
        assert [chance for *_, chance in missing] == sorted((chance for *_, chance in missing), reverse=True)
        chances += [chance for *_, chance in missing]
        right += [(*box, name) in expected for box, name, _ in missing]
    assert sum(right) == pytest.approx(hidden.sum(), abs=2)
    assert auroc(np.array(right), np.array(chances)) > 0.9
    assert wrong_labels.missing_labels(readings[:4], boxes[:4], given[:4], of.text, 40.0) == [[]] * 4  # too few


def test_how_a_region_overlaps_boxes() -> None:
    boxes = np.array([(0, 0, 1, 1), (0, 0, 0.5, 0.5)])
    found = wrong_labels.overlaps(np.array([(0, 0, 0.5, 1), (0.5, 0.5, 2, 2)]), boxes)
    np.testing.assert_allclose(found, [[0.5, 0.25 / 3], [1, 0.25 / 2.25]], rtol=1e-6)
    assert wrong_labels.overlaps(boxes, boxes[:0]).tolist() == [[0, 0], [0, 0]]


def test_what_a_label_of_its_name_or_a_likelier_region_overlaps_is_not_missing() -> None:
    regions = np.array([(0, 0, 0.5, 0.5), (0, 0, 0.4, 0.4), (0.5, 0.5, 1, 1), (0, 0, 0.5, 0.5)])
    names, chance = np.array([0, 0, 0, 1]), np.array([0.2, 0.3, 0.1, 0.4])
    found = wrong_labels.apart(regions, np.array([(0.6, 0.6, 0.9, 0.9)]), np.array([0]), names, chance)
    assert [(tuple(box), name) for box, name, _ in found] == [((0, 0, 0.5, 0.5), 1), ((0, 0, 0.4, 0.4), 0)]


def test_names_of_other_things_in_the_picture_are_likelier_errors() -> None:
    of = made(400)
    pictures = np.arange(400) // 4
    alone = of._replace(pictures=np.arange(400)).judged().chance
    beside = of._replace(pictures=pictures).judged().chance
    again = np.array([(of.given[pictures == pictures[i]] == of.given[i]).sum() > 1 for i in range(400)])
    doubtful = (alone > 0.02) & (alone < 0.98)
    assert (beside - alone)[again & doubtful].mean() > (beside - alone)[~again & doubtful].mean()

"""Counts and promises by pictures reviewed in random order: by hand, and as often as they say."""

import numpy as np
import pytest

from cliploc.label.promise import Draft, Look, Sample, certainty, fewest, no_look, order_of, quantile, total


def test_a_total_by_hand() -> None:
    true, expected = np.array([1.0, 0, 2, 1]), np.zeros(4)
    found = total(true, expected, np.zeros(12))  # drafts say nothing: the mean of the sample, 1, for all 16
    assert found.count == pytest.approx(16)
    variance = (2 + 2) / 5  # squares of −1, 1 and two residuals of ±1
    assert found.error == pytest.approx(quantile(3) * np.sqrt(variance * 12 * 16 / 4))
    exact = total(true, true, np.array([3.0, 0, 1]))  # drafts that are right
    assert exact.count == pytest.approx(8)
    assert exact.error == pytest.approx(quantile(3) * np.sqrt(2 / 5 * 3 * 7 / 4))
    assert total(true, expected, np.zeros(0)).error == 0
    assert quantile(10) == pytest.approx(2.228, abs=1e-3)


def test_certainty_by_counting() -> None:
    """Of 6 drafts 3 are seen; one wrong of those left is too many: with 0 wrong seen of 1 in all, by 20 draws."""
    assert certainty(0, 3, 3, 0.1) == pytest.approx(1 - 10 / 20)
    assert certainty(1, 3, 3, 0.1) == pytest.approx(1 - (1 * 4 + 2 * 6) / 20)  # 0 or 1 of 2 wrong ones among the seen
    assert certainty(0, 5, 10, 1) == 1
    assert certainty(0, 58, 10**6, 0.05) < 0.95 <= certainty(0, 59, 10**6, 0.05)  # as Clopper and Pearson
    assert fewest(0.05) == 59


def test_the_best_drafts_need_no_look_until_a_threshold_fails() -> None:
    scores = np.linspace(1, 0, 400)
    drafts = [Draft(0, score, score > 0.5 or i % 4 < 2) for i, score in enumerate(scores.tolist())]
    found = no_look(drafts[::2], scores[1::2], 0.1)
    assert found is not None
    assert 0.4 <= found.score <= 0.6
    assert found.share == pytest.approx(float((scores[1::2] >= found.score).mean()))
    assert no_look(drafts[:20], scores[20:], 0.1) is None, "too few"
    wrong = [Draft(0, one.score, False) for one in drafts]
    assert no_look(wrong[::2], scores[1::2], 0.1) is None


def look(reviewed: bool, drawn: int = 0) -> Look:
    return Look(reviewed, drawn, np.ones((2, 1)), np.ones((2, 1)), [Draft(0, 0.9, True)])


def test_only_what_was_reviewed_in_random_order_since_the_drafts_were_drawn_counts() -> None:
    names = sorted((f"{i}.jpg" for i in range(20)), key=order_of)
    for done, seen, known in ((names[:12], 12, 0), (names[1:13], 0, 12), ([*names[:5], names[9]], 5, 1)):
        sample = Sample({name: look(name in done) for name in names})
        assert (len(sample.seen), len(sample.known), len(sample.rest)) == (seen, known, 20 - seen - known)
        assert bool(sample.counts(["a"])) == (seen >= 10)
    sample = Sample({name: look(i < 14, 0 if i < 4 else 1) for i, name in enumerate(names)})
    assert (len(sample.seen), len(sample.counted), len(sample.rest)) == (10, 14, 6)
    assert sample.counts(["a"])["a"].things.count == pytest.approx(20)


@pytest.mark.parametrize("rate", [0.02, 0.4])
def test_as_often_as_it_says(rate: float) -> None:
    """Counts of things that are in few or many pictures, and promises of scores that mean little, in random folders."""
    draw, within, kept = np.random.default_rng(0), [], []
    for _ in range(300):
        true = draw.poisson(rate, 300).astype(float)
        expected = np.clip(true + draw.normal(0, 0.4, 300), 0, None)
        found = total(true[:40], expected[:40], expected[40:])
        within.append(abs(found.count - true.sum()) <= found.error)
        right, scores = draw.random(600) < 0.9, draw.random(600)
        seen = [Draft(0, float(score), bool(hit)) for score, hit in zip(scores[:150], right[:150], strict=True)]
        accepted = no_look(seen, scores[150:], 0.1)
        chosen = right[150:][scores[150:] >= (2 if accepted is None else accepted.score)]
        kept.append(not len(chosen) or (~chosen).mean() <= 0.1)
    assert np.mean(within) >= 0.93
    assert np.mean(kept) >= 0.93

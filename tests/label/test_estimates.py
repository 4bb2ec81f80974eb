"""Counts and promises by pictures reviewed in random order: by hand, and as often as they say."""

import numpy as np
import pytest
from scipy.stats import t

from cliploc.label.estimates import (
    UNSEEN,
    Draft,
    Observation,
    Sample,
    accepted_drafts,
    certainty,
    fewest,
    mean_square,
    order_of,
    total,
)  # fmt: skip


def test_a_total_by_hand() -> None:
    true, expected = np.array([1.0, 0, 2, 1]), np.zeros(4)
    found = total(true, expected, np.zeros(12))  # drafts say nothing: the mean of the sample, 1, for all 16
    assert found.count == pytest.approx(16)
    variance = (2 + UNSEEN) / 5  # squares of −1 and 1, and what may be missing
    assert found.error == pytest.approx(t.ppf(0.975, 3) * np.sqrt(variance * 12 * 16 / 4))
    exact = total(true, true, np.array([3.0, 0, 1]))  # drafts that are right
    assert exact.count == pytest.approx(8)
    assert exact.error == pytest.approx(t.ppf(0.975, 3) * np.sqrt(UNSEEN / 5 * 3 * 7 / 4))
    assert total(true, expected, np.zeros(0)).error == 0


def test_certainty_by_counting() -> None:
    """Of 6 drafts 3 are seen; one wrong of those left is too many: with 0 wrong seen of 1 in all, by 20 draws."""
    assert certainty(0, 3, 3, 0.1) == pytest.approx(1 - 10 / 20)
    assert certainty(1, 3, 3, 0.1) == pytest.approx(1 - (1 * 4 + 2 * 6) / 20)  # 0 or 1 of 2 wrong ones among the seen
    assert certainty(0, 5, 10, 1) == 1
    assert certainty(0, 58, 10**6, 0.05) < 0.95 <= certainty(0, 59, 10**6, 0.05)  # as Clopper and Pearson
    assert fewest(0.05) == 72  # with half of the risk


def test_the_best_drafts_need_no_look_until_a_threshold_fails() -> None:
    scores = np.linspace(1, 0, 400)
    drafts = [Draft(0, score, score > 0.5 or i % 4 < 2) for i, score in enumerate(scores.tolist())]
    found = accepted_drafts([[one] for one in drafts[::2]], scores[1::2], 0.1)
    assert found is not None
    assert 0.4 <= found.score <= 0.6
    assert found.share == pytest.approx(float((scores[1::2] >= found.score).mean()))
    assert accepted_drafts([[one] for one in drafts[:20]], scores[20:], 0.1) is None, "too few"
    wrong = [Draft(0, one.score, False) for one in drafts]
    assert accepted_drafts([[one] for one in wrong[::2]], scores[1::2], 0.1) is None


def observation(reviewed: bool, drawn: int = 0) -> Observation:
    return Observation(reviewed, drawn, np.ones((2, 1)), np.ones((2, 1)), [Draft(0, 0.9, True)])


def test_only_what_was_reviewed_in_random_order_since_the_drafts_were_drawn_counts() -> None:
    names = sorted((f"{i}.jpg" for i in range(20)), key=order_of)
    for done, seen, known in ((names[:12], 12, 0), (names[1:13], 0, 12), ([*names[:5], names[9]], 5, 1)):
        sample = Sample({name: observation(name in done) for name in names})
        assert (len(sample.seen), len(sample.known), len(sample.rest)) == (seen, known, 20 - seen - known)
        assert bool(sample.counts(["a"])) == (seen >= 10)
    sample = Sample({name: observation(i < 14, 0 if i < 4 else 1) for i, name in enumerate(names)})
    assert (len(sample.seen), len(sample.counted), len(sample.rest)) == (10, 14, 6)
    assert sample.counts(["a"])["a"].things.count == pytest.approx(20)


def test_nothing_seen_has_the_error_of_the_exact_test() -> None:
    n, m = 400, 10**7
    found = total(np.zeros(n), np.zeros(n), np.zeros(m))
    assert found.error / m == pytest.approx(1 - 0.025 ** (1 / n), rel=0.02)  # Clopper and Pearson
    assert total(np.zeros(n), np.zeros(n), np.zeros(m), 9.0).error == pytest.approx(3 * found.error)
    assert mean_square(np.array([[2.0, 0], [0, 3]])) == pytest.approx((1 + 4 + 9) / 3)


@pytest.mark.parametrize("reviewed", [20, 60])
@pytest.mark.parametrize("names", [1, 8])
def test_counts_hold_as_often_as_they_say(names: int, reviewed: int) -> None:
    """Names in 3 to 60 % of 200 pictures, few to a picture or in heaps; drafts see some of them."""
    draw, order = np.random.default_rng(0), [f"{i}" for i in range(200)]
    shares, heaps = np.linspace(0.6, 0.03, names), np.where(np.arange(names) % 2, 0.4, 0.9)
    within = []
    for _ in range(100):
        true = (draw.random((200, names)) < shares) * draw.geometric(heaps, (200, names))
        expected = np.clip(0.7 * true + draw.normal(0, 0.3, true.shape), 0, None)
        pairs = zip((true, true > 0), (expected, expected.clip(max=1)), strict=True)
        both = np.array([[counts.astype(float), drafts] for counts, drafts in pairs])  # [2, 2, n, P]
        observations = {
            name: Observation(i < reviewed, 0, *both[:, :, i].swapaxes(0, 1), []) for i, name in enumerate(order)
        }
        counts = Sample(observations, order).counts([f"{p}" for p in range(names)])
        for p, of in enumerate(counts.values()):
            for one, all_of in zip((of.things, of.pictures), both[:, 0, :, p].sum(axis=1), strict=True):
                within.append(abs(one.count - all_of) <= one.error)
    assert np.mean(within) >= 0.95


@pytest.mark.parametrize(("each", "together"), [(1, False), (4, False), (4, True)])
def test_promises_hold_as_often_as_they_say(each: int, together: bool) -> None:
    """Where more is wrong than promised, and far less; in pictures of one or four drafts, also wrong together."""
    draw, accepted = np.random.default_rng(0), list[list[float]]()
    for wrong in (0.12, 0.01):
        kept = []
        accepted.append([])
        for _ in range(200):
            right = np.broadcast_to(draw.random((300, 1 if together else each)) >= wrong, (300, each))
            scores = draw.random((300, each))
            seen = [
                [*map(Draft, [0] * each, *of)] for of in zip(scores[:50].tolist(), right[:50].tolist(), strict=True)
            ]
            found = accepted_drafts(seen, scores[50:].ravel(), 0.1)
            chosen = right[50:][scores[50:] >= (2 if found is None else found.score)]
            kept.append(not len(chosen) or (~chosen).mean() <= 0.1)
            accepted[-1].append(0.0 if found is None else found.share)
        assert np.mean(kept) >= 0.95
    assert np.mean(accepted[0]) < 0.05
    assert np.mean(accepted[1]) > 0.5

"""Sides of drafts: what is read at them, and what boxes teach of them."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from cliploc.boxes.sides import LENGTH, READINGS, common, learnt, moved, offsets, readings
from cliploc.images.geometry import Frame, iou_matrix

FRAME = Frame.fit("squash", (80, 100), (80, 100))
NOTHING = np.zeros((1, 4, READINGS))


def test_sides_that_are_always_off_are_moved_and_others_are_not() -> None:
    rng = np.random.default_rng(0)
    drafts = np.tile(np.array([[10, 10, 30, 30]], np.float32), (30, 1))
    # The upper side is 10 % too high in every picture; the left side is off at random.
    found = [offsets(one[None], (one + np.array([rng.normal(0, 1), 2, 0, 0], np.float32))[None])[0] for one in drafts]
    by = common(np.concatenate(found))
    assert by[1] == pytest.approx(0.1, abs=0.01)
    assert abs(by[0]) < 0.02
    np.testing.assert_allclose(learnt((one, NOTHING) for one in found)[:4], by)  # nothing is read: nothing is added
    sides = np.array([0, 0.1, 0, -1] + [0.0] * READINGS)
    assert moved(drafts[:1], sides, NOTHING, FRAME).tolist() == [[10, 12, 30, 36]], "at most by 0.3"
    outwards = np.array([-0.3] * 4 + [0.0] * READINGS)
    assert moved(np.array([[0, 10, 95, 78]]), outwards, NOTHING, FRAME).tolist() == [[0, 0, 100, 80]], "in the picture"
    far = np.array([[80, 70, 90, 79]])
    assert offsets(np.concatenate([drafts[:1], far]), far)[1].tolist() == [0, 1]
    assert offsets(drafts[:1], drafts[:1] + 9)[0].round(2).tolist() == [[0.3, 0.3, -0.3, -0.3]], "no farther than that"
    # Half of two moves' sum, less 2 · (0.02 + 2 · 0.01) / (2 · 3) / 0.2² of it.
    np.testing.assert_allclose(common(np.array([[0.1] * 4, [0.3] * 4])), [0.2 * (1 - 1 / 3)] * 4)
    for some, boxes in ((drafts[:2], far[:0]), (drafts[:0], far)):
        assert [one.tolist() for one in offsets(some, boxes)] == [[[0] * 4] * len(some), [0] * len(some)]
    assert learnt([]).tolist() == [0] * LENGTH


@pytest.mark.parametrize("count", [2, 9])
def test_what_sides_do_not_have_in_common_is_a_ridge_regression_on_their_readings(count: int) -> None:
    rng = np.random.default_rng(2)
    away, read = rng.normal([0.1, -0.1, 0.2, 0], 0.05, (count, 4)), rng.normal(1, 1, (count, 4, READINGS))
    left, mean = away - common(away), read.mean(axis=(0, 1))
    noise = (left.ravel() @ left.ravel() + 8 * 0.1**2) / (4 * count + 8)
    ridge = Ridge(noise / 0.03**2, fit_intercept=False).fit((read - mean).reshape(-1, READINGS), left.ravel())
    found = learnt([(away[:1], read[:1]), (away[1:], read[1:])])
    np.testing.assert_allclose(found[4:], ridge.coef_, atol=1e-9)
    np.testing.assert_allclose(found[:4] + mean @ found[4:], common(away), atol=1e-9)


def test_a_side_is_read_from_outside_to_inside() -> None:
    heat = np.zeros((80, 100), np.float32)
    heat[20:60, 30:70] = 1
    [found] = readings(np.array([[30.0, 20, 70, 60]]), heat, FRAME)
    assert found.shape == (4, READINGS)
    np.testing.assert_array_equal(found[:, :9], [[0] * 4 + [1] * 5] * 2 + [[0] * 5 + [1] * 4] * 2)  # a place at a side
    np.testing.assert_allclose(found[:, 9:], [[0.4, 0]] * 4)  # far from the edges of the picture
    [found] = readings(np.array([[0.0, 20, 40, 80]]), heat, FRAME)
    np.testing.assert_allclose(found[:, 9:], [[0, 1], [20 / 60, 0], [0.4, 0], [0, 1]], atol=1e-6)


def test_the_map_across_a_side_tells_where_it_belongs() -> None:
    """Drafts lie too far in or out by chance: their common offset is nothing, but the map shows where each belongs."""
    rng = np.random.default_rng(1)
    pictures, before, after = [], [], []
    for number in range(40):
        corner, size = rng.integers(15, 25, 2), rng.integers(20, 40, 2)
        true = np.array([[*corner, *(corner + size)]], np.float64)
        draft = true + rng.uniform(-0.2, 0.2, 4) * np.tile(size, 2)
        heat = np.zeros((80, 100), np.float32)
        heat[corner[1] : corner[1] + size[1], corner[0] : corner[0] + size[0]] = 1
        read = readings(draft, heat, FRAME)
        if number < 20:
            pictures.append((offsets(draft, true)[0], read))
            continue
        before.append(iou_matrix(draft, true).item())
        after.append(iou_matrix(moved(draft, learnt(pictures), read, FRAME), true).item())
    assert np.mean(before) < 0.75
    assert np.mean(after) > np.mean(before) + 0.1

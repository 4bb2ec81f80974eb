"""tools/corrections.py: its numbers by hand."""

import math

import numpy as np
import pytest
from tools.corrections import Walk, numbers_of

UNTAUGHT = np.array([[0, 3, 0], [0, 1, 0], [0, 2, 0]], float)  # to delete, draw and adjust in three pictures
LEFT = [[True, False], [True, True], [True, True]], [[True, True], [True, False], [True, True]]
TAUGHT = (
    [[[2, 0, 0], [9, 9, 9]], [[1, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 1, 0]]],  # what is reviewed does not count
    [[[2, 0, 0], [0, 1, 0]], [[1, 0, 0], [9, 9, 9]], [[0, 0, 0], [0, 0, 0]]],
)


def test_numbers_by_hand() -> None:
    walks = [Walk(np.array(left), np.array(taught, float)) for left, taught in zip(LEFT, TAUGHT, strict=True)]
    first, last = (numbers_of(UNTAUGHT, walks, step) for step in (0, 1))
    assert (first["left"], last["left"]) == (3, 2)
    assert (first["untaught"], last["untaught"]) == pytest.approx((200, 200))  # b and c, then a and c: 1 + 2 + 3 + 2
    assert (first["taught"], last["taught"]) == pytest.approx((100, 50))
    assert (first["saved"], last["saved"]) == pytest.approx((100, 150))
    assert (first["delete"], last["draw"]) == pytest.approx((100, 50))
    assert (first["minutes_low"], last["minutes_high"]) == pytest.approx((100 * 7 / 60, 50 * 35 / 60))
    # Saved at first: a 1, b 0, c 2 in both draws. Then a 2; b 1; c 1 and 2; in the first draw 1 and 1, then 2 and 2.
    assert first["saved_error"] == pytest.approx(100 * math.sqrt(np.var([1, 0, 2], ddof=1) / 3))
    variance = np.var([2, 1, 1.5], ddof=1) / 3 + np.var([1, 2], ddof=1) / 2
    assert last["saved_error"] == pytest.approx(100 * math.sqrt(variance))
    alone = numbers_of(UNTAUGHT[:1], [Walk(np.array([[True]]), np.array([[[2.0, 0, 0]]]))], 0)
    assert alone["saved_error"] is None

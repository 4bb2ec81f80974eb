"""The last looks of visitors: of so many, of so many bytes, and for so long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from cliploc.web.looks import Looks


def look(names: int = 1) -> Any:
    """Of 30 + 100 bytes for each name."""
    one = SimpleNamespace(maps=np.zeros((names, 5, 5), np.float32), image=Image.new("L", (5, 2)))
    return SimpleNamespace(results={"cam": one})


def test_each_visitor_has_his_last_and_the_oldest_goes_first():
    looks, (first, second, third, fourth) = Looks(most=2), (look() for _ in range(4))
    looks.keep("a", first)
    looks.keep("b", second)
    looks.keep("a", third)
    assert [looks.last(one) for one in "abc"] == [third, second, None]
    looks.keep("c", fourth)
    assert [looks.last(one) for one in "abc"] == [third, None, fourth]


def test_large_looks_are_fewer():
    looks, small, large = Looks(max_bytes=400), look(), look(9)
    for visitor in "abcd":
        looks.keep(visitor, small)
    assert [looks.last(one) for one in "abcd"] == [None, small, small, small]
    looks.keep("e", large)
    assert [looks.last(one) for one in "abcde"] == [None, None, None, None, large]
    looks.keep("a", small)
    assert [looks.last(one) for one in "ae"] == [small, None]


def test_a_look_is_dropped_after_its_time_whether_anybody_asks_or_not():
    now = 0.0
    looks, second = Looks(seconds=10, clock=lambda: now), look()
    looks.keep("a", look())
    now = 6.0
    looks.keep("b", second)
    now = 11.0
    assert [looks.last(one) for one in "ab"] == [None, second]
    now = 17.0
    looks.forget_old()
    assert not looks._kept

"""The last looks of visitors: of so many, and for so long."""

from __future__ import annotations

from typing import Any

from cliploc.web.looks import Looks


def test_each_visitor_has_his_last_and_the_oldest_goes_first():
    looks: Any = Looks(most=2)
    looks.keep("a", 1)
    looks.keep("b", 2)
    looks.keep("a", 3)
    assert [looks.last(one) for one in "abc"] == [3, 2, None]
    looks.keep("c", 4)
    assert [looks.last(one) for one in "abc"] == [3, None, 4]


def test_a_look_is_dropped_after_its_time_whether_anybody_asks_or_not():
    now = 0.0
    looks: Any = Looks(seconds=10, clock=lambda: now)
    looks.keep("a", 1)
    now = 6.0
    looks.keep("b", 2)
    now = 11.0
    assert [looks.last(one) for one in "ab"] == [None, 2]
    now = 17.0
    looks.forget_old()
    assert not looks._kept

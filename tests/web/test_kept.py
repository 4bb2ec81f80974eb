"""What is kept in memory: so much, and for so long; decoded photographs by file and not by path alone."""

import os
from pathlib import Path

import pytest
from PIL import Image

from cliploc.errors import InputError
from cliploc.find.memory import LruCache
from cliploc.web.service import Offer, Service


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        ([("a", 1, 1), ("b", 2, 1), ("a", 3, 1)], [3, 2, None]),
        ([("a", 1, 1), ("b", 2, 1), ("a", None, 0), ("c", 4, 1)], [1, None, 4]),  # None: it is used
        ([("a", 1, 1), ("b", 2, 2)], [None, 2, None]),
        ([("a", 1, 1), ("b", 2, 1), ("b", 3, 3)], [1, None, None]),  # it is too large, and no other must go
    ],
)
def test_what_was_not_used_for_longest_makes_room(steps, left):
    kept = LruCache[int](most=2)
    for key, value, size in steps:
        _ = kept.get(key) if value is None else kept.keep(key, value, size)
    assert [kept.get(one) for one in "abc"] == left


def test_what_is_old_is_dropped_whether_anybody_asks_or_not():
    now = 0.0
    kept = LruCache[int](9, seconds=10, clock=lambda: now)
    kept.keep("a", 1)
    now = 6.0
    kept.keep("b", 2)
    now = 11.0
    assert [kept.get(one) for one in "ab"] == [None, 2]
    now = 22.0
    kept.forget_old()
    assert kept.size == 0


def test_a_photograph_is_decoded_once_and_another_file_is_another_photograph(tmp_path):
    service = Service([Offer("mini")], device="cpu")
    path = tmp_path / "a.png"
    Image.new("RGB", (10, 10)).save(path)
    before = service.read(str(path))
    assert service.read(str(path)) is before
    Image.new("RGB", (20, 20)).save(path)
    os.utime(path, ns=(1, 1))
    assert service.read(str(path)).image.size == (20, 20) != before.image.size
    Path(path).unlink()
    with pytest.raises(InputError, match=r"^a\.png: it is not kept any longer"):
        service.read(str(path))

"""Decoded photographs: kept for a while, within a limit, by file and not by path alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from cliploc.images import Picture, load
from cliploc.web.pictures import Pictures


@pytest.fixture
def files(tmp_path) -> list[str]:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        Image.new("RGB", (10, 10)).save(path)  # 300 bytes each
    return [str(path) for path in paths]


def test_a_picture_is_read_once_within_the_limit_and_the_time(files):
    now, reads = 0.0, []
    pictures = Pictures(seconds=10, max_bytes=700, clock=lambda: now)

    def of(path: str) -> Picture:
        return pictures.of(path, lambda: (reads.append(path), load(path))[1])

    a, b, c = files
    assert of(a) is of(a)
    of(b)
    of(a)
    of(c)  # one too many: b was not used for longest
    of(a)
    assert reads == [a, b, c]
    of(b)
    assert reads == [a, b, c, b]
    now = 11.0
    of(b)
    assert reads == [a, b, c, b, b]
    now = 22.0
    pictures.forget_old()
    assert not pictures._kept


def test_a_larger_one_is_not_kept_and_another_file_is_another_picture(files):
    pictures, reads = Pictures(seconds=10, max_bytes=299), []
    for _ in range(2):
        pictures.of(files[0], lambda: (reads.append(1), load(files[0]))[1])
    assert len(reads) == 2
    pictures = Pictures(seconds=10)
    before = pictures.of(files[0], lambda: load(files[0]))
    Image.new("RGB", (20, 20)).save(files[0])
    os.utime(files[0], ns=(1, 1))
    assert pictures.of(files[0], lambda: load(files[0])).image.size == (20, 20) != before.image.size
    Path(files[0]).unlink()
    with pytest.raises(OSError, match="No such file"):
        pictures.of(files[0], lambda: load(files[0]))

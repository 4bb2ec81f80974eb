"""The folder of uploads and downloads: old ones go."""

import io
import os

import pytest

from cliploc.web.guard import RefusedError
from cliploc.web.uploads import Store


def test_what_is_old_goes(tmp_path):
    store = Store(tmp_path, {}, seconds=250)
    numbers = [store.keep(io.BytesIO(b"abc"), f"{ago}.jpg") for ago in (300, 200)]
    for number, ago in zip(numbers, (300, 200), strict=True):
        folder = store.picture(number).parent
        os.utime(folder, (0, folder.stat().st_mtime - ago))
    store.sweep()
    assert store.picture(numbers[1]).read_bytes() == b"abc"
    with pytest.raises(RefusedError, match="no longer: upload it"):
        store.picture(numbers[0])

"""The folder of uploads and downloads: old ones go, there is a limit for all together, and for a server's life."""

import io
import os
import subprocess
import sys

import pytest

from cliploc.web import uploads as stores
from cliploc.web.guard import RefusedError
from cliploc.web.uploads import Store, temporary_folder


def kept(store: Store, ago: float, size: int = 100) -> str:
    """An upload that was stored so many seconds ago."""
    number = store.keep(io.BytesIO(bytes(size)), f"{ago}.jpg")
    folder = store.picture(number).parent
    os.utime(folder, (0, folder.stat().st_mtime - ago))
    return number


def left(store: Store, numbers: list[str]) -> list[bool]:
    there = []
    for number in numbers:
        try:
            there.append(store.picture(number).is_file())
        except RefusedError:
            there.append(False)
    return there


@pytest.mark.parametrize(
    ("limits", "most", "there"),
    [
        ({}, 9, [True, True, True]),
        ({"most_bytes": 250}, 9, [False, True, True]),
        ({"seconds": 250}, 9, [False, True, True]),
        ({}, 1, [False, False, True]),
    ],
)
def test_the_oldest_go(tmp_path, limits, most, there, monkeypatch):
    monkeypatch.setattr(stores, "MOST_FOLDERS", most)
    store = Store(tmp_path, **limits)
    numbers = [kept(store, ago) for ago in (300, 200, 100)]
    store.sweep()
    assert left(store, numbers) == there
    assert len(list(tmp_path.iterdir())) == sum(there)


KILLED = """
import os, signal, sys
from cliploc.web.uploads import temporary_folder
with temporary_folder() as folder:
    (folder / "a.jpg").write_bytes(b"a")
    print(folder, flush=True)
    if sys.argv[1:]:
        sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no SIGKILL on this system")
def test_what_a_killed_server_left_is_removed_and_nothing_of_a_living_one(tmp_path, monkeypatch):
    variables = {**os.environ, "TMPDIR": str(tmp_path)}
    start = [sys.executable, "-c", KILLED]
    with subprocess.Popen(
        [*start, "wait"], env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as living:
        alive = living.stdout.readline().strip()
        dead = subprocess.run(start, env=variables, stdout=subprocess.PIPE, text=True).stdout.strip()
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / stores.LOCK).touch()
        (tmp_path / f"{stores.PREFIX}link").symlink_to(elsewhere)
        assert os.path.isfile(f"{dead}/a.jpg")
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
        with temporary_folder() as mine:
            assert sorted(os.listdir(tmp_path)) == sorted(
                [os.path.basename(alive), mine.name, "elsewhere", f"{stores.PREFIX}link"]
            )
            assert os.listdir(elsewhere) == [stores.LOCK]
        assert not mine.exists()
        living.stdin.close()

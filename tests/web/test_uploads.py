"""The folder of uploads: old files go, and there is a limit for all together."""

import os
import time

from cliploc.web import store as uploads
from cliploc.web.store import Uploads


def write(folder, name: str, size: int) -> None:
    path = folder / name / "photo.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(bytes(size))
    time.sleep(0.02)  # so that one is older than the other


def left(folder) -> list[str]:
    return sorted(path.parent.name for path in folder.rglob("photo.jpg"))


def test_the_oldest_make_room(tmp_path):
    write(tmp_path, "example", 1000)  # what was there before stays
    kept = Uploads(tmp_path, 300, 60)
    for name in "abc":
        write(tmp_path, name, 100)
    kept.sweep()
    assert left(tmp_path) == ["a", "b", "c", "example"]
    kept.sweep(room=150)
    assert left(tmp_path) == ["c", "example"]


def test_a_new_file_makes_the_oldest_go_though_the_folder_is_not_read_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "REST", 10**9)
    kept = Uploads(tmp_path, 300, 60)
    for name in "abcde":
        kept.make_room(100)
        write(tmp_path, name, 100)
    assert left(tmp_path) == ["c", "d", "e"]
    write(tmp_path, "download", 200)  # nobody made room for it: the next time that the folder is read, it counts
    kept.make_room(100)
    assert left(tmp_path) == ["download"]


def test_what_is_old_goes_and_its_folder_too(tmp_path):
    kept = Uploads(tmp_path, 10**9, 0.5)
    write(tmp_path, "a", 100)
    time.sleep(0.5)
    write(tmp_path, "b", 100)
    kept.sweep()
    assert left(tmp_path) == ["b"]
    os.utime(tmp_path / "a", (0, 0))
    kept.sweep()
    assert os.listdir(tmp_path) == ["b"]


def test_many_small_files_are_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_FILES", 2)
    kept = Uploads(tmp_path, 10**9, 60)
    for name in "abc":
        write(tmp_path, name, 1)
    kept.sweep()
    assert left(tmp_path) == ["b", "c"]


def test_a_watched_folder_is_swept_though_nobody_asks(tmp_path):
    watched = Uploads(tmp_path, 50, 60)
    watched.watch(0.02)
    try:
        write(tmp_path, "a", 100)
        for _ in range(500):
            if not left(tmp_path):
                break
            time.sleep(0.02)
        assert left(tmp_path) == []
    finally:
        watched.end()

"""The one writer of files: whole or not at all, and no trace of a failure."""

import errno
import multiprocessing
import time
from pathlib import Path

import pytest

from cliploc.errors import UsageError
from cliploc.support import files as _files
from cliploc.support.files import alone_in, alone_writing, write_folder_whole, write_whole
from tests.commands import CAT, begun, refused


def half(path: Path) -> None:
    path.write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_a_file_is_there_as_a_whole_or_as_it_was(tmp_path):
    path = tmp_path / ("long " * 50 + ".txt")  # 254 bytes
    write_whole(path, lambda temporary: temporary.write_text("one"))
    with pytest.raises(OSError, match="No space left") as failed:
        write_whole(path, half)
    assert failed.value.filename == str(path)
    assert path.read_text() == "one"
    write_whole(path, lambda temporary: temporary.write_text("two"), durable=False)
    assert path.read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_there_as_a_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "yolo"
    write_folder_whole(path, lambda folder: (folder / "a").write_text("one"))
    with pytest.raises(OSError, match="No space left"):
        write_folder_whole(path, lambda folder: half(folder / "a"))
    assert (path / "a").read_text() == "one"
    rename = Path.rename

    def refuse(self, target):
        if target == path and (self / "a").read_text() == "two":
            raise PermissionError(errno.EACCES, "in use by another program")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(PermissionError):
            write_folder_whole(path, lambda folder: (folder / "a").write_text("two"))
    assert (path / "a").read_text() == "one"
    write_folder_whole(path, lambda folder: (folder / "b").write_text("two"))
    assert [one.name for one in path.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [path]


def test_only_what_the_run_left_is_removed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a").write_text("mine")
    with alone_in(tmp_path):
        half, folder, link = (_files._beside(tmp_path / "coco.json") for _ in range(3))
    half.write_text("half")
    folder.mkdir()
    (folder / "a").write_text("half")
    link.symlink_to(tmp_path / "mine")
    names = (".bashrc.20240101.old", ".cliploc-run-mine.tmp", f"{half.name}.bak")
    kept = [_files._beside(tmp_path / "coco.json"), *(tmp_path / name for name in names)]
    for path in kept:
        path.write_text("not of this run")
    with alone_in(tmp_path):
        pass
    assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / "mine"])
    assert (tmp_path / "mine/a").read_text() == "mine"


@pytest.mark.parametrize(
    "words",
    [
        ("localize", CAT, "-p", "cat", "--recipe", "fast"),
        ("compare", CAT, "-p", "cat", "--method", "cam"),
        ("explain", CAT, "-p", "cat", "--method", "cam"),
        ("demo",),
    ],
    ids=lambda words: words[0],
)
def test_commands_with_out_say_that_another_run_writes_there(words, tmp_path):
    with alone_in(tmp_path):
        said = refused(*words, "--out", tmp_path)
    assert f"another run is writing into {tmp_path}: wait until it ends, or choose another --out" in said
    assert list(tmp_path.iterdir()) == []


def test_a_head_is_written_by_one_run_and_others_beside_it(tmp_path):
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    with alone_writing(tmp_path / "a.safetensors"), alone_writing(tmp_path / "b.safetensors"):
        words = ("train", "tscam", "--root", tmp_path / "photos", "--out", tmp_path / "a.safetensors")
        assert f"another run is writing {tmp_path / 'a.safetensors'}: wait until it ends" in refused(*words)
    assert [one.name for one in tmp_path.iterdir()] == ["photos"]


def test_who_writes_a_file_removes_what_a_killed_run_for_it_left(tmp_path):
    (inner := tmp_path / "inner").mkdir()
    left = []
    for name in ("a", "画" * 85):  # the longest name
        with alone_writing(tmp_path / name):
            write_whole(inner / "x", lambda one: (left.append(one), one.write_bytes(b"1")))
    for one in left:
        one.write_bytes(b"half")
    with alone_writing(tmp_path / "a", [inner]):
        assert [one.exists() for one in left] == [False, True]


def hold(path, told):
    with alone_writing(path):
        told.send("held")
        time.sleep(600)


def test_a_killed_run_locks_nobody_out(tmp_path):
    heard, told = multiprocessing.Pipe(duplex=False)
    child = begun(hold, tmp_path / "a", told)
    assert heard.poll(60)
    with pytest.raises(UsageError, match="another run is writing"), alone_writing(tmp_path / "a"):
        pass
    child.kill()
    child.join()
    assert (tmp_path / ".a.lock").exists()
    with alone_writing(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []

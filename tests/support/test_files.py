"""The one writer of files: whole or not at all, and no trace of a failure."""

import errno
import multiprocessing
import time
from pathlib import Path

import pytest

from cliploc.errors import UsageError
from cliploc.support.files import locked, write_atomic, write_atomic_folder
from tests.commands import CAT, begun, refused


def half(path: Path) -> None:
    path.write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_a_file_is_there_as_a_whole_or_as_it_was(tmp_path):
    path = tmp_path / ("long " * 50 + ".txt")  # 254 bytes
    write_atomic(path, lambda temporary: temporary.write_text("one"))
    with pytest.raises(OSError, match="No space left") as failed:
        write_atomic(path, half)
    assert failed.value.filename == str(path)
    assert path.read_text() == "one"
    write_atomic(path, lambda temporary: temporary.write_text("two"), durable=False)
    assert path.read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_there_as_a_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "yolo"
    write_atomic_folder(path, lambda folder: (folder / "a").write_text("one"))
    with pytest.raises(OSError, match="No space left"):
        write_atomic_folder(path, lambda folder: half(folder / "a"))
    assert (path / "a").read_text() == "one"
    rename = Path.rename

    def refuse(self, target):
        if target == path and (self / "a").read_text() == "two":
            raise PermissionError(errno.EACCES, "in use by another program")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(PermissionError):
            write_atomic_folder(path, lambda folder: (folder / "a").write_text("two"))
    assert (path / "a").read_text() == "one"
    write_atomic_folder(path, lambda folder: (folder / "b").write_text("two"))
    assert [one.name for one in path.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path):
    names = (".cliploc-0123456789abcdef.tmp", ".cliploc-1123456789abcdef.tmp", ".cliploc-2123456789abcdef.tmp")
    half, folder, link = (tmp_path / name for name in names)
    (tmp_path / "mine").mkdir()
    others = [tmp_path / name for name in (".bashrc.old", ".cliploc-mine.tmp", f"{half.name}.bak", "mine/a")]
    for path in (half, *others):
        path.write_text("some")
    folder.mkdir()
    (folder / "a").write_text("half")
    link.symlink_to(tmp_path / "mine")
    with locked(tmp_path):
        pass
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(others)


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
    with locked(tmp_path):
        message = refused(*words, "--out", tmp_path)
    assert f"another run is writing into {tmp_path}: wait until it ends, or choose another --out" in message
    assert list(tmp_path.iterdir()) == []


def hold(path, connection):
    with locked(path):
        connection.send("locked")
        time.sleep(600)


def test_a_killed_run_locks_nobody_out(tmp_path):
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = begun(hold, tmp_path, sender)
    assert receiver.poll(60)
    with pytest.raises(UsageError, match="another run is writing"), locked(tmp_path):
        pass
    child.kill()
    child.join()
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []

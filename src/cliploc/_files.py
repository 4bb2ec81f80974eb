"""Writes files atomically: each is there as a whole or not at all, whenever the machine stops.

A file is written under a temporary name beside its place, flushed to the disk and then renamed. Temporary names begin
with `.cliploc-` and the token of the run that writes (`temporaries_of`), so that what a killed run has left behind can
be told from the user's own files.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from cliploc.errors import UsageError

_TOKEN: ContextVar[str] = ContextVar("cliploc_token", default="no-run")


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as users write it, with `~` and `~name` replaced by that home folder.

    Where there is no such user, or no home, it stays as it is, as in a shell: `~$draft.jpg` may be a file.

    Example:
        >>> user_path("~nobody-of-this-name/a.jpg").as_posix()
        '~nobody-of-this-name/a.jpg'
    """
    try:
        return Path(os.path.expanduser(path))  # `Path.expanduser` raises an error where there is no such user
    except ValueError:  # a null character in the user's name
        return Path(path)


def new_token() -> str:
    """A random word for the temporary files of a run."""
    return secrets.token_hex(8)


@contextmanager
def temporaries_of(token: str) -> Iterator[None]:
    """Within this, temporary files of this thread carry the token of a run."""
    before = _TOKEN.set(token)
    try:
        yield
    finally:
        _TOKEN.reset(before)


def write_whole(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Lets `write` fill a temporary file beside `path`, which then takes its place.

    Args:
        durable: whether to wait until the file is on the disk; not needed for a cache.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> write_whole(path, lambda temporary: temporary.write_text("all of it"))
        >>> path.read_text()
        'all of it'
    """
    temporary = _beside(path)
    try:
        write(temporary)
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        # The user knows this name, not the temporary one; an error of fsync has no name.
        if isinstance(error, OSError) and error.filename in (temporary, str(temporary), None):
            error.filename, error.filename2 = str(path), None
        raise
    if durable:
        _flush_folder(path.parent)


def write_at(path: Path, place: int, content: bytes) -> int:
    """Writes into a file that ends with this from now on, and waits until it is on the disk.

    After a failure or a kill, the file is as it was up to `place`; what follows may be a part of the content.

    Args:
        path: the file, which is made if it is not there.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> write_at(path, write_at(path, 0, b"one, "), b"two")
        8
    """
    new = not path.exists()
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b") as file:
        file.truncate(place)
        file.seek(place)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if new:
        _flush_folder(path.parent)
    return place + len(content)


def write_folder_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a new folder beside `path`, which then replaces what is at `path`."""
    temporary, before = _beside(path), _beside(path)
    temporary.mkdir(parents=True)
    try:
        write(temporary)
        if hasattr(os, "sync"):  # one sync for thousands of small files
            os.sync()
        if path.exists():
            path.rename(before)
        try:
            temporary.rename(path)
        except BaseException:
            if before.exists():  # the old folder is better than none
                before.rename(path)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)
    _flush_folder(path.parent)


def write_output(path: Path, content: bytes, option: str) -> None:
    """Writes a file so that a kill at any moment leaves the old one or the new one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda temporary: temporary.write_bytes(content))
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"cannot write {path}: {reason}: free space or choose another place with {option}") from error


def remove(path: Path) -> None:
    """Removes a file, a link, or a folder with its content, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within this, no other process and no other thread has this lock on a folder.

    It is the system's lock on the folder itself, which ends with the process, however that ends, and leaves no file.
    On Windows, which has none for folders, it is a file in the folder that nobody else can open. Nothing is locked on a
    file system without locks.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name, locked(Path(name)):
        ...     with locked(Path(name)):
        ...         pass
        Traceback (most recent call last):
        BlockingIOError: [Errno 11] Resource temporarily unavailable
    """
    if sys.platform == "win32":
        with _locked_file(folder / ".cliploc.lock"):
            yield
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        _lock(opened)
        yield
    finally:
        os.close(opened)


@contextmanager
def alone_in(folder: Path | None) -> Iterator[None]:
    """Within this, no other run writes into the folder, which is made; nothing is locked for None."""
    with ExitStack() as held:
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                held.enter_context(locked(folder))
        except BlockingIOError:
            raise UsageError(
                f"another run is writing into {folder}: wait until it ends, or choose another --out"
            ) from None
        except OSError as error:
            raise UsageError(f"cannot write to {folder}: {error.strerror}: choose another folder with --out") from error
        yield


@contextmanager
def alone_writing(path: Path) -> Iterator[None]:
    """Within this, no other run writes this file; others may write beside it.

    A file beside it is locked, and removed at the end. One that a killed run has left does not stop others.
    """
    with ExitStack() as held:
        try:
            held.enter_context(_locked_beside(path.with_name(f".{path.name[:200]}.lock")))
        except BlockingIOError:
            raise UsageError(f"another run is writing {path}: wait until it ends, or choose another --out") from None
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}: choose another place with --out") from error
        yield


def _lock(opened: int) -> None:
    """Takes the system's lock on an open file or folder, where the file system has locks; not on Windows."""
    import fcntl

    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        pass


@contextmanager
def _locked_beside(path: Path) -> Iterator[None]:
    """The system's lock on a file that is only for this."""
    if sys.platform == "win32":
        with _locked_file(path):
            yield
        return
    opened = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o644)
    try:
        _lock(opened)
        try:  # its last owner may have removed it since it was opened, and another process made a new one
            mine = os.path.samestat(os.fstat(opened), os.stat(path))
        except FileNotFoundError:
            mine = False
        if not mine:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(opened)


@contextmanager
def _locked_file(path: Path) -> Iterator[None]:
    """A file that exists while the lock is held. One that a killed process left can be removed; an open one cannot."""
    try:
        path.unlink(missing_ok=True)
        opened = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
    except (PermissionError, FileExistsError):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
    try:
        yield
    finally:
        os.close(opened)
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path, token: str) -> None:
    """Removes the temporary files that a run left in a folder when it was killed, and nothing else."""
    for left in folder.iterdir():
        if not re.fullmatch(rf"\.cliploc-{re.escape(token)}-[0-9a-f]{{16}}\.tmp", left.name):
            continue
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """A new name; the file's own is not part of it, as names have a maximum length."""
    return path.with_name(f".cliploc-{_TOKEN.get()}-{secrets.token_hex(8)}.tmp")


def _flush_folder(folder: Path) -> None:
    with suppress(OSError):  # not every file system lets a folder be opened
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)

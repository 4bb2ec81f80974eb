"""Writes files whole or not at all: under a temporary name with the lock's token, flushed to the disk, then renamed."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any

from cliploc.errors import InputError, UnknownNameError, UsageError

_TOKEN: ContextVar[str] = ContextVar("cliploc_token", default="no-run")  # in the names of temporary files
Place = tuple[int, int, str]  # device and inode of a folder, and a name in it
MOST_LINKS = 40  # as Linux follows them
LOCK = ".cliploc.lock"  # in a folder that a run writes into
OF_FOLDER = "run"  # the token of who has a folder's lock
DEMO = "demo:"  # before the file name of a photograph of the package


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as users write it, with `~` and `~name` replaced by that home folder, if there is one, as in a shell."""
    if not isinstance(path, str | os.PathLike):
        raise UsageError(f"expected a path, got {type(path).__name__}: write it as a text")
    return Path(os.path.expanduser(path))  # `Path.expanduser` raises an error where there is no such user


def demo_folder() -> Path:
    """The folder of the photographs that the package ships."""
    return Path(__file__).parents[1] / "demo_photos"


def demo_names() -> list[str]:
    """The names of the photographs of the package."""
    return sorted(path.name for path in demo_folder().glob("*.jpg"))


def picture_path(path: str | os.PathLike[str]) -> Path:
    """A picture's path as users write it, also with `~`: `demo:dogs.jpg` is of the package, if no file is called so."""
    text = os.fspath(path)
    if not text.startswith(DEMO) or os.path.lexists(text):
        return user_path(path)
    name, photos = text.removeprefix(DEMO), demo_names()
    if name not in photos:
        raise InputError(f"{text}: {UnknownNameError('demo picture', name, photos)}")
    return demo_folder() / name


def picture_folder(path: str | os.PathLike[str]) -> Path:
    """A folder of pictures as users write it; `demo:` holds the photographs of the package."""
    return demo_folder() if os.fspath(path) == DEMO else picture_path(path)


def files_below(root: Path) -> list[Path]:
    """The files below a folder, sorted; a folder that cannot be read is an error, as `Path.rglob` leaves it out."""

    def refuse(error: OSError) -> None:
        raise UsageError(f"{error.filename} cannot be read ({error.strerror}): check permissions") from error

    return sorted(Path(folder, name) for folder, _, names in os.walk(root, onerror=refuse) for name in names)


def write_whole(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Lets `write` fill a temporary file beside `path`, which takes its place, once it is on the disk if `durable`."""
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
    """Writes a file so that a kill leaves the old one or the new one; a link of its name is replaced."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda temporary: temporary.write_bytes(content))
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"cannot write {path}: {reason}: free space or choose another place with {option}") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically."""
    text = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False)
    # A byte of a file name that is not UTF-8 becomes a \udcff, which JSON reads back.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file atomically; one that holds this already stays as it is."""
    with suppress(OSError):
        if path.read_bytes() == content:
            return
    write_whole(path, lambda temporary: temporary.write_bytes(content))


def remove(path: Path) -> None:
    """Removes a file, a link, or a folder with its content, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _alone(lock: Path, busy: str, token: str, folders: Iterable[Path]) -> Iterator[None]:
    """Within this, no other run has this lock, or it says who has it; its file is removed at the end.

    Temporary files of this thread carry its token; those that a killed run left in these folders are removed first.
    """
    from filelock import FileLock, Timeout  # late, as it takes 30 ms

    with ExitStack() as held:
        try:
            held.enter_context(FileLock(lock, timeout=0))
        except Timeout:
            raise UsageError(busy) from None
        for folder in folders:
            _remove_leftovers(folder, token)
        before = _TOKEN.set(token)
        try:
            yield
        finally:
            _TOKEN.reset(before)
            with suppress(OSError):  # Windows keeps it while it is open
                lock.unlink()


@contextmanager
def alone_in(folder: Path | None) -> Iterator[None]:
    """Within this, no other run writes into the folder, which is made; nothing is locked for None."""
    if folder is None:
        yield
        return
    busy = f"another run is writing into {folder}: wait until it ends, or choose another --out"
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(_alone(folder / LOCK, busy, OF_FOLDER, [folder]))
        except OSError as error:
            raise UsageError(f"cannot write to {folder}: {error.strerror}: choose another folder with --out") from error
        yield


@contextmanager
def alone_writing(path: Path, folders: Iterable[Path] = ()) -> Iterator[None]:
    """Within this, no other run writes this file; what a killed run for it left beside it or in folders is removed."""
    token = _sha256(os.fsencode(path))[:16]
    name = os.fsencode(path.name)[:200].decode(errors="ignore")  # systems count a name's bytes
    with ExitStack() as held:
        try:
            busy = f"another run is writing {path}: wait until it ends, or choose another --out"
            held.enter_context(_alone(path.with_name(f".{name}.lock"), busy, token, [path.parent, *folders]))
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}: choose another place with --out") from error
        yield


def _remove_leftovers(folder: Path, token: str) -> None:
    """Removes the temporary files that a run left in a folder when it was killed, and nothing else."""
    for left in folder.iterdir():
        if re.fullmatch(rf"\.cliploc-{re.escape(token)}-[0-9a-f]{{16}}\.tmp", left.name):
            remove(left)


def _beside(path: Path) -> Path:
    """A new name; the file's own is not part of it, as names have a maximum length."""
    return path.with_name(f".cliploc-{_TOKEN.get()}-{os.urandom(8).hex()}.tmp")


def _flush_folder(folder: Path) -> None:
    with suppress(OSError):  # not every file system lets a folder be opened
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


# -------------------------------------------------------------------------------------------------------------- inputs
class Inputs:
    """Files and where each of their symbolic links leads: names, in their folders, that no output may have."""

    def __init__(self, paths: Iterable[str | os.PathLike[str]]) -> None:
        place = lru_cache(_place)
        self._places: set[Place] = set()
        folders: set[str] = set()
        for given in paths:
            path = os.fspath(given)
            for _ in range(MOST_LINKS):
                here = place(*os.path.split(path))
                if here is None:
                    break
                self._places.add(here)
                folders.add(os.path.dirname(path))
                try:
                    path = os.path.join(os.path.dirname(path), os.readlink(path))
                except (OSError, ValueError):  # no link
                    break
        self._folders = {os.path.realpath(folder) for folder in folders}

    def __contains__(self, path: str | os.PathLike[str]) -> bool:
        return _place(*os.path.split(os.fspath(path))) in self._places

    def refuse(self, files: Iterable[str | os.PathLike[str]], folders: Iterable[str | os.PathLike[str]] = ()) -> None:
        """Refuses outputs that would overwrite inputs."""
        for file in files:
            if file in self:
                raise UsageError(f"{file} is read by this run, and would be overwritten: choose another --out")
        for folder in folders:
            whole = Path(os.path.realpath(folder))
            if any(whole in (Path(held), *Path(held).parents) for held in self._folders):
                raise UsageError(
                    f"{folder} holds what this run reads, and its content would be replaced: choose another --out"
                )


def _place(folder: str, name: str) -> Place | None:
    """The file's place; None if no file can have this name."""
    try:
        status = os.stat(folder or ".")
    except (OSError, ValueError):
        return None
    # Case does not tell files apart on macOS and Windows.
    return (status.st_dev, status.st_ino, name.casefold()) if name else None


def _sha256(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()

"""The folder of a run that may be stopped at any moment: a manifest that says of what it is, and whole parts.

Every file is written beside its place and moved there when it is safely on the disk.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cliploc._files import is_token, new_token, remove_leftovers, temporaries_of, write_whole
from cliploc._parts import foreign_in, parts_in, read_part
from cliploc.errors import CliplocError, UsageError

LIBRARIES = ("torch", "torchvision", "timm", "open_clip_torch", "numpy", "opencv-python-headless", "pillow", "pyarrow")
FREE = frozenset({"token", "sessions", "files"})  # keys of every manifest that may differ when a run goes on
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class DiskFullError(CliplocError):
    """A run that could not go on; what was done is kept, and the same command goes on.

    Args:
        message: why, and what to do.
        kept: how many parts are there.
    """

    def __init__(self, message: str, kept: int) -> None:
        super().__init__(message)
        self.kept = kept


@dataclass(frozen=True)
class RunKind:
    """What a folder holds the results of.

    Attributes:
        name: in its manifest, "benchmark".
        article: "a benchmark", as errors say it.
        version: of the format of its manifest and parts.
        suffix: of its parts' files.
        free: keys of the manifest that may differ when a run goes on: they say where and when, not what.
    """

    name: str
    article: str
    version: int
    suffix: str
    free: frozenset[str]


# -------------------------------------------------------------------------------------------------------------- files
def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """All of it or nothing."""
    text = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False)
    # A file name's byte that is no UTF-8 becomes a \udcff, which JSON reads back.
    write_whole(path, lambda temporary: temporary.write_bytes(text.encode("utf-8", "backslashreplace")))


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: tuples are lists, paths are texts."""
    read: dict[str, Any] = json.loads(json.dumps(values, default=str, allow_nan=False))
    return read


@contextmanager
def room_for_parts(out: Path, kept: Callable[[], int], of: int) -> Iterator[None]:
    """Says how many parts are kept where the disk is full.

    Raises:
        DiskFullError: no room on the disk.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise DiskFullError(
            f"no room left on the disk: {kept()} of {of} parts are kept in {out}; make room and run the same command "
            "again",
            kept(),
        ) from error


# ----------------------------------------------------------------------------------------------------------- manifest
def session() -> dict[str, Any]:
    """When, where and with what a run was started or gone on with."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "command": sys.argv,
        "versions": {"python": platform.python_version(), **versions},
        "machine": {
            "node": platform.node(),
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
        },
    }


def _commit() -> str | None:
    """The commit of the checkout this package lies in; None where it lies in none."""
    folder = Path(__file__).resolve().parent
    try:
        asked = ["git", "-C", str(folder), "ls-files", "--error-unmatch", Path(__file__).name]
        if subprocess.run(asked, capture_output=True, timeout=10, check=False).returncode:
            return None  # installed, in a folder that happens to lie in somebody's checkout
        asked = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        described = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return described or None


@dataclass(frozen=True)
class Begun:
    """A folder that a run may write to.

    Attributes:
        token: of the run's temporary files; see `cliploc._files.temporaries_of`.
        whole: the indices of the parts that are there as they were written.
        damaged: the indices of those that are not.
        notes: what must be said of the folder.
    """

    token: str
    whole: frozenset[int] = frozenset()
    damaged: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def token_for(out: Path) -> str:
    """The token of the run in a folder; a new one where there is none."""
    try:
        token = json.loads((out / "manifest.json").read_text(encoding="utf-8"))["token"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        token = None
    return token if is_token(token) else new_token()


def begin(out: Path, kind: RunKind, manifest: Mapping[str, Any], files: Sequence[str] = ()) -> Begun:
    """Writes the manifest, or checks it against the one that is there. Nothing is changed in a folder that is refused.

    Args:
        out: the folder.
        kind: of the run.
        manifest: of this run, with its `token_for`; `shards` tells how many parts there will be, where that is fixed.
        files: names of files and folders in `out` that this run will write, besides the parts. They are written into
            the manifest first, so that a later run knows which are its own.

    Raises:
        UsageError: a folder that cannot be written, holds something else, or a run with other settings.
        DiskFullError: no room on the disk.
    """
    try:
        old = read_manifest(out, kind) if (out / "manifest.json").exists() else None
        if old is None and (out / "parts").is_dir() and parts_in(out, kind.suffix):
            raise UsageError(f"{out} holds parts but no manifest.json to tell of what: choose another --out")
        if old is not None:
            _refuse_other_settings(out, old, plain(manifest), kind)
        own = [] if old is None else old["files"]
        taken = [name for name in files if name not in own and os.path.lexists(out / name)]
        if taken:
            raise UsageError(
                f"{out} holds {', '.join(taken)}, not written by this run, which would write over it: move it away, or "
                "choose another --out"
            )
        token = manifest["token"] if old is None else old["token"]
        (out / "parts").mkdir(parents=True, exist_ok=True)
        with temporaries_of(token):
            for folder in (out, out / "parts", *_folders_below(out / "maps")):
                remove_leftovers(folder, token)
            of_run = {**manifest, "sessions": []} if old is None else old
            named = {**of_run, "files": sorted({*own, *files})}
            if named != old:
                write_json(out / "manifest.json", named)
        return _checked_parts(out, kind, token, manifest.get("shards"))
    except OSError as error:
        if error.errno in NO_ROOM:
            kept = len(parts_in(out, kind.suffix))
            raise DiskFullError(
                f"no room left on the disk for {out}: make room and run the same command again", kept
            ) from error
        raise UsageError(f"cannot write to {out}: {error.strerror}: choose another folder with --out") from error


def _refuse_other_settings(out: Path, old: Mapping[str, Any], new: Mapping[str, Any], kind: RunKind) -> None:
    try:
        differences = _differences(old, new, kind.free | FREE)
    except (KeyError, TypeError):
        raise UsageError(f"{out / 'manifest.json'} is damaged: choose another --out") from None
    if differences:
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UsageError(
            f"{out} holds a run with other settings ({'; '.join(differences[:3])}{more}): "
            "repeat its command to go on with it, or choose another --out"
        )


def _folders_below(folder: Path) -> list[Path]:
    return [Path(one) for one, _, _ in os.walk(folder)]


def _checked_parts(out: Path, kind: RunKind, token: str, count: int | None) -> Begun:
    paths = parts_in(out, kind.suffix, count)
    whole = frozenset(int(path.stem) for path in paths if read_part(path) is not None)
    damaged = tuple(int(path.stem) for path in paths if int(path.stem) not in whole)
    notes = [f"part {index:05d} is damaged: it is computed anew" for index in damaged]
    if foreign := foreign_in(out, kind.suffix, count):
        notes.append(f"not of this run, and ignored: {', '.join(foreign[:3])} in {out / 'parts'}")
    return Begun(token, whole, damaged, tuple(notes))


def update_manifest(out: Path, kind: RunKind, **changes: Any) -> None:
    """Changes entries of the manifest; writes nothing where they are there already."""
    old = read_manifest(out, kind)
    if (new := {**old, **changes}) != old:
        write_json(out / "manifest.json", new)


def begin_session(out: Path, kind: RunKind) -> None:
    """Writes into the manifest when, where and with what the run goes on."""
    update_manifest(out, kind, sessions=[*read_manifest(out, kind)["sessions"], session()])


def read_manifest(out: Path, kind: RunKind) -> dict[str, Any]:
    """A run's manifest.

    Raises:
        UsageError: none is there, or it is damaged, or of something else or of another version.
    """
    path = out / "manifest.json"
    try:
        read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"expected the folder of {kind.article}, found no manifest.json in {out}: check the path"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read ({error}): choose another --out") from error
    if not isinstance(read, dict) or read.get("kind") != kind.name:
        raise UsageError(f"{out} holds the results of something else than {kind.article}: choose another --out")
    if read.get("schema_version") != kind.version:
        raise UsageError(
            f"{out} holds {kind.article} in format {read.get('schema_version')}, expected {kind.version}: use the "
            "cliploc that wrote it, or choose another --out"
        )
    lists = all(isinstance(read.get(key), list) for key in ("sessions", "files"))
    if not lists or not is_token(read.get("token")):
        raise UsageError(f"{path} is damaged: choose another --out")
    return read


def _differences(old: Any, new: Any, free: frozenset[str], where: str = "") -> list[str]:
    """Where two manifests differ, each as "key: there … , asked for …"."""
    if where in free:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in dict.fromkeys([*old, *new]):
            inner = f"{where}.{key}" if where else key
            if (key in old) != (key in new):
                found += [] if inner in free else [f"{inner}: only {'there' if key in old else 'asked for'}"]
            else:
                found += _differences(old[key], new[key], free, inner)
        if where == "labels" and not found and list(old) != list(new):  # boxes name them by their place
            found.append("labels: in another order")
        return found
    if isinstance(old, list) and isinstance(new, list) and where == "settings":
        by_id = [{one["id"]: one for one in settings} for settings in (old, new)]
        found = _differences(by_id[0], by_id[1], free, where)
        return found or ([] if list(by_id[0]) == list(by_id[1]) else ["settings: in another order"])
    if old != new:
        return [f"{where}: {_short(old)} there, {_short(new)} asked for"]
    return []


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"

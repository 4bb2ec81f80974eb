"""The folder of a run that can be stopped and resumed: a manifest, and parts, each written as a whole or not at all."""

import errno
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cliploc._documents import DocumentError, Manifest, checked, read_json
from cliploc._files import foreign_in, new_token, parts_in, read_part, remove_leftovers, temporaries_of, write_whole
from cliploc.config import DEFAULTS, OPTIONS
from cliploc.errors import CliplocError, UsageError

LIBRARIES = ("torch", "torchvision", "timm", "open_clip_torch", "numpy", "opencv-python-headless", "pillow", "pyarrow")
FREE = frozenset({"token", "sessions", "files"})  # keys of every manifest that may differ when a run is resumed
OTHER_SAMPLES = "the set's pictures, their sizes or their truth are not those that it was computed with"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class DiskFullError(CliplocError):
    """A run stopped because the disk is full; finished parts are kept, and the same command resumes the run."""


@dataclass(frozen=True)
class RunKind:
    """A kind of run, whose results a folder contains."""

    name: str  # its name in the manifest, such as "benchmark"
    article: str  # its name with an article, for errors, such as "a benchmark"
    version: int  # version of the format of its manifest and parts
    suffix: str = ".parquet"  # file extension of its parts
    # keys of the manifest that may differ when a run is resumed: they state where and when, not what
    free: frozenset[str] = frozenset({"dataset.root", "dataset.problems"})
    manifest: type[Manifest] = Manifest  # the schema of its manifest


# -------------------------------------------------------------------------------------------------------------- files
def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically."""
    text = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False)
    # A byte of a file name that is not UTF-8 becomes a \udcff, which JSON reads back.
    write_whole(path, lambda temporary: temporary.write_bytes(text.encode("utf-8", "backslashreplace")))


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they are read back from JSON: tuples become lists, paths become texts."""
    read: dict[str, Any] = json.loads(json.dumps(values, default=str, allow_nan=False))
    return read


@contextmanager
def room_for_parts(out: Path, kept: Callable[[], int], of: int) -> Iterator[None]:
    """Turns the error of a full disk into one that names the number of finished parts."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise DiskFullError(
            f"no room left on the disk: {kept()} of {of} parts are kept in {out}; free space and run the same command "
            "again"
        ) from error


# ----------------------------------------------------------------------------------------------------------- manifest
def session() -> dict[str, Any]:
    """An entry of the manifest's sessions: when, where and with which versions a run was started or resumed."""
    versions = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
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
    """The commit of the git checkout that this package is in; None if it is not in one."""
    folder = Path(__file__).resolve().parent
    try:
        asked = ["git", "-C", str(folder), "ls-files", "--error-unmatch", Path(__file__).name]
        if subprocess.run(asked, capture_output=True, timeout=10, check=False).returncode:
            return None  # installed in a folder that is inside another project's checkout
        asked = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        described = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return described or None


@dataclass(frozen=True)
class Begun:
    """A folder that a run may write to."""

    token: str  # token in the names of the run's temporary files; see `cliploc._files.temporaries_of`
    whole: frozenset[int] = frozenset()  # indices of the existing undamaged parts
    damaged: tuple[int, ...] = ()  # indices of the damaged parts
    notes: tuple[str, ...] = ()  # remarks on the folder


def token_for(out: Path) -> str:
    """The token of the run in a folder; a new one for an empty folder."""
    try:
        token: str = read_json(out / "manifest.json", Manifest)["token"]
    except (OSError, ValueError):
        return new_token()
    return token


def begin(
    out: Path,
    kind: RunKind,
    manifest: Mapping[str, Any],
    files: Sequence[str] = (),
    check_part: Callable[[int, bytes], object] = lambda index, content: None,  # noqa: ARG005
) -> Begun:
    """Writes the manifest with the run's own `files`, or compares it with the old one and checks the parts."""
    try:
        old = read_manifest(out, kind) if (out / "manifest.json").exists() else None
        if old is None and (out / "parts").is_dir() and parts_in(out, kind.suffix):
            raise UsageError(f"{out} holds parts but no manifest.json that describes them: choose another --out")
        if old is not None:
            _refuse_other_settings(out, old, plain(manifest), kind)
        own = [] if old is None else old["files"]
        taken = [name for name in files if name not in own and os.path.lexists(out / name)]
        if taken:
            raise UsageError(
                f"{out} holds {', '.join(taken)}, not written by this run, which would overwrite it: move it away, or "
                "choose another --out"
            )
        token = manifest["token"] if old is None else old["token"]
        (out / "parts").mkdir(parents=True, exist_ok=True)
        with temporaries_of(token):
            below = [Path(parent) for parent, _, _ in os.walk(out / "maps")]
            for folder in (out, out / "parts", *below):
                remove_leftovers(folder, token)
            of_run = {**manifest, "sessions": []} if old is None else old
            named = {**of_run, "files": sorted({*own, *files})}
            if named != old:
                write_json(out / "manifest.json", named)
        return _checked_parts(out, kind, token, manifest.get("shards"), check_part)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise DiskFullError(
                f"no room left on the disk for {out}: free space and run the same command again"
            ) from error
        raise UsageError(f"cannot write to {out}: {error.strerror}: choose another folder with --out") from error


def _refuse_other_settings(out: Path, old: Mapping[str, Any], new: Mapping[str, Any], kind: RunKind) -> None:
    try:
        # The number of parts follows from the settings.
        differences = _differences(old, new, kind.free | FREE | {"shards", "dataset.samples", "dataset.samples_sha256"})
    except (KeyError, TypeError):
        raise UsageError(f"{out / 'manifest.json'} is damaged: choose another --out") from None
    theirs, ours = (manifest.get("cliploc_version") for manifest in (old, new))
    if theirs != ours:
        raise UsageError(
            f"{out} holds a run by cliploc {theirs}, this is {ours}: resume it with that version, or choose another "
            "--out"
        )
    if differences:
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UsageError(
            f"{out} holds a run with other settings ({'; '.join(differences[:3])}{more}): "
            "repeat its command to resume it, or choose another --out"
        )
    # Asked last: it follows from others, such as a limit.
    theirs, ours = (manifest.get("dataset", {}).get("samples_sha256") for manifest in (old, new))
    if theirs != ours:
        raise UsageError(f"{out}: {OTHER_SAMPLES}: put them back, or choose another --out")


def _checked_parts(
    out: Path, kind: RunKind, token: str, count: int | None, check_part: Callable[[int, bytes], object]
) -> Begun:
    paths, whole = parts_in(out, kind.suffix, count), set[int]()
    for path in paths:
        with suppress(ValueError):
            if (content := read_part(path)) is not None:
                check_part(int(path.stem), content)
                whole.add(int(path.stem))
    damaged = tuple(int(path.stem) for path in paths if int(path.stem) not in whole)
    notes = [f"part {index:05d} is damaged: it is computed again" for index in damaged]
    if foreign := foreign_in(out, kind.suffix, count):
        notes.append(f"not of this run, and ignored: {', '.join(foreign[:3])} in {out / 'parts'}")
    return Begun(token, frozenset(whole), damaged, tuple(notes))


def update_manifest(out: Path, kind: RunKind, **changes: Any) -> None:
    """Changes entries of the manifest; writes nothing if they have these values already."""
    old = read_manifest(out, kind)
    if (new := {**old, **changes}) != old:
        write_json(out / "manifest.json", new)


def begin_session(out: Path, kind: RunKind) -> None:
    """Adds this session to the manifest."""
    update_manifest(out, kind, sessions=[*read_manifest(out, kind)["sessions"], session()])


def read_manifest(out: Path, kind: RunKind) -> dict[str, Any]:
    """Reads a run's manifest."""
    path = out / "manifest.json"
    try:
        read = read_json(path)
    except FileNotFoundError:
        raise UsageError(
            f"expected the folder of {kind.article}, found no manifest.json in {out}: give the --out of its run"
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}): choose another --out") from error
    if not isinstance(read, dict) or read.get("kind") != kind.name:
        raise UsageError(f"{out} holds the results of another kind of run than {kind.article}: choose another --out")
    if read.get("schema_version") != kind.version:
        raise UsageError(
            f"{out} holds {kind.article} in format {read.get('schema_version')}, expected {kind.version}: use the "
            "cliploc that wrote it, or choose another --out"
        )
    try:
        manifest: dict[str, Any] = checked(read, kind.manifest)
    except DocumentError as error:
        raise UsageError(f"{path} is damaged ({error}): choose another --out") from None
    return manifest


def _differences(old: Any, new: Any, free: frozenset[str], where: str = "") -> list[str]:
    """Differences of manifests, "key: … there, … asked for"; an option that the old one lacks has its default."""
    if where in free:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        differences = []
        for key in dict.fromkeys([*old, *new]):
            inner = f"{where}.{key}" if where else key
            if (key in old) != (key in new):
                later = key not in old and key in OPTIONS and new[key] == plain({key: getattr(DEFAULTS, key)})[key]
                later |= where == "protocol" and key not in old and new[key] is None
                differences += (
                    [] if later or inner in free else [f"{inner}: only {'there' if key in old else 'asked for'}"]
                )
            else:
                differences += _differences(old[key], new[key], free, inner)
        if where == "labels" and not differences and list(old) != list(new):  # boxes refer to labels by index
            differences.append("labels: in another order")
        return differences
    if isinstance(old, list) and isinstance(new, list) and where == "settings":
        by_id = [{setting["id"]: setting for setting in settings} for settings in (old, new)]
        differences = _differences(by_id[0], by_id[1], free, where)
        return differences or ([] if list(by_id[0]) == list(by_id[1]) else ["settings: in another order"])
    if old != new:
        texts = [json.dumps(value, ensure_ascii=False) for value in (old, new)]
        there, asked = (text if len(text) <= 60 else f"{text[:57]}…" for text in texts)
        return [f"{where}: {there} there, {asked} asked for"]
    return []

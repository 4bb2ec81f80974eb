"""Parts of a run's results: numbered files, each with a check file beside it that tells whether it is undamaged.

`parts/00003.check` holds the checksum of `parts/00003.jsonl` or `parts/00003.parquet`, and for each picture of the part
a stamp of its file (see `cliploc.jobs.sources`). It is written before its part: a kill between the two leaves a part
that does not fit its check file, and is computed again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cliploc._documents import read_bytes, read_json
from cliploc._files import remove, write_whole
from cliploc._schemas import PartCheck


def part_path(out: Path, index: int, suffix: str = ".parquet") -> Path:
    """Where a part lies."""
    return out / "parts" / f"{index:05d}{suffix}"


def check_path(part: Path) -> Path:
    """Where a part's check file lies."""
    return part.with_suffix(".check")


def parts_in(out: Path, suffix: str = ".parquet", count: int | None = None) -> list[Path]:
    """The parts in order, whole or damaged; files with other names are none.

    Args:
        count: how many parts the run has, where that is known: those with higher numbers are none of it.
    """
    numbered = [path for path in (out / "parts").glob(f"*{suffix}") if re.fullmatch(r"[0-9]{5,9}", path.stem)]
    return sorted((one for one in numbered if count is None or int(one.stem) < count), key=lambda one: int(one.stem))


def foreign_in(out: Path, suffix: str = ".parquet", count: int | None = None) -> list[str]:
    """Names of files of that suffix that are no parts of the run, such as a conflicted copy; see `parts_in`."""
    own = parts_in(out, suffix, count)
    return sorted(path.name for path in (out / "parts").glob(f"[!.]*{suffix}") if path not in own)


def write_part(path: Path, content: bytes, stamps: Sequence[str] = ()) -> None:
    """Writes all of a part or nothing of it, whenever the machine stops.

    Example:
        >>> import tempfile
        >>> path = part_path(Path(tempfile.mkdtemp()), 0, ".jsonl")
        >>> path.parent.mkdir()
        >>> write_part(path, b"{}")
        >>> read_part(path)
        b'{}'
        >>> _ = path.write_bytes(b"[]")
        >>> read_part(path) is None
        True
    """
    check = json.dumps({"sha256": hashlib.sha256(content).hexdigest(), "stamps": list(stamps)})
    write_whole(check_path(path), lambda temporary: temporary.write_text(check, encoding="ascii"))
    write_whole(path, lambda temporary: temporary.write_bytes(content))


def read_part(path: Path) -> bytes | None:
    """A part's content; None where it is not there or not as it was written."""
    try:
        content = read_bytes(path)
    except OSError:
        return None
    check = _check(path)
    return content if check is not None and check["sha256"] == hashlib.sha256(content).hexdigest() else None


def read_stamps(path: Path) -> list[str]:
    """The stamps of the picture files that a part was made of; none where they cannot be read."""
    check = _check(path)
    return [] if check is None else check["stamps"]


def remove_part(path: Path) -> None:
    """Removes a part and its check file."""
    remove(path)
    remove(check_path(path))


def _check(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = read_json(check_path(path), PartCheck)
    except (OSError, ValueError):
        return None
    return found

"""The rows of an annotation run: what the parts of its folder hold, one row for each picture."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cliploc._documents import AnnotatedRow, AnnotationManifest, TaughtFacts, TaughtRow, checked, parse_json
from cliploc._files import part_path, parts_in, read_part
from cliploc.calibration import Floats
from cliploc.errors import UsageError
from cliploc.jobs.annotator import Row
from cliploc.jobs.drafts import presence_of
from cliploc.jobs.folder import RunKind
from cliploc.jobs.picture_files import RUN_KIND
from cliploc.rle import fills, uncompressed

SCHEMA_VERSION = 4  # of manifest.json, summary.json, corrections.json and the parts
KIND = RunKind(
    RUN_KIND,
    "an annotation",
    SCHEMA_VERSION,
    ".jsonl",
    frozenset({"root", "image_url", "drafts"}),
    AnnotationManifest,
)
CACHED = 4  # number of parts whose rows are in memory while exports are written
LEARNT = "learnt.safetensors"  # see `cliploc.teaching.learnt`
TAUGHT = "taught.jsonl"  # what teaching found: a line of facts, then a row for each picture
# The same before the last refit, for a person who goes back to it.
LEARNT_BEFORE, TAUGHT_BEFORE = "learnt_before.safetensors", "taught_before.jsonl"


def run_id(manifest: Mapping[str, Any]) -> str:
    """The id of a run's names and settings."""
    return hashlib.sha256(json.dumps([manifest["labels"], manifest["settings"]]).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Place:
    """Where a picture's row is, and the row's outcome."""

    part: int
    line: int
    ok: bool
    digest: bytes
    content: str  # digest of the picture's file
    presence: Floats | None = None  # [P] of a picture that did not fail


@dataclass(frozen=True)
class TaughtRows:
    """What teaching found."""

    facts: Mapping[str, Any]  # what it was made of, and what became of each name
    rows: Mapping[str, Row]  # picture → its boxes of the names that are taught


def taught_lines(facts: Mapping[str, Any], rows: Iterable[Row]) -> bytes:
    """What teaching found as a file holds it."""
    lines = [json.dumps(row, allow_nan=False) for row in rows]
    return "".join(f"{line}\n" for line in (json.dumps({**facts, "sum": _sum(facts, lines)}), *lines)).encode("ascii")


def _sum(facts: Mapping[str, Any], rows: Iterable[str]) -> str:
    return hashlib.sha256("\n".join((json.dumps(facts, allow_nan=False), *rows)).encode()).hexdigest()


def read_taught(out: Path, run: str, file: str = TAUGHT) -> TaughtRows | None:
    """What teaching found in a run; None where nothing of this run is there.

    Raises:
        UsageError: the file is damaged.
    """
    try:
        first, *rows = (out / file).read_text("ascii").splitlines()
        facts = checked(json.loads(first), TaughtFacts)
        if facts.pop("sum") != _sum(facts, rows):
            raise ValueError("another checksum")
        checked_rows = [checked(json.loads(row), TaughtRow) for row in rows]
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{out / file} is damaged: run the same `cliploc annotate` again, which learns the drafts again"
        ) from error
    return TaughtRows(facts, {row["picture"]: row for row in checked_rows}) if facts["run"] == run else None


class Results:
    """The rows of all parts. Rows are read part by part; only their places are in memory."""

    def __init__(self, out: Path, run: str) -> None:
        self.places: dict[str, _Place] = {}
        taught = read_taught(out, run)
        self.taught: Mapping[str, Row] = {} if taught is None else taught.rows  # picture → its row of taught names
        for path in parts_in(out, KIND.suffix):
            for line, row in enumerate(rows_of(path)):
                ok = row["status"] == "ok"
                before = self.places.get(row["picture"])
                if before is None or not before.ok:  # a success replaces an earlier failure
                    digest = hashlib.sha256(json.dumps(row).encode()).digest()[:8]
                    presence = presence_of(row) if ok else None
                    self.places[row["picture"]] = _Place(int(path.stem), line, ok, digest, row["blake2b"], presence)
        self._part = functools.lru_cache(CACHED)(lambda part: rows_of(part_path(out, part, KIND.suffix)))

    def row(self, picture: str, taught: bool = True) -> Row:
        """The row of a picture; boxes of names that are taught come behind the others, unless they are left out."""
        place = self.places[picture]
        row, taught_row = self._part(place.part)[place.line], self.taught.get(picture)
        if not taught or taught_row is None or not place.ok or taught_row["blake2b"] != place.content:
            return row
        both: Row = {key: [*row[key], *taught_row[key]] for key in ("boxes", "fits", "labels", "groups")}
        both["scores"] = [*row["scores"], *taught_row["fits"]]
        if "masks" in row:
            both["masks"] = [*row["masks"], *taught_row["masks"]]
        return {**row, **both, "taught": taught_row["presence"], "untaught": len(row["boxes"])}

    def with_taught(self, rows: Mapping[str, Row]) -> Results:
        """The same with other rows of what teaching found; this one stays as it is."""
        other = copy.copy(self)
        other.taught = rows
        return other

    def stamp(self, picture: str) -> bytes:
        """A digest that changes with the row."""
        taught = self.taught.get(picture)
        return self.places[picture].digest + (b"" if taught is None else json.dumps(taught).encode())

    def drawn(self, picture: str) -> str:
        """A word that changes with the row: numbers of boxes are numbers of one row. It begins with the file's."""
        return f"{self.places[picture].content[:16]}-{hashlib.blake2b(self.stamp(picture), digest_size=8).hexdigest()}"


def rows_of(path: Path) -> list[Row]:
    """Reads the rows of a part that was found to be undamaged."""
    return [json.loads(line) for line in lines_of(path)]


def rows_in(part: bytes, labels: int) -> list[Row]:
    """The rows of a part."""
    rows: list[Row] = [parse_json(line, AnnotatedRow) for line in part.splitlines()]
    for row in rows:
        if row["status"] == "ok":
            if len(row["presence"]) != labels:
                raise ValueError(f"expected the presence of {labels} names")
            area = row["width"] * row["height"]
            if not all(fills(uncompressed(mask), area) for mask in row.get("masks") or []):
                raise ValueError("expected masks of the picture's size")
    return rows


def lines_of(path: Path) -> list[bytes]:
    """The lines of a part that was found to be undamaged, each the JSON of a row."""
    content = read_part(path)
    if content is None:
        raise UsageError(f"{path} is damaged: run the same command again to compute it again")
    return content.splitlines(keepends=True)

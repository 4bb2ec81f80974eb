"""Published numbers beside ours: each row is one benchmark run, and has the command that computes it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from cliploc._documents import DocumentError, Published, PublishedRows, read_json
from cliploc.backbones import models
from cliploc.errors import UsageError

REFUSED = {"--import", "--out", "--root", "--dataset", "--task"}  # words that a row cannot have
OWN = Path(__file__).parents[1] / "report" / "published_rows.json"


@dataclass(frozen=True)
class Reproduced:
    """A published number beside ours, both in percent."""

    row: Published
    ours: float | None  # None where it was not computed
    ends: tuple[float, float] | None  # its 95 % interval
    note: str = ""  # why the two are not comparable, or why there is no number

    @property
    def verdict(self) -> str:
        """What the comparison says."""
        if self.note or self.ours is None:
            return self.note or "no number"
        if self.ends is not None and self.ends[0] <= self.row.value <= self.ends[1]:
            return "in our interval"
        return f"{self.ours - self.row.value:+.2f}"

    def document(self) -> dict[str, Any]:
        """As JSON."""
        about = {
            key: getattr(self.row, key) for key in ("id", "paper", "table", "dataset", "model", "method", "number")
        }
        return {**about, "theirs": self.row.value, "ours": self.ours, "confidence_95": self.ends, "note": self.note}


def published_rows(path: Path = OWN) -> list[Published]:
    """The rows of a file, in its order."""
    try:
        read = read_json(path, PublishedRows)
    except FileNotFoundError:
        raise UsageError(f"expected a file of published rows at {path}, found none: check the path") from None
    except (DocumentError, OSError) as error:
        raise UsageError(f"{path} cannot be read as published rows ({error}): correct it") from None
    rows = [Published(**{**row, "options": tuple(row["options"])}) for row in read["rows"]]
    for row in rows:  # a file of numbers must not name code, or other folders
        own = {
            word.partition("=")[0] for word in (*row.options, row.dataset, row.model, row.method, row.pretrained or "")
        }
        if not_theirs := sorted(own & REFUSED):
            raise UsageError(f"{path}, {row.id}: expected options of the protocol, got {not_theirs[0]}: leave it out")
    return rows


def chosen_rows(text: str) -> list[Published]:
    """The rows that a text names: all, ids and beginnings of ids with commas, or a FILE.json."""
    if text.endswith(".json"):
        return published_rows(Path(text))
    rows, chosen = published_rows(), dict[str, Published]()
    for part in filter(None, (part.strip() for part in text.split(","))):
        matching = [row for row in rows if part in ("all", row.id) or row.id.startswith(f"{part}-")]
        if not matching:
            there = ", ".join(row.id for row in rows)
            raise UsageError(f"unknown row {part!r}: expected all, a FILE.json, or some of {there}")
        chosen |= {row.id: row for row in matching}
    if not chosen:
        raise UsageError("expected rows to reproduce, got none: all, or ids such as naclip-voc21")
    return list(chosen.values())


def on_model(row: Published, model: str | None, pretrained: str | None) -> tuple[Published, str]:
    """The row on another model or with a tag of other weights, with which its number is not the paper's.

    Weights in a file may be the paper's.
    """
    if model is None or model == row.model:
        other = pretrained not in (None, row.pretrained) and pretrained in models.get(row.model).weights
        return replace(row, pretrained=pretrained or row.pretrained), f"with {pretrained}" if other else ""
    return replace(row, model=model, pretrained=pretrained), f"on {model}"


def number_in(out: Path, row: Published) -> tuple[float | None, tuple[float, float] | None]:
    """Our number with its interval, of the folder of a benchmark of one setting."""
    try:
        settings: Mapping[str, Any] = read_json(out / "summary.json", dict[str, Any])["settings"]
        [numbers] = settings.values()
        value, ends = numbers.get(row.number), (numbers.get("confidence_95") or {}).get(row.number)
    except (OSError, KeyError, ValueError, AttributeError):
        return None, None
    return value, None if ends is None else (ends[0], ends[1])


def table_of(rows: Sequence[Reproduced]) -> list[tuple[str, ...]]:
    """A header, then a line for each row."""
    lines: list[tuple[str, ...]] = [("row", "number", "theirs", "ours", "95 %", "")]
    for row in rows:
        ours = "–" if row.ours is None else f"{row.ours:.2f}"
        ends = "–" if row.ends is None else f"{row.ends[0]:.2f}–{row.ends[1]:.2f}"
        lines.append((row.row.id, row.row.number, f"{row.row.value:.2f}", ours, ends, row.verdict))
    return lines

"""What a check says, as rows, tables, a document and files."""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from cliploc import __version__
from cliploc.draw.html import count
from cliploc.support.files import write_bytes, write_json

SCHEMA_VERSION = 1
KINDS = ("wrong name", "badly placed", "missing", "double", "odd")
CSV, JSON, LABELS, PAGE = "suspects.csv", "suspects.json", "labels.csv", "check.html"
OUTPUTS = (CSV, JSON, LABELS, PAGE)
FIRST = 50  # suspects of a kind, of which it is said how many are wrong
PAIRS = 10  # of names, in the table


@dataclass(frozen=True)
class Label:
    """A label of the set; chances are None where they cannot be judged."""

    id: str  # as in the set
    picture: str  # its path below the folder of pictures
    name: str
    likelier: str  # the likeliest other name; "" where names cannot be judged
    wrong_name: float | None
    badly_placed: float | None
    double: float | None


@dataclass(frozen=True)
class Suspect:
    """Something that is likely wrong."""

    kind: str  # one of `KINDS`
    chance: float | None  # that it is wrong; None of a picture without labels in which nothing was looked for
    picture: str
    id: str  # of the label; "" where there is none
    name: str  # the given one; "" where there is none
    likelier: str  # the name that fits better, or that is missing; "" where there is none
    x0: float | None
    y0: float | None
    x1: float | None
    y1: float | None
    reason: str  # in words, of a double or an odd one


@dataclass(frozen=True)
class Checked:
    """The result of a check; `labels` and `suspects` are rows that pandas takes.

    Attributes:
        labels: every label, in the set's order.
        suspects: kind by kind, the worst first.
        format: the format that was read: "COCO".
        judged: kind → how many labels, drafts or pictures were judged.
        pictures: number of pictures.
        computed: number of pictures that this call read; the others were read before.
        failed: picture → why it is not checked.
        notes: remarks, such as names that the model does not know.
    """

    labels: Sequence[Label]
    suspects: Sequence[Suspect]
    format: str
    judged: Mapping[str, int]
    pictures: int
    computed: int
    failed: Mapping[str, str]
    notes: Sequence[str]

    def of(self, kind: str) -> list[Suspect]:
        """The suspects of a kind, the worst first."""
        return [one for one in self.suspects if one.kind == kind]

    def expected(self, kind: str, first: int = FIRST) -> float:
        """How many of the first suspects of a kind are wrong, by their chances."""
        return sum(one.chance or 0.0 for one in self.of(kind)[:first])

    def pairs(self) -> list[tuple[str, str, int, float]]:
        """The worst pairs of names: given, likelier, suspects, how many of them are wrong."""
        amount, wrong = Counter[tuple[str, str]](), defaultdict[tuple[str, str], float](float)
        for one in self.of(KINDS[0]):
            amount[one.name, one.likelier] += 1
            wrong[one.name, one.likelier] += one.chance or 0.0
        best = sorted(amount, key=lambda pair: (-wrong[pair], pair))[:PAIRS]
        return [(*pair, amount[pair], wrong[pair]) for pair in best]

    def kinds(self) -> list[list[str]]:
        """A table with a row for each kind, the first with its titles."""
        rows = [["kind", "judged", "suspects", ""]]
        for kind in KINDS:
            suspects, judged = len(self.of(kind)), self.judged.get(kind)
            words = "" if judged else "not judged"
            if kind != "odd" and suspects:
                first = min(FIRST, suspects)
                about = "at most" if kind == "badly placed" else "about"  # docs/studies/check.md says why
                words = f"{about} {self.expected(kind):.0f} of the first {first} are wrong"
            rows.append([kind, f"{judged or 0:,}", f"{suspects:,}", words])
        return rows

    def pair_table(self) -> list[list[str]]:
        """A table of the worst pairs of names; empty where there are none."""
        rows = [[given, f"→ {other}", f"{amount:,}", f"{wrong:.1f}"] for given, other, amount, wrong in self.pairs()]
        return [["given", "likelier", "suspects", "wrong, about"], *rows] if rows else []

    def summary(self) -> str:
        """What was checked."""
        return f"{count(len(self.labels), 'label')} in {count(self.pictures, 'picture')} ({self.format})"

    def document(self) -> dict[str, Any]:
        """The result as in suspects.json."""
        return {
            "schema_version": SCHEMA_VERSION,
            "cliploc_version": __version__,
            "format": self.format,
            "labels": len(self.labels),
            "pictures": self.pictures,
            "kinds": {
                kind: {
                    "judged": self.judged.get(kind, 0),
                    "suspects": len(self.of(kind)),
                    "first": min(FIRST, len(self.of(kind))),
                    "wrong_of_first": round(self.expected(kind), 1),
                }
                for kind in KINDS
            },
            "pairs": [
                {"name": given, "likelier": other, "suspects": amount, "wrong": round(wrong, 2)}
                for given, other, amount, wrong in self.pairs()
            ],
            "suspects": [asdict(one) for one in self.suspects],
            "failed": [{"picture": name, "reason": reason} for name, reason in self.failed.items()],
            "notes": list(self.notes),
        }

    def write_tables(self, out: Path) -> None:
        """Writes suspects.csv, suspects.json and labels.csv."""
        write_bytes(out / CSV, _csv(Suspect, self.suspects))
        write_bytes(out / LABELS, _csv(Label, self.labels))
        write_json(out / JSON, self.document())


def _csv(kind: type[Label] | type[Suspect], rows: Sequence[Label] | Sequence[Suspect]) -> bytes:
    names = [one.name for one in fields(kind)]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(names)
    writer.writerows([getattr(row, name) for name in names] for row in rows)  # None is an empty cell
    return text.getvalue().encode("utf-8", "backslashreplace")

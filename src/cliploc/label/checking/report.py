"""What a check says, as rows, tables, a document, files, and a page of suspects as crops."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from cliploc import __version__
from cliploc.draw import captions
from cliploc.draw.colours import name_colour
from cliploc.draw.html import Templates, count, embedded
from cliploc.errors import InputError
from cliploc.images.reading import load
from cliploc.label.checking.regions import square_around
from cliploc.support.files import write_bytes, write_json

SCHEMA_VERSION = 1
ABOUT = {
    "wrong name": "Another name fits what is in the box better.",
    "badly placed": "What is in the box does not end where the box ends.",
    "missing": "Something is found where no label of its name is.",
    "double": "Nearly the same box twice, with the same name.",
    "odd": "Wrong whatever is in the box.",
}
KINDS = tuple(ABOUT)
OUTPUTS = CSV, JSON, LABELS, PAGE = "suspects.csv", "suspects.json", "labels.csv", "check.html"
AT_MOST = ("badly placed", "missing")  # whose chances are too high: docs/studies/check.md
FIRST = 50  # suspects of a kind, of which it is said how many are wrong
PAIRS = 10  # of names, in the table
TEMPLATES = Templates(Path(__file__).with_name("templates"))
ON_PAGE = 60  # suspects of a kind, on the page
SIDE = 260  # pixels of a crop's longer side
AROUND = 1.8  # of a box's longer side, that a crop has
LEAST_CROP = 48  # pixels of the picture in a crop


class Label(NamedTuple):
    """A label of the set; chances are None where they cannot be judged."""

    id: str  # as in the set
    picture: str  # its path below the folder of pictures
    name: str
    likelier: str  # the likeliest other name; "" where names cannot be judged
    wrong_name: float | None
    badly_placed: float | None
    double: float | None


class Suspect(NamedTuple):
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


class KindCount(NamedTuple):
    """How much of a kind was judged and suspected, and how many of the first are wrong, by their chances."""

    kind: str
    judged: int
    suspects: int
    first: int
    wrong_of_first: float


class PairCount(NamedTuple):
    """A pair of names with its suspects, and how many of them are wrong."""

    name: str
    likelier: str
    suspects: int
    wrong: float


@dataclass(frozen=True)
class Checked:
    """The result of a check; `labels` and `suspects` are rows that pandas takes."""

    labels: Sequence[Label]  # all, in the set's order
    suspects: Sequence[Suspect]  # kind by kind, the worst first
    format: str  # that was read: "COCO"
    judged: Mapping[str, int]  # kind → how many labels, drafts or pictures were judged
    pictures: int
    computed: int  # pictures that this call read; the others were read before
    failed: Mapping[str, str]  # picture → why it is not checked
    notes: Sequence[str]  # remarks, such as names that the model does not know

    def of(self, kind: str) -> list[Suspect]:
        """The suspects of a kind, the worst first."""
        return [one for one in self.suspects if one.kind == kind]

    def counts(self) -> list[KindCount]:
        """What was judged and suspected of each kind."""
        chances = {kind: [one.chance or 0.0 for one in self.of(kind)] for kind in KINDS}
        return [
            KindCount(kind, self.judged.get(kind, 0), len(of_kind), min(FIRST, len(of_kind)), sum(of_kind[:FIRST]))
            for kind, of_kind in chances.items()
        ]

    def pairs(self) -> list[PairCount]:
        """The worst pairs of names."""
        chances: dict[tuple[str, str], list[float]] = {}
        for one in self.of("wrong name"):
            chances.setdefault((one.name, one.likelier), []).append(one.chance or 0.0)
        worst = sorted(chances.items(), key=lambda pair: (-sum(pair[1]), pair[0]))[:PAIRS]
        return [PairCount(*names, len(of_pair), sum(of_pair)) for names, of_pair in worst]

    def kinds(self) -> list[list[str]]:
        """A table with a row for each kind, the first with its titles."""
        rows = [["kind", "judged", "suspects", ""]]
        for of in self.counts():
            words = "" if of.judged else "not judged"
            if of.kind != "odd" and of.suspects:
                about = "at most" if of.kind in AT_MOST else "about"
                words = f"{about} {of.wrong_of_first:.0f} of the first {of.first} are wrong"
            rows.append([of.kind, f"{of.judged:,}", f"{of.suspects:,}", words])
        return rows

    def pair_table(self) -> list[list[str]]:
        """A table of the worst pairs of names; empty where there are none."""
        rows = [[of.name, f"→ {of.likelier}", f"{of.suspects:,}", f"{of.wrong:.1f}"] for of in self.pairs()]
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
                of.kind: of._replace(wrong_of_first=round(of.wrong_of_first, 1))._asdict() for of in self.counts()
            },
            "pairs": [{**of._asdict(), "wrong": round(of.wrong, 2)} for of in self.pairs()],
            "suspects": [one._asdict() for one in self.suspects],
            "failed": [{"picture": name, "reason": reason} for name, reason in self.failed.items()],
            "notes": list(self.notes),
        }

    def write(self, out: Path, files: Mapping[str, Path]) -> None:
        """Writes suspects.csv, suspects.json, labels.csv and check.html; `files` are those of the pictures."""
        write_bytes(out / CSV, _csv(Suspect._fields, self.suspects))
        write_bytes(out / LABELS, _csv(Label._fields, self.labels))
        write_json(out / JSON, self.document())
        sections = []
        for kind, about in ABOUT.items():
            crops: dict[str, list[tuple[Suspect, dict[str, Any] | None]]] = {}  # name → in the order of the worst
            for one in (suspects := self.of(kind))[:ON_PAGE]:
                crops.setdefault(one.name or one.likelier, []).append((one, _crop(one, files[one.picture])))
            sections.append((kind, about, len(suspects), crops))
        page = TEMPLATES.render(
            "check.html", title="Labels that may be wrong", kinds=self.kinds(), pairs=self.pair_table(),
            sections=sections, most=ON_PAGE, notes=self.notes, summary=self.summary(),
        )  # fmt: skip
        write_bytes(out / PAGE, page.encode("utf-8", "backslashreplace"))


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([head, *rows])  # None is an empty cell
    return text.getvalue().encode("utf-8", "backslashreplace")


def _crop(one: Suspect, file: Path) -> dict[str, Any] | None:
    """A suspect's crop; None of a picture that is gone since it was read."""
    try:
        image = crop(load(file).image, [edge for edge in (one.x0, one.y0, one.x1, one.y1) if edge is not None])
    except InputError:
        return None
    return embedded(image, f"{one.name or 'no label'} in {one.picture}", quality=75, optimize=True)


def crop(image: Image.Image, edges: list[float]) -> Image.Image:
    """The box with what is around it; the picture where there is no box."""
    if len(edges) < 4:
        image.thumbnail((SIDE, SIDE))
        return image
    box = np.clip(edges, 0, image.size * 2)
    corners = np.concatenate(square_around(box, image.size, LEAST_CROP, AROUND)).round().astype(int).tolist()
    part = image.crop(tuple(corners))
    ratio = SIDE / max(part.size)
    part = part.resize((max(1, round(part.width * ratio)), max(1, round(part.height * ratio))))
    rectangle = captions.to_rectangle((box - np.tile(corners[:2], 2)) * ratio, part.size)
    captions.draw_box(part, rectangle, name_colour(0), captions.line_width(part.size))
    return part

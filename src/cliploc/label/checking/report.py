"""What a check says, as rows, tables, a document, files, and a page of suspects as crops."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from PIL import Image, ImageOps

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
            KindCount(kind, self.judged.get(kind, 0), len(some), len(some[:FIRST]), round(sum(some[:FIRST]), 1))
            for kind, some in chances.items()
        ]

    def pairs(self) -> list[PairCount]:
        """The worst pairs of names."""
        chances = defaultdict[tuple[str, str], list[float]](list)
        for one in self.of("wrong name"):
            chances[one.name, one.likelier].append(one.chance or 0.0)
        worst = sorted(chances.items(), key=lambda pair: (-sum(pair[1]), pair[0]))[:PAIRS]
        return [PairCount(*names, len(of_pair), round(sum(of_pair), 2)) for names, of_pair in worst]

    def tables(self) -> list[list[list[str]]]:
        """A row for each kind, and for each of the worst pairs of names, if there are any; the first has titles."""
        kinds = [["kind", "judged", "suspects", ""]]
        for of in self.counts():
            words = "" if of.judged else "not judged"
            if of.kind != "odd" and of.suspects:
                about = "at most" if of.kind in AT_MOST else "about"
                words = f"{about} {of.wrong_of_first:.0f} of the first {of.first} are wrong"
            kinds.append([of.kind, f"{of.judged:,}", f"{of.suspects:,}", words])
        pairs = [[of.name, f"→ {of.likelier}", f"{of.suspects:,}", f"{of.wrong:.1f}"] for of in self.pairs()]
        return [kinds, [["given", "likelier", "suspects", "wrong, about"], *pairs]] if pairs else [kinds]

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
            "kinds": {of.kind: of._asdict() for of in self.counts()},
            "pairs": [of._asdict() for of in self.pairs()],
            "suspects": msgspec.to_builtins(self.suspects),
            "failed": [{"picture": name, "reason": reason} for name, reason in self.failed.items()],
            "notes": list(self.notes),
        }

    def write(self, out: Path, files: Mapping[str, Path]) -> None:
        """Writes suspects.csv, suspects.json, labels.csv and check.html; `files` are those of the pictures."""
        for name, row, rows in ((CSV, Suspect, self.suspects), (LABELS, Label, self.labels)):
            text = io.StringIO(newline="")
            table = csv.DictWriter(text, [field.name for field in fields(row)])
            table.writeheader()
            table.writerows(msgspec.to_builtins(rows))  # None is an empty cell
            write_bytes(out / name, text.getvalue().encode("utf-8", "backslashreplace"))
        write_json(out / JSON, self.document())
        sections = []
        for kind, about in ABOUT.items():
            crops = defaultdict[str, list[tuple[Suspect, dict[str, Any] | None]]](list)  # by name, the worst first
            for one in (suspects := self.of(kind))[:ON_PAGE]:
                edges = [edge for edge in (one.x0, one.y0, one.x1, one.y1) if edge is not None]
                shown, alt = None, f"{one.name or 'no label'} in {one.picture}"
                with suppress(InputError):  # a picture may be gone since it was read
                    shown = embedded(crop(load(files[one.picture]).image, edges), alt, quality=75, optimize=True)
                crops[one.name or one.likelier].append((one, shown))
            sections.append((kind, about, len(suspects), crops))
        page = TEMPLATES.render(
            "check.html", title="Labels that may be wrong", lines=[self.summary(), *self.notes], tables=self.tables(),
            sections=sections, most=ON_PAGE,
        )  # fmt: skip
        write_bytes(out / PAGE, page.encode("utf-8", "backslashreplace"))


def crop(image: Image.Image, edges: Sequence[float]) -> Image.Image:
    """The box with what is around it; the picture where there is no box."""
    if len(edges) < 4:
        return ImageOps.contain(image, (SIDE, SIDE))
    box = np.clip(edges, 0, image.size * 2)
    square = square_around(box, image.size, LEAST_CROP, AROUND).round()
    part = ImageOps.contain(image.crop(tuple(square.astype(int).tolist())), (SIDE, SIDE))
    ratio = part.width / (square[2] - square[0])
    rectangle = captions.to_rectangle((box - square[[0, 1, 0, 1]]) * ratio, part.size)
    captions.draw_box(part, rectangle, name_colour(0), captions.line_width(part.size))
    return part

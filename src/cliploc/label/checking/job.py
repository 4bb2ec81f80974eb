"""`check`: which labels of a data set are wrong? docs/check.md explains what it writes."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import numpy as arrays

from cliploc import __version__
from cliploc.draw import captions
from cliploc.draw.colours import name_colour
from cliploc.draw.html import Templates, count, embedded
from cliploc.errors import InputError
from cliploc.formats import LabelledBox
from cliploc.formats.reading import in_one_line
from cliploc.images.reading import load
from cliploc.label.checking import wrong_labels
from cliploc.label.checking.labels import FOLDERS, doubles, read_set, spelt_in_two_ways
from cliploc.label.checking.wrong_labels import FOLDS, LEAST_PLACED, Missing, Reading, read_picture
from cliploc.localizer import Localizer
from cliploc.options import Options
from cliploc.runs.engine import Notes, each
from cliploc.runs.labelled_set import DataSet, LabelledFile, odd_box
from cliploc.runs.picture_files import stamp
from cliploc.runs.store import RunKind, Store
from cliploc.support.files import csv_text, files_below, user_path, write_json, write_text
from cliploc.support.reporter import SILENT, Reporter

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
OF_KIND = ("kind", "judged", "suspects", "first", "wrong_of_first")  # the last two: of the worst, by their chances
OF_PAIR = ("name", "likelier", "suspects", "wrong")
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


@dataclass(frozen=True)
class Checked:
    """The result of a check; `labels` and `suspects` are rows that pandas takes."""

    labels: Sequence[Label]  # all, in the set's order
    suspects: Sequence[Suspect]  # kind by kind, the worst first
    format: str  # that was read: "COCO"
    judged: Mapping[str, int]  # kind → how many labels, regions or pictures were judged
    pictures: int
    computed: int  # pictures that this call read; the others were read before
    failed: Mapping[str, str]  # picture → why it is not checked
    notes: Sequence[str]  # remarks, such as names that the model does not know

    def of(self, kind: str) -> list[Suspect]:
        """The suspects of a kind, the worst first."""
        return [one for one in self.suspects if one.kind == kind]

    def counts(self) -> Iterator[tuple[str, int, int, int, float]]:
        """What was judged and suspected of each kind: `OF_KIND`."""
        for kind in KINDS:
            chances = [one.chance or 0.0 for one in self.of(kind)]
            first = chances[:FIRST]
            yield kind, self.judged.get(kind, 0), len(chances), len(first), round(sum(first), 1)

    def pairs(self) -> list[tuple[str, str, int, float]]:
        """The worst pairs of names: `OF_PAIR`."""
        chances = defaultdict[tuple[str, str], list[float]](list)
        for one in self.of("wrong name"):
            chances[one.name, one.likelier].append(one.chance or 0.0)
        worst = sorted(chances.items(), key=lambda pair: (-sum(pair[1]), pair[0]))[:PAIRS]
        return [(*names, len(of_pair), round(sum(of_pair), 2)) for names, of_pair in worst]

    def tables(self) -> list[list[list[str]]]:
        """A row for each kind, and for each of the worst pairs of names, if there are any; the first has titles."""
        kinds = [["kind", "judged", "suspects", ""]]
        for kind, judged, suspects, first, wrong in self.counts():
            words = "" if judged else "not judged"
            if kind != "odd" and suspects:
                words = f"{'at most' if kind == 'badly placed' else 'about'} {wrong:.0f} of the first {first} are wrong"
            kinds.append([kind, f"{judged:,}", f"{suspects:,}", words])
        pairs = [[name, f"→ {other}", f"{some:,}", f"{wrong:.1f}"] for name, other, some, wrong in self.pairs()]
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
            "kinds": {kind: dict(zip(OF_KIND, (kind, *of), strict=True)) for kind, *of in self.counts()},
            "pairs": [dict(zip(OF_PAIR, pair, strict=True)) for pair in self.pairs()],
            "suspects": msgspec.to_builtins(self.suspects),
            "failed": [{"picture": name, "reason": reason} for name, reason in self.failed.items()],
            "notes": list(self.notes),
        }

    def write(self, out: Path, files: Mapping[str, Path]) -> None:
        """Writes suspects.csv, suspects.json, labels.csv and check.html; `files` are those of the pictures."""
        for name, row, rows in ((CSV, Suspect, self.suspects), (LABELS, Label, self.labels)):
            write_text(out / name, csv_text([field.name for field in fields(row)], map(asdict, rows), "\r\n"))
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
        write_text(out / PAGE, page)


def crop(image: Image.Image, edges: Sequence[float]) -> Image.Image:
    """The box with what is around it; the picture where there is no box."""
    if len(edges) < 4:
        return ImageOps.contain(image, (SIDE, SIDE))
    box = np.clip(edges, 0, image.size * 2)
    square = wrong_labels.square_around(box, image.size, LEAST_CROP, AROUND).round()
    part = ImageOps.contain(image.crop(tuple(square.astype(int).tolist())), (SIDE, SIDE))
    ratio = part.width / (square[2] - square[0])
    rectangle = captions.to_rectangle((box - square[[0, 1, 0, 1]]) * ratio, part.size)
    captions.draw_box(part, rectangle, name_colour(0), captions.line_width(part.size))
    return part


# -------------------------------------------------------------------------------------------------------------- the job
# The facts are all that a reading depends on besides the settings; the content is the safetensors of `Reading`.
TABLE = "CREATE TABLE picture (id TEXT PRIMARY KEY, facts TEXT NOT NULL, content BLOB NOT NULL)"
SAVE = "INSERT OR REPLACE INTO picture VALUES (?, ?, ?)"
RUN = RunKind("check", 3, TABLE, OUTPUTS)
MOST_PLANTED = 1_000  # boxes that are moved to learn what badly placed ones look like
FEW = 100  # labels with which the set's own opinion weighs little
LEAST = 0.1  # chance of a suspect
NO_BOX = LabelledBox("", "", (np.nan,) * 4)  # of what concerns a whole picture
# The likelier name, the chances of name, place and double, and of which box it is one.
OfBox: TypeAlias = tuple[str, float | None, float | None, tuple[float | None, str]]


def check(
    labels: str | os.PathLike[str],
    pictures: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    reporter: Reporter = SILENT,
    **options: Any,
) -> Checked:
    """Ranks the labels of a data set by the chance that they are wrong. Nothing of the set is changed.

    Args:
        labels: COCO's or Label Studio's JSON, CVAT's XML, a CSV table, a folder in YOLO's or VOC's layout, or a folder
            with a folder of pictures for each class.
        pictures: the folder of the pictures; None: beside the labels.
        out: a folder for the results; the same call in it computes only what is new. None: nothing is written.
        reporter: gets the phases, the pictures to do and done, each failed picture, and each note.
        **options: options of the `Localizer`: model, device …

    Returns:
        What was found; its `labels` and `suspects` are rows that pandas takes.

    Raises:
        UsageError: labels, pictures, a model or an option that cannot be used, or a folder of another run.
        DiskFullError: no room on the disk.
    """
    chosen = Options.of(**(options if "method" in options else {"recipe": "fast", **options}))
    source, target = user_path(labels), None if out is None else user_path(out)
    data = read_set(source, None if pictures is None else user_path(pictures), target)
    files = {one.id: one.path for one in data.pictures}
    of_set = {"labels": str(source.absolute()), "pictures": str(data.root.absolute()), "format": data.format}
    localizer = Localizer(**chosen.changed())
    inputs = [*(files_below(source) if source.is_dir() else [source]), *files.values()]
    with RUN.opened(target, inputs, {**of_set, **localizer.describe()}) as store:
        checked = _Check(data, localizer, store, reporter).run()
        if target is not None:
            reporter.phase("writing")
            checked.write(target, files)
    return checked


class _Check:
    """The work of one call; N boxes that can be read."""

    def __init__(self, data: DataSet, localizer: Localizer, store: Store, reporter: Reporter) -> None:
        self._data, self._localizer, self._store, self._reporter = data, localizer, store, reporter
        self._notes, self._failed, self.computed = Notes(reporter), dict(data.failed), 0
        self._of_boxes = data.format != FOLDERS  # else each label is of a whole picture
        given = Counter(box.name for one in data.pictures for box in one.boxes)
        self._spelt = spelt_in_two_ways(given)
        self._names = sorted({self._spelt.get(name, name) for name in given})
        self._number = {name: self._names.index(self._spelt.get(name, name)) for name in given}
        # As a model reads them: `traffic_light` is two words.
        self._texts = [" ".join(re.sub(r"[_~@|]+", " ", name).split()) or name for name in self._names]
        self._unknown = localizer.unknown_names(self._texts)

    def run(self) -> Checked:
        """Reads what is not read yet, and judges."""
        for name, reason in self._failed.items():
            self._reporter.failed(name, InputError(f"{name}: {reason}"))
        self._notes.add(self._limits())
        share = self._of_boxes * MOST_PLANTED / max(1, sum(len(one.readable) for one in self._data.pictures))
        facts = {one.id: repr([stamp(one), one.xyxy.tolist()]) for one in self._data.pictures}
        before = dict(self._store.rows("SELECT id, facts FROM picture"))
        todo = [one for one in self._data.pictures if before.get(one.id) != facts[one.id]]
        self._reporter.phase("check")
        self._reporter.start(len(todo), len(facts))

        def read(one: LabelledFile) -> Reading | InputError:
            torch.set_num_threads(1)  # of this thread: pictures are read beside each other
            drawn = np.random.default_rng(list(one.id.encode())).random(len(one.xyxy)) < share  # have a moved copy
            try:
                return read_picture(self._localizer.backbone, load(one.path).image, one.xyxy, drawn)
            except InputError as error:
                return error

        with closing(each(read, todo)) as readings:
            for one, content in zip(todo, readings, strict=True):
                if isinstance(content, InputError):
                    self._failed[one.id] = in_one_line(content)
                    self._reporter.failed(one.id, InputError(f"{one.id}: {self._failed[one.id]}"))
                else:
                    with self._store.transaction():
                        self._store.write(SAVE, one.id, facts[one.id], arrays.save(content._asdict()))
                    self.computed += 1
                self._reporter.images(1)
        rows = self._store.each("SELECT id, facts, content FROM picture")
        return self._judged({name: Reading(**arrays.load(content)) for name, of, content in rows
                             if facts.get(name) == of})  # fmt: skip

    def _limits(self) -> Iterator[str]:
        """What cannot be judged, or only in part."""
        labelled = [len(one.readable) for one in self._data.pictures if one.readable]
        count, of = sum(labelled), len(labelled)
        if self._data.unnamed:
            yield f"{self._data.unnamed:,} pictures below {self._data.root} have no entry in the labels"
        if len(self._names) < 2:
            yield "one name: nothing can be learnt about names; they are not judged"
        elif of < 2:
            yield "one picture: nothing can be learnt from it; names are judged by the text alone"
        elif count < FEW:
            yield f"{count} labels are few: names are judged nearly by the text alone"
        if self._of_boxes and (count < LEAST_PLACED or of < FOLDS):
            yield f"too little to judge places or missing labels: it takes {LEAST_PLACED} in {FOLDS} pictures"
        if names := [name for name, text in zip(self._names, self._texts, strict=True) if text in self._unknown]:
            some = ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
            yield f"{self._localizer.backbone.name} does not know {some}: judged by the set alone"

    def _judged(self, read: Mapping[str, Reading]) -> Checked:
        """All labels and suspects."""
        of_boxes, of_pictures = self._chances(read)
        labels, suspects, judged = list[Label](), list[Suspect](), dict.fromkeys(KINDS, 0)

        def add(kind: str, chance: float | None, box: LabelledBox, likelier: str = "", reason: str = "") -> None:
            judged[kind] += chance is not None
            if kind == "odd" or (chance or 0.0) >= LEAST:
                x0, y0, x1, y1 = (round(float(edge), 2) if np.isfinite(edge) else None for edge in box.xyxy)
                suspects.append(Suspect(kind, chance, one.id, box.id, box.name, likelier, x0, y0, x1, y1, reason))

        for one in self._data.pictures:
            # It goes on from picture to picture, past those that could not be read.
            judged_boxes = dict(zip(one.readable if one.id in read else (), of_boxes, strict=False))
            missing = of_pictures.get(one.id, ())
            for edges, number, chance in missing:
                x0, y0, x1, y1 = edges * (one.size_wh * 2)
                add("missing", _known(chance), LabelledBox("", "", (x0, y0, x1, y1)), self._names[number])
            for i, box in enumerate(one.boxes):
                likelier, wrong, placed, (double, same) = judged_boxes.get(i, ("", None, None, (None, "")))
                labels.append(Label(box.id, one.id, box.name, likelier, wrong, placed, double))
                add("wrong name", wrong, box, likelier)
                add("badly placed", placed, box)
                add("double", double, box, reason=f"the same as {same}")
                if reason := odd_box(box, one.size_wh):
                    add("odd", 1.0, box, reason=reason)
                if usual := self._spelt.pop(box.name, None):  # once, where it is first
                    add("odd", 1.0, box, usual, f"spelt in two ways: {usual}")
            if one.listed_wh and one.listed_wh != one.size_wh:
                listed, now = ("×".join(map(str, size)) for size in (one.listed_wh, one.size_wh))
                add("odd", 1.0, NO_BOX, reason=f"the set has it at {listed}, it is {now}")
            if not one.boxes:
                best = next((_known(chance) for *_, chance in missing), None)
                add("odd", best, NO_BOX, reason="a picture without a label")
        suspects.sort(key=lambda one: (KINDS.index(one.kind), -(one.chance or 0.0)))
        pictures = judged["odd"] = len(self._data.pictures)
        of_set = self._data.format, judged, pictures + len(self._data.failed)
        return Checked(labels, suspects, *of_set, self.computed, self._failed, self._notes.lines)

    def _chances(self, read: Mapping[str, Reading]) -> tuple[Iterator[OfBox], Mapping[str, Sequence[Missing]]]:
        """What each box is judged to be, in the order of the pictures, and what is missing in each picture."""
        pictures = [one for one in self._data.pictures if one.id in read]
        of, boxes = [read[one.id] for one in pictures], [one.xyxy / (one.size_wh * 2) for one in pictures]
        given = [np.array([self._number[one.boxes[i].name] for i in one.readable], np.int64) for one in pictures]
        if not any(map(len, given)):
            return iter(()), {}
        text = self._localizer.embed_names(self._texts).float().cpu().numpy()  # [P, D / 2]
        text[[name in self._unknown for name in self._texts]] = np.nan
        every, scale = Reading(*map(np.concatenate, zip(*of, strict=True))), float(self._localizer.backbone.logit_scale)
        numbers = np.repeat(range(len(of)), [*map(len, given)])  # of the pictures of boxes
        of_moved = np.repeat(range(len(of)), [len(each.moved) for each in of])
        xyxy, labels = np.concatenate(boxes), np.concatenate(given)
        names = wrong_labels.wrong_names(every.features, text, xyxy, labels, numbers, scale)
        placed = wrong_labels.wrong_places(every.edges.astype(float), numbers, every.moved.astype(float), of_moved)
        same = ((_known(chance if self._of_boxes else np.nan), one.boxes[one.readable[first]].id)
                for one, named in zip(pictures, given, strict=True)
                for chance, first in doubles(one.xyxy, named))  # fmt: skip
        likelier = (self._names[i] if len(self._names) > 1 else "" for i in names.likelier)
        judged = zip(likelier, map(_known, names.chance), map(_known, placed), same, strict=True)
        missing = wrong_labels.missing_labels(of, boxes, given, text, scale) if self._of_boxes else ()
        return judged, dict(zip((one.id for one in pictures), missing, strict=False))


def _known(chance: float) -> float | None:
    return None if np.isnan(chance) else round(float(chance), 4)

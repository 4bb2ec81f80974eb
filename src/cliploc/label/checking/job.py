"""`check`: which labels of a data set are wrong? docs/check.md explains what it writes."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cliploc.errors import InputError, UsageError
from cliploc.formats import LabelledBox
from cliploc.images.reading import load
from cliploc.label.checking import judge, odd
from cliploc.label.checking.labels import WHOLE, DataSet, LabelledFile, read_set
from cliploc.label.checking.page import write_page
from cliploc.label.checking.regions import jittered, read_boxes
from cliploc.label.checking.report import KINDS, OUTPUTS, Checked, Label, Suspect
from cliploc.localizer import Localizer
from cliploc.options import Options, short
from cliploc.runs.engine import Notes, saying_what_is_kept
from cliploc.runs.picture_files import stamp
from cliploc.runs.store import FILE, Store, saying_disk_is_full
from cliploc.support.files import Inputs, alone_in, files_below, user_path
from cliploc.support.reporter import SILENT, Reporter
from cliploc.values import Floats

Features: TypeAlias = npt.NDArray[np.float32]

KIND, VERSION = "check", 1
TABLES = (
    """CREATE TABLE region (
    picture TEXT PRIMARY KEY,
    digest TEXT NOT NULL,                   -- of the file and its boxes
    features BLOB NOT NULL,                 -- float16, a row for each box that can be read
    edges BLOB NOT NULL,                    -- float32, a row for each of them
    planted BLOB NOT NULL,                  -- float32, a row for each moved copy of one
    owners BLOB NOT NULL)                   -- int64, the box of each copy""",
    """CREATE TABLE draft (
    picture TEXT PRIMARY KEY,
    digest TEXT NOT NULL,                   -- of the file and all names
    labels BLOB NOT NULL,                   -- int64, the number of each draft's name
    xyxy BLOB NOT NULL,                     -- float64
    features BLOB NOT NULL)                 -- float16""",
)
EVERY = 8  # pictures that are stored together
MOST_PLANTED = 2_000  # boxes that are moved to learn what badly placed ones look like
MOST_DRAFTS = 30  # of a picture
FEW = 100  # labels with which the set's own opinion weighs little
LEAST = 0.1  # chance of a suspect


@dataclass(frozen=True)
class Boxes:
    """The boxes of a picture that can be judged by what is in them."""

    labels: list[int]  # places among the picture's labels
    xyxy: Floats  # [n, 4] inside the picture


@dataclass(frozen=True)
class Regions:
    """What was read in the boxes of a picture."""

    features: Features  # [n, 2D]
    edges: Floats  # [n, E]
    planted: Floats  # [m, E]
    owners: judge.Ints  # [m] the box of each copy


@dataclass(frozen=True)
class Drafts:
    """What the model finds by itself in a picture."""

    labels: judge.Ints  # [n] numbers of names
    xyxy: Floats  # [n, 4]
    features: Features  # [n, 2D]


def check(
    labels: str | os.PathLike[str],
    pictures: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    missing: bool = True,
    reporter: Reporter = SILENT,
    options: Options | None = None,
    **more: Any,
) -> Checked:
    """Ranks the labels of a data set by the chance that they are wrong. Nothing of the set is changed.

    Args:
        labels: COCO's or Label Studio's JSON, CVAT's XML, a CSV table, a folder in YOLO's or VOC's layout, or a folder
            with a folder of pictures for each class.
        pictures: the folder of the pictures; None: beside the labels.
        out: a folder for the results; the same call in it computes only what is new. None: nothing is written.
        missing: whether things without a label are looked for, which takes a map for each name.
        reporter: gets the phases, the pictures to do and done, each failed picture, and each note.
        options: options of the `Localizer`: model, device …; None for the defaults.
        **more: single options of the `Localizer`, which override those of `options`.

    Returns:
        What was found; its `labels` and `suspects` are rows that pandas takes.

    Raises:
        UsageError: labels, pictures, a model or an option that cannot be used, or a folder of another run.
        DiskFullError: no room on the disk.
    """
    if not isinstance(options, Options | None):
        raise UsageError(f"expected options as cliploc.Options, got {short(options)}: write cliploc.Options(…)")
    given = {**({} if options is None else options.given()), **more}
    chosen = Options.of(**(given if "method" in given else {"recipe": "fast", **given}))
    source, target = user_path(labels), None if out is None else user_path(out)
    data = read_set(source, None if pictures is None else user_path(pictures), target)
    if target is not None:
        _spare(target, data)
    with ExitStack() as held:
        folder = target or Path(held.enter_context(TemporaryDirectory()))
        held.enter_context(alone_in(folder))
        held.enter_context(saying_disk_is_full(folder))
        localizer = Localizer(**chosen.given())
        store = held.enter_context(Store(folder / FILE, KIND, VERSION, TABLES))
        of_set = {"labels": str(source.absolute()), "pictures": str(data.root.absolute()), "format": data.format}
        store.keep("settings", {**of_set, **localizer.describe()})
        store.begin_session()
        work = _Check(data, localizer, store, reporter)
        with saying_what_is_kept(folder, lambda: f"{work.computed:,} pictures"):
            checked = work.run(missing)
        if target is not None:
            reporter.phase("writing")
            checked.write_tables(target)
            write_page(target, checked, {one.file.id: one.file.path for one in data.pictures})
    return checked


def _spare(out: Path, data: DataSet) -> None:
    """Refuses a folder whose files would be overwritten: the set's, or others that are not of a check."""
    files = files_below(data.labels) if data.labels.is_dir() else [data.labels]
    outputs = [out / name for name in (FILE, *OUTPUTS)]
    Inputs([*files, *(one.file.path for one in data.pictures)]).refuse(outputs)
    if not (out / FILE).exists() and (taken := [path.name for path in outputs if os.path.lexists(path)]):
        raise UsageError(f"{out} holds {', '.join(taken)}, not written by a check: choose another --out")


class _Check:
    """The work of one call."""

    def __init__(self, data: DataSet, localizer: Localizer, store: Store, reporter: Reporter) -> None:
        self._data, self._localizer, self._store, self._reporter = data, localizer, store, reporter
        self._notes, self._failed, self.computed = Notes(reporter), dict(data.failed), 0
        given = Counter(box.name for one in data.pictures for box in one.boxes)
        self._spelt = odd.spelt_in_two_ways(given)
        self._names = sorted({self._spelt.get(name, name) for name in given})
        self._number = {name: self._names.index(self._spelt.get(name, name)) for name in given}
        self._texts = [as_text(name) for name in self._names]
        self._unknown = localizer.unknown_names(self._texts)
        self._boxes = [_boxes(one) for one in data.pictures]
        self._of_boxes = not any(box.kind == WHOLE for one in data.pictures for box in one.boxes)

    def run(self, missing: bool) -> Checked:
        """Reads what is not read yet, and judges."""
        for name, reason in self._failed.items():
            self._reporter.failed(name, InputError(f"{name}: {reason}"))
        self._notes.add([*self._data.notes, *self._limits()])
        regions = self._regions()
        known = [name for name, text in zip(self._names, self._texts, strict=True) if text not in self._unknown]
        drafts = self._drafts() if missing and self._of_boxes and known else {}
        return self._judged(regions, drafts)

    def _limits(self) -> Iterator[str]:
        """What cannot be judged, or only in part."""
        count = sum(len(boxes.labels) for boxes in self._boxes)
        with_boxes = sum(bool(boxes.labels) for boxes in self._boxes)
        unknown = [name for name, text in zip(self._names, self._texts, strict=True) if text in self._unknown]
        if len(self._names) < 2:
            yield "one name: nothing can be learnt about names; they are not judged"
        elif with_boxes < 2:
            yield "one picture: nothing can be learnt from it; names are judged by the text alone"
        elif count < FEW:
            yield f"{count} labels are few: names are judged nearly by the text alone"
        if self._of_boxes and (count < judge.LEAST_PLACED or with_boxes < judge.FOLDS):
            yield f"too little to judge where boxes are: {judge.LEAST_PLACED} boxes in {judge.FOLDS} pictures are needed"
        if unknown:
            model = self._localizer.backbone.name
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            yield f"{model} does not know {', '.join(unknown[:5])}{more}: judged by the set alone"

    # ------------------------------------------------------------------------------------------------------- reading
    def _regions(self) -> dict[int, Regions]:
        """What is read in the labelled boxes of each picture."""
        wanted = [number for number, boxes in enumerate(self._boxes) if boxes.labels]
        share = MOST_PLANTED / max(1, sum(len(self._boxes[number].labels) for number in wanted))
        digests = {number: _digest(stamp(self._data.pictures[number].file), self._boxes[number].xyxy.tobytes())
                   for number in wanted}  # fmt: skip

        def read(number: int) -> list[bytes]:
            one, boxes = self._data.pictures[number], self._boxes[number].xyxy
            image, backbone = load(one.file.path).image, self._localizer.backbone
            own = read_boxes(backbone, image, boxes)
            rng = np.random.default_rng(list(one.file.id.encode()))
            chosen = [i for i in range(len(boxes)) if self._of_boxes and rng.random() < share]
            copies = [(i, copy) for i in chosen if (copy := jittered(rng, boxes[i], image.size)) is not None]
            planted = np.zeros((0, own.edges.shape[1]))
            if copies:
                planted = read_boxes(backbone, image, np.array([copy for _, copy in copies]), whole=False).edges
            owners = np.array([i for i, _ in copies], np.int64)
            return [_half(own.features), _single(own.edges), _single(planted), owners.tobytes()]

        self._fill("region", "reading labels", digests, read)
        found = {}
        for number, (features, edges, planted, owners) in self._stored("region", digests, 4):
            of_box = np.frombuffer(edges, np.float32).reshape(len(self._boxes[number].labels), -1).astype(float)
            found[number] = Regions(
                _rows(features, len(of_box)),
                of_box,
                np.frombuffer(planted, np.float32).reshape(-1, of_box.shape[1]).astype(float),
                np.frombuffer(owners, np.int64),
            )
        return found

    def _drafts(self) -> dict[int, Drafts]:
        """What the model finds by itself in each picture."""
        names = "\n".join(self._names).encode()
        digests = {number: _digest(stamp(one.file), names) for number, one in enumerate(self._data.pictures)
                   if one.file.id not in self._failed}  # fmt: skip

        def read(number: int) -> list[bytes]:
            image = load(self._data.pictures[number].file.path).image
            shown = self._localizer(image, self._texts).shown
            best = np.argsort(-shown.score, kind="stable")[:MOST_DRAFTS]
            xyxy = shown.xyxy[best].astype(float)
            features = read_boxes(self._localizer.backbone, image, xyxy).features if len(xyxy) else np.zeros((0, 1))
            return [shown.label[best].astype(np.int64).tobytes(), xyxy.tobytes(), _half(features)]

        self._fill("draft", "looking for what has no label", digests, read)
        found = {}
        for number, (labels, xyxy, features) in self._stored("draft", digests, 3):
            if labels:
                numbers = np.frombuffer(labels, np.int64)
                corners = np.frombuffer(xyxy, np.float64).reshape(-1, 4)
                found[number] = Drafts(numbers, corners, _rows(features, len(numbers)))
        return found

    def _fill(self, table: str, phase: str, digests: Mapping[int, str], read: Callable[[int], list[bytes]]) -> None:
        """Reads the pictures that the table does not have as they are now."""
        there = dict(self._store.rows(f"SELECT picture, digest FROM {table}"))
        ids = {number: self._data.pictures[number].file.id for number in digests}
        todo = [number for number, digest in digests.items() if there.get(ids[number]) != digest]
        self._reporter.phase(phase)
        self._reporter.start(len(todo), len(digests))
        waiting: list[list[Any]] = []
        try:
            for number in todo:
                try:
                    waiting.append([ids[number], digests[number], *read(number)])
                    self.computed += table == "region"
                except InputError as error:
                    self._failed[ids[number]] = str(error).partition(": ")[2] or str(error)
                    self._reporter.failed(ids[number], InputError(f"{ids[number]}: {self._failed[ids[number]]}"))
                self._reporter.images(1)
                if len(waiting) >= EVERY:
                    self._keep(table, waiting)
        finally:
            self._keep(table, waiting)

    def _keep(self, table: str, rows: list[list[Any]]) -> None:
        with self._store.transaction():
            for row in rows:
                self._store.write(f"DELETE FROM {table} WHERE picture = ?", row[0])
            self._store.insert(table, rows)
        rows.clear()

    def _stored(self, table: str, digests: Mapping[int, str], columns: int) -> Iterator[tuple[int, tuple[bytes, ...]]]:
        """What the table has of these pictures as they are now."""
        numbers = {self._data.pictures[number].file.id: number for number in digests}
        rows = {}
        for picture, digest, *values in self._store.each(f"SELECT * FROM {table}"):
            if picture in numbers and digests[numbers[picture]] == digest:
                rows[numbers[picture]] = tuple(values[:columns])
        for number in sorted(rows):
            if self._data.pictures[number].file.id not in self._failed:
                yield number, rows[number]

    # ------------------------------------------------------------------------------------------------------- judging
    def _judged(self, regions: Mapping[int, Regions], drafts: Mapping[int, Drafts]) -> Checked:
        """All labels and suspects."""
        pictures = self._data.pictures
        count = {number: len(of.features) for number, of in regions.items()}
        start = dict(zip(count, np.cumsum([0, *count.values()]).tolist(), strict=False))
        total = sum(count.values())
        wrong, likelier, placed = np.full(total, np.nan), np.full(total, -1), np.full(total, np.nan)
        absent = np.zeros(0)
        if total:
            names = self._judge_names(regions, drafts)
            wrong = names.chance[:total]
            likelier = names.likelier[:total] if len(self._names) > 1 else likelier
            absent = self._judge_missing(names.logits[total:], drafts)
            if self._of_boxes:
                owners = np.concatenate([of.owners + start[number] for number, of in regions.items()])
                placed = judge.judge_places(
                    np.concatenate([of.edges for of in regions.values()]),
                    np.concatenate([of.planted for of in regions.values()]),
                    owners,
                    np.repeat(list(count), list(count.values())),
                )
        labels, suspects = list[Label](), list[Suspect]()
        judged = Counter({kind: 0 for kind in KINDS})
        judged["wrong name"], judged["badly placed"] = int(np.isfinite(wrong).sum()), int(np.isfinite(placed).sum())
        judged["missing"] = int(np.isfinite(absent).sum())
        best_absent: dict[int, float] = {}
        place = 0
        for number, of in drafts.items():
            for name, xyxy in zip(of.labels.tolist(), of.xyxy, strict=True):
                chance = _known(absent[place])
                best_absent[number] = max(best_absent.get(number, 0.0), chance or 0.0)
                if chance is not None and chance >= LEAST:
                    suspects.append(
                        _suspect("missing", chance, pictures[number].file.id, None, "", self._names[name], xyxy)
                    )
                place += 1
        for number, one in enumerate(pictures):
            picture, boxes = one.file.id, self._boxes[number]
            twice, other = np.zeros(len(boxes.labels)), [-1] * len(boxes.labels)
            if self._of_boxes:
                twice, other = odd.doubles(boxes.xyxy, [self._number[one.boxes[i].name] for i in boxes.labels])
                judged["double"] += len(boxes.labels)
            at = {label: i for i, label in enumerate(boxes.labels)}
            for label, box in enumerate(one.boxes):
                i, row = at.get(label), start.get(number, 0) + at.get(label, 0)
                read = i is not None and number in regions
                fits = self._names[likelier[row]] if read and likelier[row] >= 0 else ""
                said = Label(
                    box.id, picture, box.name, fits,
                    _known(wrong[row]) if read else None,
                    _known(placed[row]) if read else None,
                    None if i is None or not self._of_boxes else _known(twice[i]),
                )  # fmt: skip
                labels.append(said)
                for kind, chance, better, reason in (
                    ("wrong name", said.wrong_name, fits, ""),
                    ("badly placed", said.badly_placed, "", ""),
                    (
                        "double",
                        said.double,
                        "",
                        "" if i is None else f"the same as {one.boxes[boxes.labels[other[i]]].id}",
                    ),
                ):
                    if chance is not None and chance >= LEAST:
                        suspects.append(_suspect(kind, chance, picture, box, box.name, better, box.xyxy, reason))
                if reason := odd.odd_box(box, one.size_wh):
                    suspects.append(_suspect("odd", 1.0, picture, box, box.name, "", box.xyxy, reason))
            judged["odd"] += 1
            suspects += self._odd_picture(one, best_absent.get(number))
        suspects += self._odd_names()
        suspects.sort(key=lambda one: (KINDS.index(one.kind), -(one.chance or 0.0)))
        return Checked(
            labels, suspects, self._data.format, judged, len(pictures) + len(self._data.failed), self.computed,
            self._failed, self._notes.lines,
        )  # fmt: skip

    def _judge_names(self, regions: Mapping[int, Regions], drafts: Mapping[int, Drafts]) -> judge.Names:
        """Of all boxes, then of all drafts."""
        both = [*regions.items(), *drafts.items()]
        features = np.concatenate([of.features for _, of in both])
        xyxy = [self._boxes[number].xyxy for number in regions] + [of.xyxy for of in drafts.values()]
        sizes = [(own[:, 2:] - own[:, :2]) / self._data.pictures[number].size_wh
                 for (number, _), own in zip(both, xyxy, strict=True)]  # fmt: skip
        given = [self._number[self._data.pictures[number].boxes[i].name] for number in regions
                 for i in self._boxes[number].labels]  # fmt: skip
        given += [judge.DRAFT] * (len(features) - len(given))
        text = self._localizer.embed_names(self._texts).float().cpu().numpy()  # [P, D]
        half = text.shape[1]
        cosines = ((features[:, :half] + features[:, half:]) @ text.T / 2).astype(float)
        cosines[:, [name in self._unknown for name in self._texts]] = np.nan
        pictures = np.repeat([number for number, _ in both], [len(of.features) for _, of in both])
        scale = float(self._localizer.backbone.logit_scale)
        return judge.judge_names(features, cosines, np.concatenate(sizes), np.array(given), pictures, scale)

    def _judge_missing(self, logits: Floats, drafts: Mapping[int, Drafts]) -> Floats:
        """Of each draft the chance that it misses a label."""
        if not drafts:
            return np.zeros(0)
        compared = []
        for number, of in drafts.items():
            boxes = self._boxes[number]
            given = [self._number[self._data.pictures[number].boxes[i].name] for i in boxes.labels]
            compared.append(judge.compare(of.xyxy, of.labels, boxes.xyxy, np.array(given, np.int64)))
        explained, matched = (np.concatenate(part) for part in zip(*compared, strict=True))
        return judge.judge_missing(logits, np.concatenate([of.labels for of in drafts.values()]), explained, matched)

    def _odd_picture(self, one: LabelledFile, missing: float | None) -> Iterator[Suspect]:
        """A picture that the set takes for one of another size, or that has no label."""
        if one.said_wh not in (None, one.size_wh):
            said, is_now = ("×".join(map(str, size)) for size in (one.said_wh or (), one.size_wh))
            yield _suspect("odd", 1.0, one.file.id, None, "", "", (), f"the set has it at {said}, it is {is_now}")
        if not one.boxes and self._of_boxes:
            yield _suspect("odd", missing, one.file.id, None, "", "", (), "a picture without a label")

    def _odd_names(self) -> Iterator[Suspect]:
        """Spellings, each with its first label."""
        seen = set[str]()
        for one in self._data.pictures:
            for box in one.boxes:
                if box.name in self._spelt and box.name not in seen:
                    seen.add(box.name)
                    usual = self._spelt[box.name]
                    yield _suspect(
                        "odd", 1.0, one.file.id, box, box.name, usual, box.xyxy, f"spelt in two ways: {usual}"
                    )


def _boxes(one: LabelledFile) -> Boxes:
    """The boxes that lie in the picture at least in part."""
    reasons = [odd.odd_box(box, one.size_wh) for box in one.boxes]
    labels = [i for i, reason in enumerate(reasons) if reason in (None, odd.BEYOND_EDGE)]
    xyxy = np.array([one.boxes[i].xyxy for i in labels], float).reshape(-1, 4)
    return Boxes(labels, np.clip(xyxy, 0, one.size_wh * 2))


def as_text(name: str) -> str:
    """A set's name as a model reads it: `traffic_light` is two words."""
    return " ".join(re.sub(r"[_~@|]+", " ", name).split()) or name


def _suspect(
    kind: str, chance: float | None, picture: str, box: LabelledBox | None, name: str, likelier: str,
    xyxy: Sequence[float] | Floats, reason: str = "",
) -> Suspect:  # fmt: skip
    edges = [round(float(edge), 2) for edge in xyxy if np.isfinite(edge)] if len(xyxy) else []
    x0, y0, x1, y1 = edges if len(edges) == 4 else (None,) * 4
    return Suspect(kind, chance, picture, "" if box is None else box.id, name, likelier, x0, y0, x1, y1, reason)


def _known(chance: float) -> float | None:
    return None if np.isnan(chance) else round(float(chance), 4)


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def _half(values: Floats) -> bytes:
    return values.astype(np.float16).tobytes()


def _single(values: Floats) -> bytes:
    return values.astype(np.float32).tobytes()


def _rows(content: bytes, count: int) -> Features:
    return np.frombuffer(content, np.float16).reshape(count, -1).astype(np.float32)

"""`check`: which labels of a data set are wrong? docs/check.md explains what it writes."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from cliploc.errors import InputError, UsageError
from cliploc.formats import LabelledBox
from cliploc.images.reading import load
from cliploc.label.checking import judge, odd
from cliploc.label.checking.labels import DataSet, LabelledFile, read_set
from cliploc.label.checking.page import write_page
from cliploc.label.checking.regions import jittered, read_boxes
from cliploc.label.checking.report import KINDS, OUTPUTS, Checked, Label, Suspect
from cliploc.localizer import Localizer
from cliploc.options import Options, short
from cliploc.runs.engine import Notes, interrupt_message
from cliploc.runs.picture_files import stamp
from cliploc.runs.store import FILE, Store, disk_errors
from cliploc.support.files import Inputs, files_below, locked, user_path
from cliploc.support.reporter import SILENT, Reporter
from cliploc.values import Floats

KIND, VERSION = "check", 1
TABLES = (
    "CREATE TABLE reading (picture TEXT PRIMARY KEY, "
    "digest TEXT NOT NULL, "  # of all that it depends on besides the settings
    "content BLOB NOT NULL)",  # msgpack of `Reading`
)
EVERY = 8  # pictures that are stored together
MOST_PLANTED = 2_000  # boxes that are moved to learn what badly placed ones look like
MOST_DRAFTS = 12  # of a picture
FEW = 100  # labels with which the set's own opinion weighs little
LEAST = 0.1  # chance of a suspect


class Reading(msgspec.Struct, array_like=True):
    """What was read in n boxes of a picture, m moved copies of them, and k drafts; D and E numbers of each."""

    features: bytes  # float16 [n, D] of boxes
    edges: bytes  # float32 [n, E] of boxes
    planted: bytes  # float32 [m, E] of moved copies
    owners: list[int]  # [m] the box of each copy
    drafts: list[tuple[int, list[float]]]  # [k] number of a name, and edges
    of_drafts: bytes  # float16 [k, D]


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
    values = {**({} if options is None else options.changed()), **more}
    chosen = Options.of(**(values if "method" in values else {"recipe": "fast", **values}))
    source, target = user_path(labels), None if out is None else user_path(out)
    data = read_set(source, None if pictures is None else user_path(pictures), target)
    if target is not None:
        _spare(target, data)
    with ExitStack() as held:
        folder = target or Path(held.enter_context(TemporaryDirectory()))
        held.enter_context(locked(folder))
        held.enter_context(disk_errors(folder))
        localizer = Localizer(**chosen.changed())
        store = held.enter_context(Store(folder / FILE, KIND, VERSION, TABLES))
        of_set = {"labels": str(source.absolute()), "pictures": str(data.root.absolute()), "format": data.format}
        store.keep("settings", {**of_set, **localizer.describe()})
        store.begin_session()
        work = _Check(data, localizer, store, reporter, missing)
        if target is not None:
            held.enter_context(interrupt_message(folder, lambda: f"{work.computed:,} pictures"))
        checked = work.run()
        if target is not None:
            reporter.phase("writing")
            checked.write_tables(target)
            write_page(target, checked, {one.id: one.file.path for one in data.pictures})
    return checked


def _spare(out: Path, data: DataSet) -> None:
    """Refuses a folder whose files would be overwritten: the set's, or others that are not of a check."""
    files = files_below(data.labels) if data.labels.is_dir() else [data.labels]
    outputs = [out / name for name in (FILE, *OUTPUTS)]
    Inputs([*files, *(one.file.path for one in data.pictures)]).check_outputs(outputs)
    if not (out / FILE).exists() and (taken := [path.name for path in outputs if os.path.lexists(path)]):
        raise UsageError(f"{out} holds {', '.join(taken)}, not written by a check: choose another --out")


class _Check:
    """The work of one call; N boxes that can be read, M drafts."""

    def __init__(self, data: DataSet, localizer: Localizer, store: Store, reporter: Reporter, missing: bool) -> None:
        self._data, self._localizer, self._store, self._reporter = data, localizer, store, reporter
        self._notes, self._failed, self.computed = Notes(reporter), dict(data.failed), 0
        given = Counter(box.name for one in data.pictures for box in one.boxes)
        self._spelt = odd.spelt_in_two_ways(given)
        self._names = sorted({self._spelt.get(name, name) for name in given})
        self._number = {name: self._names.index(self._spelt.get(name, name)) for name in given}
        self._texts = [_as_text(name) for name in self._names]
        self._unknown = localizer.unknown_names(self._texts)
        self._missing = missing and data.of_boxes and len(self._unknown) < len(set(self._texts))
        reasons = {one.id: [odd.odd_box(box, one.size_wh) for box in one.boxes] for one in data.pictures}
        # The boxes that lie in their picture at least in part.
        self._readable = {name: [i for i, why in enumerate(of) if why in (None, odd.BEYOND_EDGE)]
                          for name, of in reasons.items()}  # fmt: skip

    def run(self) -> Checked:
        """Reads what is not read yet, and judges."""
        for name, reason in self._failed.items():
            self._reporter.failed(name, InputError(f"{name}: {reason}"))
        self._notes.add(self._limits())
        share = min(1.0, MOST_PLANTED / max(1, sum(map(len, self._readable.values()))))
        digests = {one.id: self._digest(one) for one in self._data.pictures}
        there = dict(self._store.rows("SELECT picture, digest FROM reading"))
        todo = [one for one in self._data.pictures if there.get(one.id) != digests[one.id]]
        self._reporter.phase("check")
        self._reporter.start(len(todo), len(digests))
        for start in range(0, len(todo), EVERY):
            done = list[tuple[str, str, bytes]]()
            try:
                for one in todo[start : start + EVERY]:
                    try:
                        done.append((one.id, digests[one.id], msgspec.msgpack.encode(self._read(one, share))))
                    except InputError as error:
                        self._failed[one.id] = str(error).partition(": ")[2] or str(error)
                        self._reporter.failed(one.id, InputError(f"{one.id}: {self._failed[one.id]}"))
                    self._reporter.images(1)
            finally:
                with self._store.transaction():
                    for row in done:
                        self._store.write("INSERT OR REPLACE INTO reading VALUES (?, ?, ?)", *row)
                self.computed += len(done)
        rows = self._store.each("SELECT picture, digest, content FROM reading")
        read = {name: content for name, digest, content in rows if digests.get(name) == digest}
        return self._judged({one.id: msgspec.msgpack.decode(read[one.id], type=Reading)
                             for one in self._data.pictures if one.id in read})  # fmt: skip

    def _limits(self) -> Iterator[str]:
        """What cannot be judged, or only in part."""
        count, of = sum(map(len, self._readable.values())), sum(map(bool, self._readable.values()))
        if self._data.unnamed:
            yield f"{self._data.unnamed:,} pictures below {self._data.root} have no entry in the labels"
        if len(self._names) < 2:
            yield "one name: nothing can be learnt about names; they are not judged"
        elif of < 2:
            yield "one picture: nothing can be learnt from it; names are judged by the text alone"
        elif count < FEW:
            yield f"{count} labels are few: names are judged nearly by the text alone"
        if self._data.of_boxes and (count < judge.LEAST_PLACED or of < judge.FOLDS):
            yield f"too little to judge where boxes are: it takes {judge.LEAST_PLACED} in {judge.FOLDS} pictures"
        if names := [name for name, text in zip(self._names, self._texts, strict=True) if text in self._unknown]:
            more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
            model = self._localizer.backbone.name
            yield f"{model} does not know {', '.join(names[:5])}{more}: judged by the set alone"

    def _digest(self, one: LabelledFile) -> str:
        parts = [stamp(one.file), self._xyxy(one).tolist(), self._names if self._missing else None]
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def _xyxy(self, one: LabelledFile) -> Floats:
        """The boxes that can be read, cut off at the picture's edges: `[n, 4]`."""
        boxes = np.array([one.boxes[i].xyxy for i in self._readable[one.id]], float).reshape(-1, 4)
        return np.asarray(np.clip(boxes, 0, one.size_wh * 2), float)

    def _given(self, one: LabelledFile) -> judge.Ints:
        """The numbers of their names: `[n]`."""
        return np.array([self._number[one.boxes[i].name] for i in self._readable[one.id]], np.int64)

    def _read(self, one: LabelledFile, share: float) -> Reading:
        """Reads a picture; a share of its boxes has a moved copy."""
        image, backbone, boxes = load(one.file.path).image, self._localizer.backbone, self._xyxy(one)
        drafts = list[tuple[int, list[float]]]()
        if self._missing:
            shown = self._localizer(image, self._texts).visible_boxes
            best = np.argsort(-shown.score, kind="stable")[:MOST_DRAFTS]
            drafts = [(int(shown.label[i]), shown.xyxy[i].astype(float).tolist()) for i in best]
        xyxy = np.concatenate([boxes, np.array([draft for _, draft in drafts], float).reshape(-1, 4)])
        if not len(xyxy):
            return Reading(b"", b"", b"", [], [], b"")
        rng = np.random.default_rng(list(one.id.encode()))
        chosen = [i for i in range(len(boxes)) if self._data.of_boxes and rng.random() < share]
        copies = [(i, copy) for i in chosen if (copy := jittered(rng, boxes[i], one.size_wh)) is not None]
        read, count = read_boxes(backbone, image, xyxy), len(boxes)
        planted = b""
        if copies:
            moved = read_boxes(backbone, image, np.array([copy for _, copy in copies]), whole=False)
            planted = moved.edges.astype(np.float32).tobytes()
        half = read.features.astype(np.float16)
        edges = read.edges[:count].astype(np.float32).tobytes()
        return Reading(half[:count].tobytes(), edges, planted, [i for i, _ in copies], drafts, half[count:].tobytes())

    # ------------------------------------------------------------------------------------------------------- judging
    def _judged(self, read: Mapping[str, Reading]) -> Checked:
        """All labels and suspects."""
        pictures = [one for one in self._data.pictures if one.id in read]
        names, placed, absent = self._chances(pictures, [read[one.id] for one in pictures])
        labels, suspects, row, draft = list[Label](), list[Suspect](), 0, 0
        judged = dict.fromkeys(KINDS, 0)
        judged["odd"] = len(self._data.pictures)
        for one in self._data.pictures:
            missing = None
            for name, xyxy in read[one.id].drafts if one.id in read else ():
                if (chance := _known(absent[draft])) is not None:
                    judged["missing"] += 1
                    missing = max(missing or 0.0, chance)
                    if chance >= LEAST:
                        suspects.append(_suspect("missing", chance, one, None, xyxy, likelier=self._names[name]))
                draft += 1
            twice, other = odd.doubles(self._xyxy(one), self._given(one).tolist())
            for i, box in enumerate(one.boxes):
                said, first = Label(box.id, one.id, box.name, "", None, None, None), ""
                if i in self._readable[one.id]:
                    place = self._readable[one.id].index(i)
                    likelier, wrong, at = "", None, None
                    if one.id in read:
                        likelier = self._names[names.likelier[row]] if len(self._names) > 1 else ""
                        wrong, at = _known(names.chance[row]), _known(placed[row])
                        row += 1
                    double = _known(twice[place]) if self._data.of_boxes else None
                    first = one.boxes[self._readable[one.id][other[place]]].id
                    said = Label(box.id, one.id, box.name, likelier, wrong, at, double)
                for kind, chance, better, reason in (
                    ("wrong name", said.wrong_name, said.likelier, ""),
                    ("badly placed", said.badly_placed, "", ""),
                    ("double", said.double, "", f"the same as {first}"),
                ):
                    judged[kind] += chance is not None
                    if chance is not None and chance >= LEAST:
                        suspects.append(_suspect(kind, chance, one, box, box.xyxy, reason, better))
                labels.append(said)
            suspects += self._odd(one, missing)
        suspects.sort(key=lambda one: (KINDS.index(one.kind), -(one.chance or 0.0)))
        count = len(self._data.pictures) + len(self._data.failed)
        done = (labels, suspects, self._data.format, judged, count, self.computed, self._failed, self._notes.lines)
        return Checked(*done)

    def _chances(self, pictures: list[LabelledFile], read: list[Reading]) -> tuple[judge.Names, Floats, Floats]:
        """What is said of the names of N boxes and M drafts, of the places of the boxes, and of the drafts."""
        counts = [len(self._readable[one.id]) for one in pictures]
        of_draft = [len(of.drafts) for of in read]
        total, drafts = sum(counts), sum(of_draft)
        if not total:
            nothing = np.full(drafts, np.nan)
            return judge.Names(nothing, np.zeros(drafts, np.int64), np.zeros((drafts, 0))), nothing, nothing
        features = _rows(
            b"".join([of.features for of in read] + [of.of_drafts for of in read]), np.float16, total + drafts
        )
        found = [np.array([xyxy for _, xyxy in of.drafts], float).reshape(-1, 4) for of in read]
        xyxy = [*map(self._xyxy, pictures), *found]
        sizes = np.concatenate(
            [(of[:, 2:] - of[:, :2]) / one.size_wh for of, one in zip(xyxy, pictures * 2, strict=True)]
        )
        given = np.concatenate([*map(self._given, pictures), np.full(drafts, judge.DRAFT)])
        numbers = np.repeat([*range(len(pictures))] * 2, counts + of_draft)
        text = self._localizer.embed_names(self._texts).float().cpu().numpy()  # [P, D']
        half = text.shape[1]
        cosines = ((features[:, :half] + features[:, half:]) @ text.T / 2).astype(float)
        cosines[:, [name in self._unknown for name in self._texts]] = np.nan
        scale = float(self._localizer.backbone.logit_scale)
        names = judge.judge_names(features, cosines, sizes, given, numbers, scale)
        placed = np.full(total, np.nan)
        if self._data.of_boxes:
            starts = np.cumsum([0, *counts[:-1]])
            owners = [start + i for start, of in zip(starts, read, strict=True) for i in of.owners]
            edges = _rows(b"".join(of.edges for of in read), np.float32, total).astype(float)
            planted = _rows(b"".join(of.planted for of in read), np.float32, len(owners)).astype(float)
            placed = judge.judge_places(edges, planted, np.array(owners, np.int64), numbers[:total])
        if not drafts:
            return names, placed, np.zeros(0)
        labels = [np.array([name for name, _ in of.drafts], np.int64) for of in read]
        each = zip(found, labels, map(self._xyxy, pictures), map(self._given, pictures), strict=True)
        explained, matched = map(np.concatenate, zip(*(judge.compare(*of) for of in each), strict=True))
        return names, placed, judge.judge_missing(names.logits[total:], np.concatenate(labels), explained, matched)

    def _odd(self, one: LabelledFile, missing: float | None) -> Iterator[Suspect]:
        """What is odd in a picture, and of its size; names that are spelt in two ways, where each is first."""
        for box in one.boxes:
            if reason := odd.odd_box(box, one.size_wh):
                yield _suspect("odd", 1.0, one, box, box.xyxy, reason)
            if usual := self._spelt.pop(box.name, None):
                yield _suspect("odd", 1.0, one, box, box.xyxy, f"spelt in two ways: {usual}", usual)
        if one.said_wh not in (None, one.size_wh):
            said, now = ("×".join(map(str, size)) for size in (one.said_wh or (), one.size_wh))
            yield _suspect("odd", 1.0, one, None, (), f"the set has it at {said}, it is {now}")
        if not one.boxes:
            yield _suspect("odd", missing, one, None, (), "a picture without a label")


def _as_text(name: str) -> str:
    """A set's name as a model reads it: `traffic_light` is two words."""
    return " ".join(re.sub(r"[_~@|]+", " ", name).split()) or name


def _suspect(
    kind: str, chance: float | None, one: LabelledFile, box: LabelledBox | None, xyxy: Sequence[float],
    reason: str = "", likelier: str = "",
) -> Suspect:  # fmt: skip
    x0, y0, x1, y1 = [round(float(edge), 2) if np.isfinite(edge) else None for edge in xyxy] or [None] * 4
    given, name = ("", "") if box is None else (box.id, box.name)
    return Suspect(kind, chance, one.id, given, name, likelier, x0, y0, x1, y1, reason)


def _known(chance: float) -> float | None:
    return None if np.isnan(chance) else round(float(chance), 4)


def _rows(content: bytes, kind: type[np.floating[Any]], count: int) -> npt.NDArray[np.float32]:
    return np.frombuffer(content, kind).reshape(count, -1 if count else 0).astype(np.float32)

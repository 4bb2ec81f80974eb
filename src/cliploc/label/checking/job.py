"""`check`: which labels of a data set are wrong? docs/check.md explains what it writes."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from cliploc.errors import InputError, UsageError
from cliploc.formats import Box, LabelledBox
from cliploc.images.reading import load
from cliploc.label.checking import judge
from cliploc.label.checking.labels import FOLDERS, DataSet, LabelledFile, doubles, odd_box, read_set, spelt_in_two_ways
from cliploc.label.checking.regions import found_in, jittered, read_boxes
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
MOST_PLANTED = 1_000  # boxes that are moved to learn what badly placed ones look like
MOST_DRAFTS = 12  # of a picture
FEW = 100  # labels with which the set's own opinion weighs little
LEAST = 0.1  # chance of a suspect
NOT_JUDGED = ("", np.nan, np.nan)  # likelier name, chances of name and place
NO_BOX = LabelledBox("", "", (np.nan,) * 4)  # of what concerns a whole picture
Found: TypeAlias = tuple[str, float | None, LabelledBox, str, str]  # kind, chance, box, likelier name, reason


class Reading(msgspec.Struct, array_like=True):
    """What was read in n boxes of a picture, m moved copies of them, and k drafts; D and E numbers of each."""

    features: bytes  # float16 [n, D] of boxes
    edges: bytes  # float32 [n, E] of boxes
    planted: bytes  # float32 [m, E] of moved copies
    copies: int  # m
    drafts: list[tuple[int, Box]]  # [k] number of a name, and edges
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
    files = {one.id: one.path for one in data.pictures}
    if target is not None:  # no file of the set, nor one that is not of a check, is overwritten
        outputs = [target / name for name in (FILE, *OUTPUTS)]
        Inputs([*(files_below(source) if source.is_dir() else [source]), *files.values()]).check_outputs(outputs)
        if not outputs[0].exists() and (taken := [path.name for path in outputs if os.path.lexists(path)]):
            raise UsageError(f"{target} holds {', '.join(taken)}, not written by a check: choose another --out")
    with ExitStack() as stack:
        folder = target or Path(stack.enter_context(TemporaryDirectory()))
        stack.enter_context(locked(folder))
        stack.enter_context(disk_errors(folder))
        localizer = Localizer(**chosen.changed())
        store = stack.enter_context(Store(folder / FILE, KIND, VERSION, TABLES))
        of_set = {"labels": str(source.absolute()), "pictures": str(data.root.absolute()), "format": data.format}
        store.keep("settings", {**of_set, **localizer.describe()})
        store.begin_session()
        work = _Check(data, localizer, store, reporter, missing)
        if target is not None:
            stack.enter_context(interrupt_message(folder, lambda: f"{work.computed:,} pictures"))
        checked = work.run()
        if target is not None:
            reporter.phase("writing")
            checked.write(target, files)
    return checked


class _Check:
    """The work of one call; N boxes that can be read, M drafts."""

    def __init__(self, data: DataSet, localizer: Localizer, store: Store, reporter: Reporter, missing: bool) -> None:
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
        self._missing = missing and self._of_boxes and len(self._unknown) < len(set(self._texts))

    def run(self) -> Checked:
        """Reads what is not read yet, and judges."""
        for name, reason in self._failed.items():
            self._reporter.failed(name, InputError(f"{name}: {reason}"))
        self._notes.add(self._limits())
        share = min(1.0, MOST_PLANTED / max(1, sum(len(one.readable) for one in self._data.pictures)))
        names = self._names if self._missing else None
        parts = {one.id: repr([stamp(one), one.xyxy.tolist(), names]).encode() for one in self._data.pictures}
        digests = {name: hashlib.blake2b(of, digest_size=16).hexdigest() for name, of in parts.items()}
        digested = dict(self._store.rows("SELECT picture, digest FROM reading"))
        todo = [one for one in self._data.pictures if digested.get(one.id) != digests[one.id]]
        self._reporter.phase("check")
        self._reporter.start(len(todo), len(digests))
        for one in todo:
            try:
                row = one.id, digests[one.id], msgspec.msgpack.encode(self._read(one, share))
            except InputError as error:
                self._failed[one.id] = str(error).partition(": ")[2] or str(error)
                self._reporter.failed(one.id, InputError(f"{one.id}: {self._failed[one.id]}"))
            else:
                with self._store.transaction():
                    self._store.write("INSERT OR REPLACE INTO reading VALUES (?, ?, ?)", *row)
                self.computed += 1
            self._reporter.images(1)
        rows = self._store.each("SELECT picture, digest, content FROM reading")
        return self._judged({name: msgspec.msgpack.decode(content, type=Reading)
                             for name, digest, content in rows if digests.get(name) == digest})  # fmt: skip

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
        if self._of_boxes and (count < judge.LEAST_PLACED or of < judge.FOLDS):
            yield f"too little to judge where boxes are: it takes {judge.LEAST_PLACED} in {judge.FOLDS} pictures"
        if names := [name for name, text in zip(self._names, self._texts, strict=True) if text in self._unknown]:
            more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
            model = self._localizer.backbone.name
            yield f"{model} does not know {', '.join(names[:5])}{more}: judged by the set alone"

    def _given(self, one: LabelledFile) -> judge.Ints:
        """The numbers of the names of the boxes that can be read: `[n]`."""
        return np.array([self._number[one.boxes[i].name] for i in one.readable], np.int64)

    def _read(self, one: LabelledFile, share: float) -> Reading:
        """Reads a picture; a share of its boxes has a moved copy."""
        image, backbone, count = load(one.path).image, self._localizer.backbone, len(one.xyxy)
        drafts = list[tuple[int, Box]]()
        if self._missing:
            boxes = found_in(self._localizer, image, self._texts)
            best = np.argsort(-boxes.score, kind="stable")[:MOST_DRAFTS]
            drafts = [(int(boxes.label[i]), boxes.xyxy[i].astype(float).tolist()) for i in best]
        xyxy = np.concatenate([one.xyxy, _edges(drafts)])
        if not len(xyxy):
            return Reading(b"", b"", b"", 0, [], b"")
        rng = np.random.default_rng(list(one.id.encode()))
        chosen = [box for box in one.xyxy if self._of_boxes and rng.random() < share]
        copies = [copy for box in chosen if (copy := jittered(rng, box, one.size_wh)) is not None]
        features, edges = read_boxes(backbone, image, xyxy)
        _, moved = read_boxes(backbone, image, np.array(copies), with_picture=False)
        half = features.astype(np.float16)
        of_boxes, planted = (rows.astype(np.float32).tobytes() for rows in (edges[:count], moved))
        return Reading(half[:count].tobytes(), of_boxes, planted, len(copies), drafts, half[count:].tobytes())

    def _judged(self, read: Mapping[str, Reading]) -> Checked:
        """All labels and suspects."""
        of_boxes, of_drafts = self._chances(read)
        labels, suspects = list[Label](), list[Suspect]()
        judged = dict.fromkeys(KINDS, 0)
        for one in self._data.pictures:
            drafts, count = (read[one.id].drafts, len(one.readable)) if one.id in read else ([], 0)
            found = list[Found]()
            for number, xyxy in drafts:
                found.append(("missing", _known(next(of_drafts)), LabelledBox("", "", xyxy), self._names[number], ""))
            missing = max((chance for _, chance, *_ in found if chance is not None), default=None)
            judged_boxes = dict(zip(one.readable, islice(of_boxes, count), strict=False))
            again = zip(one.readable, *doubles(one.xyxy, self._given(one)), strict=True)
            twice = {i: (double, one.readable[first]) for i, double, first in again if self._of_boxes}
            for i, box in enumerate(one.boxes):
                (likelier, wrong, placed), (double, first) = judged_boxes.get(i, NOT_JUDGED), twice.get(i, (np.nan, i))
                label = Label(box.id, one.id, box.name, likelier, _known(wrong), _known(placed), _known(double))
                labels.append(label)
                found += [
                    ("wrong name", label.wrong_name, box, likelier, ""),
                    ("badly placed", label.badly_placed, box, "", ""),
                    ("double", label.double, box, "", f"the same as {one.boxes[first].id}"),
                ]
            for kind, chance, box, name, reason in (*found, *self._odd(one, missing)):
                judged[kind] += chance is not None
                if kind == "odd" or (chance or 0.0) >= LEAST:
                    x0, y0, x1, y1 = (round(float(edge), 2) if np.isfinite(edge) else None for edge in box.xyxy)
                    suspects.append(Suspect(kind, chance, one.id, box.id, box.name, name, x0, y0, x1, y1, reason))
        suspects.sort(key=lambda one: (KINDS.index(one.kind), -(one.chance or 0.0)))
        judged["odd"] = len(self._data.pictures)
        return Checked(
            labels, suspects, self._data.format, judged, len(self._data.pictures) + len(self._data.failed),
            self.computed, self._failed, self._notes.lines,
        )  # fmt: skip

    def _chances(self, read: Mapping[str, Reading]) -> tuple[Iterator[tuple[str, float, float]], Iterator[float]]:
        """The likelier name of each of N boxes and the chances of its name and place, and the chance of each draft."""
        pictures = [one for one in self._data.pictures if one.id in read]
        of = [read[one.id] for one in pictures]
        boxes, found = [one.xyxy for one in pictures], [_edges(each.drafts) for each in of]
        given = [self._given(one) for one in pictures]
        labels = [np.array([name for name, _ in each.drafts], np.int64) for each in of]
        counts = [len(each) for each in (*boxes, *found)]
        total, drafts = sum(map(len, boxes)), sum(map(len, found))
        if not total:
            return iter(()), iter(np.full(drafts, np.nan))
        content = b"".join([*(each.features for each in of), *(each.of_drafts for each in of)])
        features = _rows(content, np.float16, total + drafts)
        sizes = np.concatenate([(xyxy[:, 2:] - xyxy[:, :2]) / one.size_wh
                                for xyxy, one in zip(boxes + found, pictures * 2, strict=True)])  # fmt: skip
        numbers = np.repeat([*range(len(pictures))] * 2, counts)
        text = self._localizer.embed_names(self._texts).float().cpu().numpy()  # [P, D']
        half = text.shape[1]
        cosines = ((features[:, :half] + features[:, half:]) @ text.T / 2).astype(float)
        cosines[:, [name in self._unknown for name in self._texts]] = np.nan
        scale = float(self._localizer.backbone.logit_scale)
        all_given = np.concatenate([*given, np.full(drafts, judge.DRAFT)])
        names = judge.judge_names(features, cosines, sizes, all_given, numbers, scale)
        of_planted = np.repeat(range(len(of)), [each.copies for each in of])  # none where labels are of pictures
        edges = _rows(b"".join(each.edges for each in of), np.float32, total).astype(float)
        planted = _rows(b"".join(each.planted for each in of), np.float32, len(of_planted)).astype(float)
        placed = judge.judge_places(edges, numbers[:total], planted, of_planted)
        compared = (judge.compare(*each) for each in zip(found, labels, boxes, given, strict=True))
        explained, matched = map(np.concatenate, zip(*compared, strict=True))
        absent = judge.judge_missing(names.logits[total:], np.concatenate(labels), explained, matched)
        likelier = (self._names[i] if len(self._names) > 1 else "" for i in names.likelier[:total])
        return zip(likelier, names.chance[:total], placed, strict=True), iter(absent)

    def _odd(self, one: LabelledFile, missing: float | None) -> Iterator[Found]:
        """What is odd in a picture, and of its size; names that are spelt in two ways, where each is first."""
        for box in one.boxes:
            if reason := odd_box(box, one.size_wh):
                yield "odd", 1.0, box, "", reason
            if usual := self._spelt.pop(box.name, None):
                yield "odd", 1.0, box, usual, f"spelt in two ways: {usual}"
        if one.listed_wh not in (None, one.size_wh):
            listed, now = ("×".join(map(str, size)) for size in (one.listed_wh or (), one.size_wh))
            yield "odd", 1.0, NO_BOX, "", f"the set has it at {listed}, it is {now}"
        if not one.boxes:
            yield "odd", missing, NO_BOX, "", "a picture without a label"


def _edges(drafts: Sequence[tuple[int, Box]]) -> Floats:
    return np.array([xyxy for _, xyxy in drafts], float).reshape(-1, 4)


def _known(chance: float) -> float | None:
    return None if np.isnan(chance) else round(float(chance), 4)


def _rows(content: bytes, kind: type[np.floating[Any]], count: int) -> npt.NDArray[np.float32]:
    return np.frombuffer(content, kind).reshape(count, -1 if count else 0).astype(np.float32)

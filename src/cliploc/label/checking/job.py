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

import numpy as np
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save

from cliploc.errors import InputError, UsageError
from cliploc.formats import LabelledBox
from cliploc.images.reading import load
from cliploc.label.checking import judge
from cliploc.label.checking.labels import FOLDERS, DataSet, LabelledFile, doubles, odd_box, read_set, spelt_in_two_ways
from cliploc.label.checking.regions import Reading, read_picture
from cliploc.label.checking.report import KINDS, OUTPUTS, Checked, Label, Suspect
from cliploc.localizer import Localizer
from cliploc.options import Options
from cliploc.runs.engine import Notes, interrupt_message
from cliploc.runs.picture_files import stamp
from cliploc.runs.store import FILE, Store, disk_errors
from cliploc.support.files import Inputs, files_below, locked, user_path
from cliploc.support.reporter import SILENT, Reporter

KIND, VERSION = "check", 2
TABLES = (
    "CREATE TABLE reading (picture TEXT PRIMARY KEY, "
    "digest TEXT NOT NULL, "  # of all that it depends on besides the settings
    "content BLOB NOT NULL)",  # safetensors of `Reading`
)
MOST_PLANTED = 1_000  # boxes that are moved to learn what badly placed ones look like
FEW = 100  # labels with which the set's own opinion weighs little
LEAST = 0.1  # chance of a suspect
NO_BOX = LabelledBox("", "", (np.nan,) * 4)  # of what concerns a whole picture
# The likelier name, the chances of name, place and double, and of which box it is one.
OfBox: TypeAlias = tuple[str, float | None, float | None, float | None, str]
NOT_JUDGED: OfBox = ("", None, None, None, "")


def check(
    labels: str | os.PathLike[str],
    pictures: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    *,
    missing: bool = True,
    reporter: Reporter = SILENT,
    **options: Any,
) -> Checked:
    """Ranks the labels of a data set by the chance that they are wrong. Nothing of the set is changed.

    Args:
        labels: COCO's or Label Studio's JSON, CVAT's XML, a CSV table, a folder in YOLO's or VOC's layout, or a folder
            with a folder of pictures for each class.
        pictures: the folder of the pictures; None: beside the labels.
        out: a folder for the results; the same call in it computes only what is new. None: nothing is written.
        missing: whether things without a label are looked for, which takes a map for each name.
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
        known = self._of_boxes and missing and len(self._unknown) < len(set(self._texts))
        self._sought = self._texts if known else []  # names of which drafts are made

    def run(self) -> Checked:
        """Reads what is not read yet, and judges."""
        for name, reason in self._failed.items():
            self._reporter.failed(name, InputError(f"{name}: {reason}"))
        self._notes.add(self._limits())
        share = min(1.0, MOST_PLANTED / max(1, sum(len(one.readable) for one in self._data.pictures)))
        facts = {one.id: repr([stamp(one), one.xyxy.tolist(), self._sought]) for one in self._data.pictures}
        digests = {name: hashlib.blake2b(of.encode(), digest_size=16).hexdigest() for name, of in facts.items()}
        digested = dict(self._store.rows("SELECT picture, digest FROM reading"))
        todo = [one for one in self._data.pictures if digested.get(one.id) != digests[one.id]]
        self._reporter.phase("check")
        self._reporter.start(len(todo), len(digests))
        for one in todo:
            try:
                row = one.id, digests[one.id], save(self._read(one, share)._asdict())
            except InputError as error:
                self._failed[one.id] = str(error).partition(": ")[2] or str(error)
                self._reporter.failed(one.id, InputError(f"{one.id}: {self._failed[one.id]}"))
            else:
                with self._store.transaction():
                    self._store.write("INSERT OR REPLACE INTO reading VALUES (?, ?, ?)", *row)
                self.computed += 1
            self._reporter.images(1)
        rows = self._store.each("SELECT picture, digest, content FROM reading")
        return self._judged({name: Reading(**load_arrays(content)) for name, digest, content in rows
                             if digests.get(name) == digest})  # fmt: skip

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

    def _read(self, one: LabelledFile, share: float) -> Reading:
        """Reads a picture; a share of its boxes has a moved copy."""
        drawn = np.random.default_rng(list(one.id.encode())).random(len(one.xyxy)) < share * self._of_boxes
        copied = np.flatnonzero(drawn).tolist()
        return read_picture(self._localizer, load(one.path).image, one.xyxy, copied, self._sought)

    def _judged(self, read: Mapping[str, Reading]) -> Checked:
        """All labels and suspects."""
        of_boxes, of_drafts = self._chances([one for one in self._data.pictures if one.id in read], read)
        labels, suspects, judged = list[Label](), list[Suspect](), dict.fromkeys(KINDS, 0)

        def add(kind: str, chance: float | None, box: LabelledBox, likelier: str = "", reason: str = "") -> None:
            judged[kind] += chance is not None
            if kind == "odd" or (chance or 0.0) >= LEAST:
                x0, y0, x1, y1 = (round(float(edge), 2) if np.isfinite(edge) else None for edge in box.xyxy)
                suspects.append(Suspect(kind, chance, one.id, box.id, box.name, likelier, x0, y0, x1, y1, reason))

        for one in self._data.pictures:
            drafts = of_drafts.get(one.id, [])
            for (x0, y0, x1, y1, number, _), chance in drafts:
                add("missing", chance, LabelledBox("", "", (x0, y0, x1, y1)), self._names[int(number)])
            for i, box in enumerate(one.boxes):
                likelier, wrong, placed, double, same = of_boxes.get((one.id, i), NOT_JUDGED)
                labels.append(Label(box.id, one.id, box.name, likelier, wrong, placed, double))
                add("wrong name", wrong, box, likelier)
                add("badly placed", placed, box)
                add("double", double, box, reason=f"the same as {same}")
                if reason := odd_box(box, one.size_wh):
                    add("odd", 1.0, box, reason=reason)
                if usual := self._spelt.pop(box.name, None):  # once, where it is first
                    add("odd", 1.0, box, usual, f"spelt in two ways: {usual}")
            if one.listed_wh not in (None, one.size_wh):
                listed, now = ("×".join(map(str, size)) for size in (one.listed_wh or (), one.size_wh))
                add("odd", 1.0, NO_BOX, reason=f"the set has it at {listed}, it is {now}")
            if not one.boxes:
                best = max((chance for _, chance in drafts if chance is not None), default=None)
                add("odd", best, NO_BOX, reason="a picture without a label")
        suspects.sort(key=lambda one: (KINDS.index(one.kind), -(one.chance or 0.0)))
        judged["odd"] = len(self._data.pictures)
        return Checked(
            labels, suspects, self._data.format, judged, len(self._data.pictures) + len(self._data.failed),
            self.computed, self._failed, self._notes.lines,
        )  # fmt: skip

    def _chances(
        self, pictures: Sequence[LabelledFile], read: Mapping[str, Reading]
    ) -> tuple[dict[tuple[str, int], OfBox], dict[str, list[tuple[list[float], float | None]]]]:
        """By picture and place the likelier name of a box and its chances; by picture its drafts and theirs."""
        of, boxes = [read[one.id] for one in pictures], [one.xyxy for one in pictures]
        given = [np.array([self._number[one.boxes[i].name] for i in one.readable], np.int64) for one in pictures]
        counts, drafts = [len(each) for each in given], [len(each.drafts) for each in of]
        if not (total := sum(counts)):
            return {}, {}
        every = Reading(*map(np.concatenate, zip(*of, strict=True)))
        # Boxes, then drafts.
        xyxy = np.concatenate([*boxes, every.drafts[:, :4]])
        numbers = np.repeat([*range(len(of))] * 2, counts + drafts)
        sizes = (xyxy[:, 2:] - xyxy[:, :2]) / np.array([one.size_wh for one in pictures])[numbers]
        text = self._localizer.embed_names(self._texts).float().cpu().numpy()  # [P, D / 2]
        text[[name in self._unknown for name in self._texts]] = np.nan
        names_of = np.concatenate([*given, np.full(sum(drafts), judge.DRAFT)])
        features = np.concatenate([every.features, every.of_drafts])
        scale = float(self._localizer.backbone.logit_scale)
        names = judge.judge_names(features, text, sizes, names_of, numbers, scale)
        of_moved = np.repeat(range(len(of)), [len(each.moved) for each in of])
        placed = judge.judge_places(every.edges.astype(float), numbers[:total], every.moved.astype(float), of_moved)
        same = [(chance if self._of_boxes else np.nan, one.boxes[one.readable[first]].id)
                for one, labels in zip(pictures, given, strict=True)
                for chance, first in doubles(one.xyxy, labels)]  # fmt: skip
        each = np.split(every.drafts.astype(float), np.cumsum(drafts)[:-1])
        compared = map(judge.compare, each, boxes, given)
        facts = map(np.concatenate, zip(*compared, strict=True))
        absent = map(_known, judge.judge_missing(names.logits[total:], np.concatenate(each), *facts))
        likelier = (self._names[i] if len(self._names) > 1 else "" for i in names.likelier)
        places = ((one.id, i) for one in pictures for i in one.readable)
        rows = zip(places, likelier, names.chance, placed, same, strict=False)  # names: also those of drafts
        judged = {place: (name, _known(wrong), _known(at), _known(twice), first)
                  for place, name, wrong, at, (twice, first) in rows}  # fmt: skip
        found = zip(every.drafts.tolist(), absent, strict=True)
        return judged, {one.id: [*islice(found, some)] for one, some in zip(pictures, drafts, strict=True)}


def _known(chance: float) -> float | None:
    return None if np.isnan(chance) else round(float(chance), 4)

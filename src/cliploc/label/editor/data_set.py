"""A data set in the editor: a run of its own boxes, the suspects of a check, and the corrected set in its format."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from cliploc.errors import UsageError
from cliploc.formats import Box, Edit, LabelSet, PictureEdits, Size
from cliploc.formats.reading import FORMATS
from cliploc.label.checking import job
from cliploc.label.checking.job import LEAST
from cliploc.label.checking.labels import FOLDERS, read_set
from cliploc.label.corrections import SAME
from cliploc.label.drafts import DraftRule
from cliploc.label.results import AnnotatedFolder
from cliploc.runs.label_store import Candidate, LabellingRun, PictureResult
from cliploc.runs.labelled_set import DataSet, LabelledFile
from cliploc.runs.picture_files import content_digest, stamp
from cliploc.runs.store import FILE, Store, kind_of
from cliploc.support.files import locked, read_json, write_atomic_folder

CORRECTED = "corrected"  # the folder of the corrected set
MODEL = "mini"  # suggests boxes
TABLE = """CREATE TABLE IF NOT EXISTS suspect (
    picture TEXT NOT NULL, number INTEGER NOT NULL,  -- the worst first
    content TEXT NOT NULL,                           -- JSON of `Suspect`
    chance REAL NOT NULL,
    answered INTEGER NOT NULL DEFAULT 0,             -- 1: a person has judged it
    PRIMARY KEY (picture, number)) WITHOUT ROWID"""


class Suspect(Struct, frozen=True, omit_defaults=True):
    """Something that is likely wrong in a picture."""

    kind: str
    chance: float
    box: int | None = None  # the number of its box
    likelier: str = ""  # a name that fits better, or that is missing
    xyxy: Box | None = None  # of what is missing
    reason: str = ""


class OfSet(Struct, frozen=True):
    """Which set a run is of, or a check."""

    labels: str
    pictures: str
    format: str
    digest: str = ""


def open_set(source: Path, pictures: Path | None, out: Path | None) -> tuple[Path, Mapping[str, str]]:
    """Opens the run of drafts, of a check, or of a data set; the last two get one where there is none.

    Returns its folder, and for each picture that is not shown the reason; labels of such pictures stay as they are.
    """
    kind = kind_of(source)
    if kind not in (None, job.RUN.name):
        if pictures or out:
            raise UsageError(f"expected --pictures and --out with a data set; {source} is a run, which has both")
        return source, {}
    suspects: list[job.Suspect] = []
    labels, target = source, out or source.absolute().with_name(f"{source.absolute().stem}_review")
    if kind == job.RUN.name:
        if not (source / job.JSON).is_file():
            raise UsageError(f"expected {job.JSON} in {source}, found none: run its `cliploc check` to the end first")
        with Store(source / FILE, job.RUN.name, job.RUN.version) as store:
            checked = msgspec.convert(store["settings"], OfSet)
        if checked.format == FOLDERS:
            raise UsageError(f"expected a check of boxes, got one of {FOLDERS}: move pictures from one to the other")
        labels, pictures, target = (Path(checked.labels), pictures or Path(checked.pictures), out or source / "review")
        suspects = msgspec.convert(read_json(source / job.JSON)["suspects"], list[job.Suspect])
    data = read_set(labels, pictures, target, f"the --out folder of annotate or check, {FORMATS}")
    with locked(target), _run_of(labels, data, target) as run:
        _write_suspects(run, data, suspects)
    return target, data.failed


def _run_of(labels: Path, data: DataSet, out: Path) -> LabellingRun:
    """The run in a folder, made where there is none. Its drafts are the set's boxes, by their places in a picture."""
    of_set = {"labels": str(labels.absolute()), "pictures": str(data.root.absolute()), "format": data.format}
    settings = {"set": {**of_set, "digest": _digest(data.labels)}, "model": MODEL}
    given = sorted({box.name for one in data.pictures for box in one.boxes})
    names = list(dict.fromkeys([*data.labels.names, *given]))
    if not (out / FILE).exists():
        rule = DraftRule((0.0,) * len(names), min_score=0.0, max_boxes=None)
        run = LabellingRun.make(
            out, names, {**settings, "labels": names}, root=str(data.root.absolute()), drafts=asdict(rule)
        )
    else:
        run = LabellingRun.open(out)
    if run.settings.get("set") != settings["set"]:
        run.close()
        raise UsageError(f"{out} holds a run of other labels, or {labels} was changed since: choose another --out")
    if not run.pictures():
        numbers = {name: number for number, name in enumerate(names)}
        run.add([_found(one, numbers) for one in data.pictures], {one.id: stamp(one) for one in data.pictures})
    return run


def _digest(labels: LabelSet) -> str:
    """A digest of the content of a set's files."""
    digest = hashlib.blake2b(digest_size=16)
    for file in labels.files:
        digest.update(hashlib.blake2b(file.read_bytes()).digest())
    return digest.hexdigest()


def _found(one: LabelledFile, numbers: Mapping[str, int]) -> PictureResult:
    boxes = [Candidate(numbers[box.name], _visible(box.xyxy, one.size_wh), 1.0, 1.0) for box in one.boxes]
    return PictureResult(
        one.id, content_digest(one), None, *one.size_wh, [], dict.fromkeys(numbers.values(), 1.0), boxes
    )


def _visible(xyxy: Box, size_wh: Size) -> Box:
    """A box as the editor shows it: inside the picture, and at least a pixel wide and high."""
    edges = np.nan_to_num(np.array(xyxy, float)).reshape(2, 2)
    start = np.clip(edges[0], 0, np.array(size_wh) - 1).round(2)
    end = np.clip(edges[1], start + 1, size_wh).round(2)
    x0, y0, x1, y1 = (float(edge) for edge in (*start, *end))
    return x0, y0, x1, y1


# ------------------------------------------------------------------------------------------------------------ suspects
def _write_suspects(run: LabellingRun, data: DataSet, checked: Sequence[job.Suspect]) -> None:
    """Writes the suspects of now; those that a person has judged stay so."""
    boxes = {one.id: {box.id: place for place, box in enumerate(one.boxes)} for one in data.pictures}
    of_picture: dict[str, list[Suspect]] = defaultdict(list)
    for one in checked:
        if one.picture in boxes:
            edges = (one.x0, one.y0, one.x1, one.y1)
            place = boxes[one.picture].get(one.id)
            missing = None if place is not None or None in edges else edges
            of_picture[one.picture].append(
                Suspect(one.kind, one.chance or LEAST, place, one.likelier, missing, one.reason)  # type: ignore[arg-type]
            )
    with run.store.transaction():
        run.store.write(TABLE)
        if not checked:  # the set itself was opened again
            return
        before = {row[:2]: row[2] for row in run.store.rows("SELECT picture, content, answered FROM suspect")}
        run.store.write("DELETE FROM suspect")
        for name, suspects in of_picture.items():
            rows = []
            for number, suspect in enumerate(sorted(suspects, key=lambda one: -one.chance)):
                content = msgspec.json.encode(suspect).decode()
                rows.append((name, number, content, suspect.chance, before.get((name, content), 0)))
            run.store.insert("suspect", rows)


def suspects_of(run: LabellingRun, picture: str) -> dict[str, Any]:
    """What the editor shows of a picture's suspects, and the numbers of those that a person has judged."""
    rows = run.store.rows("SELECT number, content, answered FROM suspect WHERE picture = ? ORDER BY number", picture)
    suspects = [{"number": number, **msgspec.json.decode(content)} for number, content, _ in rows]
    return {"suspects": suspects, "answered": [number for number, _, answered in rows if answered]}


def worst_suspects(run: LabellingRun) -> dict[str, float]:
    """Picture → the greatest chance among its suspects that nobody has judged."""
    return dict(run.store.rows("SELECT picture, max(chance) FROM suspect WHERE NOT answered GROUP BY picture"))


def answer(run: LabellingRun, picture: str, answered: Sequence[int]) -> None:
    """Notes which suspects of a picture a person has judged."""
    numbers = ", ".join(map(str, answered))
    run.store.write(f"UPDATE suspect SET answered = number IN ({numbers}) WHERE picture = ?", picture)


# ------------------------------------------------------------------------------------------------------- corrected set
def write_corrected(folder: AnnotatedFolder) -> list[str]:
    """Writes the set with what was corrected, in its own format → its files; the set itself stays as it is."""
    of_set = msgspec.convert(folder.settings["set"], OfSet)
    source = Path(of_set.labels)
    data = read_set(source, Path(of_set.pictures), folder.out)
    if _digest(data.labels) != of_set.digest:
        raise UsageError(f"{source} was changed since it was opened: bring it back, or open it with another --out")
    edits = {one.place: edited for one in data.pictures if (edited := _edits(folder, one))}
    above, files = source if source.is_dir() else source.parent, list[str]()

    def fill(target: Path) -> None:
        for file, content in data.labels.rewritten(edits):
            path = target / file.relative_to(above)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            files.append(f"{CORRECTED}/{file.relative_to(above).as_posix()}")

    write_atomic_folder(folder.out / CORRECTED, fill)
    return files


def _edits(folder: AnnotatedFolder, one: LabelledFile) -> PictureEdits | None:
    """What was changed of a picture's boxes; None: nothing."""
    if one.id not in folder.pictures:
        return None
    view = folder.view(one.id)
    found, now = view.found, view.boxes()
    drafts = now.drafts or []
    edits: dict[int, Edit | None] = {place: None for place in range(len(one.boxes)) if place not in drafts}
    added = list[tuple[str, Box]]()
    for label, edges, place in zip(now.labels, now.boxes, drafts, strict=True):
        name, xyxy = folder.names[label], (edges[0], edges[1], edges[2], edges[3])
        if place is None:
            added.append((name, xyxy))
            continue
        moved = np.abs(found.xyxy[place] - xyxy).max() > SAME
        edit = Edit(None if name == one.boxes[place].name else name, xyxy if moved else None)
        if edit != Edit():
            edits[place] = edit
    return PictureEdits(one.size_wh, edits, added) if edits or added else None

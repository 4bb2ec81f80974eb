"""The folder of an annotation, opened for a person who corrects its boxes; `cliploc.web.editor` serves it.

It learns in a thread; touched pictures stay, and the drafts before the last refit are kept.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cliploc import prompts
from cliploc._documents import Taught
from cliploc._files import alone_in, prepared, remove_leftovers, temporaries_of, write_whole
from cliploc.errors import InputError, UsageError
from cliploc.images import load, picture_bytes
from cliploc.jobs import annotation_edits as edits
from cliploc.jobs import export_states, folder
from cliploc.jobs.annotation_results import AnnotatedFolder, AnnotateResult, conclude, summary_of
from cliploc.jobs.annotation_rows import (
    KIND,
    LEARNT,
    LEARNT_BEFORE,
    TAUGHT,
    TAUGHT_BEFORE,
    TaughtRows,
    read_taught,
    taught_lines,
)
from cliploc.jobs.annotator import Row
from cliploc.jobs.corrections import Correction, Corrections
from cliploc.jobs.drafts import Prior
from cliploc.jobs.picture_files import PictureFile, content_digest, stamp
from cliploc.jobs.teach import FEWEST_REVIEWED, Teaching, teach, write_learnt
from cliploc.report.exports import exports
from cliploc.report.review_page import facts
from cliploc.teaching.learnt import Learnt

PICTURE_SIDE, THUMBNAIL_SIDE = 1600, 128  # longest side of what is shown
PICTURES_KEPT, THUMBNAILS_KEPT = 8, 20_000  # in memory, as JPEG; a thumbnail takes about 4 kB
JPEG_QUALITY = 85
EVERY = 3  # reviewed pictures, after which the folder learns again
MOVED = 0.5  # pixels; a box that moved by less is the same draft


class StaleReviewError(ValueError):
    """The picture was saved elsewhere since this person saw it."""


class ReviewFolder:
    """The pictures of a run with the boxes that hold now, in an order that does not change. Threads may share it."""

    def __init__(self, out: Path) -> None:
        manifest = folder.read_manifest(out, KIND)
        self.out = out
        self._lock = threading.Lock()  # of what changes with a save
        self._saves = sum(map(len, edits.saves_in(out)))  # bytes of corrections.jsonl
        self._unchanged: dict[int, str] = {}  # number of a picture → stamp of its file when it was last compared
        self._folder = AnnotatedFolder(out, manifest)
        self.names, self.masks, self.settings = self._folder.names, self._folder.masks, self._folder.settings
        self._manifest, self._run, root = manifest, self._folder.run, self._folder.root
        names = self._folder.results.places.keys() - {*summary_of(out).get("left_out", ())}
        files = (PictureFile(name, root / name) for name in names)
        self._folder.show([file for file in files if file.path.is_file()])
        self.pictures = self._folder.annotated()  # that are still there; a picture is known by its number
        if not self.pictures:
            raise UsageError(
                f"expected the annotated pictures of {out} below {root}, found none of them: put the pictures back, or "
                "annotate them first"
            )
        numbered = [(picture.id, self._folder.results.places[picture.id].content) for picture in self.pictures]
        identity = json.dumps([manifest["token"], self._run, numbered]).encode()
        self.identity = hashlib.sha256(identity).hexdigest()[:16]  # of what the numbers of pictures and labels mean
        # What is known of the folder, and the number of a picture → what the list showed of it.
        self._listed: dict[tuple[Prior | None, int], dict[str, Any]] = {}
        self.finished = self._folder.count_finished()  # pictures that a person has finished
        self.learning = Learning(self, self._run)
        self.picture = functools.lru_cache(PICTURES_KEPT)(functools.partial(self._jpeg, side=PICTURE_SIDE))
        self.thumbnail = functools.lru_cache(THUMBNAILS_KEPT)(functools.partial(self._jpeg, side=THUMBNAIL_SIDE))

    @classmethod
    @contextmanager
    def opened(cls, out: Path) -> Iterator[ReviewFolder]:
        """The folder; no other run writes into it until this ends."""
        manifest = folder.read_manifest(out, KIND)  # before the lock, which would make the folder
        with alone_in(out, editor=True):
            with suppress(OSError):  # a folder that cannot be written can be looked at
                for place in (out, out / "parts"):
                    remove_leftovers(place, manifest["token"])
            opened = cls(out)
            opened._merge_saves()
            opened.learning.consider()
            try:
                yield opened
            finally:
                opened.learning.end()
                opened._merge_saves()

    @property
    def writable(self) -> bool:
        """Whether something can be saved, as far as that can be known before."""
        return os.access(self.out, os.W_OK)

    # ----------------------------------------------------------------------------------------------------------- shown
    def facts(self) -> dict[str, Any]:
        """What the editor knows of the run."""
        labels = ([label for label, *_ in entry["found"]] for entry in self._entries())
        return facts(labels, self.names, self._run, self.masks)

    def entries(self) -> list[dict[str, Any]]:
        """Of each picture what the list shows."""
        changed = self.learning.changed
        return [{**entry, "changed": entry["name"] in changed} for entry in self._entries()]

    def state(self, number: int) -> dict[str, Any]:
        """Everything of one picture."""
        return self.snapshot().reviewed(self.pictures[number], number + 1).state()

    def _entries(self) -> Iterator[dict[str, Any]]:
        """All pictures as they are now. That takes seconds for thousands, the first time: others save meanwhile."""
        now = self.snapshot()
        for number, picture in enumerate(self.pictures):
            entry = self._listed.get((now.prior, number))
            of_now = now.revision(picture.id), now.results.drawn(picture.id)
            if entry is None or (entry["revision"], entry["drawn"]) != of_now:
                entry = self._listed[now.prior, number] = now.reviewed(picture, number + 1).entry()
            yield entry

    def label_of(self, name: str) -> int:
        """The label of a name that the model is asked for, also with other words: "cat|kitten"."""
        label, own = prompts.parse([name]).names[0].casefold(), [one.casefold() for one in self.names]
        if label not in own:
            raise InputError(
                f"expected a label of this run, got {label!r}: type one; other words may follow it, as in cat|kitten"
            )
        return own.index(label)

    def upright(self, number: int) -> Image.Image:
        """The picture."""
        picture = self.pictures[number]
        now = stamp(picture)
        image = load(picture.path, str(picture.path)).image
        if self._unchanged.get(number) != now:
            if content_digest(picture) != self._folder.results.row(picture.id)["blake2b"]:
                raise InputError(
                    f"{picture.id} was replaced since it was annotated: run the same `cliploc annotate` again"
                )
            self._unchanged[number] = now
        return image

    def _jpeg(self, number: int, *, side: int) -> bytes:
        image = self.upright(number)
        image.thumbnail((side, side))
        return picture_bytes(image, "JPEG", quality=JPEG_QUALITY)

    # ---------------------------------------------------------------------------------------------------------- taught
    def snapshot(self) -> AnnotatedFolder:
        """The folder of now, as a thread of its own can read it while others save."""
        with self._lock:
            taken = copy.copy(self._folder)
            taken.corrected, taken.reviews = {**taken.corrected}, {**taken.reviews}
        return taken

    def redraw(self, facts: Mapping[str, Any], rows: Mapping[str, Row]) -> None:
        """Writes other drafts, not of touched pictures; who saves meanwhile waits for a rename only."""
        with self.writing():
            placed = False
            while not placed:
                with self._lock:
                    touched, before = self._folder.all_touched(), self._folder.results.taught
                own = {name: before[name] for name in sorted(touched) if name in before}
                merged = {**own, **{name: row for name, row in rows.items() if name not in touched}}
                with prepared(self.out / TAUGHT, taught_lines(facts, merged.values())) as place, self._lock:
                    if placed := self._folder.all_touched() == touched:
                        export_states.mark_stale(self.out)
                        place()
                        self._folder.results = self._folder.results.with_taught(merged)
                        self._weigh()

    def _weigh(self) -> None:
        """Lets the reviewed pictures count for the others; whoever calls it has the lock."""
        self._folder.show(self._folder.found)
        self._listed = {}

    def writing(self) -> AbstractContextManager[None]:
        """Within this, temporary files of this thread are known as the run's."""
        return temporaries_of(self._manifest["token"])

    # ----------------------------------------------------------------------------------------------------------- saved
    def save(self, number: int, saved: Mapping[str, Any]) -> int:
        """Writes what a person did with a picture to the disk."""
        name, revision = self.pictures[number].id, None
        while revision is None:  # again where other drafts came meanwhile
            self._refuse_stale(name, saved["revision"])
            now = copy.copy(self._folder)  # with rows that stay
            # Takes seconds for many polygons: others save meanwhile.
            correction = edits.review_of(now, name, saved)
            with self._lock, self.writing():
                self._refuse_stale(name, saved["revision"])
                if self._folder.results.drawn(name) == now.results.drawn(name):
                    revision = self._write(name, saved["status"], correction)
        self.learning.consider()
        return revision

    def correct(self, tasks: Sequence[Mapping[str, Any]], files: Sequence[Path] = ()) -> Corrections:
        """Writes the annotations of tasks of Label Studio to the disk, as the reviewed boxes of their pictures.

        `files`: those of a task, where they are known; a picture elsewhere may end with the name of one of the run.
        """
        read, _ = edits.matched(tasks, self.snapshot(), self._sizes)
        known = {content_digest(PictureFile(str(file), file)) for file in files}
        for name in [*read.pictures] if known else ():
            if self._folder.results.row(name)["blake2b"] not in known:
                read.problems[name] = "the picture of this name in this run is another file"
                del read.pictures[name]
        for name, correction in read.pictures.items():
            with self._lock, self.writing():
                self._write(name, "reviewed", correction)
        self.learning.consider()
        return read

    @functools.cached_property
    def _sizes(self) -> Mapping[str, tuple[int, int]]:
        return edits.sizes_of(self._folder.results, [picture.id for picture in self.pictures])

    def _write(self, name: str, status: str, correction: Correction | None) -> int:
        """Writes what holds of a picture now; whoever calls it has the lock. Returns the new revision."""
        review = {"status": status, "revision": self._folder.revision(name) + 1}
        self._saves = edits.write_save(self.out, self._saves, self._run, name, review, correction)
        # Only now: what is shown is on the disk.
        own = self._folder
        finished = own.is_finished(name)
        revision = own.enter(name, correction, status)
        self.finished += own.is_finished(name) - finished  # counted, as all pictures take longer than a save
        whole = self.out / edits.CORRECTIONS
        if self._saves > max(edits.MOST_SAVES, whole.stat().st_size if whole.exists() else 0):
            self._merge_saves_now()
        return revision

    def _refuse_stale(self, name: str, revision: int) -> None:
        if revision != (now := self._folder.revision(name)):
            raise StaleReviewError(f"expected revision {now} of this picture, got {revision}: load it again")

    def _merge_saves(self) -> None:
        with self._lock, self.writing():
            self._merge_saves_now()

    def _merge_saves_now(self) -> None:
        with suppress(OSError):  # nothing is lost: whoever reads the corrections reads both files
            edits.merge_saves(self.out, self._run)
            self._saves = 0

    def write_exports(self) -> AnnotateResult:
        """Writes the exports that the run has, its review.html and its summary again, with the boxes that hold now."""
        with self._lock, self.writing():
            self._merge_saves_now()
            before = summary_of(self.out)
            if not before:
                raise UsageError(f"{self.out} has no exports yet: run the same `cliploc annotate` to its end first")
            written = before.get("written") or {"polygons": False, "copy": False, "review": 0}
            settings = self._folder.export_settings(self._manifest["image_url"], written["polygons"], written["copy"])
            formats = [export for export in exports if export.name in before["files"]]
            rows = self._folder.results.places
            failed = {failure["picture"]: failure["reason"] for failure in before.get("failed", ())}
            # Pictures that could not be read have no row; only the summary knows them.
            unreadable = {name: reason for name, reason in failed.items() if name not in rows}
            files = [file for file in self._folder.found if file.path.is_file()]
            self._weigh()  # the list shows what is exported
            fresh = AnnotatedFolder(self.out, self._manifest, files, unreadable=unreadable)
            return conclude(fresh, formats, settings, before=before, review=written["review"])


# ------------------------------------------------------------------------------------------------------------- learning
class _EndedError(Exception):
    """The editor ends."""


class Learning:
    """Teaches a folder while it is reviewed, and goes back to the drafts before. Threads may share it."""

    def __init__(self, folder: ReviewFolder, run: str) -> None:
        self._folder, self._run = folder, run
        self._lock = threading.Lock()  # of what follows; whoever has it takes no other lock that a save needs
        self._thread: threading.Thread | None = None
        self._ended = self._wanted = self._again = self._undoing = False
        self._failed = self._note = ""
        self._now = read_taught(folder.out, run)  # what the drafts of now are made of
        self._reviewed = 0  # pictures at the last refit
        self._before: TaughtRows | None = None  # what the drafts before it were made of, where a person can go back
        if self._now is not None:
            self._reviewed = self._now.facts.get("reviewed", 0)
            before = read_taught(folder.out, run, TAUGHT_BEFORE)
            if before is not None and before.facts.get("followed") == self._now.facts["of"] and not self._undone:
                self._before = before

    @property
    def possible(self) -> bool:
        """Whether this run can be taught."""
        return "teaching" in self._folder.settings and self._folder.writable

    @property
    def changed(self) -> frozenset[str]:
        """The pictures whose drafts the last refit changed."""
        before = self._before
        return frozenset() if before is None else frozenset(before.facts.get("changed", ()))

    @property
    def _busy(self) -> bool:
        return self._undoing or self._thread is not None

    @property
    def _undone(self) -> bool:
        return self._now is not None and bool(self._now.facts.get("undone", False))

    # ----------------------------------------------------------------------------------------------------- what is said
    def state(self) -> dict[str, Any]:
        """What the page shows of it."""
        finished = self._folder.finished
        with self._lock:
            facts = {} if self._now is None else self._now.facts
            names = {name: Taught(**taught) for name, taught in facts.get("names", {}).items()}
            teaching = Teaching(names, facts.get("reviewed", 0))
            return {
                "working": self._busy,
                "said": self._said(teaching, finished),
                "names": teaching.lines(),
                "failed": self._failed,
                "drafts": f"{facts.get('of', '')} {self._undone}",  # changes with them
                "changed": 0 if self._before is None else len(self._before.facts.get("changed", ())),
                "undo": self._before is not None and not self._busy,
                "ready": finished >= FEWEST_REVIEWED and not self._busy,
            }

    def _said(self, teaching: Teaching, finished: int) -> str:
        if self._thread is not None:
            return "Learning from your corrections …"
        if self._note and finished == self._reviewed:
            return self._note
        if finished < FEWEST_REVIEWED and not any(taught.used for taught in teaching.names.values()):
            return f"Learns from your corrections, from {FEWEST_REVIEWED} reviewed pictures on; {finished} so far."
        more = max(1, self._reviewed + EVERY - finished)
        pictures = "1 more picture is" if more == 1 else f"{more} more pictures are"
        if self._undone:
            return f"Undone: the drafts are those from before. It learns again when {pictures} reviewed."
        used = [taught for taught in teaching.names.values() if taught.used]
        if not used:
            return f"Drafts as before: nothing learnt that is better. It tries again when {pictures} reviewed."
        if not (reviewed := max(taught.reviewed for taught in used)):
            return f"Learnt from the {max(taught.pictures for taught in used):,} pictures that show it."
        before, after = (sum(getattr(taught, key) for taught in used if taught.reviewed) for key in ("before", "after"))
        return f"Learnt from {reviewed:,} pictures: {before:,} → {after:,} corrections on pictures left out."

    # ----------------------------------------------------------------------------------------------------------- learnt
    def consider(self) -> None:
        """Begins to learn in the background where enough was reviewed since it last did."""
        if self._due() and self.possible:  # the second asks the disk
            self._begin(again=False)

    def now(self) -> None:
        """Begins to learn in the background, as a person asked for it."""
        if not self.possible:
            raise UsageError("this run keeps nothing to learn from: annotate the pictures with --teach on")
        if (finished := self._folder.finished) < FEWEST_REVIEWED:
            raise UsageError(f"expected {FEWEST_REVIEWED} reviewed pictures to learn from, got {finished}: review more")
        self._begin(again=True)

    def end(self) -> None:
        """Nothing is learnt any more; waits for what is being learnt."""
        with self._lock:
            self._ended, thread = True, self._thread
        if thread is not None:
            thread.join()

    def _due(self) -> bool:
        return self._folder.finished >= max(FEWEST_REVIEWED, self._reviewed + EVERY)

    def _begin(self, again: bool) -> None:
        with self._lock:
            self._wanted, self._again = True, self._again or again
            if not self._ended and not self._busy:
                self._thread = threading.Thread(target=self._work, name="learning from corrections")
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if self._ended or not self._wanted:
                    self._thread = None
                    return
                again, self._wanted, self._again = self._again, False, False
            if again or self._due():  # what was wanted meanwhile may have been learnt by now
                with self._folder.writing():
                    self._learn(again)

    def _learn(self, again: bool) -> None:
        folder, before, failed = self._folder.snapshot(), self._now, ""
        folder.show(folder.found)  # by all that is reviewed now
        try:
            teach(folder, functools.partial(self._keep, folder), again)
        except _EndedError:
            return
        except Exception as error:  # the editor goes on, whatever a full disk or a damaged file makes it trip over
            failed = f"Not learnt: {getattr(error, 'strerror', None) or error}"
        with self._lock:
            self._failed, self._reviewed = failed, folder.count_finished()
            self._note = "" if failed or self._now is not before else "Nothing new to learn from."

    def _keep(
        self, folder: AnnotatedFolder, facts: Mapping[str, Any], drawn: Iterator[Row], learnt: Learnt | None
    ) -> None:
        """Writes new drafts; those of now are kept beside them."""
        rows: dict[str, Row] = {}
        for row in drawn:
            rows[row["picture"]] = row
            if self._ended:
                raise _EndedError
        out, before, changed = self._folder.out, folder.results.taught, _changed(folder, rows)
        own: Mapping[str, Any] = {"of": "", "run": self._run, "names": {}} if self._now is None else self._now.facts
        if changed:
            added, kept = {"followed": facts["of"], "changed": changed}, read_taught(out, self._run, TAUGHT_BEFORE)
            own = {**own, **added}
            # If these are kept already, a refit from them broke off, and what is learnt may be its.
            if kept is None or {**kept.facts, **added} != own:
                (out / TAUGHT_BEFORE).unlink(missing_ok=True)
                _copy(out / LEARNT, out / LEARNT_BEFORE)
            _write(out / TAUGHT_BEFORE, taught_lines(own, before.values()))
        write_learnt(out, learnt)
        self._folder.redraw(facts, rows)
        with self._lock:
            self._now, self._before = TaughtRows(facts, rows), TaughtRows(own, before) if changed else None

    def undo(self) -> None:
        """Goes back to the drafts before the last refit, but for pictures that somebody has touched since."""
        finished = self._folder.finished
        with self._lock:
            if self._busy:
                raise UsageError("it is learning right now: wait until it has learnt, then undo that")
            before, now = self._before, self._now
            if before is None or now is None:
                raise UsageError("there are no earlier drafts to go back to: nothing was learnt since")
            self._undoing = True  # nobody begins
        try:
            out, names = self._folder.out, before.facts["names"]
            facts = {"of": now.facts["of"], "run": self._run, "names": names, "reviewed": finished, "undone": True}
            with self._folder.writing():
                _copy(out / LEARNT_BEFORE, out / LEARNT)
                self._folder.redraw(facts, before.rows)
            for name in (TAUGHT_BEFORE, LEARNT_BEFORE):  # last: after a kill it can be undone again
                (out / name).unlink(missing_ok=True)
            with self._lock:
                self._now, self._before = TaughtRows(facts, before.rows), None
                self._reviewed, self._note, self._failed = finished, "", ""
        finally:
            with self._lock:
                self._undoing = False


def _changed(folder: AnnotatedFolder, rows: Mapping[str, Row]) -> list[str]:
    """The pictures that nobody has touched, and that have other drafts with these rows."""
    other, taught = copy.copy(folder), folder.results.taught
    other.results = folder.results.with_taught(rows)
    names = [picture.id for picture in folder.annotated() if not folder.touched(picture.id)]
    return [name for name in names if taught.get(name) != rows.get(name) and not _alike(folder, other, name)]


def _alike(folder: AnnotatedFolder, other: AnnotatedFolder, name: str) -> bool:
    """Whether a picture has the same drafts in both."""
    one, two = (its.shown_row(name, unsure=False) for its in (folder, other))
    if sorted(one["labels"]) != sorted(two["labels"]):
        return False
    pairs = (sorted(zip(row["labels"], row["boxes"], strict=True)) for row in (one, two))
    of_one, of_two = (np.array([box for _, box in pair]).reshape(-1, 4) for pair in pairs)
    return bool((np.abs(of_one - of_two) <= MOVED).all())


def _copy(path: Path, to: Path) -> None:
    """Makes `to` what `path` is, also where there is none."""
    if path.exists():
        _write(to, path.read_bytes())
    else:
        to.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    write_whole(path, lambda temporary: temporary.write_bytes(content))

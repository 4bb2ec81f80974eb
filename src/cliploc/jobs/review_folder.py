"""The folder of an annotation, opened for a person who corrects its boxes; `cliploc.web.editor` serves it."""

from __future__ import annotations

import copy
import functools
import io
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from cliploc._files import alone_in, prepared, remove_leftovers, temporaries_of
from cliploc.errors import InputError, UsageError
from cliploc.images import load
from cliploc.jobs import export_states, folder
from cliploc.jobs.annotate import made_by
from cliploc.jobs.annotation_edits import (
    CORRECTIONS,
    MOST_SAVES,
    enter,
    matched,
    merge_saves,
    review_of,
    size_of_saves,
    sizes_of,
    write_save,
)
from cliploc.jobs.annotation_results import AnnotatedFolder, AnnotateResult, conclude, summary_of
from cliploc.jobs.annotation_rows import KIND, TAUGHT, taught_lines
from cliploc.jobs.annotator import Row
from cliploc.jobs.corrections import Correction, Corrections
from cliploc.jobs.learning import Learning
from cliploc.jobs.picture_files import PictureFile, content_digest, stamp
from cliploc.jobs.videos import path_of
from cliploc.report.exports import ExportSettings, exports
from cliploc.report.review_page import ReviewPicture, facts
from cliploc.reporter import SILENT, Reporter

PICTURE_SIDE, THUMBNAIL_SIDE = 1600, 128  # longest side of what is shown
PICTURES_KEPT, THUMBNAILS_KEPT = 8, 20_000  # in memory, as JPEG; a thumbnail takes about 4 kB
JPEG_QUALITY = 85


class StaleReviewError(ValueError):
    """The picture was saved elsewhere since this person saw it."""


class ReviewFolder:
    """The pictures of a run with the boxes that hold now, in an order that does not change. Threads may share it."""

    def __init__(self, out: Path) -> None:
        manifest = folder.read_manifest(out, KIND)
        self.out = out
        self.settings: Mapping[str, Any] = manifest["settings"]
        self.masks = bool(self.settings.get("masks", False))
        self._lock = threading.Lock()  # of what changes with a save
        self._saves = size_of_saves(out)
        self._unchanged: dict[int, str] = {}  # number of a picture → stamp of its file when it was last compared
        self._folder = AnnotatedFolder.of_run(out, manifest)
        self.names, root = self._folder.names, self._folder.root
        self._manifest, self._run = manifest, self._folder.run
        files = (PictureFile(name, path_of(name, root, out)) for name in self._folder.results.places)
        self._folder.show([one for one in files if one.path.is_file()])
        self.pictures = self._folder.annotated()  # that are still there; a picture is known by its number
        if not self.pictures:
            raise UsageError(
                f"expected the annotated pictures of {out} below {root}, found none of them: put the pictures back, or "
                "annotate them first"
            )
        self._listed: dict[int, dict[str, Any]] = {}  # number of a picture → what the list showed of it
        self.finished = self._folder.count_finished()  # pictures that a person has finished
        self._touched = sum(self._folder.touched(one.id) for one in self.pictures)
        self.learning = Learning(self, self._run)
        self.picture = functools.lru_cache(PICTURES_KEPT)(functools.partial(self._jpeg, side=PICTURE_SIDE))
        self.thumbnail = functools.lru_cache(THUMBNAILS_KEPT)(functools.partial(self._jpeg, side=THUMBNAIL_SIDE))

    @classmethod
    @contextmanager
    def opened(cls, out: Path) -> Iterator[ReviewFolder]:
        """The folder; no other run writes into it until this ends."""
        manifest = folder.read_manifest(out, KIND)  # before the lock, which would make the folder
        with alone_in(out):
            with suppress(OSError):  # a folder that cannot be written can be looked at
                for one in (out, out / "parts"):
                    remove_leftovers(one, manifest["token"])
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
        labels = ([label for label, _, _ in one["found"]] for one in self._entries())
        return facts(labels, self.names, self._run, self.masks)

    def entries(self) -> list[dict[str, Any]]:
        """Of each picture what the list shows."""
        changed = self.learning.changed
        return [{**one, "changed": one["name"] in changed} for one in self._entries()]

    def state(self, number: int) -> dict[str, Any]:
        """Everything of one picture."""
        return self._shown(self.snapshot(), number).state()

    def _entries(self) -> Iterator[dict[str, Any]]:
        """All pictures as they are now. That takes seconds for thousands, the first time: others save meanwhile."""
        now = self.snapshot()
        for number, picture in enumerate(self.pictures):
            found = self._listed.get(number)
            of_now = now.revision(picture.id), now.results.drawn(picture.id)
            if found is None or (found["revision"], found["drawn"]) != of_now:
                found = self._listed[number] = self._shown(now, number).entry()
            yield found

    def _shown(self, now: AnnotatedFolder, number: int) -> ReviewPicture:
        return now.reviewed(self.pictures[number], number + 1)

    def upright(self, number: int) -> Image.Image:
        """The picture."""
        one = self.pictures[number]
        now = stamp(one)
        image = load(one.path, str(one.path)).image
        if self._unchanged.get(number) != now:
            if content_digest(one) != self._folder.results.row(one.id)["blake2b"]:
                raise InputError(f"{one.id} was replaced since it was annotated: run the same `cliploc annotate` again")
            self._unchanged[number] = now
        return image

    def _jpeg(self, number: int, *, side: int) -> bytes:
        image = self.upright(number)
        image.thumbnail((side, side))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=JPEG_QUALITY)
        return buffer.getvalue()

    # ---------------------------------------------------------------------------------------------------------- taught
    def snapshot(self) -> AnnotatedFolder:
        """The folder of now, as a thread of its own can read it while others save."""
        with self._lock:
            taken = copy.copy(self._folder)
            taken.corrected, taken.reviews = {**taken.corrected}, {**taken.reviews}
        return taken

    @property
    def left(self) -> int:
        """The number of the pictures that nobody has touched."""
        return len(self.pictures) - self._touched

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

    def writing(self) -> AbstractContextManager[None]:
        """Within this, temporary files of this thread are known as the run's."""
        return temporaries_of(self._manifest["token"])

    # ----------------------------------------------------------------------------------------------------------- saved
    def save(self, number: int, saved: Mapping[str, Any]) -> int:
        """Writes what a person did with a picture to the disk."""
        name = self.pictures[number].id
        while (revision := self._save(name, saved)) is None:
            pass
        self.learning.consider()
        return revision

    def _save(self, name: str, saved: Mapping[str, Any]) -> int | None:
        """The new revision; None where other drafts came meanwhile."""
        self._refuse_stale(name, saved["revision"])
        now = copy.copy(self._folder)  # with rows that stay
        row, drawn = now.results.row(name), now.results.drawn(name)
        # Takes seconds for many polygons: others save meanwhile.
        found = review_of(saved, row, len(self.names), now.kept(name), drawn)
        with self._lock, self.writing():
            self._refuse_stale(name, saved["revision"])
            if self._folder.results.drawn(name) != drawn:
                return None
            return self._write(name, saved["status"], found)

    def correct(self, tasks: Sequence[Mapping[str, Any]]) -> Corrections:
        """Writes the annotations of tasks of Label Studio to the disk, as the reviewed boxes of their pictures."""
        read, _ = matched(
            tasks, self.out, self._sizes, list(self._manifest["labels"]), self.masks, self.snapshot().shown_row
        )
        for name, found in read.pictures.items():
            with self._lock, self.writing():
                self._write(name, "reviewed", found)
        self.learning.consider()
        return read

    @functools.cached_property
    def _sizes(self) -> Mapping[str, tuple[int, int]]:
        return sizes_of(self._folder.results, [one.id for one in self.pictures])

    def _write(self, name: str, status: str, found: Correction | None) -> int:
        """Writes what holds of a picture now; whoever calls it has the lock. Returns the new revision."""
        review = {"status": status, "revision": self._folder.revision(name) + 1}
        self._saves = write_save(self.out, self._saves, self._run, name, review, found)
        # Only now: what is shown is on the disk.
        own = self._folder
        finished, touched = own.is_finished(name), own.touched(name)
        revision = enter(name, found, status, own.corrected, own.reviews)
        self.finished += own.is_finished(name) - finished  # counted, as all pictures take longer than a save
        self._touched += own.touched(name) - touched
        whole = self.out / CORRECTIONS
        if self._saves > max(MOST_SAVES, whole.stat().st_size if whole.exists() else 0):
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
            merge_saves(self.out, self._run)
            self._saves = 0

    def write_exports(self, reporter: Reporter = SILENT) -> AnnotateResult:
        """Writes the exports that the run has, its review.html and its summary again, with the boxes that hold now."""
        with self._lock, self.writing():
            self._merge_saves_now()
            before = summary_of(self.out)
            if not before:
                raise UsageError(f"{self.out} has no exports yet: run the same `cliploc annotate` to its end first")
            written = before.get("written") or {"polygons": False, "copy": False, "review": 0}
            settings = ExportSettings(
                self.names,
                made_by(self.settings),
                self._manifest["image_url"],
                self.masks,
                written["polygons"],
                written["copy"],
            )
            formats = [one for one in exports if one.name in before["files"]]
            rows = self._folder.results.places
            fresh = replace(
                self._folder,
                found=[one for one in self._folder.found if one.path.is_file()],
                # Videos that could not be read have no row; only the summary knows them.
                unreadable={
                    one["picture"]: one["reason"] for one in before.get("failed", ()) if one["picture"] not in rows
                },
            )
            return conclude(fresh, formats, settings, before=before, review=written["review"], reporter=reporter)

"""The folder of an annotation, opened for a person who corrects its boxes; `cliploc.label.editor.app` serves it.

It learns in a thread; touched pictures stay, and the drafts before the last refit are kept.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
from PIL import Image

from cliploc.boxes import share_of_peak
from cliploc.boxes.masks import name_mask
from cliploc.errors import InputError, UsageError
from cliploc.find import prompts
from cliploc.formats import Box, ExportSettings, exports
from cliploc.images.reading import load, picture_bytes
from cliploc.images.rle import encode
from cliploc.label.corrections import Corrections, ReviewedPicture, matched, review_of, save_reviewed
from cliploc.label.editor.data_set import answer, suspects_of, worst_suspects, write_corrected
from cliploc.label.editor.page import facts
from cliploc.label.estimates import order_of
from cliploc.label.results import AnnotatedFolder, conclude, write_learnt
from cliploc.label.teach.teach import FEWEST_REVIEWED, teach
from cliploc.localization import Localization
from cliploc.localizer import Localizer
from cliploc.options import FOUND
from cliploc.runs.label_store import Generation, LabellingRun, check_revision
from cliploc.runs.picture_files import PictureFile, content_digest, stamp
from cliploc.runs.store import disk_errors
from cliploc.support.files import locked
from cliploc.values import Floats

PICTURE_SIDE, THUMBNAIL_SIDE = 1600, 128  # longest side of what is shown
PICTURES, THUMBNAILS = 8, 20_000  # in memory, as JPEG; a thumbnail takes about 4 kB
JPEG_QUALITY = 85
EVERY = 3  # reviewed pictures, after which the folder learns again


class ReviewFolder:
    """The pictures of a run with the boxes that hold now, in an order that does not change. Threads may share it."""

    def __init__(self, run: LabellingRun) -> None:
        self.run, self.out = run, run.out
        self._load()

    def _load(self) -> None:
        """Reads what does not change while its names are the same."""
        run = self.run
        self._unchanged: dict[int, str] = {}  # number of a picture → stamp of its file when it was last compared
        self._folder = AnnotatedFolder(run)
        self.names, self.masks, self.settings = self._folder.names, self._folder.masks, self._folder.settings
        self.of_set = "set" in self.settings  # whether the boxes are those of a data set
        names = self._folder.pictures.keys() - {*run.left_out}
        files = (PictureFile(name, self._folder.root / name) for name in names)
        self._folder.show([file for file in files if file.path.is_file()])
        self.pictures = self._folder.annotated()  # that are still there; a picture is known by its number
        if not self.pictures:
            raise UsageError(
                f"expected the annotated pictures of {self.out} below {self._folder.root}, found none of them: put the "
                "pictures back, or annotate them first"
            )
        numbered = [(picture.id, self._folder.pictures[picture.id].checksum) for picture in self.pictures]
        identity = json.dumps([os.path.realpath(self.out), self._folder.id, numbered]).encode()
        self.identity = hashlib.sha256(identity).hexdigest()[:16]  # of what the numbers of pictures and labels mean
        self._listed: dict[int, dict[str, Any]] = {}  # number of a picture → what the list showed of it
        self.learning = Learning(self)
        self.picture = functools.lru_cache(PICTURES)(functools.partial(self._jpeg, side=PICTURE_SIDE))
        self.thumbnail = functools.lru_cache(THUMBNAILS)(functools.partial(self._jpeg, side=THUMBNAIL_SIDE))

    @classmethod
    @contextmanager
    def opened(cls, out: Path) -> Iterator[ReviewFolder]:
        """The folder, until this ends; others may have it open, too."""
        with LabellingRun.open(out) as run:
            opened = cls(run)
            opened.learning.consider()
            try:
                yield opened
            finally:
                opened.learning.end()

    @property
    def writable(self) -> bool:
        """Whether something can be saved, as far as that can be known before."""
        return self.run.store.writable

    # ----------------------------------------------------------------------------------------------------------- shown
    def facts(self) -> dict[str, Any]:
        """What the editor knows of the run."""
        of_set = self.settings["set"]["format"] if self.of_set else None
        return facts(self.names, self.masks, of_set)

    def entries(self) -> list[dict[str, Any]]:
        """Of each picture what the list shows."""
        changed, names = self.learning.changed, sorted((picture.id for picture in self.pictures), key=order_of)
        places = {name: place for place, name in enumerate(names)}
        return [
            {**entry, "changed": entry["name"] in changed, "place": places[entry["name"]]} for entry in self._entries()
        ]

    def state(self, number: int) -> dict[str, Any]:
        """Everything of one picture."""
        with self.snapshot() as now:
            picture = self.pictures[number]
            suspects = suspects_of(now.run, picture.id) if self.of_set else {}
            return {**now.reviewed(picture, number + 1).state(), **suspects}

    def _entries(self) -> Iterator[dict[str, Any]]:
        """All pictures as they are now. That takes seconds for thousands, the first time: others save meanwhile."""
        with self.snapshot() as now:
            states, worst = now.run.states(), worst_suspects(now.run) if self.of_set else {}
            for number, picture in enumerate(self.pictures):
                entry, (_, revision, generation) = self._listed.get(number), states.get(picture.id, ("", 0, 0))
                of_now = revision, now.drawn(picture.id, generation)
                if entry is None or (picture.id in states and (entry["revision"], entry["drawn"]) != of_now):
                    entry = self._listed[number] = now.reviewed(picture, number + 1).entry()
                yield {**entry, "margin": 1 - worst.get(picture.id, 0.0)} if self.of_set else entry

    def label_of(self, name: str) -> int:
        """The label of a name that the model is asked for, also with other words: "cat|kitten"."""
        label, labels = prompts.parse([name]).names[0].casefold(), [one.casefold() for one in self.names]
        if label not in labels:
            raise InputError(
                f"expected a label of this run, got {label!r}: type one; other words may follow it, as in cat|kitten"
            )
        return labels.index(label)

    def upright(self, number: int) -> Image.Image:
        """The picture."""
        picture = self.pictures[number]
        now = stamp(picture)
        image = load(picture.path, str(picture.path)).image
        if self._unchanged.get(number) != now:
            if content_digest(picture) != self._folder.pictures[picture.id].checksum:
                raise InputError(
                    f"{picture.id} was replaced since it was annotated: run the same `cliploc annotate` again"
                )
            self._unchanged[number] = now
        return image

    def _jpeg(self, number: int, *, side: int) -> bytes:
        image = self.upright(number)
        image.thumbnail((side, side))
        return picture_bytes(image, "JPEG", quality=JPEG_QUALITY)

    @contextmanager
    def snapshot(self) -> Iterator[AnnotatedFolder]:
        """The folder of now, which stays as it is while others save."""
        with self.run.snapshot() as state:
            yield self._folder.at(state)

    def update_prior(self) -> None:
        """Lets the reviewed pictures count for the others."""
        self._folder.update_prior()
        self._listed = {}

    # ----------------------------------------------------------------------------------------------------------- saved
    def save(self, number: int, saved: ReviewedPicture) -> int:
        """Saves what a person did with a picture; once this returns, it is on the disk."""
        name, revision = self.pictures[number].id, None
        while revision is None:  # again where other drafts came meanwhile
            seen = self._folder.saved(name)
            check_revision(seen.revision, saved.revision)
            # Takes seconds for many polygons: others save meanwhile.
            correction = review_of(self._folder, name, saved)
            with self.run.store.transaction():
                revision = self.run.save(self._folder.pictures[name], saved.status, correction, seen)
                if self.of_set and revision is not None:
                    answer(self.run, name, saved.answered)
        if saved.learn:
            self.learning.consider()
        return revision

    def correct(self, tasks: Sequence[Mapping[str, Any]], files: Sequence[Path] = ()) -> Corrections:
        """Saves the annotations of tasks of Label Studio as the reviewed boxes of their pictures.

        `files`: those of a task, where they are known; a picture elsewhere may end with the name of one of the run.
        """
        with self.snapshot() as now:
            read = matched(tasks, now, [picture.id for picture in self.pictures])
        known = {content_digest(PictureFile(str(file), file)) for file in files}
        for name in [*read.pictures] if known else ():
            if self._folder.pictures[name].checksum not in known:
                read.problems[name] = "the picture of this name in this run is another file"
                del read.pictures[name]
        save_reviewed(self._folder, read.pictures)
        self.learning.consider()
        return read

    def rename(self, name: str | None, to: str | None) -> None:
        """Renames a label or joins it to another; without `name`, `to` is new; without `to`, it goes with its boxes."""
        if self.learning.working:
            raise UsageError("it is learning right now: wait until it has learnt")
        if to is None and self.of_set:  # boxes are known by their places among those of the set
            raise UsageError("expected another name: boxes of a data set are dropped in its pictures")
        if to is not None and not (to.strip() and to.isprintable()):
            raise UsageError(f"expected a name, got {to!r}")
        to = to and to.strip()
        if name is None:
            if to is None or to in self.names:
                raise UsageError(f"expected a name that no label has, got {to}")
            self.run.add_name(to, FOUND)
        elif to is None:
            self.run.remove_name(name)
        elif to != name:
            self.run.rename(name, to)
        self._load()

    def write_exports(self) -> list[str]:
        """Writes the files of the run again, or the corrected set, with the boxes that hold now → their names."""
        if self.of_set:
            with locked(self.out), disk_errors(self.out), self.snapshot() as now:
                return write_corrected(now)
        if not self.run.exports:
            raise UsageError(f"{self.out} has no exports yet: run the same `cliploc annotate` to its end first")
        with locked(self.out), disk_errors(self.out):
            self.update_prior()  # the list shows what is exported
            files = [file for file in self._folder.found if file.path.is_file()]
            folder = AnnotatedFolder(self.run, files)
            formats = [exports.get(name) for name in self.run.exports if name in exports.names()]
            result = conclude(folder, formats, msgspec.convert(self.run.written, ExportSettings))
        return [file for names in result.files.values() for file in names]


# ------------------------------------------------------------------------------------------------------------- learning
class _EndedError(Exception):
    """The editor ends."""


class Learning:
    """Teaches a folder while it is reviewed, and goes back to the drafts before. Threads may share it."""

    def __init__(self, folder: ReviewFolder) -> None:
        self._folder, self._run = folder, folder.run
        self._lock = threading.Lock()  # of what follows
        self._thread: threading.Thread | None = None
        self._ended = False
        self._failed = self._note = self._wanted = ""  # `_wanted`: the name of which a person wants more
        self._reviewed = self._now.reviewed  # pictures at the last refit

    @property
    def possible(self) -> bool:
        """Whether this run can be taught."""
        return "teaching" in self._folder.settings and self._folder.writable

    @property
    def working(self) -> bool:
        """Whether it learns right now."""
        return self._thread is not None

    @property
    def _now(self) -> Generation:
        """What the drafts of now were made of."""
        return [Generation(), *self._run.taught_by][-1]

    @property
    def changed(self) -> frozenset[str]:
        """The pictures whose drafts the last refit changed."""
        return frozenset(self._now.changed)

    def state(self) -> dict[str, Any]:
        """What the page shows of it."""
        finished, now, message = len(self._run.reviewed()), self._now, self.message()
        working = self._thread is not None
        return {
            "working": working,
            "said": message,
            "names": now.lines(),
            "failed": self._failed,
            "drafts": f"{now.of} {now.undone}",  # changes with them
            "changed": len(now.changed),
            "undo": bool(now.changed) and not working,
            "ready": finished >= FEWEST_REVIEWED and not working,
        }

    def message(self) -> str:
        """What it does, or did last."""
        now, finished = self._now, len(self._run.reviewed())
        if self._thread is not None:
            return "Learning from your corrections …"
        if self._note and finished == self._reviewed:
            return self._note
        used = [taught for taught in now.names.values() if taught.used and not taught.exemplar]
        if finished < FEWEST_REVIEWED and not used:
            return f"Learns from your corrections, from {FEWEST_REVIEWED} reviewed pictures on; {finished} so far."
        more = max(1, self._reviewed + EVERY - finished)
        pictures = "1 more picture is" if more == 1 else f"{more} more pictures are"
        if now.undone:
            return f"Undone: the drafts are those from before. It learns again when {pictures} reviewed."
        if not used:
            return f"Drafts as before: nothing learnt that is better. It tries again when {pictures} reviewed."
        if not (reviewed := max(taught.reviewed for taught in used)):
            return f"Learnt from the folder itself: {max(taught.pictures for taught in used):,} pictures."
        before = sum(taught.before or 0 for taught in used if taught.reviewed)
        after = sum(taught.after or 0 for taught in used if taught.reviewed)
        return f"Learnt from {reviewed:,} pictures: {before:,} → {after:,} corrections on pictures left out."

    def consider(self) -> None:
        """Begins to learn in the background where enough was reviewed since it last did."""
        if self._due() and self.possible:  # the second asks the disk
            self._begin(again=False)

    def now(self) -> None:
        """Begins to learn in the background, as a person wants it."""
        if not self.possible:
            raise UsageError("this run keeps nothing to learn from: annotate the pictures with --teach on")
        if (finished := len(self._run.reviewed())) < FEWEST_REVIEWED:
            raise UsageError(f"expected {FEWEST_REVIEWED} reviewed pictures to learn from, got {finished}: review more")
        self._begin(again=True)

    def find_like(self, number: int, label: int) -> None:
        """Begins to look for things like a label's boxes in a picture, in the pictures where the model found none."""
        name, picture = self._folder.names[label], self._folder.pictures[number].id
        if not self.possible:
            raise UsageError("this run keeps nothing to find them by: annotate the pictures with --teach on")
        with self._folder.snapshot() as now:
            if label not in now.view(picture).boxes().labels:
                raise UsageError(f"expected a box of {name} in {picture}, found none: draw it first")
        with self._lock:
            if self._thread is not None:
                raise UsageError("it is learning right now: wait until it has learnt")
            self._run.exemplars = {**self._run.exemplars, name: picture}
            self._wanted = name
        self._begin(again=True)

    def end(self) -> None:
        """Nothing is learnt any more; waits for what is being learnt."""
        with self._lock:
            self._ended, thread = True, self._thread
        if thread is not None:
            thread.join()

    def _due(self) -> bool:
        return len(self._run.reviewed()) >= max(FEWEST_REVIEWED, self._reviewed + EVERY)

    def _begin(self, again: bool) -> None:
        with self._lock:
            if not self._ended and self._thread is None:
                self._thread = threading.Thread(target=self._work, args=(again,), name="learning from corrections")
                self._thread.start()

    def _work(self, again: bool) -> None:
        while True:
            self._learn(again)
            with self._lock:
                again = False
                if self._ended or not self._due():  # else more was reviewed meanwhile
                    self._thread = None
                    return

    def _learn(self, again: bool) -> None:
        before, finished, failed = self._now, len(self._run.reviewed()), ""
        try:
            with self._folder.snapshot() as folder:
                folder.update_prior()  # by all that is reviewed now
                teach(folder, again, write=self._run, stop=self._stop)
            self._folder.update_prior()
            self._write_learnt()
        except _EndedError:
            return
        except Exception as error:  # the editor goes on, whatever a full disk makes it trip over
            failed = f"Not learnt: {getattr(error, 'strerror', None) or error}"
        with self._lock:
            self._failed, self._reviewed = failed, finished
            self._note = "" if failed or self._now != before else "Nothing new to learn from."
            if not failed and (found := self._now.names.get(self._wanted)):
                self._note = f"{self._wanted}: {found.why}."
            self._wanted = ""

    def _stop(self) -> None:
        if self._ended:
            raise _EndedError

    def _write_learnt(self) -> None:
        with self._run.store.transaction():  # one editor after the other
            write_learnt(self._folder.out, self._run.learnt())

    def undo(self) -> None:
        """Goes back to the drafts before the last refit, but for pictures that somebody has touched since."""
        with self._lock:
            if self._thread is not None:
                raise UsageError("it is learning right now: wait until it has learnt, then undo that")
            if not self._now.changed:
                raise UsageError("there are no earlier drafts to go back to: nothing was learnt since")
            finished = len(self._run.reviewed())
            self._run.undo(finished)
            self._run.exemplars = {}
            self._folder.update_prior()
            self._reviewed, self._note, self._failed = finished, "", ""
            self._write_learnt()


# ---------------------------------------------------------------------------------------------------------- suggestions
MARGIN = 0.15  # of a box's side, in which it is not split
FLAT = 0.95  # heat of a valley, as a share of the lower hill's, from which it is none
HILL = 0.2  # of the highest one
HEAT_SIDE = 480  # longest side of the heat that is shown
# Options of the drafts that change what a suggestion shows. Weights are not among them: the model is loaded by name.
OPTIONS = (
    "method", "refine", "scales", "windows", "flip", "threshold", "split_peaks", "min_score", "resize", "image_size",
)  # fmt: skip


def options_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options with which a localizer finds what a run with these settings drafted."""
    options = {name: settings[name] for name in OPTIONS}
    return {**options, "method_options": settings["options"], "second_look": "second_look" in settings}


class Suggester:
    """One model, which computes one picture at a time; loaded when it is first asked."""

    def __init__(self, model: str, **options: Any) -> None:
        self._model, self._options = model, options
        self._last: tuple[Hashable, Localization] | None = None
        self._lock = threading.Lock()

    def heat(self, image: Image.Image, picture: Hashable, name: str) -> tuple[bytes, float, str]:
        """The heat of a name over the picture as PNG, τ that the model's boxes have, and a sentence for the user."""
        localization = self._found(image, picture, name)
        heat = localization.heatmaps[0]
        image = Image.fromarray((heat / max(float(heat.max()), 1e-6) * 255).round().astype(np.uint8))
        image.thumbnail((HEAT_SIDE, HEAT_SIDE))
        reason = f"{localization.reasons[0]}; " if localization.reasons[0] else ""
        message = f"{localization.names[0]}: {reason}click in a hot region to make a box"
        return picture_bytes(image, "PNG"), self._threshold(localization), message

    def box(
        self, image: Image.Image, picture: Hashable, name: str, threshold: float | None, at: tuple[float, float]
    ) -> tuple[list[float], str]:
        """The box round the region hotter than τ (None: the model's) that a point is in, and its compressed counts."""
        localization = self._found(image, picture, name)
        tau = self._threshold(localization) if threshold is None else threshold
        rule = replace(self._localizer.box_rule, threshold=tau)
        hot = name_mask(localization.frame, localization.maps[0], rule)
        _, regions, stats, _ = cv2.connectedComponentsWithStats(hot.astype(np.uint8), connectivity=rule.connectivity)
        height, width = hot.shape
        column, row = (int(min(max(value, 0), side - 1)) for value, side in zip(at, (width, height), strict=True))
        number = regions[row, column]
        if not number:
            raise InputError("the map is not hot there: click in the hot region, or lower the threshold")
        x, y, w, h, _ = stats[number].astype(float).tolist()
        return [x, y, x + w, y + h], encode(regions == number)["counts"]

    def cut(self, image: Image.Image, picture: Hashable, name: str, xyxy: Box) -> tuple[int, float]:
        """Where the heat in a box is least between two hot parts: the axis (0: x), and the place on it."""
        localization = self._found(image, picture, name)
        x0, y0, x1, y1 = np.clip(localization.frame.to_input(np.array([xyxy]))[0].round().astype(int), 0, None).tolist()
        heat = localization.maps[0][y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
        cuts = [valley(heat.mean(axis=1 - axis)) for axis in (0, 1)]  # of rows and of columns
        depth, place, axis = min((*cuts[1 - axis], axis) for axis in (0, 1))
        wide = xyxy[2] - xyxy[0] >= xyxy[3] - xyxy[1]
        if depth > FLAT:  # there are no two parts
            place, axis = 0.5, 1 - int(wide)
        return axis, round(xyxy[axis] + place * (xyxy[axis + 2] - xyxy[axis]), 2)

    def _threshold(self, localization: Localization) -> float:
        """τ that the model's boxes have on this map, as a number."""
        x0, y0, x1, y1 = localization.frame.visible_xyxy
        return share_of_peak(localization.maps[0, y0:y1, x0:x1], self._localizer.box_rule.threshold)

    def _found(self, image: Image.Image, picture: Hashable, name: str) -> Localization:
        """What is found; a second call for the same id of a picture and name does not compute again."""
        if not name.strip() or "@" in name or not name.isprintable():  # the command line reads @FILE as a picture
            raise InputError("expected a name, such as cat or cat|kitten")
        with self._lock:  # one at a time
            key = (picture, name)
            if self._last is None or self._last[0] != key:
                if unknown := self._localizer.unknown_names([name]):
                    raise InputError(next(iter(unknown.values())))
                self._last = (key, self._localizer(image, [name]))
            return self._last[1]

    @cached_property
    def _localizer(self) -> Localizer:
        return Localizer(self._model, **self._options)


def valley(profile: Floats) -> tuple[float, float]:
    """The lowest valley of a profile: its heat as a share of the lower hill's beside it, and its place in 0–1."""
    count = len(profile)
    low, high = int(np.ceil(MARGIN * count)), int(np.floor((1 - MARGIN) * count))
    if high - low < 1:
        return 1.0, 0.5
    hills = np.minimum(np.maximum.accumulate(profile), np.maximum.accumulate(profile[::-1])[::-1])
    ratios = np.where(hills > HILL * profile.max(), profile / np.maximum(hills, 1e-9), 1.0)[low:high]
    return float(ratios.min()), (low + int(ratios.argmin()) + 0.5) / count

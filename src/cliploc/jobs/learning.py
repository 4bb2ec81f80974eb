"""A reviewed folder learns in a thread; touched pictures stay, and the drafts before the last refit are kept."""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cliploc._documents import Taught
from cliploc._files import write_whole
from cliploc.errors import UsageError
from cliploc.jobs.annotation_results import AnnotatedFolder
from cliploc.jobs.annotation_rows import LEARNT, LEARNT_BEFORE, TAUGHT_BEFORE, TaughtRows, read_taught, taught_lines
from cliploc.jobs.annotator import Row
from cliploc.jobs.teach import FEWEST_REVIEWED, Refit, Teaching, teach, write_learnt

if TYPE_CHECKING:
    from cliploc.jobs.review_folder import ReviewFolder

EVERY = 3  # reviewed pictures, after which the folder learns again
MOVED = 0.5  # pixels; a box that moved by less is the same draft


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
        finished, left = self._folder.finished, self._folder.left
        with self._lock:
            facts = {} if self._now is None else self._now.facts
            names = {name: Taught(**one) for name, one in facts.get("names", {}).items()}
            teaching = Teaching(names, left, facts.get("reviewed", 0))
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
        if finished < FEWEST_REVIEWED and not any(one.used for one in teaching.names.values()):
            return f"Learns from your corrections, from {FEWEST_REVIEWED} reviewed pictures on; {finished} so far."
        more = max(1, self._reviewed + EVERY - finished)
        pictures = "1 more picture is" if more == 1 else f"{more} more pictures are"
        if self._undone:
            return f"Undone: the drafts are those from before. It learns again when {pictures} reviewed."
        used = [one for one in teaching.names.values() if one.used]
        if not used:
            return f"Drafts as before: nothing learnt that is better. It tries again when {pictures} reviewed."
        if not (reviewed := max(one.reviewed for one in used)):
            return f"Learnt from the {max(one.pictures for one in used):,} pictures that show it."
        saved = sum(one.saved(teaching.left) for one in used)
        ending = f": about {saved:,} corrections saved" if saved else ""
        return f"Learnt from {reviewed:,} pictures{ending}."

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
        try:
            teach(folder, self._folder.settings, lambda refit: self._keep(folder, refit), again)
        except _EndedError:
            return
        except Exception as error:  # the editor goes on, whatever a full disk or a damaged file makes it trip over
            failed = f"Not learnt: {getattr(error, 'strerror', None) or error}"
        with self._lock:
            self._failed, self._reviewed = failed, folder.count_finished()
            self._note = "" if failed or self._now is not before else "Nothing new to learn from."

    def _keep(self, folder: AnnotatedFolder, refit: Refit) -> None:
        """Writes new drafts; those of now are kept beside them."""
        rows: dict[str, Row] = {}
        for row in refit.rows:
            rows[row["picture"]] = row
            if self._ended:
                raise _EndedError
        out, before, changed = self._folder.out, folder.results.taught, _changed(folder, rows)
        facts: Mapping[str, Any] = {"of": "", "run": self._run, "names": {}} if self._now is None else self._now.facts
        if changed:
            facts = {**facts, "followed": refit.facts["of"], "changed": changed}
            _write(out / TAUGHT_BEFORE, taught_lines(facts, before.values()))
            _copy(out / LEARNT, out / LEARNT_BEFORE)
        write_learnt(out, refit.learnt)
        self._folder.redraw(refit.facts, rows)
        with self._lock:
            self._now, self._before = TaughtRows(refit.facts, rows), TaughtRows(facts, before) if changed else None

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
    names = [one.id for one in folder.annotated() if not folder.touched(one.id)]
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

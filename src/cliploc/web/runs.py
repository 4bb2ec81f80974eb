"""Looks that take long: each in a thread of its own, so that the page can say how far it is and stop it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from cliploc.errors import UsageError

T = TypeVar("T")
Work = Callable[[Callable[[int, int], None]], T]
STOPPED = "Stopped, as you asked."
MAX_SECONDS = 300.0  # that a run may take
GRACE_SECONDS = 5.0  # after that time, for a step that cannot be cut short
ENDING = "The page is being shut down: ask again when it is back."


class StoppedError(UsageError):
    """The visitor asked to stop, or left, or the server ends."""


class Run(Generic[T]):
    """One piece of work that counts, and ends early when it is told to, or when its time is over.

    Args:
        work: called with a function that it calls with the number of steps just done and of those left; that function
            raises `StoppedError` once the run is stopped.
        seconds: that it may take.

    Example:
        >>> run = Run(lambda count: count(3, 0) or "done")
        >>> list(run.steps(0.01))[-1:], run.result()
        ([(3, 0)], 'done')
    """

    def __init__(self, work: Work[T], seconds: float = MAX_SECONDS) -> None:
        self._steps = 0, 0  # done, left
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        self._work = work
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._carry_out, name="cliploc-look", daemon=True)
        self._outcome: list[T] = []
        self._error: BaseException | None = None
        self._thread.start()

    def stop(self) -> None:
        """The work ends at its next step."""
        self._stop.set()

    def steps(self, every: float = 0.5) -> Iterator[tuple[int, int]]:
        """The number of steps done and of those left, whenever so many seconds have passed, and once at the end.

        Whoever closes the iterator stops the run.
        """
        try:
            while self._thread.is_alive() and not self._abandoned:
                self._thread.join(every)
                yield self._steps
            yield self._steps
        finally:
            self.stop()

    def result(self) -> T:
        """What the work returned, or raises what it raised; waits for it.

        Raises:
            StoppedError: it was stopped, or its time is over. Work that does not end then is not waited for.
        """
        self._thread.join(max(0.0, self._until + GRACE_SECONDS - time.monotonic()))
        if self._abandoned:
            self.stop()
            raise StoppedError(self._too_long)
        if self._error is not None:
            raise self._error
        return self._outcome[0]

    @property
    def _abandoned(self) -> bool:
        return self._thread.is_alive() and time.monotonic() > self._until + GRACE_SECONDS

    @property
    def _too_long(self) -> str:
        return f"It took longer than {self._seconds:g} seconds: ask for fewer names, or use a faster method."

    def _carry_out(self) -> None:
        try:
            self._outcome.append(self._work(self._count))
        except BaseException as error:
            self._error = error

    def _count(self, done: int, left: int) -> None:
        if time.monotonic() > self._until:
            raise StoppedError(self._too_long)
        if self._stop.is_set():
            raise StoppedError(STOPPED)
        self._steps = self._steps[0] + done, left


class Runs:
    """The runs of all visitors, each for as long as somebody has it.

    Args:
        seconds: that each may take.
    """

    def __init__(self, seconds: float = MAX_SECONDS) -> None:
        self._seconds = seconds
        self._runs: WeakKeyDictionary[Run[Any], str] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self._ended = False

    def begin(self, visitor: str | None, work: Work[T], *, alone: bool = False) -> Run[T]:
        """Starts a run of a visitor; `alone`: those that he has still are stopped.

        Raises:
            StoppedError: all were ended.
        """
        if alone:
            self.stop(visitor)
        with self._lock:
            if self._ended:
                raise StoppedError(ENDING)
            run = Run(work, self._seconds)
            self._runs[run] = visitor or ""
        return run

    def stop(self, visitor: str | None) -> None:
        """Stops a visitor's runs."""
        with self._lock:
            mine = [run for run, owner in self._runs.items() if owner == (visitor or "")]
        for run in mine:
            run.stop()

    def end(self) -> None:
        """Stops every run and lets none begin, such as one whose turn comes when another was stopped."""
        with self._lock:
            self._ended = True
            runs = list(self._runs)
        for run in runs:
            run.stop()

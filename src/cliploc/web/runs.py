"""Work that takes long. Each piece runs in a thread of its own, so that the page can show its progress and stop it."""

import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from cliploc.errors import UsageError
from cliploc.reporter import Reporter

T = TypeVar("T")
Work = Callable[[Reporter], T]
STOPPED = "Stopped, as you asked."
MAX_SECONDS = 300.0  # time limit of a run
GRACE_SECONDS = 5.0  # further time for a step that cannot be interrupted
ENDING = "The server is shutting down: try again when it is back."


class StoppedError(UsageError):
    """The work was ended: by the visitor, by the time limit, or because the server shuts down."""


class Run(Generic[T]):
    """One piece of work in a thread, that can be stopped: whatever it reports then raises `StoppedError`."""

    def __init__(self, work: Work[T], seconds: float = MAX_SECONDS) -> None:
        self.steps = 0, 0  # masked pictures that are done, and that are left
        self.bank = 0, 0  # the same of the names of the bank
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        self._work = work
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._carry_out, name="cliploc-look", daemon=True)
        self._outcome: list[T] = []
        self._error: BaseException | None = None
        self._thread.start()

    def stop(self) -> None:
        """Ends the work at its next step."""
        self._stop.set()

    def wait(self, seconds: float) -> bool:
        """Waits for the end of the work, at most so long; returns whether `result` gives its outcome at once."""
        self._thread.join(seconds)
        return not self._thread.is_alive() or self._abandoned

    def result(self) -> T:
        """Waits for the work, and returns what it returned or raises what it raised."""
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
        reporter = Reporter(phase=self._go_on, images=self._go_on, masked=self._count, bank=self._count_bank)
        try:
            self._outcome.append(self._work(reporter))
        except BaseException as error:
            self._error = error

    def _count(self, done: int, left: int) -> None:
        self._go_on()
        self.steps = self.steps[0] + done, left

    def _count_bank(self, done: int, left: int) -> None:
        self._go_on()
        self.bank = self.bank[0] + done, left

    def _go_on(self, *_: object) -> None:
        if time.monotonic() > self._until:
            raise StoppedError(self._too_long)
        if self._stop.is_set():
            raise StoppedError(STOPPED)


class Runs:
    """The runs of all visitors; a run that nothing refers to any more is forgotten."""

    def __init__(self, seconds: float = MAX_SECONDS) -> None:
        self._seconds = seconds
        self._runs: WeakKeyDictionary[Run[Any], str] = WeakKeyDictionary()
        self._lock = threading.Lock()
        self._ended = False

    def begin(self, visitor: str, work: Work[T], *, alone: bool = False) -> Run[T]:
        """Starts a run for a visitor."""
        if alone:
            self.stop(visitor)
        with self._lock:
            if self._ended:
                raise StoppedError(ENDING)
            run = Run(work, self._seconds)
            self._runs[run] = visitor
        return run

    def stop(self, visitor: str | None = None) -> None:
        """Stops a visitor's runs, or all."""
        with self._lock:
            mine = [run for run, owner in self._runs.items() if visitor in (None, owner)]
        for run in mine:
            run.stop()

    def end(self) -> None:
        """Stops every run and refuses new ones, such as a queued one whose turn comes when another was stopped."""
        with self._lock:
            self._ended = True
        self.stop()

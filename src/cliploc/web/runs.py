"""Work that takes long. Each piece runs in a thread of its own, so that the page can show its progress and stop it."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from cliploc.errors import UsageError
from cliploc.support.reporter import Reporter

T = TypeVar("T")
Work = Callable[[Reporter], T]
STOPPED = "Stopped, as you asked."
MAX_SECONDS = 300.0  # time limit of a run
ENDING = "The server is shutting down: try again when it is back."


class StoppedError(UsageError):
    """The work was ended: by the visitor, by the time limit, or because the server shuts down."""


class Run(Generic[T]):
    """One piece of work in a thread, that can be stopped: whatever it reports then raises `StoppedError`.

    Work that computes long reports several times a second.
    """

    def __init__(self, work: Work[T], seconds: float = MAX_SECONDS) -> None:
        self.steps = 0, 0  # masked pictures that are done, and that are left
        self.bank = 0, 0  # the same of the names of the bank
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        self._stop = threading.Event()
        self._outcome: Future[T] = Future()
        threading.Thread(target=self._carry_out, args=(work,), name="cliploc-look", daemon=True).start()

    def stop(self) -> None:
        """Ends the work at its next step."""
        self._stop.set()

    def wait(self, seconds: float) -> bool:
        """Waits for the end of the work, at most so long; returns whether it has ended."""
        wait_for((self._outcome,), seconds)
        return self._outcome.done()

    def result(self) -> T:
        """Waits for the work, and returns what it returned or raises what it raised."""
        return self._outcome.result()

    def _carry_out(self, work: Work[T]) -> None:
        reporter = Reporter(phase=self._go_on, images=self._go_on, masked=self._count, bank=self._count_bank)
        try:
            self._outcome.set_result(work(reporter))
        except BaseException as error:
            self._outcome.set_exception(error)

    def _count(self, done: int, left: int) -> None:
        self._go_on()
        self.steps = self.steps[0] + done, left

    def _count_bank(self, done: int, left: int) -> None:
        self._go_on()
        self.bank = self.bank[0] + done, left

    def _go_on(self, *_: object) -> None:
        if time.monotonic() > self._until:
            raise StoppedError(
                f"It took longer than {self._seconds:g} seconds: ask for fewer names, or use a faster method."
            )
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

"""Work that takes long: a few pieces at once, the others in order; each tells how far it is, and can be stopped."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Generic, TypeVar

from cliploc import Reporter, UsageError
from cliploc.web.server import RefusedError

T = TypeVar("T")
Work = Callable[[Reporter], T]
AT_ONCE = 2  # while one has the model, another's picture is read, or its boxes are cut: docs/studies/cost.md
MAX_SECONDS = 300.0  # time limit of a run


class StoppedError(UsageError):
    """The work was ended: by the visitor, by the time limit, or because the server shuts down."""


class Run(Generic[T]):
    """One piece of work; once it is stopped, whatever it reports raises `StoppedError`."""

    future: Future[T]

    def __init__(self, visitor: str, work: Work[T], seconds: float) -> None:
        self.visitor = visitor
        self.began: float | None = None  # None while it waits
        self.steps = 0, 0  # masked pictures that are done, and that are left
        self.bank = 0, 0  # the same of the names of the bank
        self._work, self._seconds, self._stopped = work, seconds, False

    def stop(self) -> None:
        """Ends the work at its next step."""
        self._stopped = True

    def carry_out(self) -> T:
        """Does the work."""
        self.began = time.monotonic()
        self._go_on()
        masked, bank = partial(self._count, "steps"), partial(self._count, "bank")
        return self._work(Reporter(phase=self._go_on, images=self._go_on, masked=masked, bank=bank))

    def _count(self, what: str, done: int, left: int) -> None:
        self._go_on()
        setattr(self, what, (getattr(self, what)[0] + done, left))

    def _go_on(self, *_: object) -> None:
        if self._stopped:
            raise StoppedError("Stopped, as you asked.")
        if time.monotonic() > (self.began or 0) + self._seconds:
            limit = f"{self._seconds:g} seconds"
            raise StoppedError(f"It took longer than {limit}: ask for fewer names, or use a faster method.")


class Runs:
    """The runs of all visitors, in threads of their own, and those that wait."""

    def __init__(self, seconds: float = MAX_SECONDS, queue: int | None = None) -> None:
        self._seconds, self._queue = seconds, queue
        # No thread a request: the allocator has a heap for each, and cached features keep heaps from shrinking.
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="cliploc-run")
        self._runs: list[Run[Any]] = []
        self._lock = threading.Lock()
        self._ended = False

    def begin(self, visitor: str, work: Work[T]) -> Run[T]:
        """A run, which ends the visitor's others; "" is a visitor without any."""
        self.stop(visitor)
        run = Run(visitor, work, self._seconds)
        with self._lock:
            if self._ended:
                raise StoppedError("The server is shutting down: try again when it is back.")
            if self._queue is not None and len(self._runs) >= self._queue + AT_ONCE:
                raise RefusedError(503, "Too many requests are waiting: try again in a minute.")
            self._runs.append(run)
            run.future = self._pool.submit(run.carry_out)
        run.future.add_done_callback(lambda _: self._runs.remove(run))
        return run

    def stop(self, visitor: str) -> None:
        """Stops a visitor's runs."""
        for run in list(self._runs) if visitor else ():
            if run.visitor == visitor:
                run.stop()

    def end(self) -> None:
        """Stops every run and refuses new ones."""
        self._ended = True
        for run in list(self._runs):
            run.stop()

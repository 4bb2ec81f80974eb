"""Threads: the tower sees the next batch while the caller's thread makes the results of this one; torch's modes."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, Self, TypeAlias, TypeVar

import torch

from cliploc.errors import ModelError, UsageError
from cliploc.support.process import halves, out_of_memory

S = TypeVar("S")
T = TypeVar("T")
Progress: TypeAlias = Callable[[int, int], None]


GIVE_UP_AFTER = 8  # failures of a model that has given nothing yet: it is broken


class _StoppedError(Exception):
    """The job was given up."""


class _Work(Generic[T]):
    """Work in a pool's thread, with as many threads of torch as this thread has; it tells its steps by two numbers."""

    def __init__(self, pool: ThreadPoolExecutor, work: Callable[[Progress], T]) -> None:
        self._news: SimpleQueue[tuple[int, int] | None] = SimpleQueue()
        self._stopped = False
        threads = torch.get_num_threads()

        def run() -> T:
            if torch.get_num_threads() != threads:  # each thread has its own number
                torch.set_num_threads(threads)
            return work(self._tell)

        self._future: Future[T] | None = pool.submit(run)
        self._future.add_done_callback(lambda _: self._news.put(None))

    def result(self, progress: Progress) -> T:
        """Its result, or the error that it raised; asked for once."""
        while (news := self._news.get()) is not None:
            progress(*news)
        future, self._future = self._future, None
        assert future is not None
        try:
            return future.result()
        finally:
            del future  # an error must not live on in it, with whatever its frames keep in memory

    def stop(self) -> None:
        """Gives up the work, which ends at its next call of its function."""
        if self._future is not None and not self._future.cancel():
            self._stopped = True
            self._future.exception()  # waits

    def _tell(self, done: int, left: int) -> None:
        if self._stopped:
            raise _StoppedError
        self._news.put((done, left))


@dataclass
class _Batch(Generic[S, T]):
    items: Sequence[S]
    job: _Work[Callable[[], T]] | None = None  # None: not begun, or given up


class Ahead(Generic[S, T]):
    """Batches with what is made of them; `told` of steps, `halved` of a batch's size.

    `work` runs for the next batch in a thread; the call that it returns makes the rest, in the caller's thread.
    An error of `batches` comes after the results before it. `apart`: after a `ModelError` the items of the batch are
    done alone, and the error is the result of those that fail, until so many failed that nothing seems to work.
    """

    def __init__(
        self,
        batches: Iterator[Sequence[S]],
        work: Callable[[Sequence[S], Progress], Callable[[], T]],
        progress: Progress,
        halved: Callable[[int], None],
        apart: bool = False,
    ) -> None:
        self._apart = apart
        self._batches, self._work, self._progress, self._halved = batches, work, progress, halved
        self._pool = ThreadPoolExecutor(1, "cliploc-tower")
        self._now: _Batch[S, T] | None = None
        self._next: _Batch[S, T] | None = None
        self._error: Exception | None = None  # of the batch that could not be taken

    def __iter__(self) -> Iterator[tuple[Sequence[S], T | ModelError]]:
        """Each batch with its result, or its parts where the memory lacks for all of it."""
        self._now, worked, failures = self._taken(), False, 0
        while (batch := self._now) is not None:
            if batch.job is not None:  # the thread is busy: time to wait for the next batch
                self._begin_next()
            parts = [batch.items]
            while parts:
                part, failed = parts.pop(0), None
                try:
                    rest = self._work(part, self._progress) if batch.job is None else batch.job.result(self._progress)
                    if part is batch.items:
                        self._begin_next()
                    made = rest()
                    del rest  # what it holds is large
                except ModelError as error:
                    if not self._apart or (not worked and failures == GIVE_UP_AFTER):
                        raise
                    failed = ModelError(str(error))  # without what its frames hold
                except (RuntimeError, MemoryError) as error:
                    if len(part) < 2 or not out_of_memory(error):
                        raise
                else:
                    worked = worked or made is not None
                    yield part, made
                    continue
                self._stop()
                if failed is None:
                    self._halved(len(part))
                    parts = [*halves(part), *parts]
                elif len(part) > 1:
                    parts = [*([item] for item in part), *parts]
                else:
                    failures += 1
                    yield part, failed
            self._begin_next()
            self._now, self._next = self._next, None
        if self._error is not None:
            raise self._error

    def _begin_next(self) -> None:
        """Takes the next batch and begins its job, if that has not happened yet."""
        if self._next is None and (taken := self._taken()) is not None:
            taken.job = _Work(self._pool, partial(self._work, taken.items))
            self._next = taken

    def _taken(self) -> _Batch[S, T] | None:
        try:
            return _Batch(next(self._batches))
        except StopIteration:
            return None
        except Exception as error:
            self._error = error
            return None

    def _stop(self) -> None:
        """Gives up the jobs that were begun; they are done anew, by who asks for the results."""
        for batch in (self._now, self._next):
            if batch is not None and batch.job is not None:
                batch.job.stop()
                batch.job = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()
        self._pool.shutdown()


# -------------------------------------------------------------------------------------------------------- torch's modes
_process = os.getpid()  # in which torch may have started threads


def _after_fork(device: torch.device) -> None:
    """Sets one thread in a forked process: it has none of its parent's threads, and would wait for them for ever."""
    global _process
    if os.getpid() == _process:
        return
    if device.type != "cpu":
        raise UsageError(
            f"expected a model on the CPU in a forked process, got one on {device}: start the process with "
            "multiprocessing.get_context('spawn')"
        )
    torch.set_num_threads(1)
    _process = os.getpid()


@contextmanager
def torch_modes(of: str | torch.device) -> Iterator[None]:
    """No gradients, no autocast, the CPU as default device; the default dtype is all threads', so not changed."""
    device = torch.device(of)
    _after_fork(device)
    with ExitStack() as modes:
        if torch.is_inference_mode_enabled():  # in which no method could have gradients
            modes.enter_context(torch.inference_mode(False))
        modes.enter_context(torch.no_grad())
        for kind in {"cpu", device.type}:
            if torch.is_autocast_enabled(kind):
                modes.enter_context(torch.autocast(kind, enabled=False))
        if torch.empty(0).device.type != "cpu":  # torch 2.4's get_default_device does not see `with torch.device`
            modes.enter_context(torch.device("cpu"))
        yield

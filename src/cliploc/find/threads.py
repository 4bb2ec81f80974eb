"""The tower sees the next batch in a thread while the caller's thread makes the results of this one."""

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeAlias, TypeVar

import torch

from cliploc.errors import ModelError
from cliploc.support.process import halves, out_of_memory

S = TypeVar("S")
T = TypeVar("T")
Progress: TypeAlias = Callable[[int, int], None]

GIVE_UP_AFTER = 8  # failures of a model that has given nothing yet: it is broken


class _StoppedError(Exception):
    """The job was given up."""


class _Job(Generic[T]):
    """Work in a pool's thread, with as many threads of torch as this thread has."""

    def __init__(self, pool: ThreadPoolExecutor, work: Callable[[Progress], T], progress: Progress) -> None:
        self._stopped = False
        threads = torch.get_num_threads()

        def tell(done: int, left: int) -> None:
            if self._stopped:
                raise _StoppedError
            progress(done, left)

        def run() -> T:
            if torch.get_num_threads() != threads:  # each thread has its own number
                torch.set_num_threads(threads)
            return work(tell)

        self._future: Future[T] | None = pool.submit(run)

    def result(self) -> T:
        """Its result, or the error that it raised; asked for once."""
        future, self._future = self._future, None
        assert future is not None
        try:
            return future.result()
        finally:
            del future  # an error must not live on in it, with whatever its frames keep in memory

    def stop(self) -> None:
        """Gives up the work, which ends when it next tells its progress."""
        if self._future is not None and not self._future.cancel():
            self._stopped = True
            self._future.exception()  # waits


@dataclass
class _Batch(Generic[S, T]):
    items: Sequence[S]
    job: _Job[Callable[[], T]] | None = None  # None: not begun, or given up


def computed_ahead(
    batches: Iterator[Sequence[S]],
    work: Callable[[Sequence[S], Progress], Callable[[], T]],
    progress: Progress,  # told in the thread that computes
    halved: Callable[[int], None],  # told of a batch's size
    apart: bool = False,
) -> Generator[tuple[Sequence[S], T | ModelError], None, None]:
    """Each batch with what is made of it, or its parts where the memory lacks for all of it; close it after use.

    `work` runs for the next batch in a thread; the call that it returns makes the rest, in the caller's thread.
    An error of `batches` comes after the results before it. `apart`: after a `ModelError` the items of the batch are
    done alone, and the error is the result of those that fail, until so many failed that nothing seems to work.
    """
    error: Exception | None = None  # of the batch that could not be taken

    def taken() -> _Batch[S, T] | None:
        nonlocal error
        try:
            return _Batch(next(batches))
        except StopIteration:
            return None
        except Exception as raised:
            error = raised
            return None

    def begin_following() -> None:
        nonlocal following
        if following is None and (following := taken()) is not None:
            following.job = _Job(pool, partial(work, following.items), progress)

    def stop() -> None:  # what was given up is done anew, in the caller's thread
        for batch in (now, following):
            if batch is not None and batch.job is not None:
                batch.job.stop()
                batch.job = None

    pool = ThreadPoolExecutor(1, "cliploc-tower")
    now, worked, failures = taken(), False, 0
    following: _Batch[S, T] | None = None
    try:
        while now is not None:
            if now.job is not None:  # the thread is busy: time to wait for the next batch
                begin_following()
            parts = [now.items]
            while parts:
                part, failed = parts.pop(0), None
                try:
                    rest = work(part, progress) if now.job is None else now.job.result()
                    if part is now.items:
                        begin_following()
                    made = rest()
                    del rest  # what it holds is large
                except ModelError as model_error:
                    if not apart or (not worked and failures == GIVE_UP_AFTER):
                        raise
                    failed = ModelError(str(model_error))  # without what its frames hold
                except (RuntimeError, MemoryError) as memory_error:
                    if len(part) < 2 or not out_of_memory(memory_error):
                        raise
                else:
                    worked = worked or made is not None
                    yield part, made
                    continue
                stop()
                if failed is None:
                    halved(len(part))
                    parts = [*halves(part), *parts]
                elif len(part) > 1:
                    parts = [*([item] for item in part), *parts]
                else:
                    failures += 1
                    yield part, failed
            begin_following()
            now, following = following, None
        if error is not None:
            raise error
    finally:
        stop()
        pool.shutdown()

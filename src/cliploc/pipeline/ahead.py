"""Work done ahead: the tower computes the next batch while the caller takes the results of this one."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, Self, TypeAlias, TypeVar

import torch

S = TypeVar("S")
T = TypeVar("T")
Tell: TypeAlias = Callable[[int, int], None]


class _StoppedError(Exception):
    """The job was given up."""


class Job(Generic[T]):
    """A piece of work, by a thread if begun, else by who asks; it gets a function of two numbers to tell its steps."""

    def __init__(self, work: Callable[[Tell], T]) -> None:
        self._work = work
        self._news: SimpleQueue[tuple[int, int] | None] = SimpleQueue()
        self._future: Future[T] | None = None
        self._stopped = False

    @property
    def begun(self) -> bool:
        """Whether another thread does it."""
        return self._future is not None

    def begin(self, pool: ThreadPoolExecutor) -> None:
        """Begins it in a pool's thread, with as many threads of torch as this thread has."""
        threads = torch.get_num_threads()

        def run() -> T:
            if torch.get_num_threads() != threads:  # each thread has its own number
                torch.set_num_threads(threads)
            return self._work(self._tell)

        self._future = pool.submit(run)
        self._future.add_done_callback(lambda _: self._news.put(None))

    def result(self, told: Tell) -> T:
        """Its result, or the error that it raised; asked for once."""
        if self._future is None:
            return self._work(told)
        while (news := self._news.get()) is not None:
            told(*news)
        future, self._future = self._future, None
        try:
            return future.result()
        finally:
            del future  # an error must not live on in it, with whatever its frames keep in memory

    def stop(self) -> None:
        """Gives up the work in the other thread, which ends at its next call of its function. It can be done anew."""
        if self._future is not None:
            self._stopped = True
            if not self._future.cancel():
                self._future.exception()  # waits
            self._future, self._news, self._stopped = None, SimpleQueue(), False

    def _tell(self, done: int, left: int) -> None:
        if self._stopped:
            raise _StoppedError
        self._news.put((done, left))


class Ahead(Generic[S, T]):
    """Items with their jobs, the next one's in a thread; an error of `items` comes after the results before it."""

    def __init__(self, items: Iterator[S], work: Callable[[S, Tell], T]) -> None:
        self._items, self._work = items, work
        self._pool = ThreadPoolExecutor(1, "cliploc-tower")
        self._jobs: list[Job[T]] = []  # this one and the next
        self._following: tuple[S, Job[T]] | Exception | None = None
        self._ended = False

    def __iter__(self) -> Iterator[tuple[S, Job[T]]]:
        """Each item with its job. The caller asks for the result, and then calls `go_on` before it uses the result."""
        self._take()
        while self._following is not None:
            if isinstance(self._following, Exception):
                raise self._following
            (item, job), self._following = self._following, None
            self._jobs = [job]
            if job.begun:  # the thread is busy: time to wait for the next item
                self.go_on()
            yield item, job
            del item, job
            self.go_on()

    def go_on(self) -> None:
        """Takes the next item and begins its job, if that has not happened yet."""
        if self._following is None:
            self._take()
            if isinstance(self._following, tuple):
                self._jobs.append(self._following[1])
                self._following[1].begin(self._pool)

    def stop(self) -> None:
        """Gives up the jobs that were begun; one is done anew when its result is asked for."""
        for job in self._jobs:
            job.stop()

    def _take(self) -> None:
        if self._ended:
            return
        try:
            item = next(self._items)
        except StopIteration:
            self._ended = True
        except Exception as error:
            self._ended, self._following = True, error
        else:
            self._following = item, Job(partial(self._work, item))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        self._pool.shutdown()

"""How a model runs: on which device, in which of torch's modes, and a batch ahead of who takes the results."""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeAlias, TypeVar

import torch

from cliploc import towers
from cliploc.errors import ModelError, UsageError
from cliploc.support.process import halves, out_of_memory
from cliploc.towers.tower import Backbone

S = TypeVar("S")
T = TypeVar("T")
Progress: TypeAlias = Callable[[int, int], None]

GIVE_UP_AFTER = 8  # failures of a model that has given nothing yet: it is broken


def check_device(device: str | None) -> str:
    """A device, which this machine must have; None: the first that it has of "cuda", "mps" and "cpu"."""
    has_cuda, mps = torch.cuda.is_available(), ["mps"] if torch.backends.mps.is_available() else []
    if device is None:
        return "cuda" if has_cuda else [*mps, "cpu"][0]
    available = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count())), *mps]
    if device not in available and not (device == "cuda" and has_cuda):
        raise UsageError(f"expected a device of this machine ({', '.join(available)}), got {device!r}: leave it out")
    return device


def create(model: str, pretrained: str | None, device: str | None, precision: str) -> Backbone:
    """The model by its name, on a device; None: the best."""
    device = check_device(device)
    with torch_modes(device):
        return towers.create(model, pretrained, device, precision=precision)


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


# ---------------------------------------------------------------------------------------------------- a batch ahead
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
    now: _Batch[S, T] | None = None
    following: _Batch[S, T] | None = None

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

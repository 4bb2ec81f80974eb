"""Between a run and its engine: shards in, parts and notes out; a part depends on its shard and settings only."""

from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

from cliploc.errors import ModelError
from cliploc.support.process import out_of_memory
from cliploc.support.reporter import SILENT, Reporter, halved_note


@dataclass(frozen=True)
class Shard:
    """A group of samples that are computed together."""

    index: int  # its place in the run, and the name of its part
    # a whole number of batches, except in the last shard. Objects with an `id` that the run's worker takes: `Sample` in
    # a benchmark, `PictureFile` in an annotation.
    samples: tuple[Any, ...]


@dataclass(frozen=True)
class Part:
    """The results of a shard."""

    index: int  # index of the shard
    content: Any  # as the run takes it
    notes: tuple[str, ...] = ()  # remarks for the end of the run, such as a halved batch


class Worker(Protocol):
    """Holds the models and turns shards into parts."""

    def stream(self, shards: Iterable[Shard], reporter: Reporter = SILENT) -> Generator[Part, None, None]:
        """Yields the parts of shards, in order; pictures are read a few shards ahead."""
        ...

    def close(self) -> None:
        """Ends the worker's own processes and threads."""
        ...


# A picklable function that makes a worker, in the process in which it works.
MakeWorker: TypeAlias = Callable[[], Worker]


class Ready:
    """Returns the worker that this process has made already; in another process a new one is made."""

    def __init__(self, make: MakeWorker, worker: Worker | None = None) -> None:
        self._make, self._worker = make, worker

    def __call__(self) -> Worker:
        """The worker."""
        return self._worker or self._make()

    def __reduce__(self) -> tuple[Any, ...]:
        return Ready, (self._make,)


# Runs the shards of a run: calls the function with every shard's part, once, in this process, in any order; what the
# function raises ends the run.
Engine: TypeAlias = Callable[[Sequence[Shard], MakeWorker, Callable[[Part], None], Reporter], None]


def run_here(
    shards: Sequence[Shard],
    make_worker: MakeWorker,
    on_part: Callable[[Part], None],
    reporter: Reporter = SILENT,
    *,
    threads: int | None = None,  # of the model; None for torch's default
) -> None:
    """The engine `local`: runs shards in this process; see `Engine`."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with closing(make_worker()) as worker, closing(worker.stream(shards, reporter)) as parts:
            for part in parts:
                on_part(part)
    finally:
        torch.set_num_threads(before)


A = TypeVar("A")
B = TypeVar("B")


def each(work: Callable[[A], B], items: Iterable[A]) -> Generator[B, None, None]:
    """The results of some work on pictures, in order, made by as many threads as torch has."""
    import torch

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        yield from pool.map(work, items)


NAMED = 3  # pictures named in a note; the rest are only counted


def pictures_in_words(names: Sequence[str]) -> str:
    """The number of pictures and the names of the first ones: "4 pictures (a.jpg, b.jpg, c.jpg and 1 more)"."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{len(names)} picture{'s' if len(names) != 1 else ''} ({', '.join(names[:NAMED])}{more})"


def failure_reason(error: ModelError | RuntimeError | MemoryError) -> str:
    """The reason of a failure, in one line."""
    if isinstance(error, ModelError):
        return str(error)
    if not out_of_memory(error):
        raise error
    return "not enough memory for a single picture: use a smaller --image-size or fewer --scales"


def collect_halved(notes: list[str]) -> Callable[[int], None]:
    """What a `Reporter` calls with the number of halved batches: adds a line to these notes."""
    return lambda count: notes.append(halved_note(count))


class Notes:
    """The notes of a run, without repetitions, though every part brings the same ones."""

    def __init__(self, reporter: Reporter = SILENT) -> None:
        self._reporter = reporter
        self._lines: list[str] = []

    def add(self, lines: Iterable[str]) -> None:
        """Adds and reports the notes that are new."""
        for line in lines:
            if line not in self._lines:
                self._lines.append(line)
                self._reporter.note(line)

    @property
    def lines(self) -> tuple[str, ...]:
        """All notes, in the order in which they were added."""
        return tuple(self._lines)

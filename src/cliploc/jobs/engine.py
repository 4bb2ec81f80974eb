"""Between a run and its engine: shards in, parts out in any order; a part depends on its shard and settings only."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from cliploc.reporter import SILENT, Reporter


@dataclass(frozen=True)
class Shard:
    """A group of samples that are computed together."""

    index: int  # its place in the run, and the name of its part
    # a whole number of batches, except in the last shard. Objects with an `id` that the run's worker takes: `Sample` in
    # a benchmark, `PictureFile` in an annotation.
    samples: tuple[Any, ...]


# What costs something → how many maps it judged, pictures that passed the tower for it, and seconds of processor time.
Spending: TypeAlias = Mapping[str, tuple[int, int, float]]


def spent_together(several: Iterable[Spending]) -> dict[str, tuple[int, int, float]]:
    """The sums for each name."""
    total: dict[str, tuple[int, int, float]] = {}
    for one in several:
        for name, (maps, passes, seconds) in one.items():
            before = total.get(name, (0, 0, 0.0))
            total[name] = before[0] + maps, before[1] + passes, before[2] + seconds
    return total


@dataclass(frozen=True)
class Part:
    """The results of a shard."""

    index: int  # index of the shard
    # the content of the part's file: a `pyarrow.Table` in a benchmark (see `cliploc.jobs.rows`), bytes in an annotation
    table: Any
    notes: tuple[str, ...] = ()  # remarks for the end of the run, such as a halved batch
    lessons: bytes = b""  # of an annotation that is taught: `cliploc.jobs.lessons`
    spent: Spending = field(default_factory=dict)  # what it cost; results do not depend on it


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
        worker, self._worker = self._worker, None
        return worker if worker is not None else self._make()

    def __getstate__(self) -> dict[str, Any]:
        return {"_make": self._make, "_worker": None}


class Engine(Protocol):
    """Runs the shards of a run."""

    def __call__(
        self,
        shards: Sequence[Shard],
        make_worker: MakeWorker,
        on_part: Callable[[Part], None],
        reporter: Reporter = SILENT,
    ) -> None:
        """Calls `on_part` with every shard's part, once, in this process, in any order; its exception ends the run."""
        ...

"""The seam between a run and what carries it out: shards in, parts out, in whatever order and on whatever machine.

A run is cut into shards, a fixed list of samples each. A worker turns a shard into a part, which depends on nothing but
the shard and the worker's settings; so neither the engine nor an interruption can change a number.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from cliploc.reporter import SILENT, Reporter


@dataclass(frozen=True)
class Shard:
    """Some samples that are done together.

    Attributes:
        index: its place in the run; the name of its part.
        samples: a whole number of batches, in the run's last shard perhaps fewer; what the run's worker works on, with
            an `id`: a benchmark's `Sample`, a `PictureFile` to annotate.
    """

    index: int
    samples: tuple[Any, ...]


@dataclass(frozen=True)
class Part:
    """What became of a shard.

    Attributes:
        index: the shard's.
        table: what is written as the part: a `pyarrow.Table` of a benchmark (see `cliploc.jobs.rows`), the bytes of an
            annotation's file.
        notes: what must be said at the end of the run, such as a batch that was halved.
    """

    index: int
    table: Any
    notes: tuple[str, ...] = ()


class Worker(Protocol):
    """Holds the models and turns shards into parts."""

    def stream(self, shards: Iterable[Shard], reporter: Reporter = SILENT) -> Generator[Part, None, None]:
        """The parts of any number of shards, in order; pictures of the next are read while one is computed.

        Args:
            shards: taken one by one, a few ahead of the parts.
            reporter: told of pictures and masked pictures that are done, in this process.
        """
        ...

    def close(self) -> None:
        """Ends the worker's own processes and threads."""
        ...


# Picklable: a worker is made where it works, out of its settings.
MakeWorker: TypeAlias = Callable[[], Worker]


class Ready:
    """Hands out the worker that this process has made already; in another process it is made anew.

    Args:
        make: makes a worker; picklable.
        worker: that is there.
    """

    def __init__(self, make: MakeWorker, worker: Worker | None = None) -> None:
        self._make, self._worker = make, worker

    def __call__(self) -> Worker:
        """The worker."""
        worker, self._worker = self._worker, None
        return worker if worker is not None else self._make()

    def __getstate__(self) -> dict[str, Any]:
        return {"_make": self._make, "_worker": None}


class Engine(Protocol):
    """Carries a run out."""

    def __call__(
        self,
        shards: Sequence[Shard],
        make_worker: MakeWorker,
        on_part: Callable[[Part], None],
        reporter: Reporter = SILENT,
    ) -> None:
        """Hands every shard's part to `on_part`, once, in this process, in any order.

        Args:
            shards: what is still to be done.
            make_worker: called once in every process that works.
            on_part: called with every part when it is there; what it raises ends the run.
            reporter: told of the pictures that are done.
        """
        ...

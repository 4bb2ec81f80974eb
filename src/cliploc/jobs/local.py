"""Engine `local`: runs in this process, with a few more processes that compare maps with boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

from cliploc.jobs.engine import MakeWorker, Part, Shard
from cliploc.reporter import SILENT, Reporter


def run(
    shards: Sequence[Shard],
    make_worker: MakeWorker,
    on_part: Callable[[Part], None],
    reporter: Reporter = SILENT,
    *,
    threads: int | None = None,  # of the model; None for torch's default
) -> None:
    """Runs a run's shards in this process; see `cliploc.jobs.engine.Engine`."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        with closing(make_worker()) as worker, closing(worker.stream(shards, reporter)) as parts:
            for part in parts:
                on_part(part)
    finally:
        torch.set_num_threads(before)

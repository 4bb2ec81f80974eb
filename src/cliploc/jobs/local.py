"""Engine `local`: this process, and a few beside it that compare maps with boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

from cliploc.jobs.engine import MakeWorker, Part, Shard


def run(
    shards: Sequence[Shard],
    make_worker: MakeWorker,
    on_part: Callable[[Part], None],
    on_images: Callable[[int], None] | None = None,
) -> None:
    """Carries a run out in this process; see `cliploc.jobs.engine.Engine`."""
    with closing(make_worker()) as worker, closing(worker.stream(shards, on_images)) as parts:
        for part in parts:
            on_part(part)

"""Processes that compare maps with the truth while the model computes; they import no torch, so they start at once."""

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any, TypeAlias

from cliploc._files import temporaries_of
from cliploc._process import give_way
from cliploc.errors import CliplocWarning, InputError
from cliploc.jobs import rows as row
from cliploc.metrics import one_thread
from cliploc.registry import import_modules, named_modules
from cliploc.values import FloatArray, Sample

JudgedMaps: TypeAlias = list[list[row.Row]] | str  # the columns of each map and threshold, or why there are none


@dataclass(frozen=True)
class MapsToJudge:
    """A job for a judge: one sample's maps, with the thresholds and files of each."""

    sample: Sample
    maps: FloatArray  # [S, 224, 224]
    thresholds: list[list[float]]
    files: list[list[Path]]  # that the maps are saved in
    token: str  # the run's token for names of temporary files


def judge_maps(jobs: Sequence[MapsToJudge]) -> list[JudgedMaps]:
    """Saves and judges the maps of each job."""
    results: list[JudgedMaps] = []
    for job in jobs:
        with temporaries_of(job.token):
            for heat, paths in zip(job.maps, job.files, strict=True):
                for path in paths:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    row.save_map(path, heat)
        try:
            results.append(row.judge_sample(job.sample, job.maps, job.thresholds))
        except InputError as error:
            results.append(str(error))
    return results


class Judges:
    """A pool of judges, which starts with the first job; with a count of 0, a thread of this process judges."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: Executor | None = None

    def submit(self, jobs: Sequence[MapsToJudge]) -> Future[list[JudgedMaps]]:
        """Has jobs judged; several at once, as each sending makes the thread of the model wait."""
        if self._pool is None:
            # Spawned, not forked: a fork of a process with threads can hang.
            context = multiprocessing.get_context("spawn")
            self._pool = (
                ProcessPoolExecutor(self._count, context, _start, (named_modules(),))
                if self._count
                else ThreadPoolExecutor(1)
            )
        return self._pool.submit(judge_maps, jobs)

    def close(self) -> None:
        """Ends the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Judges, (self._count,)  # another machine starts its own


def _start(modules: Sequence[str]) -> None:
    """A judging process: one thread, gives way to the tower's, ignores Ctrl-C, ends with its parent process."""
    one_thread()
    give_way()
    warnings.simplefilter("ignore", CliplocWarning)  # the parent process has shown it
    import_modules(modules)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()

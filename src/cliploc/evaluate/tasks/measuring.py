"""Processes that compare maps with the truth while the model computes; they import no torch, so they start at once."""

import io
import multiprocessing.connection
import os
import signal
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from cliploc.errors import CliplocWarning, InputError
from cliploc.evaluate.metrics import JudgedMap, measure_map
from cliploc.images.reading import open_picture
from cliploc.registry import import_modules, named_modules
from cliploc.runs.store import Row
from cliploc.values import WSOL_SIDE, FloatArray, Sample

MeasuredMaps: TypeAlias = list[Row] | str  # the columns of each map, or why there are none


@dataclass(frozen=True)
class MapsToMeasure:
    """A job for a process: one sample's maps, with the threshold and the file of each."""

    sample: Sample
    maps: FloatArray  # [S, 224, 224]
    thresholds: list[float]
    files: list[Path]  # that the maps are saved in; empty to save none


def measure_maps(jobs: Sequence[MapsToMeasure]) -> list[MeasuredMaps]:
    """Saves and measures the maps of each job."""
    results: list[MeasuredMaps] = []
    for job in jobs:
        for heat, path in zip(job.maps, job.files, strict=False):
            path.parent.mkdir(parents=True, exist_ok=True)
            content = io.BytesIO()
            # float64, as the original WSOL evaluation wants it; not into the file: numpy would not report a full disk
            np.save(content, heat.astype(np.float64))
            path.write_bytes(content.getbuffer())
        try:
            results.append(measure_sample(job.sample, job.maps, job.thresholds))
        except InputError as error:
            results.append(str(error))
    return results


def measure_sample(
    sample: Sample,
    maps: FloatArray,  # [S, 224, 224] in 0–1 over the picture
    thresholds: Sequence[float],  # τ of each
) -> list[Row]:
    """Compares one sample's maps with its truth: for each, the columns that depend on the map."""
    if not len(sample.boxes_xyxy) and not sample.masks:
        raise InputError(f"{sample.id}: expected true boxes or masks, got none: leave the sample out")
    mask, ignore = read_masks(sample)
    return [
        row
        for heat, tau in zip(maps, thresholds, strict=True)
        for row in measure_map(JudgedMap(sample.id, heat, sample.boxes_xyxy, sample.size_wh, mask, ignore), [tau])
    ]


def read_masks(sample: Sample) -> tuple[npt.NDArray[np.bool_] | None, npt.NDArray[np.bool_] | None]:
    """The masks `[224, 224]` of instances, and of ignored pixels, as Choe et al. 2020; None if there is none."""
    if not sample.masks:
        return None, None
    true = np.logical_or.reduce([_mask(path) for path in sample.masks])
    return true, None if sample.ignore is None else _mask(sample.ignore)


def _mask(path: Path) -> npt.NDArray[np.bool_]:
    with open_picture(path) as opened:
        grey = np.asarray(opened.image.convert("L"))
    y, x = ((np.arange(WSOL_SIDE) * (size / WSOL_SIDE)).astype(np.intp) for size in grey.shape)
    return grey[np.ix_(y, x)] > 0


class MeasuringPool:
    """A pool of processes, which starts with the first job; with a count of 0, a thread of this process measures."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool: Executor | None = None

    def submit(self, jobs: Sequence[MapsToMeasure]) -> Future[list[MeasuredMaps]]:
        """Has jobs done; several at once, as each sending makes the thread of the model wait."""
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")  # a fork of a process with threads can hang
            self._pool = (
                ProcessPoolExecutor(self._count, spawn, _start, (named_modules(),))
                if self._count
                else ThreadPoolExecutor(1)
            )
        return self._pool.submit(measure_maps, jobs)

    def close(self) -> None:
        """Ends the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def __reduce__(self) -> tuple[Any, ...]:
        return MeasuringPool, (self._count,)  # another machine starts its own


def _start(modules: Sequence[str]) -> None:
    """A process of the pool: one thread, ignores Ctrl-C, ends with its parent process."""
    cv2.setNumThreads(1)  # as many processes as cores
    warnings.simplefilter("ignore", CliplocWarning)  # the parent process has shown it
    import_modules(modules)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()

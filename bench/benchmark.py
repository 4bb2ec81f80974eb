"""A benchmark run from end to end beside the bare forward pass of its model, and memory as pictures go by.

    python -m bench.benchmark ROOT [--method cam] [--images 256] [--rounds 3] [--workers 1] [--threads N] [--memory N]

ROOT is a dataset in the WSOL layout. In each round, one after the other, so that a busy machine slows both:
* the tower's forward pass over batches of as many pictures as the run has, already decoded, resized and normalised;
* `cliploc benchmark` of the same number: reading, tower, method, boxes, every metric's numbers, rows on the disk. From
  the first picture to the last part; not the loading of the model and the final summary.
With `--memory`, the resident memory of all of the run's processes after each pass over the dataset, N passes.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import torch

from cliploc import __version__
from cliploc.datasets import open_dataset
from cliploc.jobs.benchmark import misfit, run_benchmark
from cliploc.jobs.engine import MakeWorker, Part, Shard
from cliploc.jobs.plan import Grid, View
from cliploc.jobs.rows import part_path, write_part

BATCH = 16


def processor_seconds() -> float:
    """Of this process; those of children count when they have ended."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def resident_mib() -> float:
    """Of this process and its children, from /proc; pages they share are counted once for each."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            facts = dict(line.split(":", 1) for line in status.read_text().splitlines())
        except OSError:
            continue
        if str(os.getpid()) in (facts["Pid"].strip(), facts["PPid"].strip()) and "VmRSS" in facts:
            total += int(facts["VmRSS"].split()[0])
    return total / 1024


class Bench:
    """An engine that takes turns: bare forward passes, then the run, round by round, with one worker."""

    def __init__(self, rounds: int, memory: int) -> None:
        self._rounds, self._memory = rounds, memory
        self.bare: list[tuple[float, float]] = []
        self.run: list[tuple[float, float]] = []
        self.resident: list[tuple[int, float]] = []

    def __call__(
        self,
        shards: Sequence[Shard],
        make_worker: MakeWorker,
        on_part: Callable[[Part], None],
        on_images: Callable[[int], None] | None = None,  # noqa: ARG002 - an engine's
    ) -> None:
        images = sum(len(shard.samples) for shard in shards)
        with closing(make_worker()) as worker, tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "parts").mkdir()
            backbone = worker.views[0].localizer.backbone
            pixels = torch.rand(BATCH, 3, *worker.views[0].localizer.input_hw)
            for part in worker.stream(shards[:2]):  # starts the judges, warms everything
                on_part(part)
            for _ in range(self._rounds):
                start, busy = time.perf_counter(), processor_seconds()
                with torch.no_grad():
                    for _ in range(-(-images // BATCH)):
                        backbone.encode_image(pixels)
                self.bare.append((time.perf_counter() - start, processor_seconds() - busy))
                start, busy = time.perf_counter(), processor_seconds()
                for part in worker.stream(shards):
                    write_part(part_path(Path(folder), part.index), part.table)
                self.run.append((time.perf_counter() - start, processor_seconds() - busy))
            for number in range(self._memory):
                for part in worker.stream(shards):
                    write_part(part_path(Path(folder), part.index), part.table)
                self.resident.append(((number + 1) * images, resident_mib()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", default="../shared/data/ilsvrc_val_dev")
    parser.add_argument("--method", default="cam")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--memory", type=int, default=0)
    given = parser.parse_args()
    if not Path(given.root).is_dir():
        print(f"skipped: no dataset at {given.root}")
        return 0
    torch.set_num_threads(given.threads or torch.get_num_threads())
    dataset = open_dataset("wsol", given.root, limit=given.images)
    bench = Bench(given.rounds, given.memory)
    view = View(batch_size=BATCH)
    settings, _ = Grid([view], given.method.split(",")).settings(misfit)
    with tempfile.TemporaryDirectory() as out:
        run_benchmark(dataset, [view], settings, Path(out), engine=bench, judges=given.workers)
    print(
        f"cliploc {__version__}, torch {torch.__version__}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{platform.platform()}; mini, {given.method}, {len(dataset)} pictures, {given.rounds} rounds\n"
    )
    print("| | images/s, median (of the rounds) |\n|---|---|")
    rates = {}
    for name, measured in (("bare forward pass", bench.bare), ("benchmark from end to end", bench.run)):
        each = [len(dataset) / seconds for seconds, _ in measured]
        rates[name] = statistics.median(each)
        print(f"| {name} | {rates[name]:.1f} ({', '.join(f'{one:.1f}' for one in each)}) |")
    ratios = [bare[0] / run[0] for bare, run in zip(bench.bare, bench.run, strict=True)]
    print(f"\nend to end / bare, round by round: {', '.join(f'{one:.2f}' for one in ratios)}")
    own = [run[1] - bare[1] for bare, run in zip(bench.bare, bench.run, strict=True)]
    more = 1000 * statistics.median(own) / len(dataset)
    print(f"processor time of the run's own process beyond it, without the judges': {more:.1f} ms/image")
    for images, mib in bench.resident:
        print(f"resident after {images} images: {mib:.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

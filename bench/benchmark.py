"""A benchmark run from end to end beside the bare forward pass of its model, and memory as pictures go by.

    python -m bench.benchmark ROOT [--model mini] [--method cam] [--images 256] [--rounds 3] [--threads N] [--memory N]

ROOT is a dataset in the WSOL layout. `--model RN50 --pretrained random` is CLIP's tower with random weights: its maps
say nothing, but cost what they cost. In each round, one after the other, so that a busy machine slows both:
* the tower's forward pass over batches of as many pictures as the run has, already decoded, resized and normalised;
* `cliploc benchmark` of the same number: reading, tower, method, boxes, every metric's numbers, rows on the disk. From
  the first picture to the last part; not the loading of the model and the final summary.
What a picture costs is given in processor seconds, that of comparing maps with boxes apart from the rest, and
in bytes on the disk. With `--memory`, the resident memory of all of the run's processes after each pass over the
dataset, N passes.
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
from dataclasses import dataclass
from pathlib import Path

import torch

from cliploc import __version__
from cliploc.evaluate.data import open_dataset
from cliploc.evaluate.tasks.boxes.job import run_benchmark, unfit_for_setup
from cliploc.evaluate.tasks.rows import box_columns, cells_of, table_of
from cliploc.evaluate.tasks.worker import EvaluationWorker
from cliploc.options import BENCHMARK
from cliploc.runs.engine import MakeWorker, Part, Shard
from cliploc.runs.plan import ModelSetup, expand_grid
from cliploc.runs.store import PICTURE, open_run
from cliploc.support.reporter import SILENT, Reporter

BATCH = 16


def processor_seconds() -> tuple[float, float]:
    """Of this process, and of its children, who are all alive."""
    own = resource.getrusage(resource.RUSAGE_SELF)
    children = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            facts = stat.read_text().rpartition(")")[2].split()  # from the state on: the name may hold blanks
        except OSError:
            continue
        if int(facts[1]) == os.getpid():
            children += int(facts[11]) + int(facts[12])
    return own.ru_utime + own.ru_stime, children / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cost:
    """Of some pictures: seconds by the clock, and processor seconds of this process and of those that measure maps."""

    seconds: float
    own: float
    measuring: float


def cost(work: Callable[[], object]) -> Cost:
    start, (own, measuring) = time.perf_counter(), processor_seconds()
    work()
    own_end, measuring_end = processor_seconds()
    return Cost(time.perf_counter() - start, own_end - own, measuring_end - measuring)


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
        self.bare: list[Cost] = []
        self.run: list[Cost] = []
        self.written = 0  # bytes of one pass
        self.resident: list[tuple[int, float]] = []

    def __call__(
        self,
        shards: Sequence[Shard],
        make_worker: MakeWorker,
        on_part: Callable[[Part], None],
        reporter: Reporter = SILENT,  # noqa: ARG002 - an engine's
    ) -> None:
        images = sum(len(shard.samples) for shard in shards)
        columns = box_columns()
        with (
            closing(make_worker()) as worker,
            tempfile.TemporaryDirectory() as folder,
            open_run(Path(folder), (PICTURE, table_of(columns))) as store,
        ):
            assert isinstance(worker, EvaluationWorker)
            localizer = worker.evaluators[0].localizer
            backbone, pixels = localizer.backbone, torch.rand(BATCH, 3, *localizer.input_hw)
            for part in worker.stream(shards[:2]):  # starts the processes, warms everything
                on_part(part)

            def bare() -> None:
                with torch.no_grad():
                    for _ in range(-(-images // BATCH)):
                        backbone.encode_image(pixels)

            def run() -> None:
                store.write("DELETE FROM row")
                for part in worker.stream(shards):
                    store.insert("row", cells_of(part.content, columns))

            for _ in range(self._rounds):
                self.bare.append(cost(bare))
                self.run.append(cost(run))
            [(self.written,)] = store.rows("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
            for number in range(self._memory):
                run()
                self.resident.append(((number + 1) * images, resident_mib()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", default="../shared/data/ilsvrc_val_dev")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--pretrained")
    parser.add_argument("--precision", default="fp32")
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
    setup = ModelSetup(
        BENCHMARK.but(model=given.model, pretrained=given.pretrained, precision=given.precision, batch_size=BATCH)
    )
    methods = given.method.split(",")
    settings, left_out = expand_grid([setup], methods, unfit_for_setup)
    with tempfile.TemporaryDirectory() as out:
        run_benchmark(dataset, [setup], settings, Path(out), engine=bench, workers=given.workers)
    print(
        f"cliploc {__version__}, torch {torch.__version__}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"{platform.platform()}\n{given.model} {given.precision}, {given.method}, {len(dataset)} pictures, "
        f"{given.rounds} rounds\n"
    )
    for line in left_out:
        print(f"left out: {line}")
    print("| | images/s, median (of the rounds) |\n|---|---|")
    rates = {}
    for name, measured in (("bare forward pass", bench.bare), ("benchmark from end to end", bench.run)):
        each = [len(dataset) / one.seconds for one in measured]
        rates[name] = statistics.median(each)
        print(f"| {name} | {rates[name]:.1f} ({', '.join(f'{one:.1f}' for one in each)}) |")
    pairs = list(zip(bench.bare, bench.run, strict=True))
    print(
        f"\nend to end / bare, round by round: {', '.join(f'{bare.seconds / run.seconds:.2f}' for bare, run in pairs)}"
    )
    per_image = 1000 / len(dataset)  # ms
    print("\n| processor time of an image, ms, median | |\n|---|---|")
    print(f"| bare forward pass | {per_image * statistics.median(bare.own for bare, _ in pairs):.1f} |")
    print(f"| the run beyond it | {per_image * statistics.median(run.own - bare.own for bare, run in pairs):.1f} |")
    print(
        f"| measuring, {len(settings)} maps | {per_image * statistics.median(run.measuring for _, run in pairs):.1f} |"
    )
    print(f"\n{bench.written / len(dataset) / len(settings):.0f} bytes a row")
    for images, mib in bench.resident:
        print(f"resident after {images} images: {mib:.0f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())

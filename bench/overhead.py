"""What localizing costs beyond the model itself, and whether memory stays flat over thousands of photos.

    python -m bench.overhead [FOLDER] [--photos 64] [--many 2000]

FOLDER holds pictures; the demo's photos when left out. Prints, for `mini` with `cam` and one name:
* the tower's bare forward pass of the photos, already decoded and resized, against `Localizer.stream` on the same
  arrays (what the stages after the tower add), and on the files (decoding and resizing too), in seconds by the clock
  and in seconds of processor time, which other programs on the machine disturb less;
* resident memory while thousands go through one process.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import torch

from bench.resident import resident_mib
from cliploc import Localizer, __version__
from cliploc.images.reading import SUFFIXES, load
from cliploc.towers.tower import Needs

NAME = "dog"


def seconds(work: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Of one run, after a warm-up: median by the clock, its spread (largest − smallest), median of processor time."""
    work()
    clock, processor = [], []
    for _ in range(repeats):
        start, busy = time.perf_counter(), time.process_time()
        work()
        clock.append(time.perf_counter() - start)
        processor.append(time.process_time() - busy)
    return statistics.median(clock), max(clock) - min(clock), statistics.median(processor)


def overhead(localizer: Localizer, paths: list[Path], repeats: int) -> None:
    """Prints bare forward passes against `stream`, on arrays and on files."""
    height, width = localizer.input_hw
    arrays = [np.asarray(load(path).image.resize((width, height))) for path in paths]
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255  # [n, 3, H, W]
    batches = localizer.backbone.normalize(pixels).split(localizer.options.batch_size)

    def bare() -> None:
        for batch in batches:
            localizer.backbone.trace(batch, Needs())

    def consume(pictures: list[np.ndarray] | list[Path]) -> Callable[[], None]:
        def run() -> None:
            for _ in localizer.stream(pictures, [NAME]):
                pass

        return run

    base, spread, base_processor = seconds(bare, repeats)
    print(f"{'forward pass alone':22}{base:6.2f} s (spread {spread:.2f}), processor {base_processor:.2f} s")
    for label, work in (("stream, from arrays", consume(arrays)), ("stream, from files", consume(paths))):
        clock, spread, processor = seconds(work, repeats)
        print(
            f"{label:22}{clock:6.2f} s (spread {spread:.2f}), processor {processor:.2f} s: overhead "
            f"{clock / base - 1:+.0%} by the clock, {processor / base_processor - 1:+.0%} of processor time"
        )


def memory(localizer: Localizer, paths: list[Path], many: int) -> None:
    """Prints resident memory at ten points of a long run."""
    seen = []
    start = time.perf_counter()
    for number, _ in enumerate(localizer.stream(itertools.islice(itertools.cycle(paths), many), [NAME]), start=1):
        if number % max(1, many // 10) == 0:
            seen.append(resident_mib())
    took = time.perf_counter() - start
    print(f"{many} photos in one process: {took:.0f} s, {1000 * took / many:.0f} ms a photo")
    print("resident MiB after each tenth:", " ".join(f"{value:.0f}" for value in seen))
    if len(seen) >= 4:
        print(f"growth from the second tenth to the last: {seen[-1] - seen[1]:+.0f} MiB")


def main() -> int:
    """Runs both and prints every setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(str(resources.files("cliploc"))) / "demo_photos")
    parser.add_argument("--photos", type=int, default=64)
    parser.add_argument("--many", type=int, default=2000, help="0 leaves the memory run out")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    settings = parser.parse_args()
    found = sorted(path for path in settings.folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        print(f"no pictures in {settings.folder}", file=sys.stderr)
        return 2
    torch.set_num_threads(settings.threads)
    localizer = Localizer("mini", method="cam", device="cpu")
    print(
        f"cliploc {__version__}, torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} CPUs, "
        f"{settings.threads} threads, mini + cam at {localizer.input_hw}, batches of {localizer.options.batch_size}, "
        f"{len(found)} pictures in {settings.folder}, median of {settings.repeats}"
    )
    overhead(localizer, list(itertools.islice(itertools.cycle(found), settings.photos)), settings.repeats)
    if settings.many:
        memory(localizer, found, settings.many)
    return 0


if __name__ == "__main__":
    sys.exit(main())

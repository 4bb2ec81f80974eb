"""What one picture costs while threads wait actively or passively, alone and beside busy processes.

    python -m bench.waiting [--pictures 5] [--rounds 3] [--busy 2] [--threads N] [--out bench/results]

`mini` and CAM on one photograph of the demo, float32, on a CPU. "Passively" is as the command does it
(`support.process`), "actively" is OpenMP's own default. Each row is the median of all pictures of all rounds, which
take turns. A busy process is an endless loop in Python; what else the machine does shows as its load in the head. Each
round has a process of its own, as OpenMP reads its settings once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

HEADER = (
    "| beside | threads wait | processor, ms a picture | clock, ms a picture | slowest by the clock, ms |\n"
    "|---|---|---|---|---|"
)


def measure(pictures: int, threads: int | None) -> list[tuple[float, float]]:
    """Processor and clock seconds of each picture."""
    import torch

    from cliploc import Localizer

    torch.set_num_threads(threads or torch.get_num_threads())
    localizer = Localizer("mini", method="cam", device="cpu", text_cache=False)
    photograph = str(files("cliploc") / "demo_photos" / "cat.jpg")
    localizer(photograph, ["cat"])  # the first one pays for what is kept
    times = []
    for _ in range(pictures):
        processor, clock = time.process_time(), time.perf_counter()
        localizer(photograph, ["cat"])
        times.append((time.process_time() - processor, time.perf_counter() - clock))
    return times


def child(passively: bool, pictures: int, threads: int | None) -> list[tuple[float, float]]:
    """The same in a process of its own."""
    command = [sys.executable, "-m", "bench.waiting", "--child", "passive" if passively else "active"]
    command += ["--pictures", str(pictures)] + ([] if threads is None else ["--threads", str(threads)])
    own = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return [(processor, clock) for processor, clock in json.loads(done.stdout.splitlines()[-1])]


@contextlib.contextmanager
def company(busy: int) -> Iterator[None]:
    """So many processes that always have something to do."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def line(cell: dict[str, Any]) -> str:
    processor, clock = ([one[i] for one in cell["times"]] for i in (0, 1))
    beside = f"{cell['busy']} busy processes" if cell["busy"] else "no busy process"
    return (
        f"| {beside} | {'passively' if cell['passively'] else 'actively'} | {1e3 * statistics.median(processor):.0f} | "
        f"{1e3 * statistics.median(clock):.0f} | {1e3 * max(clock):.0f} |"
    )


def main(
    quick: bool = False,
    out: Path | None = None,
    pictures: int = 5,
    rounds: int = 3,
    busy: int = 2,
    threads: int | None = None,
) -> int:
    """Prints the table.

    Args:
        quick: two pictures, one round.
        out: where waiting.json and waiting.md go; None to write nothing.
        pictures: of a round.
        rounds: of each row.
        busy: processes beside it.
        threads: torch's; None for its own choice.
    """
    import torch

    from bench.keep import headed, keep
    from bench.vit_methods import machine

    pictures, rounds = (2, 1) if quick else (pictures, rounds)
    about = machine(threads or torch.get_num_threads())
    cells: list[dict[str, Any]] = [
        {"busy": beside, "passively": passively, "times": []} for beside in (0, busy) for passively in (False, True)
    ]
    for _ in range(rounds):
        for cell in cells:
            with company(cell["busy"]):
                cell["times"] += child(cell["passively"], pictures, threads)
    table = [HEADER, *map(line, cells)]
    print("\n".join(table))
    text = (
        f"Made by `python -m bench.waiting`, whose head says what is measured; {pictures} pictures a round, {rounds} "
        "rounds of each row in turn."
    )
    page = headed("Threads that wait actively or passively", text, about, table)
    keep(out, "waiting", {"machine": about, "cells": cells}, page)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="that it runs: two pictures, one round")
    parser.add_argument("--pictures", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, default=2)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="write waiting.json and waiting.md here")
    parser.add_argument("--child", choices=("active", "passive"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        from cliploc.support.process import wait_passively

        if given.child == "passive" and not wait_passively():
            sys.exit("torch is loaded already: it would wait as it always does")
        print(json.dumps(measure(given.pictures, given.threads)))
        sys.exit(0)
    sys.exit(main(given.quick, given.out, given.pictures, given.rounds, given.busy, given.threads))

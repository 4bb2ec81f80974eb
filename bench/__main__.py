"""Every bench once, on one machine: Markdown on the standard output, and in the page of figures.

    python -m bench [--busy 2] [--only first_result windows] [--minutes 20] [--each 10]
                    [--write docs/studies/performance.md]
    python -m bench --quick

`--write` replaces the tables in the page: run it on a machine that does nothing else, and then with `--busy 2`, which
runs two endless loops beside every bench, as a user's machine is seldom idle. The most important benches come first;
after so many minutes none begins, and those left out are named; one that takes longer than `--each` is stopped, with
its table as far as it came. `--quick`, in well under 3 minutes, is for tests and
CI: on small towers, that everything runs and that our results are those of the packages beside it. Nothing here asserts
a speed. Each bench with its own settings: `python -m bench.towers --help`, and so on.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tools.marked import put

from bench.keep import made_on
from bench.vit_methods import machine
from bench.waiting import company

QUICK: dict[str, list[str]] = {
    "cnn_methods": ["--quick"],
    "growth": ["--quick"],
    "vit_methods": ["--quick"],
    "evaluator": ["--maps", "3", "--literal-maps", "2", "--taus", "20"],
    "benchmark": ["--images", "32", "--rounds", "1"],
    "waiting": ["--quick"],
    "refinements": ["--quick"],
    "faithfulness": ["--quick"],
}
PEAK = ["--method", "recipe", "--model", "mini", "--threads", "1"]
PAGE: list[tuple[str, str, list[str]]] = [  # title, bench, its settings; the most important first, the longest last
    ("First result", "first_result", ["--rounds", "3"]),
    ("Windows and scales", "windows", ["--recipe", "default", "--photos", "140", "--rounds", "2"]),
    ("Second look", "second_look", ["--photos", "4", "--rounds", "2"]),
    ("Whole benchmark", "benchmark", ["--images", "96", "--rounds", "2"]),
    ("Annotating", "annotate", ["--only", "speed", "--images", "976", "--threads", "1"]),
    ("Refinements", "refinements", ["--rounds", "3"]),
    ("Evaluating maps", "evaluator", ["--maps", "12", "--literal-maps", "3", "--taus", "100"]),
    ("Segmentation", "segmentation", ["--model", "mini", "--dataset", "coco_object", "--rounds", "1",
                                      "--steps", "affinity", "lposs", "guided", "pamr", "lposs_plus"]),
    ("Threads that wait", "waiting", ["--pictures", "3", "--rounds", "2"]),
    ("Where the time goes", "roofline", ["--towers", "mini", "--rounds", "3"]),
    ("Peak memory, 10 names", "memory", [*PEAK, "--names", "10", "--keep", "boxes"]),
    ("Peak memory, 1,000 names", "memory", [*PEAK, "--names", "1000", "--keep", "boxes"]),
    ("Peak memory, 1,000 names, all maps", "memory", [*PEAK, "--names", "1000", "--keep", "all"]),
    ("Faithfulness", "faithfulness", ["--rounds", "1", "--steps", "8"]),
    ("The page under load", "web", ["--requests", "16", "--many", "0"]),
    ("Towers", "towers", ["RN50", "ViT-B-32", "--batch", "1", "--rounds", "5"]),
    ("What localizing adds", "overhead", ["--photos", "16", "--repeats", "3", "--many", "100"]),
    ("Growth of whole calls", "whole_growth", ["--quick"]),
    ("Growth of methods", "growth", ["--rounds", "1", "--only", "grad_cam"]),
    ("Training a head", "training", ["--model", "ViT-B-32", "--classes", "100", "--rounds", "1"]),
    ("Score-CAM and Grad-CAM beside other packages", "cnn_methods", ["--channels", "8", "--rounds", "2"]),
    ("LeGrad and GEM beside other packages", "vit_methods", ["--rounds", "2"]),
]  # fmt: skip


def section(title: str, name: str, settings: Sequence[str], minutes: float) -> tuple[str, bool]:
    """What a bench prints, under a title, with its command and its seconds; and whether it ended well, and in time."""
    start = time.perf_counter()
    # Each in a process of its own: one that runs out of memory does not take the others along.
    words, pipe = ["-m", f"bench.{name}", *settings], subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-u", *words], stdout=pipe, stderr=pipe, text=True, start_new_session=True
    ) as process:
        try:
            out, errors = process.communicate(timeout=60 * minutes)
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as why:
            os.killpg(process.pid, signal.SIGKILL)  # its servers and workers too
            out, errors = process.communicate()
            if isinstance(why, KeyboardInterrupt):
                raise
            out += f"\n\nStopped after {minutes:g} minutes.\n"
    taken, lines = time.perf_counter() - start, out.strip("\n").splitlines()
    if process.returncode:
        print(errors, file=sys.stderr)
    # Without its title, which it has here, and with no headings above it.
    said = "\n".join(line.removeprefix("## ") for line in lines if not line.startswith("# "))
    shown = said if any(line.startswith("|") for line in lines) else f"```text\n{said}\n```"
    command = shlex.join(["python", *words])
    return f"### {title}\n\n`{command}`, {taken:.0f} s\n\n{shown}\n", process.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small towers: that all runs and agrees")
    parser.add_argument("--busy", type=int, default=0, help="busy processes beside the benches")
    parser.add_argument("--only", nargs="+", metavar="BENCH", help="these benches alone")
    parser.add_argument("--minutes", type=float, default=20, help="after which no bench begins")
    parser.add_argument("--each", type=float, default=10, help="minutes after which a bench is stopped")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the tables into this page")
    given = parser.parse_args()
    if given.write and (given.only or given.quick):
        parser.error("--write replaces all tables: leave --only and --quick out")
    rows = [(name, name, settings) for name, settings in QUICK.items()] if given.quick else PAGE
    rows = [row for row in rows if given.only is None or row[1] in given.only]
    start, parts, failed, left_out = time.perf_counter(), [made_on(machine(1)) + "\n"], [], []
    print(parts[0], flush=True)
    for title, name, settings in rows:
        if time.perf_counter() - start > 60 * given.minutes:
            left_out.append(title)
            continue
        with company(given.busy):
            part, well = section(title, name, settings, given.each)
        print(part, flush=True)
        parts.append(part)
        if not well:
            failed.append(name)
    ended = [f"All of it took {(time.perf_counter() - start) / 60:.0f} minutes."]
    ended += [f"Left out: {'; '.join(left_out)}."] if left_out else []
    ended += [f"Failed: {', '.join(failed)}."] if failed else []
    parts.append(" ".join(ended))
    print(parts[-1])
    if given.write is not None:
        put(given.write, "bench-busy" if given.busy else "bench", "\n".join(parts))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Every bench once: Markdown on the standard output.

    python -m bench [--quick | --thorough] [--busy 2]

Takes minutes; `--thorough` takes the settings that figures are reported with, and writes them to bench/results.
`--quick`, in well under 3 minutes, is for tests and CI: on small towers, that everything runs and that our results are
those of the packages beside it. `--busy 2` runs two endless loops beside every bench, as a user's machine is seldom
idle. Nothing here asserts a speed. Each bench in full, with its own settings: `python -m bench.towers --help`, and so
on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

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
MINUTES: dict[str, list[str]] = {
    "cnn_methods": ["--channels", "8", "--rounds", "1"],
    "roofline": ["--batch", "8", "--rounds", "3"],
    "growth": ["--rounds", "1", "--only", "grad_cam"],
    "towers": ["RN50", "ViT-B-32", "--batch", "1", "--rounds", "5"],
    "overhead": ["--photos", "16", "--repeats", "3", "--many", "100"],
    "vit_methods": ["--quick"],
    "memory": ["--model", "ViT-B-32", "--method", "legrad"],
    "training": ["--model", "ViT-B-32", "--classes", "100", "--rounds", "1"],
    "evaluator": ["--maps", "6", "--literal-maps", "3", "--taus", "100"],
    "benchmark": ["--images", "96", "--rounds", "2"],
    "annotate": ["--images", "160", "--limit", "60"],
    "web": ["--requests", "16", "--many", "0"],
    "waiting": ["--rounds", "1"],
    "first_result": ["--rounds", "1"],
    "refinements": ["--rounds", "1"],
    "whole_growth": ["--quick", "--only", "boxes"],
    "windows": ["--photos", "4", "--names", "1", "--rounds", "1"],
    "second_look": ["--photos", "4", "--rounds", "1"],
    "faithfulness": ["--rounds", "1", "--steps", "8"],
    "segmentation": ["--rounds", "1", "--model", "mini", "--dataset", "coco_object", "--steps", "affinity"],
}
THOROUGH: dict[str, list[str]] = {
    "cnn_methods": ["--out", "bench/results"],
    "roofline": ["--out", "bench/results"],
    "growth": ["--out", "bench/results"],
    "towers": ["RN50", "RN50x4", "ViT-B-32", "ViT-B-16"],
    "overhead": [],
    "vit_methods": ["--out", "bench/results"],
    "memory": [],
    "training": [],
    "evaluator": ["--literal-maps", "20", "--taus", "100", "--out", "bench/results"],
    "benchmark": ["--images", "256", "--memory", "3"],
    "annotate": ["--threads", "1", "--out", "bench/results"],
    "web": ["--out", "bench/results"],
    "waiting": ["--out", "bench/results"],
    "first_result": ["--out", "bench/results"],
    "refinements": ["--out", "bench/results"],
    "whole_growth": ["--out", "bench/results"],
    "windows": ["--photos", "14", "--recipe", "default", "--out", "bench/results"],
    "second_look": ["--out", "bench/results"],
    "faithfulness": ["--out", "bench/results"],
    "segmentation": ["--steps", "affinity", "lposs", "guided", "pamr", "--out", "bench/results"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--quick", action="store_true", help="small towers: that all runs and agrees")
    which.add_argument("--thorough", action="store_true", help="the figures that are reported; an hour or more")
    parser.add_argument("--busy", type=int, default=0, help="busy processes beside the benches")
    given = parser.parse_args()
    failed = []
    for name, arguments in (QUICK if given.quick else THOROUGH if given.thorough else MINUTES).items():
        print(f"\n## {name}\n\n`{' '.join(['python -m bench.' + name, *arguments])}`\n", flush=True)
        with company(given.busy):
            # Each in a process of its own: one that runs out of memory does not take the others along.
            finished = subprocess.run(
                [sys.executable, "-m", f"bench.{name}", *arguments], check=False, stdout=subprocess.PIPE, text=True
            )
        print(finished.stdout if "\n|" in finished.stdout else f"```text\n{finished.stdout}```", flush=True)
        if finished.returncode:
            failed.append(name)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Peak memory of one photograph by one method on one model, in a process of its own.

    python -m bench.memory [--model ViT-L-14-336] [--method legrad] [--names 1] [--keep all]

Random weights, except of `mini` and `mini-vit`: memory does not depend on them. CPU, float32. With `--method recipe` it
is the model's recipe. `--keep boxes` keeps no maps, as `cliploc localize --json` does, `--keep found` those of names
found. Prints the process's peak after its imports, with the model, and after the photograph; asserts nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib.resources import files

from bench.resident import peak_mib

THINGS = ("cat", "dog", "bird", "cup", "car", "tree", "boat", "horse", "chair", "house")
LOOKS = ("", "red", "blue", "green", "yellow", "old", "new", "small", "large", "wooden", "toy")  # × ImageNet's 1,000
KEEP = {"all": (True, True), "found": (False, True), "boxes": (False, False)}  # absent maps, maps


def peak_gb() -> float:
    return peak_mib() * 2**20 / 1e9


def named(count: int) -> list[str]:
    """So many names, all different."""
    from cliploc.find import prompts

    things = [one.name for one in prompts.imagenet_classes()]
    return [*THINGS, *(f"{look} {thing}".strip() for look in LOOKS[1:] for thing in things)][:count]


def measure(model: str, method: str, names: int, threads: int, keep: str) -> dict[str, float]:
    import torch

    from cliploc import Localizer

    torch.set_num_threads(threads)
    peaks = {"imports": peak_gb()}
    pretrained, spec = None if model.startswith("mini") else "random", None if method == "recipe" else method
    localizer = Localizer(model, pretrained, method=spec, device="cpu", text_cache=False)
    peaks["model"] = peak_gb()
    absent, maps = KEEP[keep]
    photo = str(files("cliploc") / "demo_photos" / "cat.jpg")
    list(localizer.stream([photo], named(names), absent_maps=absent, keep_maps=maps))
    peaks["photograph"] = peak_gb()
    return peaks


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-L-14-336")
    parser.add_argument("--method", default="legrad")
    parser.add_argument("--names", type=int, default=1, help="how many prompts, 1 to 10,000")
    parser.add_argument("--keep", choices=KEEP, default="all", help="whose maps the result keeps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.model, options.method, options.names, options.threads, options.keep)))
        return 0
    shown = [
        "--model",
        options.model,
        "--method",
        options.method,
        "--names",
        str(options.names),
        "--keep",
        options.keep,
    ]
    command = [sys.executable, "-m", "bench.memory", *shown, "--threads", str(options.threads), "--child"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    peaks = json.loads(output.splitlines()[-1])
    print(f"{options.method} on {options.model}, CPU, float32, one photograph, {options.names} prompt(s): peak of the")
    print("process, GB: " + ", ".join(f"{stage} {peak:.2f}" for stage, peak in peaks.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

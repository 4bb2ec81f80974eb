"""Forward images per second of an image tower: open_clip's own call against ours, alternating, on this machine.

    python -m bench.towers RN50 ViT-B-32 --batch 1 32 --precision fp32 bf16 --rounds 7 --threads 2

Random weights: speed does not depend on them. Every setting runs in a process of its own, so that its peak memory is
its own; within it both sides take turns, so that a busy machine slows both. Prints medians and their spread (10th to
90th percentile) as a Markdown table, and the ratio of processor seconds too, which a busy machine bends less; asserts
nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
from typing import TYPE_CHECKING

from bench.resident import peak_mib
from bench.turns import in_turns

if TYPE_CHECKING:
    import torch

    from cliploc.towers.tower import Backbone

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def our_tower(model_name: str, precision: str) -> Backbone:
    """As `create(model_name, "random", …)`, but without the tokenizer, which for SigLIP is a file on Hugging Face."""
    import open_clip

    from cliploc.towers._layers import resolve_precision
    from cliploc.towers.open_clip import wrap

    model = open_clip.create_model(model_name)
    backbone: Backbone = wrap(model, None, model_name, resolve_precision(precision, "cpu"))
    return backbone


def measure(model_name: str, batch: int, precision: str, rounds: int, threads: int) -> dict[str, object]:
    """Both sides in this process, alternating; the plain model is timed and weighed first."""
    import open_clip
    import torch

    torch.set_num_threads(threads)
    dtype = getattr(torch, DTYPES[precision])
    plain = open_clip.create_model(model_name).eval().requires_grad_(False).to(dtype)
    side = plain.visual.image_size
    height, width = (side, side) if isinstance(side, int) else side
    images = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0)).to(dtype)

    @torch.no_grad()
    def theirs() -> torch.Tensor:
        return plain.encode_image(images, normalize=True)

    theirs()
    memory_plain = peak_mib()
    backbone = our_tower(model_name, precision)

    def ours() -> torch.Tensor:
        return backbone.encode_image(images)

    ours()
    return {"times": in_turns({"plain": theirs, "ours": ours}, rounds), "memory_plain": memory_plain}


def memory_of_ours(model_name: str, batch: int, precision: str, threads: int) -> float:
    """The peak of a process that holds our tower alone."""
    import torch

    torch.set_num_threads(threads)
    backbone = our_tower(model_name, precision)
    height, width = backbone.input_hw
    backbone.encode_image(torch.zeros(batch, 3, height, width))
    return peak_mib()


def spread(batch: int, times: list[tuple[float, float]]) -> str:
    rates = sorted(batch / clock for clock, _ in times)
    low, high = rates[len(rates) // 10], rates[-1 - len(rates) // 10]
    return f"{statistics.median(rates):.2f} ({low:.2f}–{high:.2f})"


def child(*arguments: object) -> dict[str, object]:
    command = [sys.executable, "-m", "bench.towers", "--child", json.dumps(arguments)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, object] = json.loads(output.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["RN50"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--precision", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        side, *rest = json.loads(options.child)
        print(json.dumps(measure(*rest) if side == "both" else {"memory": memory_of_ours(*rest)}))
        return
    import open_clip
    import torch

    print(
        f"{platform.processor() or platform.machine()}, {options.threads} threads, {options.rounds} rounds, torch "
        f"{torch.__version__}, open_clip {open_clip.__version__}; images/s: median (10th–90th percentile); ratio: "
        "median of the rounds'; MiB: peak of the process\n\n"
        "| model | precision | batch | open_clip, images/s | ours, images/s | ratio | ratio, processor "
        "| open_clip, MiB | ours, MiB |\n"
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
        flush=True,
    )
    for name in options.models:
        for precision in options.precision:
            for batch in options.batch:
                both = child("both", name, batch, precision, options.rounds, options.threads)
                memory = child("ours", name, batch, precision, options.threads)["memory"]
                plain, ours = both["times"]["plain"], both["times"]["ours"]  # type: ignore[index]
                ratios = [
                    statistics.median(p[kind] / o[kind] for p, o in zip(plain, ours, strict=True)) for kind in (0, 1)
                ]
                print(
                    f"| {name} | {precision} | {batch} | {spread(batch, plain)} | {spread(batch, ours)} "
                    f"| {ratios[0]:.2f} | {ratios[1]:.2f} | {both['memory_plain']:.0f} | {memory:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()

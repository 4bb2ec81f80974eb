"""What share of this processor's arithmetic a masked forward reaches: FLOP/s beside a plain matrix product's.

    python -m bench.roofline [--threads 1] [--batch 1 16] [--rounds 5] [--out bench/results]

CLIP RN50 and ViT-B/32 with random weights and `mini`, at 224, float32 and bfloat16, by processor seconds; the matrix
product is 2,048 × 2,048 × 2,048 of the same precision, in turn: as the towers multiply (`cliploc.backbones._linear`),
of which the share is taken, and torch's own. FLOPs are those of the convolutions, matrix products and attention that
are run (a multiplication and an addition are two). A masked forward is one with the mask made and multiplied.

The limit is the roofline (Williams 2009), layer by layer: each of them takes at least the time of its
FLOPs at the matrix product's rate, and at least the time of reading its input and weights and writing its output at the
rate of copying a large tensor. "by" says which of the two the greater part of the limit comes from. The share of the
limit may exceed 100 % where a layer's input is still in the processor's cache.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bench.keep import headed, keep
from bench.vit_methods import machine
from cliploc import backbones
from cliploc.backbones._linear import linear
from cliploc.method import Context
from cliploc.saliency._infra.masked import masked_embeddings
from cliploc.tower import Needs

aten = torch.ops.aten
SIDE = 2048
COPIED = 2**28  # bytes
HEADER = (
    "| tower | precision | batch | GFLOP a picture | forward, ms | masked forward, ms | GFLOP/s "
    "| matrix product, GFLOP/s | share | torch's own product | limit, ms | by | share of the limit |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def busy(work: Callable[[], object], per: int) -> float:
    """Processor seconds of one of `per` parts of the work."""
    start = time.process_time()
    work()
    return (time.process_time() - start) / per


class Products(TorchDispatchMode):
    """Notes FLOPs and bytes to be moved of each convolution and matrix product that runs inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[float, float]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        flops = 0.0
        if func is aten.convolution.default:
            flops = 2.0 * result.numel() * args[1][0].numel()
        elif func in (aten.mm.default, aten.bmm.default):
            flops = 2.0 * result.numel() * args[0].shape[-1]
        elif func in (aten.addmm.default, aten.baddbmm.default, aten.mkldnn_linear.default):
            flops = 2.0 * result.numel() * args[1].shape[-1]
        elif func is aten._scaled_dot_product_flash_attention_for_cpu.default:
            flops = 4.0 * args[0].numel() * args[1].shape[-2]
        if flops:
            results = result if isinstance(result, tuple) else (result,)
            tensors = [one for one in (*args, *results) if isinstance(one, Tensor)]
            self.found.append((flops, float(sum(one.numel() * one.element_size() for one in tensors))))
        return result


def measure(name: str, precision: str, batch: int, rounds: int) -> dict[str, Any]:
    """Seconds of a picture and of a matrix product, and what follows."""
    tower = backbones.create(name, None if name == "mini" else "random", device="cpu", precision=precision)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, *tower.input_hw, generator=generator).to(tower.dtype)
    with Products() as products:
        tower.encode_image(images)
    flops = sum(of_one for of_one, _ in products.found) / batch
    a, b = (torch.randn(SIDE, SIDE, generator=generator).to(tower.dtype) for _ in range(2))
    trace = tower.trace(images[:1], Needs(features=(-1,)))
    channels = trace.features[-1].shape[1]
    wanted = torch.zeros(1, channels, dtype=torch.bool)
    wanted[0, :batch] = True
    trace.features[-1].copy_(torch.rand(trace.features[-1].shape, generator=generator))  # every channel makes a mask

    large = torch.zeros(COPIED, dtype=torch.uint8)
    place = torch.zeros_like(large)

    def masked() -> None:
        masked_embeddings(Context(images[:1], torch.zeros(1, 1, 1), trace, tower, batch), wanted=wanted)

    with torch.inference_mode():
        alternatives = {
            "forward": lambda: busy(lambda: tower.encode_image(images), batch),
            "masked": lambda: busy(masked, batch + 1),  # the empty picture is one more
            "product": lambda: busy(lambda: linear(a, b), 1),
            "own_product": lambda: busy(lambda: a @ b, 1),
            "copy": lambda: busy(lambda: place.copy_(large), 2 * COPIED),
        }
        for work in alternatives.values():
            work()
        times: dict[str, list[float]] = {key: [] for key in alternatives}
        for _ in range(rounds):
            for key, work in alternatives.items():
                times[key].append(work())
    forward, whole, product, own, byte = (statistics.median(times[key]) for key in alternatives)
    arithmetic = [flops_of * product / (2 * SIDE**3) / batch for flops_of, _ in products.found]
    memory = [moved * byte / batch for _, moved in products.found]
    limit = sum(map(max, arithmetic, memory))
    by_memory = sum(more for more, less in zip(memory, arithmetic, strict=True) if more > less)
    return {
        "tower": name,
        "precision": precision,
        "batch": batch,
        "flops": flops,
        "seconds": {"forward": forward, "masked": whole, "product": product},
        "reached": flops / forward,
        "peak": 2 * SIDE**3 / product,
        "own_peak": 2 * SIDE**3 / own,
        "bytes_per_second": 1 / byte,
        "limit": limit,
        "limited_by": "memory" if by_memory > limit / 2 else "arithmetic",
    }


def line(cell: dict[str, Any]) -> str:
    times = cell["seconds"]
    return (
        f"| {cell['tower']} | {cell['precision']} | {cell['batch']} | {cell['flops'] / 1e9:.2f} | "
        f"{1e3 * times['forward']:.1f} | {1e3 * times['masked']:.1f} | {cell['reached'] / 1e9:.0f} | "
        f"{cell['peak'] / 1e9:.0f} | {cell['reached'] / cell['peak']:.0%} | {cell['own_peak'] / 1e9:.0f} | "
        f"{1e3 * cell['limit']:.1f} | {cell['limited_by']} | {cell['limit'] / times['forward']:.0%} |"
    )


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--towers", nargs="+", default=["RN50", "mini", "ViT-B-32"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write roofline.json and roofline.md here")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    about, cells = machine(given.threads), []
    print(f"{about['processor']}, {given.threads} threads, torch {torch.__version__}\n")
    print(HEADER)
    for name, precision, batch in itertools.product(given.towers, ("fp32", "bf16"), given.batch):
        cells.append(measure(name, precision, batch, given.rounds))
        print(line(cells[-1]), flush=True)
    text = f"Made by `python -m bench.roofline`, whose head says what is measured; the median of {given.rounds} rounds."
    page = headed("Achieved FLOP/s beside a matrix product's", text, about, [HEADER, *map(line, cells)])
    keep(given.out, "roofline", {"machine": about, "cells": cells}, page)
    return 0


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=UserWarning)
    sys.exit(main())

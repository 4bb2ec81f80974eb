"""What share of this processor's arithmetic a masked forward reaches: FLOP/s beside a plain matrix product's.

    python -m bench.roofline [--threads 1] [--batch 1 16] [--rounds 5] [--out bench/results]
    python -m bench.roofline --layers --towers mini

CLIP RN50 and ViT-B/32 with random weights and `mini`, at 224, float32, and bfloat16 where the processor has it, by
processor seconds; the matrix product is 2,048 × 2,048 × 2,048 of the same precision, in turn: as the towers multiply
(`cliploc.towers._layers`), of which the share is taken, and torch's own. FLOPs are those of the convolutions, matrix
products and attention that are run (a multiplication and an addition are two). A masked forward is one with the mask
made and multiplied.

The limit is the roofline (Williams 2009), layer by layer: each of them takes at least the time of its
FLOPs at the matrix product's rate, and at least the time of reading its input and weights and writing its output at the
rate of copying a large tensor. "by" says which of the two the greater part of the limit comes from. The share of the
limit may exceed 100 % where a layer's input is still in the processor's cache.

With `--layers` the table says instead which of torch's layers lose most: each is run by itself, three times in a row on
its own input, and layers of a kind are added up. An activation has no limit, as a convolution could apply it before it
writes its output.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode

from bench.keep import headed, keep, precisions
from bench.vit_methods import machine
from cliploc import towers
from cliploc.methods import Context
from cliploc.methods._infra.masked import masked_embeddings
from cliploc.towers.tower import Backbone, Needs

aten = torch.ops.aten
SIDE = 2048
COPIED = 2**28  # bytes
REPEATS = 3  # of a layer by itself, in a row
HEADER = (
    "| tower | precision | batch | GFLOP a picture | forward, ms | masked forward, ms | GFLOP/s "
    "| matrix product, GFLOP/s | share | torch's own product | limit, ms | by | share of the limit |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)
LAYERS_HEADER = (
    "| tower | precision | batch | layers | of them | torch, ms a picture | limit, ms | share of the limit |\n"
    "|---|---|---|---|---|---|---|---|"
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
        elif func in (aten.addmm.default, aten.baddbmm.default):
            flops = 2.0 * result.numel() * args[1].shape[-1]
        elif func is aten._scaled_dot_product_flash_attention_for_cpu.default:
            flops = 4.0 * args[0].numel() * args[1].shape[-2]
        if flops:
            results = result if isinstance(result, tuple) else (result,)
            tensors = [one for one in (*args, *results) if isinstance(one, Tensor)]
            self.found.append((flops, float(sum(one.numel() * one.element_size() for one in tensors))))
        return result


def created(name: str, precision: str) -> Backbone:
    return towers.create(name, None if name == "mini" else "random", device="cpu", precision=precision)


def peaks(dtype: torch.dtype) -> dict[str, Callable[[], float]]:
    """Processor seconds of the matrix products, and of a byte read or written."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(SIDE, SIDE, generator=generator).to(dtype) for _ in range(2))
    large = torch.zeros(COPIED, dtype=torch.uint8)
    place = torch.zeros_like(large)
    return {
        "product": lambda: busy(lambda: linear(a, b), 1),
        "own_product": lambda: busy(lambda: a @ b, 1),
        "copy": lambda: busy(lambda: place.copy_(large), 2 * COPIED),
    }


def medians(alternatives: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """The median of each, which take turns."""
    for work in alternatives.values():
        work()
    times: dict[str, list[float]] = {key: [] for key in alternatives}
    for _ in range(rounds):
        for key, work in alternatives.items():
            times[key].append(work())
    return {key: statistics.median(of_one) for key, of_one in times.items()}


def limits(found: list[tuple[float, float]], times: dict[str, float]) -> tuple[list[float], list[float]]:
    """The least seconds of each layer's arithmetic, and those of moving its data."""
    arithmetic = [flops * times["product"] / (2 * SIDE**3) for flops, _ in found]
    return arithmetic, [moved * times["copy"] for _, moved in found]


def measure(name: str, precision: str, batch: int, rounds: int) -> dict[str, Any]:
    """Seconds of a picture and of a matrix product, and what follows."""
    tower = created(name, precision)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, *tower.input_hw, generator=generator).to(tower.dtype)
    with Products() as products:
        tower.encode_image(images)
    flops = sum(of_one for of_one, _ in products.found) / batch
    trace = tower.trace(images[:1], Needs(features=(-1,)))
    channels = trace.features[-1].shape[1]
    wanted = torch.zeros(1, channels, dtype=torch.bool)
    wanted[0, :batch] = True
    trace.features[-1].copy_(torch.rand(trace.features[-1].shape, generator=generator))  # every channel makes a mask

    def forward() -> float:
        return busy(lambda: tower.encode_image(images), batch)

    def masked() -> float:
        context = Context(lambda: images[:1], torch.zeros(1, 1, 1), trace, tower, batch)
        return busy(lambda: masked_embeddings(context, wanted=wanted), batch + 1)  # the empty picture is one more

    with torch.inference_mode():
        times = medians({**peaks(tower.dtype), "forward": forward, "masked": masked}, rounds)
    arithmetic, memory = limits(products.found, times)
    limit = sum(map(max, arithmetic, memory)) / batch
    by_memory = sum(more for more, less in zip(memory, arithmetic, strict=True) if more > less) / batch
    return {
        "tower": name,
        "precision": precision,
        "batch": batch,
        "flops": flops,
        "seconds": {key: times[key] for key in ("forward", "masked", "product")},
        "reached": flops / times["forward"],
        "peak": 2 * SIDE**3 / times["product"],
        "own_peak": 2 * SIDE**3 / times["own_product"],
        "bytes_per_second": 1 / times["copy"],
        "limit": limit,
        "limited_by": "memory" if by_memory > limit / 2 else "arithmetic",
    }


def repeated(layer: nn.Module, given: Tensor) -> None:
    for _ in range(REPEATS):
        layer(given)


def kind_of(layer: nn.Module) -> str:
    """What a layer is called in the table of layers; "" for one that is not in it."""
    if isinstance(layer, nn.Conv2d):
        if layer.groups > 1:
            return "depthwise"
        if layer.kernel_size == (1, 1):
            return "1 × 1, to more channels" if layer.out_channels > layer.in_channels else "1 × 1, to fewer"
        return "other convolutions"
    return "activations" if isinstance(layer, nn.ReLU | nn.ReLU6) else ""


def layer_lines(name: str, precision: str, batch: int, rounds: int) -> list[str]:
    """How the layers of a CNN, by kind, compare with their limits."""
    tower = created(name, precision)
    seen: list[tuple[nn.Module, Tensor]] = []

    def note(layer: nn.Module, given: tuple[Tensor]) -> None:
        seen.append((layer, given[0].clone()))

    modules = tower.modules()
    hooks = [layer.register_forward_pre_hook(note) for layer in modules if kind_of(layer)]
    images = torch.randn(batch, 3, *tower.input_hw, generator=torch.Generator().manual_seed(0))
    found = []
    with torch.no_grad():  # in inference mode torch would hide the convolutions from `Products`
        tower.encode_image(images)
        for hook in hooks:
            hook.remove()
        for layer, given in seen:
            with Products() as products:
                layer(given)
            found.append(products.found)
    with torch.inference_mode():
        alternatives = peaks(tower.dtype)
        for number, (layer, given) in enumerate(seen):
            alternatives[str(number)] = functools.partial(busy, functools.partial(repeated, layer, given), REPEATS)
        times = medians(alternatives, rounds)
    kinds: dict[str, list[tuple[float, float]]] = {}
    for number, (layer, _) in enumerate(seen):
        limit = sum(map(max, *limits(found[number], times)))
        kinds.setdefault(kind_of(layer), []).append((times[str(number)] / batch, limit / batch))
    lines = []
    for kind, of_kind in kinds.items():
        seconds, limit = (sum(column) for column in zip(*of_kind, strict=True))
        share = f"{limit / seconds:.0%}" if limit else "–"
        about = f"| {name} | {precision} | {batch} | {kind} | {len(of_kind)} "
        lines.append(f"{about}| {1e3 * seconds:.2f} | {1e3 * limit:.2f} | {share} |")
    return lines


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
    parser.add_argument("--layers", action="store_true", help="a table of torch's layers instead")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write roofline.json and .md here")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    about, cells = machine(given.threads), []
    print(f"{about['processor']}, {given.threads} threads, torch {torch.__version__}\n")
    print(LAYERS_HEADER if given.layers else HEADER)
    for name, precision, batch in itertools.product(given.towers, precisions(), given.batch):
        if given.layers:
            print(*layer_lines(name, precision, batch, given.rounds), sep="\n", flush=True)
        else:
            cells.append(measure(name, precision, batch, given.rounds))
            print(line(cells[-1]), flush=True)
    if given.layers:
        return 0
    text = f"Made by `python -m bench.roofline`, whose head says what is measured; the median of {given.rounds} rounds."
    page = headed("Achieved FLOP/s beside a matrix product's", text, about, [HEADER, *map(line, cells)])
    keep(given.out, "roofline", {"machine": about, "cells": cells}, page)
    return 0


if __name__ == "__main__":
    warnings.filterwarnings("ignore", category=UserWarning)
    sys.exit(main())

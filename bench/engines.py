"""`mini`'s tower by torch and by other engines, in turn, in processor seconds and by the clock.

    OMP_WAIT_POLICY=passive python -m bench.engines [--engines openvino compile] [--threads 1] [--batch 1 16]

"compile" is `torch.compile` with frozen weights, which needs a C++ compiler. Ratios are medians of the rounds' and say
how many times longer torch takes. "First" is the processor time of an engine's first forward pass, compilation
included. The difference is the largest of an embedding's components, which has unit length.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.keep import precisions
from bench.turns import seconds
from cliploc import backbones

HEADER = (
    "| engine | precision | batch | torch, ms a picture | engine, ms | ratio, processor | ratio, clock | first, s "
    "| difference |\n|---|---|---|---|---|---|---|---|---|"
)


def encoder(engine: str, precision: str) -> Callable[[Tensor], Tensor]:
    """Pictures → embeddings of unit length."""
    mini = backbones.create("mini", device="cpu", precision=precision)
    if engine != "compile":
        return backbones.with_engine(mini, engine).encode_image  # type: ignore[arg-type]
    stages = torch.compile(nn.Sequential(*mini.stages), options={"freezing": True})  # type: ignore[attr-defined]
    return lambda images: F.normalize(mini.pool(stages(images.to(mini.dtype))).float(), dim=-1)  # type: ignore[attr-defined]


@torch.no_grad()
def line(engine: str, precision: str, batch: int, rounds: int) -> str:
    plain, other = encoder("torch", precision), encoder(engine, precision)
    images = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    _, first = seconds(lambda: other(images))
    difference = (plain(images) - other(images)).abs().max()
    pairs = [(seconds(lambda: plain(images)), seconds(lambda: other(images))) for _ in range(rounds)]
    ours, theirs = (1e3 * statistics.median(pair[side][1] for pair in pairs) / batch for side in (0, 1))
    clock, processor = (statistics.median(a[kind] / b[kind] for a, b in pairs) for kind in (0, 1))
    return (
        f"| {engine} | {precision} | {batch} | {ours:.1f} | {theirs:.1f} | {processor:.2f} | {clock:.2f} | {first:.1f} "
        f"| {difference:.0e} |"
    )


def main() -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=precisions())
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--engines", nargs="+", choices=("openvino", "compile"), default=["openvino"])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(f"{given.threads} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.0f}\n\n{HEADER}")
    for engine, precision, batch in itertools.product(given.engines, given.precision, given.batch):
        print(line(engine, precision, batch, given.rounds), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

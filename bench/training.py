"""What training a head costs: a picture's features of the frozen tower, and its share of the head's step.

    python -m bench.training [--model ViT-B-16] [--classes 1000] [--rounds 3]

Random weights: cost does not depend on them. CPU, float32, in processor time, which a shared machine bends less than
the clock. Prints Markdown; asserts nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from cliploc import towers
from cliploc.evaluate.train.trainer import _tensors
from cliploc.find.heads import HEADS, HeadConfig, Seen, look, seen_needs
from cliploc.methods import Context


def median_ms(call: Callable[[], Any], rounds: int, pictures: int) -> float:
    call()  # warm
    times = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return 1000 * statistics.median(times) / pictures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    backbone = towers.create(options.model, "random" if options.model not in ("mini", "mini-vit") else None)
    images = torch.randn(4, 3, *backbone.input_hw)

    def features(dense: bool) -> Seen:
        trace = backbone.trace(images, seen_needs(backbone.kind, attention=True, dense=dense))
        text = torch.zeros(len(images), 1, backbone.embedding_size)
        return look(Context(lambda: images, text, trace, backbone), attention=True, dense=dense)

    print("| per picture and view | processor ms | kB on disk |\n|---|---|---|")
    for dense, name in ((False, "features"), (True, "features and dense reading")):
        seen = features(dense)
        size = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(seen).values()) / len(images)
        took = median_ms(partial(features, dense), options.rounds, len(images))
        print(f"| {options.model}, {name} | {took:.1f} | {size / 1000:.0f} |", flush=True)
    times = options.batch // len(images)
    tokens, attention = seen.tokens.repeat(times, 1, 1, 1), seen.attention.repeat(times, 1, 1)
    words = tuple((str(number),) for number in range(options.classes))
    text = F.normalize(torch.randn(options.classes, backbone.embedding_size), dim=1)
    target = torch.arange(len(tokens)) % options.classes
    for method in HEADS:
        for kind in ("closed", "open"):
            config = HeadConfig(
                method, kind, words, tokens.shape[1], backbone.embedding_size, 100.0, backbone.name, backbone.kind, ""
            )
            head = HEADS[method](config)
            read = seen.dense.repeat(times, 1, 1, 1) if kind == "open" and seen.dense is not None else None

            def step(head: Any = head, dense: Any = read, kind: str = kind) -> None:
                logits = head(tokens, attention, dense, text if kind == "open" else None)
                torch.autograd.grad(F.cross_entropy(logits, target), list(head.parameters()))

            parameters = sum(p.numel() for p in head.parameters()) / 1e6
            took = median_ms(step, options.rounds, len(tokens))
            print(f"| {method}, {kind} head of {parameters:.1f} M, forward and backward | {took:.1f} | – |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

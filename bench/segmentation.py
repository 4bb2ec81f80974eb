"""What label maps cost: processor seconds of one core a picture, by window setting, set and refinement; and memory.

    python -m bench.segmentation [--model mini mini-vit] [--dataset ade20k] [--rounds 2] [--out bench/results]

Pictures are noise of the set's usual size; texts are embedded before the clock starts. "Forward" are the bare forward
passes of the same windows. Steps follow the method with windows of 224 every 112 on coco_object's size; the seconds are
those of the whole picture. Memory is the peak of a process of its own, after a picture of 640×480 and after one of
2048×1536. The last column multiplies ade20k's pictures, 2,000.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bench.keep import headed, keep
from bench.resident import peak_mib
from cliploc.find.segmentation.protocol import protocol_names, protocol_of
from cliploc.find.segmentation.segmenter import Segmenter, resized_hw
from cliploc.localizer import Localizer
from cliploc.towers.tower import Needs

SIZES = {"cityscapes": (2048, 1024), "ade20k": (683, 512)}  # width and height
USUAL = (640, 480)  # of the other sets
LARGE = (2048, 1536)
WINDOWS = ((224, 112), (224, 224), (0, 112))  # side and stride; 0: the whole picture
DATASETS = ("coco_object", "ade20k", "cityscapes")
METHODS = {"mini": "cam", "mini-vit": "maskclip"}  # of others: maskclip
STEPS = ("affinity", "lposs", "guided", "pamr", "lposs_plus")
ADE20K = 2000
TABLE = (
    "| model, method | set, picture | queries | windows of 224 every 112 | every 224 | whole picture | 2,000 times |",
    "|---|---|---|---|---|---|---|",
)
STEP_TABLE = ("| model, method | step | s a picture |", "|---|---|---|")
MEMORY_TABLE = ("| model, method | names of | after 640×480, MiB | after 2048×1536, MiB |", "|---|---|---|---|")


def noise(size_wh: tuple[int, int]) -> Image.Image:
    random = np.random.default_rng(0)
    return Image.fromarray(random.integers(0, 255, (*size_wh[::-1], 3), np.uint8))


def seconds(call: Callable[[], object], rounds: int) -> float:
    """Processor seconds of this process, after a first call."""
    call()
    start = time.process_time()
    for _ in range(rounds):
        call()
    return (time.process_time() - start) / rounds


def localizer_of(model: str, pretrained: str | None, refine: Sequence[str] = ()) -> Localizer:
    return Localizer(model, pretrained, method=method_of(model), templates="name-only", refine=list(refine))


def method_of(model: str) -> str:
    return METHODS.get(model, "maskclip")


def windows_of(localizer: Localizer, dataset: str, rounds: int) -> dict[str, Any]:
    """The row of a set: seconds of a picture and of its forward passes, by window setting."""
    size, protocol = SIZES.get(dataset, USUAL), protocol_of(dataset)
    picture, method = noise(size), localizer.method.name
    height, width = resized_hw((picture.height, picture.width), protocol)
    cells: list[dict[str, float]] = []
    for window, stride in WINDOWS:
        segmenter = Segmenter(localizer, replace(protocol, window=window, stride=stride), {method: {}})
        cell = segmenter.backbone.stride
        count, shape = 1, (height // cell * cell, width // cell * cell)
        if window:
            count = int(np.prod([max(side - window + stride - 1, 0) // stride + 1 for side in (height, width)]))
            shape = (window, window)
        images = torch.zeros(min(count, 16), 3, *shape)
        bare = seconds(partial(localizer.backbone.trace, images, Needs()), rounds)
        whole = seconds(partial(segmenter.label_maps, picture), rounds)
        cells.append({"windows": count, "whole": whole, "forward": bare * count / len(images)})
    return {"dataset": dataset, "size": size, "queries": len(segmenter.class_of), "cells": cells}


def row_of(model: str, found: dict[str, Any]) -> str:
    width, height = found["size"]
    cells = " | ".join(f"{one['whole']:.2f}, forward {one['forward']:.2f} ({one['windows']})" for one in found["cells"])
    total = found["cells"][0]["whole"] * ADE20K / 60
    last = f"{total:.0f} min" if found["dataset"] == "ade20k" else ""
    shown = f"{found['dataset']}, {width}×{height}"
    return f"| {model}, `{method_of(model)}` | {shown} | {found['queries']} | {cells} | {last} |"


def step_seconds(model: str, pretrained: str | None, step: str, rounds: int) -> float:
    localizer = localizer_of(model, pretrained, [step] if step else [])
    segmenter, picture = Segmenter(localizer, protocol_of("coco_object"), {method_of(model): {}}), noise(USUAL)
    return seconds(lambda: segmenter.label_maps(picture), rounds)


def memory_here(model: str, pretrained: str | None, dataset: str) -> list[float]:
    """The peak of this process in MiB, after a usual picture and after a large one."""
    segmenter = Segmenter(localizer_of(model, pretrained), protocol_of(dataset), {method_of(model): {}})
    peaks = []
    for size in (USUAL, LARGE):
        segmenter.label_maps(noise(size))
        peaks.append(peak_mib())
    return peaks


def memory_of(model: str, pretrained: str | None, dataset: str) -> list[float]:
    """The same of a process of its own."""
    command = [sys.executable, "-m", "bench.segmentation", "--memory", "--model", model, "--dataset", dataset]
    command += ["--pretrained", pretrained] if pretrained else []
    peaks: list[float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return peaks


def main(
    models: Sequence[str],
    pretrained: str | None = None,
    datasets: Sequence[str] = DATASETS,
    steps: Sequence[str] = STEPS,
    rounds: int = 2,
    out: Path | None = None,
) -> None:
    """Prints the three tables; writes them to `out`, as JSON too."""
    from bench.vit_methods import machine  # imports other libraries, which a process that measures memory must not have

    torch.set_num_threads(1)
    about = machine(1)
    lines: list[str] = []
    document: dict[str, Any] = {"machine": about, "windows": [], "steps": [], "memory": []}

    def say(*more: str) -> None:
        lines.extend(more)
        print("\n".join(more), flush=True)

    say(*TABLE)
    for model in models:
        localizer = localizer_of(model, pretrained)
        for dataset in datasets:
            found = windows_of(localizer, dataset, rounds)
            document["windows"].append({"model": model, **found})
            say(row_of(model, found))
    say("", *STEP_TABLE)
    for model in models:
        for step in ("", *steps):
            taken = step_seconds(model, pretrained, step, rounds)
            document["steps"].append({"model": model, "step": step, "seconds": taken})
            say(f"| {model}, `{method_of(model)}` | {f'`{step}`' if step else '–'} | {taken:.2f} |")
    say("", *MEMORY_TABLE)
    for model in models:
        usual, large = memory_of(model, pretrained, "ade20k")
        document["memory"].append({"model": model, "usual": usual, "large": large})
        say(f"| {model}, `{method_of(model)}` | ade20k | {usual:.0f} | {large:.0f} |")
    command = " ".join(["python -m bench.segmentation", *sys.argv[1:]])
    shown = f"Made by `{command}`, whose head says what is timed. Processor seconds, float32."
    keep(out, "segmentation", document, headed("Segmentation", shown, about, lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=list(METHODS))
    parser.add_argument("--pretrained")
    parser.add_argument("--dataset", nargs="+", default=list(DATASETS), choices=protocol_names())
    parser.add_argument("--steps", nargs="*", default=list(STEPS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--memory", action="store_true", help="print the peaks of one model and set, as JSON")
    parser.add_argument("--out", type=Path, help="write segmentation.json and segmentation.md here")
    given = parser.parse_args()
    if given.memory:
        print(json.dumps(memory_here(given.model[0], given.pretrained, given.dataset[0])))
    else:
        main(given.model, given.pretrained, given.dataset, given.steps, given.rounds, given.out)

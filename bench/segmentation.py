"""What label maps cost: seconds of one core for a picture by window setting, against bare forward passes; and memory.

    python -m bench.segmentation --model mini-vit --method maskclip --dataset ade20k

Pictures are noise of the set's usual size; texts are embedded before the clock starts.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from cliploc.localizer import Localizer
from cliploc.segmentation import Segmenter, protocol_names, protocol_of
from cliploc.segmentation.segmenter import resized_hw
from cliploc.tower import Needs

SIZES = {"cityscapes": (2048, 1024), "ade20k": (683, 512)}  # width and height; others 640×480
LARGE = (2048, 1536)
WINDOWS = ((224, 112), (224, 224), (0, 112))


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


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MB on Linux


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--pretrained")
    parser.add_argument("--method", default="cam", help="one, or several with commas")
    parser.add_argument("--dataset", default="ade20k", choices=protocol_names())
    parser.add_argument("--rounds", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    methods = asked.method.split(",")
    localizer = Localizer(asked.model, asked.pretrained, method=methods[0], templates="name-only")
    picture, protocol = noise(SIZES.get(asked.dataset, (640, 480))), protocol_of(asked.dataset)
    height, width = resized_hw((picture.height, picture.width), protocol)
    for window, stride in WINDOWS:
        segmenter = Segmenter(localizer, replace(protocol, window=window, stride=stride), {m: {} for m in methods})
        whole = seconds(lambda segmenter=segmenter: segmenter.label_maps(picture), asked.rounds)
        cell = segmenter.backbone.stride
        count, shape = 1, (height // cell * cell, width // cell * cell)
        if window:
            count = int(np.prod([max(side - window + stride - 1, 0) // stride + 1 for side in (height, width)]))
            shape = (window, window)
        images = torch.zeros(min(count, 16), 3, *shape)
        bare = seconds(lambda images=images: localizer.backbone.trace(images, Needs()), asked.rounds)
        forward = bare * count / len(images)
        print(
            f"{asked.model} {asked.method} {asked.dataset}, window {window} every {stride}: {count} windows, "
            f"{len(segmenter.class_of)} queries: {whole:.2f} s a picture, {forward:.2f} s bare forward"
        )
    before = peak()
    Segmenter(localizer, protocol, {m: {} for m in methods}).label_maps(noise(LARGE))
    print(f"peak memory {before:.0f} MB before, {peak():.0f} MB after a picture of {LARGE[0]}×{LARGE[1]}")


if __name__ == "__main__":
    main()

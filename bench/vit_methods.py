"""LeGrad and GEM beside their public packages: seconds from pictures to maps, alternating, on this machine.

    python -m bench.vit_methods [--quick] [--threads 1] [--rounds 5] [--out bench/results]

One ViT-B/16 with random weights at 224, shared by all; CPU, float32; 1 and 10 prompts, 1 and 8 images. Both sides start
from normalised pictures and embedded prompts and end with maps of 0–1 over the input; `gem, from names` starts from
names, which gem_torch embeds at every call and we once. Before anything is timed, the first picture's maps must agree
(1e-3). In rows called "bf16" our tower alone is in bfloat16, where the processor computes in it; maps agree to 0.1, one
picture is enough. Seconds are those of the processor, which other programs on the machine disturb less; the clock's
ratio stands beside theirs.

legrad_torch takes one picture at a time: several are a loop. Both it and gem_torch were written for blocks that take
[T, B, d], as open_clip's did; they get such blocks, since with today's their maps are others.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import io
import json
import os
import platform
import statistics
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from bench.turns import in_turns, seconds
from cliploc.methods import Context, methods, min_max
from cliploc.towers._layers import resolve_precision
from cliploc.towers._open_clip_towers import OpenClipVit

THINGS = ("cat", "dog", "bird", "cup", "car", "tree", "boat", "horse", "chair", "house")
PHOTOS = ("cat", "dogs", "osprey", "bee", "coffee", "otters", "drum", "fig")
INSTALL = "make setup, or: pip install --no-deps legrad_torch==1.1 gem_torch==1.0.1; pip install einops torchcam"
SMALL = {"image_size": 64, "layers": 8, "width": 64, "head_width": 32, "patch_size": 16}
SMALL_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
SECONDS_A_CELL = 12.0  # once a cell has taken so long, it gets no further round
BLOCKS = 2  # LeGrad's
DEPTH = 6  # GEM's; gem_torch counts one more
Call = Callable[[Tensor, int], Tensor]  # images [B, 3, H, W], number of prompts → maps [B, P, H, W]


class Exposed(nn.Module):
    """An open_clip block under the names that torchcam looks for."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.self_attention, self.block = block.attn, block

    def forward(self, x: Tensor) -> Tensor:
        y = self.block.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.block.mlp(self.block.ln_2(x))


class Classifier(nn.Module):
    """Images → logits of the prompts `[B, P]`, as torchcam wants a model; early blocks run without a graph."""

    def __init__(self, visual: Any) -> None:
        super().__init__()
        self.visual = visual
        self.early = visual.transformer.resblocks[:-BLOCKS]
        self.late = nn.ModuleList([Exposed(block) for block in visual.transformer.resblocks[-BLOCKS:]])
        self.text = torch.empty(0)  # [P, D]

    def read(self, tokens: Tensor) -> Tensor:
        pooled = self.visual.ln_post(tokens.mean(dim=1)) @ self.visual.proj
        return F.normalize(pooled, dim=-1) @ self.text.T

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.visual._embeds(images)
            for block in self.early:
                x = block(x)
        x = x.requires_grad_(True)
        for block in self.late:
            x = block(x)
        return self.read(x)


class Scene:
    """One random tower, seen by us and by the peers, with photographs and prompts."""

    def __init__(self, quick: bool) -> None:
        torch.manual_seed(0)
        config = open_clip.get_model_config("ViT-B-16")
        vision, text = (SMALL, SMALL_TEXT) if quick else (config["vision_cfg"], config["text_cfg"])
        self.model = open_clip.CLIP(config["embed_dim"], vision, text).eval().requires_grad_(False)
        with torch.no_grad():  # as initialised, biases and norms would hide differences
            for parameter in self.model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        self.tokenizer = open_clip.get_tokenizer("ViT-B-16")
        self.backbone = OpenClipVit(copy.deepcopy(self.model), self.tokenizer, "ViT-B-16")
        self.half = copy.deepcopy(self.backbone)
        self.half.visual.to(torch.bfloat16)
        self.side = vision["image_size"]
        pictures = []
        for name in PHOTOS:
            with Image.open(str(files("cliploc") / "demo_photos" / f"{name}.jpg")) as photo:
                pixels = np.array(photo.convert("RGB").resize((self.side, self.side)))
            pictures.append(torch.from_numpy(pixels).permute(2, 0, 1) / 255)
        self.images = self.backbone.normalize(torch.stack(pictures))  # [8, 3, H, W]
        self.text = self.embed(THINGS)  # [10, D]

    def embed(self, names: tuple[str, ...]) -> Tensor:
        with torch.no_grad():
            return self.backbone.encode_text([f"a photo of a {name}." for name in names])

    def sequence_first(self) -> Any:
        """A copy whose attention takes [T, B, d]."""
        model = copy.deepcopy(self.model)
        for block in model.visual.transformer.resblocks:
            block.attn.batch_first = False
        return model

    def over_input(self, maps: Tensor) -> Tensor:
        """Raw `[B, P, h, w]` → 0–1 over the input."""
        return min_max(F.interpolate(maps, size=(self.side, self.side), mode="bilinear", align_corners=False))

    # ------------------------------------------------------------------------------------------------- the sides
    def ours(self, name: str, half: bool = False, **options: Any) -> Call:
        method, backbone = methods.get(name), self.half if half else self.backbone

        def call(images: Tensor, prompts: int) -> Tensor:
            text = self.text[None, :prompts].expand(len(images), -1, -1)
            with torch.no_grad():
                trace = backbone.trace(images, method.needs(**options))
                return self.over_input(method.function(Context(lambda: images, text, trace, backbone), **options))

        return call

    def legrad_torch(self) -> Call:
        with contextlib.redirect_stdout(io.StringIO()):
            wrapped = importlib.import_module("legrad").LeWrapper(self.sequence_first(), layer_index=-BLOCKS)

        def call(images: Tensor, prompts: int) -> Tensor:
            maps = [wrapped.compute_legrad_clip(self.text[:prompts], image[None]).detach() for image in images]
            return torch.cat(maps)

        return call

    def torchcam(self) -> Call:
        legrad = importlib.import_module("torchcam.methods").LeGrad
        classifier = Classifier(copy.deepcopy(self.model.visual)).eval()

        def call(images: Tensor, prompts: int) -> Tensor:
            classifier.text = self.text[:prompts]
            with legrad(classifier, list(classifier.late), score_projection=classifier.read) as extractor:
                scores = classifier(images)
                maps = [extractor(p, scores, retain_graph=p < prompts - 1)[0].detach() for p in range(prompts)]
            return self.over_input(torch.stack(maps, dim=1))

        return call

    def gem_torch(self, from_names: bool) -> Call:
        wrapped = importlib.import_module("gem").GEMWrapper(self.sequence_first(), self.tokenizer, DEPTH + 1).eval()
        if not from_names:
            wrapped.encode_text = lambda names: self.text[None, : len(names)]

        def call(images: Tensor, prompts: int) -> Tensor:
            with torch.no_grad():
                return wrapped(images, list(THINGS[:prompts]))

        return call


Row = tuple[str, Call, str, Callable[[], Call]]  # its name, our side, the peer's package, what makes the peer's side


def rows(scene: Scene) -> list[Row]:
    legrad, gem = scene.ours("legrad", blocks=BLOCKS), scene.ours("gem", depth=DEPTH)
    halves = []
    if resolve_precision("auto", "cpu") == torch.bfloat16:
        halves = [
            ("legrad, bf16", scene.ours("legrad", half=True, blocks=BLOCKS), "legrad_torch", scene.legrad_torch),
            ("gem, bf16", scene.ours("gem", half=True, depth=DEPTH), "gem_torch", lambda: scene.gem_torch(False)),
        ]
    return [
        ("legrad", legrad, "legrad_torch", scene.legrad_torch),
        ("legrad", legrad, "torchcam", scene.torchcam),
        ("gem", gem, "gem_torch", lambda: scene.gem_torch(from_names=False)),
        ("gem, from names", gem, "gem_torch", lambda: scene.gem_torch(from_names=True)),
        *halves,
    ]


def measure(ours: Call, theirs: Call, images: Tensor, count: int, rounds: int, tolerance: float) -> dict[str, Any]:
    """Warm-up and agreement, then the two take turns."""
    difference = float((ours(images[:1], count) - theirs(images[:1], count)).abs().max())
    if not difference <= tolerance:
        raise RuntimeError(f"maps differ by {difference:.1e}, and their times cannot be compared")
    calls = {"ours": lambda: ours(images, count), "theirs": lambda: theirs(images, count)}
    times = in_turns(calls, rounds, SECONDS_A_CELL)
    pairs = list(zip(times["ours"], times["theirs"], strict=True))
    clock, processor = (statistics.median(peer[i] / own[i] for own, peer in pairs) for i in (0, 1))
    kept = {
        f"{side}_{kind}": [one[i] for one in times[side]]
        for side in ("ours", "theirs")
        for i, kind in enumerate(("clock", "processor"))
    }
    return {"difference": difference, "ratio": processor, "ratio_clock": clock, **kept}


def machine(threads: int) -> dict[str, Any]:
    packages = {}
    for package in ("cliploc", "torch", "open_clip_torch", "legrad_torch", "gem_torch", "torchcam"):
        with contextlib.suppress(PackageNotFoundError):
            packages[package] = version(package)
    cpuinfo = Path("/proc/cpuinfo")
    model = ""
    if cpuinfo.exists():
        model = next((line.split(":")[1].strip() for line in cpuinfo.open() if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": threads,
        "load": [round(one, 1) for one in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": packages,
    }


def shown(times: list[float]) -> str:
    return f"{statistics.median(times):.3f} ({min(times):.3f}–{max(times):.3f})"


HEADER = (
    "| method | images | prompts | cliploc, s | peer | peer, s | ratio | by the clock | rounds | largest difference |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def line(cell: dict[str, Any]) -> str:
    return (
        f"| {cell['method']} | {cell['images']} | {cell['prompts']} | {shown(cell['ours_processor'])} | {cell['peer']} "
        f"| {shown(cell['theirs_processor'])} | {cell['ratio']:.2f} | {cell['ratio_clock']:.2f} | "
        f"{len(cell['ours_clock'])} | {cell['difference']:.0e} |"
    )


def markdown(about: dict[str, Any], cells: list[dict[str, Any]]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    return "\n".join(
        [
            "# LeGrad and GEM beside their public packages",
            "",
            "Made by `python -m bench.vit_methods`, whose head says what is compared. ViT-B/16, random weights, 224 × "
            "224, CPU, float32. Processor seconds of one call: median (least–most); ratios are medians over the rounds "
            "of peer / cliploc, run in turn.",
            "",
            f"{about['processor']}, {about['cpus']} CPUs, {about['threads']} threads, load at the start "
            f"{about['load'] and about['load'][0]}; Python {about['python']}, {versions}.",
            "",
            HEADER,
            *[line(cell) for cell in cells],
            "",
            f"The tower's forward pass of one picture alone: {about['forward']:.3f} s. Both sides run it, so that no "
            "ratio in float32 can be above peer / forward where the peer runs it once.",
            "",
        ]
    )


def main(quick: bool = False, out: Path | None = None, threads: int = 1, rounds: int = 5) -> int:
    """Prints the table; writes it to `out`, as JSON too, cell by cell.

    Args:
        quick: a small tower and one round: that it runs and the maps agree.
        out: a folder; None to write nothing.
        threads: torch's.
        rounds: of each cell; slow ones get fewer.
    """
    torch.set_num_threads(threads)
    about, sides, cells = machine(threads), [], []
    scene = Scene(quick)
    for name, ours, package, make in rows(scene):
        try:
            sides.append((name, ours, package, make()))
        except ModuleNotFoundError as error:
            print(f"{name}: {package} is left out, {error.name} is not installed: {INSTALL}", file=sys.stderr)
    about["forward"] = statistics.median(
        seconds(lambda: scene.backbone.encode_image(scene.images[:1]))[1] for _ in range(rounds)
    )
    print(HEADER)
    for images in (1, 8):
        for count in (1, 10):
            for name, ours, package, theirs in sides:
                half = name.endswith("bf16")
                if half and images > 1:
                    continue
                tolerance = 0.1 if half else 1e-3
                measured = measure(ours, theirs, scene.images[:images], count, 1 if quick else rounds, tolerance)
                cells.append({"method": name, "images": images, "prompts": count, "peer": package, **measured})
                print(line(cells[-1]), flush=True)
                if out is not None:
                    out.mkdir(parents=True, exist_ok=True)
                    result = json.dumps({"machine": about, "cells": cells}, indent=1)
                    (out / "vit_methods.json").write_text(result + "\n", encoding="utf-8")
                    (out / "vit_methods.md").write_text(markdown(about, cells), encoding="utf-8")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small tower and one round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write vit_methods.json and vit_methods.md here")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    sys.exit(main(given.quick, given.out, given.threads, given.rounds))

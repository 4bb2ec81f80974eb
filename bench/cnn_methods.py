"""Score-CAM and Grad-CAM beside torchcam, grad-cam and captum: seconds from pictures to maps, alternating.

    python -m bench.cnn_methods [--quick] [--threads 1] [--rounds 3] [--channels 32] [--out bench/results]
    python -m bench.cnn_methods --only grad_cam --out bench/results     these rows anew, the others as they were

One CLIP RN50 with random weights at 224, shared by all; CPU; the peers in float32, ours in float32 and with masked
pictures in bfloat16. Score-CAM also on ViT-B/16 (random weights), our tower on both sides; channels are the patch
tokens that enter the last block. Both sides start from normalised pictures and embedded prompts and end with maps on
the grid. Before anything is timed, the maps must agree: correlation 0.9999 in float32, 0.995 in bfloat16. Seconds are
those of the processor, which other programs on the machine disturb less; the clock's ratio stands beside theirs.

Score-CAM costs one forward a channel on either side. So that a round takes seconds and not minutes, both sides are
shown the first --channels of RN50's 2,048 channels; a row beside has twice as many.

No peer takes several prompts at once: they get a loop. Of torchcam's Grad-CAM the loop shares one forward, by its
`retain_graph`; the row "a call a prompt" is as its README has it, and as grad-cam and captum always do. All take
several pictures. Gradients pass through the last stage's features only, which is the peers' best case.
"""

from __future__ import annotations

import argparse
import copy
import functools
import importlib
import json
import statistics
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
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

from bench.keep import headed, keep, precisions
from bench.turns import in_turns
from bench.vit_methods import PHOTOS, THINGS, machine, shown
from cliploc.methods import Context, methods
from cliploc.towers import create
from cliploc.towers._open_clip_towers import OpenClipResNet, OpenClipVit
from cliploc.towers.tower import Backbone, Needs

INSTALL = "make setup, or: pip install torchcam grad-cam; pip install --no-deps captum"
SMALL = {"layers": [1, 1, 1, 1], "width": 16, "image_size": 64, "patch_size": None}
SMALL_VIT = {"layers": 3, "width": 64, "head_width": 32, "image_size": 64, "patch_size": 16}
SMALL_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
AGREE = {"fp32": 0.9999, "bf16": 0.995}
BATCH = 16  # masked pictures at once, on either side
Call = Callable[[Tensor, int], Tensor]  # images [B, 3, H, W], number of prompts → maps [B, P, h, w]


class Classifier(nn.Module):
    """Images → logits of the prompts `[B, P]` by open_clip's own tower, with a layer that peers may watch.

    `tap` sees the last stage's features, or the first few of them; only in the former case gradients pass through it.
    The graph begins there: no peer needs it to reach back further, where it would only cost.
    """

    def __init__(self, visual: Any, channels: int | None) -> None:
        super().__init__()
        self.visual, self.channels, self.tap = visual, channels, nn.Identity()
        self.text, self.scale = torch.empty(0), 1.0

    def forward(self, images: Tensor) -> Tensor:
        v = self.visual
        with torch.no_grad():
            x = v.stem(images)
            for stage in (v.layer1, v.layer2, v.layer3, v.layer4):
                x = stage(x)  # [B, C, h, w]
        if self.channels is None:
            x = self.tap(x.requires_grad_(torch.is_grad_enabled()))
        else:
            self.tap(x[:, : self.channels])
        return self.scale * F.normalize(v.attnpool(x), dim=-1) @ self.text.T


class Tower(nn.Module):
    """The same by one of our towers, whose features, or the first few of them, peers may watch without gradients."""

    def __init__(self, backbone: Backbone, channels: int) -> None:
        super().__init__()
        self.backbone, self.channels, self.tap, self.text = backbone, channels, nn.Identity(), torch.empty(0)

    def forward(self, images: Tensor) -> Tensor:
        trace = self.backbone.trace(images, Needs(features=(-1,)))
        self.tap(trace.features[-1][:, : self.channels])
        return self.backbone.logit_scale * trace.embedding @ self.text.T


class Scene:
    """One random tower, seen by us and by the peers, with photographs and prompts."""

    def __init__(self, quick: bool) -> None:
        torch.manual_seed(0)
        config = open_clip.get_model_config("RN50")
        vision: dict[str, Any] = SMALL if quick else config["vision_cfg"]
        text: dict[str, Any] = SMALL_TEXT if quick else config["text_cfg"]
        self.model = open_clip.CLIP(config["embed_dim"], vision, text).eval().requires_grad_(False)
        for module in self.model.modules():
            if isinstance(
                module, nn.BatchNorm2d
            ):  # as initialised, residual branches end in zeros and norms do nothing
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.2)
        tokenizer = open_clip.get_tokenizer("RN50")
        self.fp32: Backbone = OpenClipResNet(self.model, tokenizer, "RN50")
        self.bf16: Backbone = self.fp32.in_precision(torch.bfloat16)
        self.show(vision["image_size"])

    def show(self, side: int) -> None:
        """Makes the pictures and the prompts."""
        pictures = []
        for name in PHOTOS:
            with Image.open(str(files("cliploc") / "demo_photos" / f"{name}.jpg")) as photo:
                pixels = np.array(photo.convert("RGB").resize((side, side)))
            pictures.append(torch.from_numpy(pixels).permute(2, 0, 1) / 255)
        self.images = self.fp32.normalize(torch.stack(pictures))  # [8, 3, H, W]
        # Prompts beside what the photographs are to this tower: far from it, a map may be flat, and shows nothing.
        noise = torch.randn(len(THINGS), self.fp32.embedding_size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            seen = self.fp32.encode_image(self.images).mean(dim=0)  # [D]
        self.text = F.normalize(seen + 0.5 * F.normalize(noise, dim=-1), dim=-1)  # [10, D]

    def classifier(self, channels: int | None = None) -> Any:
        made = Classifier(copy.deepcopy(self.model.visual), channels)
        made.scale = self.fp32.logit_scale
        return made.eval()

    # ------------------------------------------------------------------------------------------------- the sides
    def ours(self, name: str, precision: str = "fp32", channels: int | None = None, **options: Any) -> Call:
        method, encode = methods.get(name), None if precision == "fp32" else self.bf16.encode_image

        def call(images: Tensor, prompts: int) -> Tensor:
            text = self.text[None, :prompts].expand(len(images), -1, -1)
            with torch.no_grad():
                trace = self.fp32.trace(images, method.needs(**options))
                if channels is not None:
                    trace = replace(trace, features={-1: trace.features[-1][:, :channels]})
                ctx = Context(lambda: images, text, trace, self.fp32, BATCH, encode_masked=encode)
                return method.function(ctx, **options).relu()

        return call

    def torchcam(self, name: str, channels: int | None = None, shared: bool = True, **options: Any) -> Call:
        peer = getattr(importlib.import_module("torchcam.methods"), name)
        model = self.classifier(channels)

        def call(images: Tensor, prompts: int) -> Tensor:
            model.text = self.text[:prompts]
            with peer(model, [model.tap], **options) as extractor:
                maps = []
                if name == "ScoreCAM":
                    with torch.no_grad():
                        scores = model(images)
                        maps = [extractor(p, scores)[0] for p in range(prompts)]
                elif not shared:
                    maps = [extractor(p, model(images))[0].detach() for p in range(prompts)]
                else:
                    scores = model(images)
                    maps = [extractor(p, scores, retain_graph=p < prompts - 1)[0].detach() for p in range(prompts)]
            return torch.stack(maps, dim=1)

        return call

    def grad_cam(self, name: str, channels: int | None = None) -> Call:
        peer = getattr(importlib.import_module("pytorch_grad_cam"), name)
        target = importlib.import_module("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
        model = self.classifier(channels)

        def call(images: Tensor, prompts: int) -> Tensor:
            model.text = self.text[:prompts]
            maps = []
            with peer(model=model, target_layers=[model.tap]) as extractor:
                extractor.batch_size = BATCH
                for p in range(prompts):
                    found = extractor(images, targets=[target(p)] * len(images))
                    maps.append(torch.from_numpy(found))  # [B, H, W]: over the input
            return torch.stack(maps, dim=1)

        return call

    def captum(self) -> Call:
        model = self.classifier()
        peer = importlib.import_module("captum.attr").LayerGradCam(model, model.tap)

        def call(images: Tensor, prompts: int) -> Tensor:
            model.text = self.text[:prompts]
            return torch.cat(
                [peer.attribute(images, p, relu_attributions=True).detach() for p in range(prompts)], dim=1
            )

        return call


class VitScene(Scene):
    """The same with a ViT of ours."""

    def __init__(self, backbone: Backbone, side: int) -> None:
        self.fp32, self.bf16 = backbone, backbone
        self.show(side)

    def classifier(self, channels: int | None = None) -> Any:
        assert channels is not None
        return Tower(self.fp32, channels).eval()


def vit(quick: bool) -> VitScene:
    """ViT-B/16 with random weights, or a small one."""
    torch.manual_seed(0)
    config = open_clip.get_model_config("ViT-B-16")
    vision, text = (SMALL_VIT, SMALL_TEXT) if quick else (config["vision_cfg"], config["text_cfg"])
    model = open_clip.CLIP(config["embed_dim"], vision, text).eval().requires_grad_(False)
    return VitScene(OpenClipVit(model, open_clip.get_tokenizer("ViT-B-16"), "ViT-B-16"), vision["image_size"])


def agreement(ours: Tensor, theirs: Tensor) -> float:
    """The least correlation of two maps, ours resized to theirs; NaN where all are flat, which shows nothing."""
    if ours.shape != theirs.shape:
        ours = F.interpolate(ours, size=theirs.shape[-2:], mode="bilinear", align_corners=False)
    found = []
    for a, b in zip(ours.double().flatten(0, 1).flatten(1), theirs.double().flatten(0, 1).flatten(1), strict=True):
        a, b = a - a.mean(), b - b.mean()
        if a.any() or b.any():
            found.append(float(a @ b) / max(float(a.norm() * b.norm()), 1e-30))
    return min(found, default=float("nan"))


Row = tuple[str, str, Call, str, Callable[[], Call]]  # method, precision, ours, package, the peer
Rows = list[tuple[Row, Tensor, tuple[tuple[int, int], ...]]]  # with the pictures, and numbers of (images, prompts)


def vit_rows(channels: int, quick: bool) -> Rows:
    """Score-CAM on ViTs."""
    scenes = [(vit(quick), channels, "")]
    if not quick:  # torchcam scales masks to 0–1 before they are upsampled; few channels add up to nearly nothing
        scenes.append((VitScene(create("mini-vit"), 224), 4 * channels, ", masks scaled otherwise"))
    found: Rows = []
    for scene, some, how in scenes:
        ours = scene.ours("score_cam", "fp32", some, temperature=1 / scene.fp32.logit_scale)
        theirs = functools.partial(scene.torchcam, "ScoreCAM", some, batch_size=BATCH)
        row = (f"score_cam on {scene.fp32.name}{how}", "fp32", ours, "torchcam", theirs)
        found.append((row, scene.images, ((1, 1), (1, 10))))
    return found


def rows(scene: Scene, channels: int, quick: bool) -> Rows:
    """What is measured of a CNN."""
    cam: dict[str, Any] = {"temperature": 1 / scene.fp32.logit_scale}  # the peers' scores are the model's logits
    once, grid = ((1, 1),), ((1, 1), (1, 10), (8, 1), (8, 10))
    found: list[tuple[Row, tuple[tuple[int, int], ...]]] = []
    for precision in precisions():
        ours = scene.ours("score_cam", precision, channels, **cam)
        theirs = lambda n=channels: scene.torchcam("ScoreCAM", n, batch_size=BATCH)  # noqa: E731
        found.append((("score_cam", precision, ours, "torchcam", theirs), ((1, 1), (1, 10))))
    if not quick:
        ours = scene.ours("score_cam", "fp32", 2 * channels, **cam)
        twice = lambda: scene.torchcam("ScoreCAM", 2 * channels, batch_size=BATCH)  # noqa: E731
        found.append((("score_cam, twice the channels", "fp32", ours, "torchcam", twice), once))
        peers = lambda: scene.grad_cam("ScoreCAM", channels)  # noqa: E731
        ours = scene.ours("score_cam", "fp32", channels, **cam)
        found.append((("score_cam, corners aligned otherwise", "fp32", ours, "grad-cam", peers), once))
    gradient = scene.ours("grad_cam")
    found.append((("grad_cam", "fp32", gradient, "torchcam", lambda: scene.torchcam("GradCAM")), grid))
    if not quick:
        alone = lambda: scene.torchcam("GradCAM", shared=False)  # noqa: E731
        found.append((("grad_cam, a call a prompt", "fp32", gradient, "torchcam", alone), grid[1::2]))
    found.append((("grad_cam", "fp32", gradient, "grad-cam", lambda: scene.grad_cam("GradCAM")), grid))
    found.append((("grad_cam", "fp32", gradient, "captum", scene.captum), grid))
    return [(row, scene.images, sizes) for row, sizes in found]


def measure(row: Row, images: Tensor, prompts: int, rounds: int, time_limit: float) -> dict[str, Any]:
    """Warm-up and agreement, then the two take turns."""
    name, precision, ours, _, make = row
    theirs = make()
    agreed = agreement(ours(images, prompts), theirs(images, prompts))
    near = "otherwise" in name or row[3] == "grad-cam"  # which normalises over the input with corners aligned
    wanted = 0.98 if near else AGREE[precision]
    if not agreed >= wanted:
        raise RuntimeError(f"{name}: maps correlate by {agreed:.5f} only, and their times cannot be compared")
    calls = {"ours": lambda: ours(images, prompts), "theirs": lambda: theirs(images, prompts)}
    times = in_turns(calls, rounds, time_limit)
    pairs = list(zip(times["ours"], times["theirs"], strict=True))
    clock, processor = (statistics.median(b[i] / a[i] for a, b in pairs) for i in (0, 1))
    kept = {
        f"{side}_{kind}": [one[i] for one in times[side]]
        for side in ("ours", "theirs")
        for i, kind in enumerate(("clock", "processor"))
    }
    return {"agreement": agreed, "ratio": processor, "ratio_clock": clock, **kept}


HEADER = (
    "| method | precision | images | prompts | cliploc, s | peer | peer, s | ratio | by the clock | rounds | agreement "
    "|\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def line(cell: dict[str, Any]) -> str:
    return (
        f"| {cell['method']} | {cell['precision']} | {cell['images']} | {cell['prompts']} | "
        f"{shown(cell['ours_processor'])} | {cell['peer']} | {shown(cell['theirs_processor'])} | "
        f"{cell['ratio']:.2f} | {cell['ratio_clock']:.2f} | {len(cell['ours_clock'])} | {cell['agreement']:.5f} |"
    )


def markdown(about: dict[str, Any], cells: Sequence[dict[str, Any]], channels: int) -> str:
    text = (
        "Made by `python -m bench.cnn_methods`, whose head says what is compared. CLIP RN50, random weights, 224 × "
        f"224, CPU; Score-CAM of the first {channels} of 2,048 channels. Processor seconds "
        "of one call: median (least–most); ratios are medians over the rounds of peer / cliploc, run in turn; "
        "agreement is the least correlation of two maps."
    )
    return headed(
        "Score-CAM and Grad-CAM beside the public packages", text, about, [HEADER, *[line(cell) for cell in cells]]
    )


def identity(cell: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(cell[key] for key in ("method", "precision", "images", "prompts", "peer"))


def kept(out: Path | None, about: dict[str, Any], channels: int) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The rows that an earlier run left in a folder, if it ran on the like of this machine with as many channels."""
    if out is None or not (out / "cnn_methods.json").exists():
        return {}
    there = json.loads((out / "cnn_methods.json").read_text(encoding="utf-8"))
    before = {**there["machine"], "load": None, "channels": there["channels"]}
    if before != {**about, "load": None, "channels": channels}:
        sys.exit(
            f"expected {out} to be of this machine, these versions, {channels} channels, got others: leave out --only"
        )
    return {identity(one): one for one in there["cells"]}


def main(
    quick: bool = False,
    out: Path | None = None,
    threads: int = 1,
    rounds: int = 3,
    channels: int = 32,
    only: str = "",
) -> int:
    """Prints the table; writes it to `out`, as JSON too, row by row.

    Args:
        quick: a small tower and one round: that it runs and the maps agree.
        out: a folder; None to write nothing.
        threads: torch's.
        rounds: of each row; slow ones get fewer.
        channels: how many Score-CAM looks at.
        only: rows whose method begins so; others of `out` stay as they are.
    """
    torch.set_num_threads(threads)
    about = machine(threads)
    for package in ("grad-cam", "captum"):
        try:
            about["versions"][package] = version(package)
        except PackageNotFoundError:
            print(f"{package} is not installed: {INSTALL}", file=sys.stderr)
    scene = Scene(quick)
    cells = kept(out, about, channels) if only else {}
    print(HEADER)
    for row, pictures, sizes in [*rows(scene, channels, quick), *vit_rows(channels, quick)]:
        if not row[0].startswith(only):
            continue
        for images, prompts in sizes[:2] if quick else sizes:
            try:
                measured = measure(row, pictures[:images], prompts, 1 if quick else rounds, 60.0)
            except ModuleNotFoundError as error:
                print(f"{row[0]}: {row[3]} is left out, {error.name} is not installed: {INSTALL}", file=sys.stderr)
                break
            about_row = {"method": row[0], "precision": row[1], "images": images, "prompts": prompts, "peer": row[3]}
            cell = {**about_row, **measured}
            cells[identity(cell)] = cell
            print(line(cell), flush=True)
            result = {"machine": about, "channels": channels, "cells": list(cells.values())}
            keep(out, "cnn_methods", result, markdown(about, list(cells.values()), channels))
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small tower and one round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--channels", type=int, default=32, help="of Score-CAM, on both sides")
    parser.add_argument("--only", default="", help="rows whose method begins so, such as grad_cam")
    parser.add_argument("--out", type=Path, help="write cnn_methods.json and cnn_methods.md here")
    given = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    sys.exit(main(given.quick, given.out, given.threads, given.rounds, given.channels, given.only))

# ruff: noqa: E501  (a row of a Markdown table is one line)
"""Measures the bundled model `mini-vit` and writes its card, docs/mini-vit.md (`make mini-vit-card`, an hour on 2 cores).

Needs ../shared/data (see its README); figures come from the package's public code.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import reduce
from operator import or_
from pathlib import Path

import numpy as np
import torch
from mini_card import SIDE, TEMPLATE, embed_pictures, load_names, load_split, max_box_acc, pixels, top_k
from torch import Tensor
from torch.nn import functional as F

from cliploc import backbones
from cliploc.backbones.mini_vit import WEIGHTS, MiniVit
from cliploc.saliency import methods
from cliploc.schema import Context, Method

ROOT = Path(__file__).resolve().parent.parent
SLOW_PICTURES = 60  # that the methods are measured on which send a picture through the tower hundreds of times
BATCH = 8


def maps_of(
    model: MiniVit, shown: Sequence[Method], paths: Sequence[Path], texts: Tensor, side: int
) -> list[np.ndarray]:
    """For each method the map of each picture for its own text `[n, D]`, in 0–1 at 224: float32 `[n, 224, 224]`."""
    needs = reduce(or_, [method.needs() for method in shown])
    maps: list[list[np.ndarray]] = [[] for _ in shown]
    for start in range(0, len(paths), BATCH):
        images = pixels(model, paths[start : start + BATCH], side)
        ctx = Context(images, texts[start : start + BATCH, None], model.trace(images, needs), model)
        for method, kept in zip(shown, maps, strict=True):
            raw = method.function(ctx)  # [B, 1, h, w]
            raw = raw.relu() if method.relu else raw
            low, high = raw.amin(dim=(2, 3), keepdim=True), raw.amax(dim=(2, 3), keepdim=True)
            scaled = (raw - low) / (high - low).clamp_min(1e-12)
            large = F.interpolate(scaled, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
            kept.append(large[:, 0].clamp(0, 1).numpy())
    return [np.concatenate(kept) for kept in maps]


def localisation(
    model: MiniVit, paths: Sequence[Path], texts: Tensor, truths: Sequence[np.ndarray]
) -> dict[str, dict[int, tuple[float, float]]]:
    """GT-known and its best τ of each method at 224 and 448 pixels; of the slow ones at 224 on the first pictures."""
    found: dict[str, dict[int, tuple[float, float]]] = {}
    fast = [m for m in methods if "vit" in m.towers and m.family != "perturbation"]
    slow = [m for m in methods if "vit" in m.towers and m.family == "perturbation"]
    for shown, side, count in ((fast, 224, len(paths)), (fast, 448, len(paths)), (slow, 224, SLOW_PICTURES)):
        for method, maps in zip(shown, maps_of(model, shown, paths[:count], texts, side), strict=True):
            found.setdefault(method.name, {})[side] = max_box_acc(maps, truths[:count])
            print(method.name, side, found[method.name][side], flush=True)
    return found


def card(data: Path) -> str:
    names = [name for _, name in load_names(data)]
    model = backbones.create("mini-vit", device="cpu")
    assert isinstance(model, MiniVit)
    facts = json.loads((WEIGHTS / "mini_vit.json").read_text())
    paths, labels, truths = load_split(data / "ilsvrc_val_dev")
    texts = model.encode_text([TEMPLATE.format(name) for name in names])  # [1000, 1280]
    teacher = embed_pictures(backbones.create("mini", device="cpu"), paths)
    images = {side: embed_pictures(model, paths, side) for side in (224, 448)}
    accuracy = {side: top_k(images[side], texts, labels) for side in images}
    taught = top_k(teacher, texts, labels)
    same = float(((teacher @ texts.T).argmax(dim=1) == (images[224] @ texts.T).argmax(dim=1)).float().mean())
    present = model.presence(images[224] @ texts.T) >= 0.5  # [n, 1000]
    own = torch.zeros_like(present)
    own[torch.arange(len(labels)), labels] = True
    found = localisation(model, paths, texts[labels], truths)
    shape, held, agreed = facts["shape"], facts["presence_held_out"], facts["agreement_held_out"]
    own_bytes = sum(path.stat().st_size for path in WEIGHTS.iterdir())
    parameters = sum(parameter.numel() for parameter in model.net.parameters())

    def cell(value: tuple[float, float] | None) -> str:
        return "–" if value is None else f"{value[0]:.3f} at τ {value[1]:.2f}"

    fast = sorted((name for name in found if 448 in found[name]), key=lambda name: -found[name][224][0])
    rows = "\n".join(
        f"| {methods.get(name).title} | `{name}` | {cell(found[name][224])} | {cell(found[name][448])} | {methods.get(name).threshold:g} |"
        for name in fast
    )
    slow = "\n".join(
        f"| {methods.get(name).title} | `{name}` | {cell(found[name][224])} |" for name in found if name not in fast
    )
    return f"""# `mini-vit`: model card

Written by `make mini-vit-card` (tools/mini_vit_card.py); built by `tools/build_mini_vit.py`.

## What it is
A small vision transformer in {own_bytes / 1e6:.1f} MB that ships inside the package beside [`mini`](mini.md), so that every ViT method runs on
photographs offline. A `Backbone` like any other: `--model mini-vit`.

* **Image tower**: a hybrid ViT (Dosovitskiy 2021). `mini`'s frozen convolutions up to their 192 channels are the patch
  embedding; their last stride is replaced by dilation, so that the grid is {shape["grid"][0]}×{shape["grid"][1]} at 224 pixels (28×28 at 448) and not
  7×7. Then {shape["depth"]} blocks of width {shape["width"]} with {shape["heads"]} heads and a class token, {parameters / 1e6:.1f} million parameters; embedding = unit(projection of the
  class token).
* **Text tower**: `mini`'s own, from the same files.
* **Training**: the class token learnt to say what `mini` says of the same picture (1 − cosine, plus the Kullback–Leibler
  divergence over the 1,000 classes), on augmented views of one training picture of each ImageNet class. Only the class token
  is supervised, as in CLIP: no label, no box, nothing on patch tokens or attention.

## What it is not
* All that [`mini`'s card](mini.md) says of labels and words holds here too: **its figures on ILSVRC are not zero-shot
  results**, and must not stand beside CLIP's.
* It saw 900 photographs only, and its convolutions are `mini`'s: it is a place to try ViT methods, not a better model.
* The receptive field of its patch tokens is wider than the patch, because of the convolutions below: maps of ViT methods
  look smoother than CLIP's.

## Sizes and sources
`mini_vit_weights/` holds {own_bytes / 1e6:.1f} MB; convolutions and text tower are read from `mini_weights/`. Sources and licences: those of `mini`.

## Figures
On the {len(paths)} pictures of `ilsvrc_val_dev`; nothing was chosen on them.

| | mini-vit at 224 | mini-vit at 448 | `mini`, its teacher |
|---|---|---|---|
| top-1 / top-5 of 1,000 class names | {accuracy[224][0]:.3f} / {accuracy[224][1]:.3f} | {accuracy[448][0]:.3f} / {accuracy[448][1]:.3f} | {taught[0]:.3f} / {taught[1]:.3f} |
| the same first class as the teacher | {same:.3f} | | |
| class names said to be present, of those that are | {float(present[own].float().mean()):.3f} | | |
| class names said to be present, of the 999 others | {float(present[~own].float().mean()):.3f} | | |

On the {agreed["pictures"]} pictures left out of the training: the same first class as the teacher {agreed["same_first_class"]:.3f}, cosine to its
embedding {agreed["cosine"]:.3f}.

### Every ViT method
GT-known: MaxBoxAcc V1 (largest contour, IoU ≥ 0.5), each method with its own options, for the picture's own class name; τ is
the best one on this same split, **an oracle**. Last: the τ that the package takes by itself, chosen on hand-drawn boxes of 118
ImageNet training pictures.

| method | `--method` | GT-known at 224 | at 448 | default τ |
|---|---|---|---|---|
{rows}

The methods that mask the picture hundreds of times, on the first {SLOW_PICTURES} pictures only:

| method | `--method` | GT-known at 224 |
|---|---|---|
{slow}

## Present or absent
P(present) = sigmoid({facts["presence"]["scale"]} · cosine − {-facts["presence"]["bias"]}): the threshold is the cosine that 5 % of absent names exceed, fitted as
`mini`'s on every other one of the pictures left out of the training, measured on the other {held["pictures"]}:

| | |
|---|---|
| found, of the picture's own class name | {held["recall_class_names"]:.3f} |
| found, of the wider names above it ("dog", "vehicle") | {held["recall_wider_names"]:.3f} |
| found, of absent names | {held["false_positives"]:.3f} |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure mini-vit and write its card.")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/mini-vit.md")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    for name in ("ilsvrc_val_dev", "imagenet_one_per_class"):
        if not (options.data / name).is_dir():
            sys.exit(f"expected {name} in {options.data}, found no such folder: give its parent with --data")
    torch.set_num_threads(options.threads)
    text = card(options.data)
    options.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()

"""Builds `mini-vit`, the small vision transformer that ships inside the package (towers/mini_vit_weights).

    pip install openvino==2026.4.1        # runs the frozen convolutions; the package itself does not need it
    python tools/build_mini_vit.py

The class token is taught to say what `mini` says of the same picture (Hinton 2015): 1 − cosine to its embedding, and
the Kullback–Leibler divergence of the 1,000 classes' probabilities. No label, no box and no text is read, and the patch
tokens are left to themselves, as in CLIP. With few photographs a patient teacher matters (Beyer 2022): it sees the very
crop, mixture or collage that the student sees.

1. *Views*: `--passes` augmented views of every photograph; of each, the stem's features (14×14×192) and the teacher's
   embedding go to `--cache` in float16, one file a pass. A second run finds them there.
2. *Training*: mostly on one of the four 7×7 grids that interlace to 14×14, which costs a quarter (tokens dropped as in
   FLIP, Li 2023); the last epochs on all tokens.

The photographs are one training picture of each ImageNet class (--pictures); of the pictures that results are reported
on none is read. Every tenth is left out of the training: on these constants were chosen, by how far student and teacher
agree.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from build_mini import HELD_OUT
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.towers.mini import MEAN, STD, Mini
from cliploc.towers.mini_vit import WEIGHTS, HybridBlocks, load_stem

ROOT = Path(__file__).resolve().parent.parent
SIDE = 224
SHAPE: dict[str, Any] = {"grid": (14, 14), "width": 320, "depth": 4, "heads": 10, "mlp_ratio": 2, "size": 1280}
RIDGE = 1e-2
BATCH = 64
LEARNING_RATE, WEIGHT_DECAY = 3e-4, 0.05
PASSES, STEPS = 16, 1200
WHOLE = 0.5  # of the steps see whole grids, the others a part
FULL_GRID = 0.08  # of the steps, the last ones, that see all 14×14 tokens


# ------------------------------------------------------------------------------------------------------------- views


def crop(picture: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """A random part (Szegedy 2015), mirrored or not, its colours shifted: float32 `[224, 224, 3]` in 0–255."""
    width, height = picture.size
    for _ in range(10):
        area, ratio = rng.uniform(0.2, 1) * width * height, math.exp(rng.uniform(-0.3, 0.3))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if w <= width and h <= height:
            break
    else:
        w, h = width, height
    x, y = rng.integers(width - w + 1), rng.integers(height - h + 1)
    part = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(x, y, x + w, y + h), reducing_gap=2.0)
    view = np.asarray(part, dtype=np.float32)
    if rng.random() < 0.5:
        view = view[:, ::-1]
    if rng.random() < 0.5:
        grey = view.mean(axis=2, keepdims=True)
        view = grey + (view - grey) * rng.uniform(0.3, 1.5)  # saturation
        mean = view.mean()
        view = mean * rng.uniform(0.7, 1.3) + (view - mean) * rng.uniform(0.6, 1.4)  # brightness, contrast
        view = view * rng.uniform(0.9, 1.1, size=3).astype(np.float32)
    return view


def make_view(pictures: list[Image.Image], index: int, rng: np.random.Generator) -> np.ndarray:
    """A crop; or two pictures' crops, laid over each other (Zhang 2018) or one pasted into the other (Yun 2019)."""
    view, kind = crop(pictures[index], rng), rng.random()
    if kind < 0.5:
        return view
    # Pictures left out of the training mix only among themselves.
    group = [i for i in range(len(pictures)) if (i % HELD_OUT == 0) == (index % HELD_OUT == 0)]
    other = crop(pictures[group[rng.integers(len(group))]], rng)
    if kind < 0.75:
        weight = rng.uniform(0, 0.5)
        return (1 - weight) * view + weight * other
    h, w = (rng.uniform(0.3, 0.8, size=2) * SIDE).astype(int)
    y, x = rng.integers(SIDE - h + 1), rng.integers(SIDE - w + 1)
    view = view.copy()
    view[y : y + h, x : x + w] = other[y : y + h, x : x + w]
    return view


class Stem(nn.Module):
    """Pixels `[B, 224, 224, 3]` in 0–255 → the stem's features `[B, 14, 14, 192]`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = load_stem()[:-1]

    def forward(self, pixels: Tensor) -> Tensor:
        mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        fine: Tensor = self.stem((pixels.permute(0, 3, 1, 2) / 255 - mean) / std)  # [B, 192, 14, 14]
        return fine.permute(0, 2, 3, 1)


def make_views(pictures: list[Image.Image], passes: int, seed: int, cache: Path) -> None:
    """Fills the cache: `views-<pass>.npy`, float16 `[n, 14, 14, 192]`."""
    todo = [number for number in range(passes) if not (cache / f"views-{number:03}.npy").exists()]
    if not todo:
        return
    import openvino  # (five times as fast as torch at this, and needed by nothing else)

    model = openvino.convert_model(Stem().eval(), example_input=torch.zeros(2, SIDE, SIDE, 3))
    settings = {"INFERENCE_NUM_THREADS": 2, "INFERENCE_PRECISION_HINT": "bf16"}
    run = openvino.Core().compile_model(model, "CPU", settings)
    for number in todo:
        start = time.perf_counter()
        rng = np.random.default_rng([seed, number])
        features = []

        def prepare(first: int, rng: np.random.Generator = rng) -> np.ndarray:
            indices = range(first, min(first + 40, len(pictures)))
            return np.stack([make_view(pictures, i, rng) for i in indices]).clip(0, 255).astype(np.float32)

        with ThreadPoolExecutor(max_workers=1) as pool:  # one: the order of random numbers is part of the result
            for pixels in pool.map(prepare, range(0, len(pictures), 40)):
                features.append(run([pixels])[0].astype(np.float16))
        np.save(cache / f"views-{number:03}.npy", np.concatenate(features))
        print(f"pass {number}: {len(pictures)} views, {time.perf_counter() - start:.0f} s", flush=True)


# ---------------------------------------------------------------------------------------------------------- training


class Distillation:
    """The teacher from the stem's features on, and how far a student is from it."""

    def __init__(self) -> None:
        teacher = Mini.bundled()
        self.fine_stage, self.coarse_stage, self.head = load_stem()[-1], teacher.stages[-2], teacher.stages[-1]
        self.mean_feature = teacher.pool_layer.mean_feature  # [1280]
        self.rows = F.normalize(teacher.text.class_rows, dim=1) * teacher.logit_scale  # [1000, 1280]

    @torch.no_grad()
    def stem(self, stored: Tensor, *, fine: bool) -> Tensor:
        """The stem's last stage, dilated for the fine grid: `[B, h, w, 192]` → `[B, h, w, 320]`."""
        stage = self.fine_stage if fine else self.coarse_stage
        return stage(stored.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    @torch.no_grad()
    def target(self, features: Tensor) -> Tensor:
        """At the teacher's stride of 32, `[B, h, w, 320]` → its embedding `[B, 1280]`, unit norm."""
        pooled = self.head(features.permute(0, 3, 1, 2)).float().mean(dim=(2, 3))
        return F.normalize(pooled - self.mean_feature, dim=1)

    def loss(self, embedding: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Student's `[B, D]` and teacher's unit `[B, D]` → 1 − cosine, divergence, share of the same first class."""
        student = F.normalize(embedding.float(), dim=1)
        logits, wanted = student @ self.rows.T, target @ self.rows.T  # [B, 1000]
        divergence = F.kl_div(
            logits.log_softmax(dim=1), wanted.log_softmax(dim=1), reduction="batchmean", log_target=True
        )
        same = (logits.argmax(dim=1) == wanted.argmax(dim=1)).float().mean()
        return 1 - (student * target).sum(dim=1).mean(), divergence, same


@torch.no_grad()
def initialise(net: HybridBlocks, task: Distillation, stored: Tensor) -> None:
    """The class token begins as the best linear reading of the mean of the normed patches; views `[n, 7, 7, 192]`.

    Every block begins by adding nothing, but the last, in which the class token gathers all patches alike. With few
    photographs this decides: a random start learns the photographs by heart.
    """
    for name, parameter in net.named_parameters():
        if parameter.dim() == 2 or name == "class_token":
            nn.init.trunc_normal_(parameter, std=0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
    for block in net.blocks:
        nn.init.zeros_(block.attn.proj.weight)
        nn.init.zeros_(block.mlp.fc2.weight)
    width = net.patch_embed.out_features
    last = net.blocks[-1].attn
    last.qkv.weight[2 * width :] = torch.eye(width)
    last.proj.weight.copy_(torch.eye(width))
    features = torch.cat([task.stem(part, fine=False) for part in stored.split(200)])  # [n, 7, 7, 320]
    deviation, mean = torch.std_mean(features, dim=(0, 1, 2))
    net.patch_embed.weight.copy_(torch.diag(1 / deviation))
    net.patch_embed.bias.copy_(-mean / deviation)
    read = torch.cat([net.gathered(part.flatten(1, 2), net.positions[:50]) for part in features.split(200)])  # [n, 320]
    target = torch.cat([task.target(part) for part in features.split(200)])  # [n, 1280]
    gram = read.T.double() @ read.double()
    ridge = RIDGE * len(read) * torch.eye(width, dtype=torch.float64)
    net.projection.weight.copy_(torch.linalg.solve(gram + ridge, read.T.double() @ target.double()).T)


def collage(features: Tensor, rng: np.random.Generator) -> Tensor:
    """Features of a batch `[B, 7, 7, 192]` with rectangles of each other, or laid over each other, or as they are."""
    partner = features[torch.from_numpy(rng.permutation(len(features)))]
    out = features.clone()
    for i in range(len(features)):
        kind = rng.random()
        if kind < 0.4:
            h, w = rng.integers(2, 7, size=2)
            y, x = rng.integers(8 - h), rng.integers(8 - w)
            out[i, y : y + h, x : x + w] = partner[i, y : y + h, x : x + w]
        elif kind < 0.6:
            weight = rng.uniform(0, 0.5)
            out[i] += weight * (partner[i] - features[i])
    return out


def positions_of(net: HybridBlocks, rows: slice, columns: slice) -> Tensor:
    """The class token's and the patches' positions of a part of the grid, `[1+N, d]`."""
    patches = net.positions[1:].view(*net.grid, -1)[rows, columns]  # [h, w, d]
    return torch.cat([net.positions[:1], patches.flatten(0, 1)])


@torch.inference_mode()
def plain_views(pictures: list[Image.Image]) -> Tensor:
    """Whole pictures' features `[n, 14, 14, 192]`."""
    stem = Stem().eval()
    pixels = [np.asarray(p.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float32) for p in pictures]
    return torch.cat([stem(torch.from_numpy(np.stack(pixels[i : i + 20]))) for i in range(0, len(pixels), 20)])


@torch.inference_mode()
def embed(net: HybridBlocks, features: Tensor) -> Tensor:
    """The stem's features `[n, 14, 14, 320]` → `[n, 1280]`, not normalised."""
    return torch.cat([net(part.flatten(1, 2), net.positions) for part in features.split(50)])


@torch.inference_mode()
def agreement(net: HybridBlocks, task: Distillation, features: Tensor) -> dict[str, float]:
    """How far the student is from the teacher on pictures that it did not learn from."""
    cosine, divergence, same = task.loss(embed(net, features), task.target(features[:, 1::2, 1::2]))
    return {
        "cosine": round(1 - float(cosine), 4),
        "divergence": round(float(divergence), 3),
        "same_first_class": round(float(same), 3),
        "pictures": len(features),
    }


def train(cache: Path, passes: int, steps: int, seed: int, held: Tensor) -> HybridBlocks:
    """Learns from the views of all pictures but those left out, whose plain features are `held`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    views = [np.load(cache / f"views-{i:03}.npy", mmap_mode="r") for i in range(passes)]
    kept = np.array([i for i in range(len(views[0])) if i % HELD_OUT])
    task = Distillation()
    net = HybridBlocks(**SHAPE)
    seen = np.concatenate([views[i][kept, 1::2, 1::2] for i in range(min(passes, 6))])
    initialise(net, task, torch.from_numpy(seen).float())
    print("at the start:", agreement(net, task, held), flush=True)
    # Its way in and out stays as it began: learnt freely, they fit the few pictures and forget the others' classes.
    net.patch_embed.requires_grad_(False)
    net.projection.requires_grad_(False)
    decayed = [p for p in net.parameters() if p.requires_grad and p.dim() == 2]
    others = [p for p in net.parameters() if p.requires_grad and p.dim() != 2]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    start, sums = time.perf_counter(), torch.zeros(3)
    for step in range(steps):
        chosen = zip(rng.integers(passes, size=BATCH), rng.choice(kept, BATCH, replace=False), strict=True)
        whole = torch.from_numpy(np.stack([views[n][p] for n, p in chosen])).float()  # [B, 14, 14, 192]
        if step >= (1 - FULL_GRID) * steps:
            tokens, positions = task.stem(whole, fine=True), net.positions
            target = task.target(tokens[:, 1::2, 1::2])
        else:
            phase = rng.integers(2, size=2)
            h, w = (7, 7) if rng.random() < WHOLE else rng.integers(3, 8, size=2)
            y, x = rng.integers(8 - h), rng.integers(8 - w)
            grid = task.stem(collage(whole[:, phase[0] :: 2, phase[1] :: 2], rng), fine=False)
            tokens = grid[:, y : y + h, x : x + w]
            target = task.target(tokens)
            rows, columns = (
                slice(p + 2 * a, p + 2 * (a + n), 2) for p, a, n in zip(phase, (y, x), (h, w), strict=True)
            )
            positions = positions_of(net, rows, columns)
        with torch.autocast("cpu", torch.bfloat16):
            embedding = net(tokens.flatten(1, 2), positions)
        parts = torch.stack(task.loss(embedding, target))
        optimiser.zero_grad()
        (parts[0] + parts[1]).backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        sums += parts.detach()
        if (step + 1) % 250 == 0:
            mean = " ".join(f"{value:.4f}" for value in (sums / 250).tolist())
            print(f"step {step + 1}/{steps}  {time.perf_counter() - start:.0f} s  {mean}", end="  ")
            print(agreement(net.eval(), task, held), flush=True)
            net.train()
            sums.zero_()
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the bundled model mini-vit.")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache/mini-vit", help="features and teacher's outputs")
    parser.add_argument("--pictures", type=Path, default=ROOT.parent / "shared/data/imagenet_one_per_class")
    parser.add_argument("--passes", type=int, default=PASSES, help="augmented views of each picture (75 MB each)")
    parser.add_argument("--steps", type=int, default=STEPS, help="of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    torch.set_num_threads(2)
    options.cache.mkdir(parents=True, exist_ok=True)
    paths = sorted(options.pictures.glob("n*.jpg"))
    if len(paths) != 1000:
        parser.error(f"expected one picture of each of the 1,000 classes in {options.pictures}, found {len(paths)}")
    pictures = [Image.open(path).convert("RGB") for path in paths]
    held = Distillation().stem(plain_views(pictures[::HELD_OUT]), fine=True)  # [n, 14, 14, 320]
    make_views(pictures, options.passes, options.seed, options.cache)
    net = train(options.cache, options.passes, options.steps, options.seed, held)
    options.out.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.half().contiguous() for name, tensor in net.state_dict().items()}
    save_file(tensors, options.out / "image.safetensors")
    net.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    facts = {
        "shape": SHAPE,
        "logit_scale": Mini.bundled().logit_scale,
        "agreement_held_out": agreement(net, Distillation(), held),
    }
    (options.out / "mini_vit.json").write_text(json.dumps(facts, indent=2) + "\n")
    for path in sorted(options.out.iterdir()):
        path.chmod(0o644)
        print(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.stat().st_size / 1e6:6.2f} MB  {path.name}")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()

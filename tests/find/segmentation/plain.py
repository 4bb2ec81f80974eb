"""The protocol of SCLIP, NACLIP and ProxyCLIP again, in plain loops; on a narrow CLIP of open_clip."""

from collections.abc import Sequence

import cv2
import numpy as np
import open_clip
import torch
from PIL import Image
from torch.nn import functional as F

from cliploc.find import prompts
from cliploc.towers._open_clip_towers import OpenClipVit
from tests.tiny import seeded

MEAN, STD = (122.771, 116.746, 104.094), (68.501, 66.632, 70.323)
RULES = ("maskclip", "clearclip", "sclip")
CLASSES = ["sky, wall, tree", "cat", "person, person in shirt", "bus"]  # the first is the background


def clip_b16(layers: int = 3, width: int = 64, embed_dim: int = 32) -> open_clip.CLIP:
    """CLIP's ViT-B/16, but narrow and shallow; seeded."""

    def build() -> open_clip.CLIP:
        vision = {"layers": layers, "width": width, "head_width": 16, "patch_size": 16, "image_size": 224}
        text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
        model = open_clip.CLIP(embed_dim, vision, text)
        with torch.no_grad():
            for parameter in model.visual.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model

    return parted(seeded(build, 0))


def parted(model: open_clip.CLIP) -> open_clip.CLIP:
    """The same with what all places have in common taken out, so that their labels differ."""
    open_clip.model.set_model_preprocess_cfg(model, open_clip.transform.PreprocessCfg(size=224).__dict__)
    model = model.eval()
    with torch.no_grad():
        image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(1)) * 4 - 2
        image = F.avg_pool2d(image, 33, stride=1, padding=16)
        means = [model.visual.ln_post(last_tokens(model, image, rule)[0]).mean(dim=(0, 1)) for rule in RULES]
        basis = torch.linalg.qr(torch.stack(means, dim=1)).Q  # [d, 3]
        model.visual.proj -= basis @ (basis.T @ model.visual.proj)
    return model


def adapted(model: open_clip.CLIP) -> OpenClipVit:
    return OpenClipVit(model, open_clip.SimpleTokenizer(), "small ViT-B-16")


def pictures(sizes: list[tuple[int, int]]) -> list[Image.Image]:
    """Pictures of coloured blobs, `(width, height)` each."""
    made = []
    for number, (width, height) in enumerate(sizes):
        random = np.random.default_rng(number)
        coarse = random.integers(0, 255, (5, 6, 3)).astype(np.uint8)
        made.append(Image.fromarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)))
    return made


@torch.no_grad()
def query_features(
    model: open_clip.CLIP, classes: list[str], templates: Sequence[str] = prompts.OPENAI_80_TEMPLATES
) -> tuple[torch.Tensor, list[int]]:
    """`[Q, D]` and the class of each query, as SCLIP's segmentor makes them."""
    tokenizer, rows, owners = open_clip.SimpleTokenizer(), [], []
    for label, line in enumerate(classes):
        for word in line.split(", "):
            sentences = [one.format(word) for one in templates]
            each = model.encode_text(tokenizer(sentences))
            each = each / each.norm(dim=-1, keepdim=True)
            mean = each.mean(dim=0)
            rows.append(mean / mean.norm())
            owners.append(label)
    return torch.stack(rows), owners


@torch.no_grad()
def dense_features(model: open_clip.CLIP, image: torch.Tensor, rule: str) -> torch.Tensor:
    """`[D, h, w]` unit norm of one image `[1, 3, H, W]`."""
    tokens, (h, w) = last_tokens(model, image, rule)
    features = model.visual.ln_post(tokens) @ model.visual.proj  # [1, N, D]
    features = features / features.norm(dim=-1, keepdim=True)
    return features[0].T.reshape(-1, h, w)


@torch.no_grad()
def last_tokens(model: open_clip.CLIP, image: torch.Tensor, rule: str) -> tuple[torch.Tensor, tuple[int, int]]:
    """The patches `[1, N, d]` that are read out: MaskCLIP, ClearCLIP (q-q) or SCLIP (q-q + k-k, residual, MLP)."""
    visual = model.visual
    x = visual.conv1(image)
    h, w = x.shape[-2:]
    x = x.flatten(2).transpose(1, 2)  # [1, N, d]
    positions = visual.positional_embedding
    if (h, w) != visual.grid_size:
        side = visual.grid_size[0]
        grid = positions[1:].T.reshape(1, -1, side, side)
        grid = F.interpolate(grid, scale_factor=((h + 0.1) / side, (w + 0.1) / side), mode="bicubic")
        positions = torch.cat([positions[:1], grid[0].flatten(1).T])
    x = torch.cat([visual.class_embedding.view(1, 1, -1), x], dim=1) + positions
    x = visual.ln_pre(x)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x = block(x)
    heads, width = last.attn.num_heads, x.shape[-1]
    each = width // heads
    qkv = F.linear(last.ln_1(x), last.attn.in_proj_weight, last.attn.in_proj_bias)[0]  # [T, 3d]
    outputs = []
    for head in range(heads):
        q, k, v = (qkv[:, part * width :][:, head * each : (head + 1) * each] for part in range(3))
        if rule == "maskclip":
            outputs.append(v)
        elif rule == "clearclip":
            outputs.append((q @ q.T * each**-0.5).softmax(dim=-1) @ v)
        else:
            outputs.append(((q @ q.T * each**-0.5).softmax(dim=-1) + (k @ k.T * each**-0.5).softmax(dim=-1)) @ v)
    out = last.attn.out_proj(torch.cat(outputs, dim=-1))[None]
    if rule == "sclip":
        x = x + out
        out = x + last.mlp(last.ln_2(x))
    return out[:, 1:], (h, w)


@torch.no_grad()
def label_map(
    model: open_clip.CLIP,
    picture: Image.Image,
    rule: str,
    classes: list[str] = CLASSES,
    short_side: int = 336,
    window: int = 224,
    stride: int = 112,
    logit_scale: float = 40,
    prob_thd: float = 0.0,
    area_thd: float | None = None,
) -> np.ndarray:
    """`[H, W]`, as the segmentor's `predict` gives it."""
    queries, owners = query_features(model, classes)
    width, height = picture.size
    factor = min(2048 / max(width, height), short_side / min(width, height))
    new_wh = (int(width * factor + 0.5), int(height * factor + 0.5))
    pixels = cv2.resize(np.array(picture), new_wh, interpolation=cv2.INTER_LINEAR).astype(np.float32)
    image = torch.from_numpy(((pixels - np.float32(MEAN)) / np.float32(STD)).transpose(2, 0, 1))[None]
    H, W = image.shape[-2:]
    if window:
        preds, count = torch.zeros(len(queries), H, W), torch.zeros(1, H, W)
        for row in range(max(H - window + stride - 1, 0) // stride + 1):
            for column in range(max(W - window + stride - 1, 0) // stride + 1):
                y2, x2 = min(row * stride + window, H), min(column * stride + window, W)
                y1, x1 = max(y2 - window, 0), max(x2 - window, 0)
                crop = image[:, :, y1:y2, x1:x2]
                features = dense_features(model, crop, rule)
                logits = torch.einsum("dhw,qd->qhw", features, queries)
                logits = F.interpolate(logits[None], size=crop.shape[-2:], mode="bilinear")[0]
                preds += F.pad(logits, (x1, W - x2, y1, H - y2))
                count[:, y1:y2, x1:x2] += 1
        preds = preds / count
    else:
        features = dense_features(model, image, rule)
        logits = torch.einsum("dhw,qd->qhw", features, queries)
        preds = F.interpolate(logits[None], size=(H, W), mode="bilinear")[0]
    preds = F.interpolate(preds[None], size=(height, width), mode="bilinear")[0]
    by_query = (preds * logit_scale).softmax(dim=0)
    p = torch.stack(
        [torch.stack([one for one, owner in zip(by_query, owners, strict=True) if owner == label]).amax(dim=0)
         for label in range(len(classes))]
    )  # fmt: skip
    if area_thd is not None:
        one_hot = F.one_hot(p.argmax(0), len(classes)).to(p.dtype)
        area = one_hot[:, :, 1:].sum((0, 1))
        p[1:] *= (area > area_thd * area.sum()).to(p.dtype)[:, None, None]
    labels = p.argmax(0)
    labels[p.amax(dim=0) < prob_thd] = 0
    return labels.numpy()


def mean_iou(predicted: list[np.ndarray], true: list[np.ndarray], classes: int) -> float:
    """mmsegmentation's `intersect_and_union` with its histograms, and the mean of what is a number."""
    totals = torch.zeros(3, classes, dtype=torch.float64)
    for said, meant in zip(predicted, true, strict=True):
        p, t = torch.from_numpy(np.ascontiguousarray(said)).long(), torch.from_numpy(meant).long()
        p, t = p[t != 255], t[t != 255]
        for row, values in enumerate((p[p == t], p, t)):
            totals[row] += torch.histc(values.float(), bins=classes, min=0, max=classes - 1).double()
    iou = totals[0] / (totals[1] + totals[2] - totals[0])
    return float(np.nanmean(iou.numpy()))

"""Score-CAM's family, RISE and Occlusion against their equations and peers, and what altered pictures cost."""

import itertools
import math
from contextlib import nullcontext
from functools import partial
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from pytorch_grad_cam import ScoreCAM
from torch import Tensor
from torch.nn import functional as F
from torchcam.methods import ScoreCAM as TorchcamScoreCAM

from cliploc.localizer import Localizer
from cliploc.methods import Context, methods
from cliploc.methods._infra.masked import masked_embeddings
from cliploc.towers.tower import Needs
from tests.methods.peers import CNNS, GRID, assert_same_maps, min_max, over_input, tiny_scene
from tests.tiny import KINDS, Counting, planted_image, tower
from tests.tolerances import assert_rounded


def masked_scores(scene: Any, mask_rule: Any, baseline: bool = True) -> Tensor:
    """cos(f(x ⊙ M_k), g_t), less the baseline's, channel by channel in plain loops: `[B, P, C]`."""
    features = scene.context().features.float()
    empty = scene.backbone.encode_image(torch.zeros_like(scene.images[:1]))[0]
    scores = torch.zeros(features.shape[0], len(scene.text), features.shape[1])
    for b, image in enumerate(scene.images):
        for k, channel in enumerate(features[b]):
            embedding = empty
            if channel.max() > channel.min():
                embedding = scene.backbone.encode_image((image * mask_rule(channel, image))[None])[0]
            for p, direction in enumerate(scene.text):
                scores[b, p, k] = embedding @ direction - (empty @ direction if baseline else 0)
    return scores


def ours_mask(channel: Tensor, image: Tensor, align_corners: bool = False) -> Tensor:
    """With aligned corners, pytorch_grad_cam's."""
    up = F.interpolate(channel[None, None], size=image.shape[-2:], mode="bilinear", align_corners=align_corners)[0, 0]
    return (up - up.min()) / (up.max() - up.min())


def normalised_first_mask(channel: Tensor, image: Tensor) -> Tensor:
    """torchcam's."""
    unit = (channel - channel.min()) / (channel.max() - channel.min())
    return F.interpolate(unit[None, None], size=image.shape[-2:], mode="bilinear", align_corners=False)[0, 0]


def weighted(scene: Any, logits: Tensor) -> Tensor:
    features = scene.context().features
    maps = torch.zeros(len(features), len(scene.text), *features.shape[-2:])
    for b in range(len(features)):
        for p in range(len(scene.text)):
            exponentials = (logits[b, p] - logits[b, p].max()).exp()
            for k, channel in enumerate(features[b]):
                maps[b, p] += exponentials[k] / exponentials.sum() * channel
    return maps


@pytest.mark.parametrize("temperature", [None, 0.02])
@pytest.mark.parametrize("kind", KINDS)
def test_the_equation_of_score_cam(kind: str, temperature: float | None) -> None:
    scene = tiny_scene(kind)
    scale = scene.backbone.logit_scale / 4 if temperature is None else 1 / temperature
    expected = weighted(scene, scale * masked_scores(scene, ours_mask))
    torch.testing.assert_close(scene.ours("score_cam", temperature=temperature), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", CNNS)
def test_the_packages_upsample_otherwise_and_are_the_same_else(kind: str) -> None:
    scene = tiny_scene(kind)
    aligned = weighted(scene, scene.scale * masked_scores(scene, partial(ours_mask, align_corners=True)))
    assert_same_maps(over_input(aligned, scene.images), scene.grad_cam_package(ScoreCAM), tolerance=1e-4)
    first = weighted(scene, scene.scale * masked_scores(scene, normalised_first_mask))
    assert_same_maps(min_max(first.relu()), scene.torchcam(TorchcamScoreCAM), tolerance=1e-4)


# ----------------------------------------------------------------------------------------------- gScoreCAM, VL-Score
def expected(scene: Any, top_k: int, logit_scale: float) -> Tensor:
    """Σ_k softmax_k(z) A_k, z = logit scale · cosine of the k largest mean gradients."""
    features, gradients = scene.features_and_gradients()
    raw = masked_scores(scene, ours_mask, baseline=False)
    maps = torch.zeros(len(features), len(scene.text), *features.shape[-2:])
    for b in range(len(features)):
        for p in range(len(scene.text)):
            alpha = gradients[p, b].mean(dim=(-2, -1)).tolist()
            best = sorted(range(len(alpha)), key=lambda k: -alpha[k])[:top_k]
            logits = [logit_scale * float(raw[b, p, k]) if k in best else -math.inf for k in range(len(alpha))]
            total = sum(math.exp(z) for z in logits)
            for k, logit in enumerate(logits):
                maps[b, p] += math.exp(logit) / total * features[b, k]
    return maps


@pytest.mark.parametrize("top_k", [1, 5, 300])
@pytest.mark.parametrize("kind", CNNS)
def test_the_equation_of_gscore_cam(kind: str, top_k: int) -> None:
    """The k best share all weight, at 4 times the model's temperature."""
    scene = tiny_scene(kind)
    wanted = expected(scene, top_k, scene.scale / 4)
    torch.testing.assert_close(scene.ours("gscore_cam", top_k=top_k), wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("temperature", [None, 0.02])
@pytest.mark.parametrize("kind", KINDS)
def test_the_rules_of_vl_score(kind: str, temperature: float | None) -> None:
    """Kept above the base score; no subtraction; a softmax with temperature over the kept ones. No peer has it."""
    scene = tiny_scene(kind)
    scale = scene.backbone.logit_scale / 4 if temperature is None else 1 / temperature
    features = scene.context().features
    raw = masked_scores(scene, ours_mask, baseline=False)
    above = masked_scores(scene, ours_mask)
    maps = scene.ours("vl_score", temperature=temperature)
    sizes = set()
    for b in range(len(features)):
        for p in range(len(scene.text)):
            stored = [k for k in range(features.shape[1]) if above[b, p, k] > 0]
            sizes.add(len(stored))
            total = sum(math.exp(scale * float(raw[b, p, k])) for k in stored)
            expected = torch.zeros(features.shape[-2:])
            for k in stored:
                expected += math.exp(scale * float(raw[b, p, k])) / total * features[b, k]
            torch.testing.assert_close(maps[b, p], expected, rtol=1e-3, atol=1e-5)
    assert sizes - {0, features.shape[1]}, "no prompt kept some channels and dropped others: nothing was tested"


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_that_no_channel_speaks_for_is_not_found(kind: str) -> None:
    """The empty picture's own direction: every mask leads away from it. Beside it, "red" keeps its map."""
    backbone = tower(kind)
    image = planted_image("red", (5, 6), (2, 3))
    nothing = backbone.encode_image(torch.zeros_like(image))  # [1, D]
    text = torch.stack([nothing[0], backbone.encode_text(["red"])[0]])[None]
    ctx = Context(lambda: image, text, backbone.trace(image, Needs(features=(-1,))), backbone)
    absent, red = methods.get("vl_score").function(ctx)[0]
    assert torch.equal(absent, torch.zeros(5, 6))
    assert divmod(int(red.argmax()), 6) == (2, 3)


def test_vl_score_never_keeps_dead_channels() -> None:
    """However the two products of the baseline's score round."""
    backbone = tower("gap_cnn")
    image = planted_image("red", (5, 6), (2, 3))
    texts = backbone.encode_text([f"thing {i}" for i in range(40)])[None]
    ctx = Context(lambda: image, texts, backbone.trace(image, Needs(features=(-1,))), backbone)
    ctx.features.fill_(0.7)
    assert torch.equal(methods.get("vl_score").function(ctx), torch.zeros(1, 40, 5, 6))


# ---------------------------------------------------------------------------------------------------- cost of masking
def counted(kind: str, prompts: int = 2, grid: tuple[int, int] = GRID, **kwargs: Any) -> tuple[Context, Counting]:
    backbone = Counting(tower(kind, grid))
    images = torch.cat([planted_image("red", grid, (1, 2)), planted_image("blue", grid, (0, 3))])
    text = backbone.encode_text([f"thing {i}" for i in range(prompts)])[None].expand(2, -1, -1)
    ctx = Context(lambda: images, text, backbone.trace(images, Needs(features=(-1,))), backbone, **kwargs)
    return ctx, backbone


def living_channels(features: Tensor) -> int:
    """Over all pictures; a channel that is constant makes no mask."""
    return int((features.amax((-2, -1)) > features.amin((-2, -1))).sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompts", [1, 10])
def test_each_channel_costs_one_forward_whatever_the_prompts(kind: str, prompts: int) -> None:
    ctx, tower_calls = counted(kind, prompts)
    methods.get("score_cam").function(ctx)
    assert tower_calls.images == living_channels(ctx.features) + 1  # the baseline


def test_dead_channels_cost_nothing_and_weigh_as_the_baseline() -> None:
    ctx, tower_calls = counted("gap_cnn")
    ctx.features[:, ::2] = torch.rand(12, generator=torch.Generator().manual_seed(0))[None, :, None, None]
    living = living_channels(ctx.features)
    masked = masked_embeddings(ctx)
    assert living <= ctx.features.shape[0] * 12
    assert tower_calls.images == living + 1
    scores, baseline = masked.scores(ctx.text)
    assert_rounded(scores[:, :, ::2], baseline.expand(-1, -1, 12), ctx.text.shape[-1], 1)


@pytest.mark.parametrize("order", [("gscore_cam", "score_cam"), ("gscore_cam", "vl_score", "score_cam")], ids=str)
@pytest.mark.parametrize("mode", [nullcontext, torch.inference_mode])
def test_score_cam_adds_what_gscore_cam_left_out(order: tuple[str, ...], mode: Any) -> None:
    """Also outside of the inference mode in which it was begun."""
    ctx, tower_calls = counted("attention_pool_cnn")
    with mode():
        methods.get("gscore_cam").function(ctx, top_k=3)
    assert tower_calls.images < living_channels(ctx.features)
    for name in order[1:]:
        maps = methods.get(name).function(ctx)
    assert tower_calls.images == living_channels(ctx.features) + 1
    fresh, _ = counted("attention_pool_cnn")
    torch.testing.assert_close(maps, methods.get(order[-1]).function(fresh), rtol=1e-5, atol=1e-6)


def test_batches_are_of_the_size_requested_and_progress_is_reported() -> None:
    reported: list[tuple[int, int]] = []
    ctx, tower_calls = counted("gap_cnn", batch_size=7, progress=lambda done, left: reported.append((done, left)))
    methods.get("score_cam").function(ctx)
    assert tower_calls.largest == 7
    total = living_channels(ctx.features)
    sofar = list(itertools.accumulate(done for done, _ in reported))
    assert sofar[-1] == total
    assert max(done for done, _ in reported) == 7
    assert [done + left for done, (_, left) in zip(sofar, reported, strict=True)] == [total] * len(reported)


@pytest.mark.parametrize(("prompts", "top_k"), [(1, 3), (3, 2), (10, 4)])
def test_only_the_union_of_the_chosen_channels_is_masked(prompts: int, top_k: int) -> None:
    ctx, tower_calls = counted("attention_pool_cnn", prompts)
    methods.get("gscore_cam").function(ctx, top_k=top_k)
    assert 1 < tower_calls.images <= 2 * prompts * top_k + 1
    masked = masked_embeddings(ctx, wanted=torch.zeros(ctx.features.shape[:2], dtype=torch.bool))  # what is done
    assert tower_calls.images == int((masked.done & masked.alive).sum()) + 1


# ---------------------------------------------------------------------------------------------------------- precision


def test_the_localizer_takes_a_precision_for_masked_pictures() -> None:
    kinds = []
    for precision in ("bf16", "fp32", None):
        localizer = Localizer(method="score_cam", masked_precision=precision, image_size=64, device="cpu")
        kinds.append(localizer._flow.masked.encode)
        assert len(localizer(np.zeros((64, 64, 3), np.uint8) + np.arange(64, dtype=np.uint8)[:, None], ["cat"]).scores)
    assert kinds[0].__self__.dtype == torch.bfloat16
    assert kinds[1:] == [None, None], "the tower's own precision needs no copy"


# ------------------------------------------------------------------------------------------------------ RISE, Occlusion
BUDGET = 40


def plain_mask(numbers: Tensor, height: int, width: int) -> Tensor:
    """`[H, W]` from the mask's own 66 uniform numbers, enlarged by OpenCV."""
    cell_height, cell_width = math.ceil(height / 8), math.ceil(width / 8)
    cells = (numbers[:64].view(8, 8) < 0.5).float().numpy()
    enlarged = cv2.resize(cells, (9 * cell_width, 9 * cell_height), interpolation=cv2.INTER_LINEAR)
    top, left = int(numbers[64] * cell_height), int(numbers[65] * cell_width)
    return torch.from_numpy(enlarged[top : top + height, left : left + width])


def oracle(backbone: Any, images: Tensor, text: Tensor) -> Tensor:
    """Maps `[B, P, h, w]`."""
    height, width = images.shape[-2:]
    numbers = torch.rand(BUDGET, 66, generator=torch.Generator().manual_seed(0))
    masks = [plain_mask(row, height, width) for row in numbers]
    small = torch.stack([F.avg_pool2d(mask[None, None], height // GRID[0])[0, 0] for mask in masks])  # [N, h, w]
    maps = []
    for image in images:
        scores = torch.stack([backbone.encode_image((image * mask)[None])[0] @ text.T for mask in masks])  # [N, P]
        for column in scores.T:
            used = column - column.mean()
            maps.append(sum(score * mask for score, mask in zip(used, small, strict=True)) / (BUDGET * 0.5))
    return torch.stack(maps).view(len(images), len(text), *GRID)


@pytest.mark.parametrize("kind", ["gap_cnn", "vit"])
def test_the_equation_of_rise(kind: str) -> None:
    scene = tiny_scene(kind)
    expected = oracle(scene.backbone, scene.images, scene.text)
    torch.testing.assert_close(scene.ours("rise", budget=BUDGET), expected, rtol=1e-4, atol=1e-6)


def test_masked_embeddings_serve_every_prompt_and_a_larger_budget_adds_to_them() -> None:
    scene = tiny_scene("gap_cnn")
    done: list[tuple[int, int]] = []
    seen: list[int] = []

    def encode(images: Tensor) -> Tensor:
        seen.append(len(images))
        return scene.backbone.encode_image(images)

    ctx = scene.context(Needs(), encode_masked=encode, progress=lambda *message: done.append(message), batch_size=16)
    first = methods.get("rise").function(ctx, budget=32)
    assert sum(seen) == 2 * 32
    assert max(seen) == 16
    assert done == [(16, 48), (16, 32), (16, 16), (16, 0)]
    more = methods.get("rise").function(ctx, budget=40)
    assert sum(seen) == 2 * 40
    torch.testing.assert_close(more, scene.ours("rise", budget=40))
    torch.testing.assert_close(methods.get("rise").function(ctx, budget=32), first)
    assert sum(seen) == 2 * 40


def spans(length: int, side: float) -> list[tuple[int, int]]:
    size = round(side * length)
    count = math.ceil((length - size) / (size / 2)) + 1
    if count == 1:
        return [(0, size)]
    starts = [round(n * (length - size) / (count - 1)) for n in range(count)]
    return [(start, start + size) for start in starts]


def occluded(backbone: Any, images: Tensor, text: Tensor, side: float) -> Tensor:
    height, width = images.shape[-2:]
    cell = height // GRID[0]
    maps = torch.zeros(len(images), len(text), *GRID)
    for b, image in enumerate(images):
        totals, weights = torch.zeros(len(text), *GRID), torch.zeros(GRID)
        for top, bottom in spans(height, side):
            for left, right in spans(width, side):
                crop = F.interpolate(
                    image[None, :, top:bottom, left:right], (height, width), mode="bilinear", align_corners=False
                )
                without = image.clone()
                without[:, top:bottom, left:right] = 0
                gained = (backbone.encode_image(crop)[0] - backbone.encode_image(without[None])[0]) @ text.T
                for y in range(GRID[0]):
                    for x in range(GRID[1]):
                        tall = max(0, min(bottom, (y + 1) * cell) - max(top, y * cell))
                        wide = max(0, min(right, (x + 1) * cell) - max(left, x * cell))
                        weight = tall * wide / cell**2
                        totals[:, y, x] += weight * gained
                        weights[y, x] += weight
        maps[b] = totals / weights
    return maps


@pytest.mark.parametrize("kind", ["gap_cnn", "vit"])
@pytest.mark.parametrize("side", [0.25, 0.6, 1.0])
def test_occlusion_window_by_window(kind: str, side: float) -> None:
    scene = tiny_scene(kind)
    maps = scene.ours("occlusion", side=side)
    torch.testing.assert_close(maps, occluded(scene.backbone, scene.images, scene.text, side), rtol=1e-4, atol=1e-6)
    if side == 0.25:
        assert torch.equal(maps, scene.ours("occlusion"))


def test_occlusions_embeddings_serve_every_prompt_and_are_made_once() -> None:
    scene = tiny_scene("gap_cnn")
    done: list[tuple[int, int]] = []
    ctx = scene.context(Needs(), progress=lambda *message: done.append(message), batch_size=1000)
    first = methods.get("occlusion").function(ctx, side=0.5)
    assert done == [(18, 18), (18, 0)]  # 3×3 windows, each alone and left out, of two pictures
    assert torch.equal(methods.get("occlusion").function(ctx, side=0.5), first)
    assert len(done) == 2

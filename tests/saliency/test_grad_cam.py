"""Grad-CAM against its equation, and against pytorch_grad_cam and torchcam."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torchcam.methods import GradCAM as TorchcamGradCAM

import cliploc.saliency._infra.gradients as gradients_module
from cliploc.saliency import methods
from tests.saliency.peers import (
    CNNS,
    GRID,
    WrappedClip,
    assert_packages_agree,
    assert_same_maps,
    every_scene,
    over_input,
    tiny_scene,
)
from tests.saliency.plain_vit import assert_equal, attend, plain_vit
from tests.saliency.vits import ours, twelve_blocks


@pytest.mark.parametrize("kind", CNNS)
def test_the_equation(kind: str) -> None:
    def by_hand(features: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
        alphas = [sum(slopes.flatten().tolist()) / (GRID[0] * GRID[1]) for slopes in gradients]
        return sum(alpha * channel for alpha, channel in zip(alphas, features, strict=True))

    scene = tiny_scene(kind)
    maps = scene.ours("grad_cam").double()
    torch.testing.assert_close(maps, scene.expected(by_hand), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["open_clip", "siglip"])
def test_any_block_of_a_deeper_vit_gives_the_plain_gradients(kind: str) -> None:
    """Class token or attention pool, from the first block to the last, and Finer-CAM out of the same gradients."""
    vit = plain_vit(kind)
    depth = len(vit.blocks)
    assert depth > 2
    for at in range(-depth, 0):
        block, expected = vit.blocks[at], []
        for image in vit.images:
            entering = vit.entering(image)[at - 1]  # after the blocks come the tokens that leave the last
            normed = block.norm_1(entering).detach().requires_grad_()  # [T, d]
            rows = (normed @ block.weight.T + block.bias).split(normed.shape[1] // block.heads, dim=1)
            heads = [attend(*(rows[part * block.heads + h] for part in range(3))) for h in range(block.heads)]
            x = entering + block.out(torch.cat(heads, dim=1))
            x = x + block.mlp_branch(x)
            for later in vit.blocks[depth + at + 1 :]:
                x = later.forward(x)
            scores = torch.nn.functional.normalize(vit.backbone.pool(x[None])[0][0], dim=0) @ vit.text.T  # [P]
            for score in scores:
                (gradient,) = torch.autograd.grad(score, normed, retain_graph=True)
                weights = gradient[vit.prefix :].mean(dim=0)  # [d]
                expected.append((normed[vit.prefix :] @ weights).detach().view(vit.grid))
        wanted = torch.stack(expected).view(len(vit.images), len(vit.text), *vit.grid)
        assert_equal(vit.ours("grad_cam", block=at), wanted)
        others = (wanted.sum(dim=1, keepdim=True) - wanted) / 2  # the two other texts
        assert_equal(vit.ours("finer_cam", block=at), wanted - 0.6 * others)


@every_scene
def test_the_packages_agree(make: Any) -> None:
    assert_packages_agree(make(), "grad_cam", GradCAM, TorchcamGradCAM)


def test_pytorch_grad_cam_agrees_on_a_vit() -> None:
    """As its users tap CLIP: the output of the last block's `ln_1`, the class token dropped."""
    model, backbone, images, text = twelve_blocks()
    towers = WrappedClip(copy.deepcopy(model.visual), text).eval()

    def on_grid(tokens: torch.Tensor) -> torch.Tensor:
        return tokens[:, 1:].unflatten(1, (7, 7)).permute(0, 3, 1, 2)

    last = towers.visual.transformer.resblocks[-1].requires_grad_(True)  # no graph before it
    maps = []
    with GradCAM(model=towers, target_layers=[last.ln_1], reshape_transform=on_grid) as extractor:
        for prompt in range(len(text)):
            targets = [ClassifierOutputTarget(prompt)] * len(images)
            maps.append(torch.from_numpy(extractor(images, targets=targets)))
    assert_same_maps(over_input(ours("grad_cam", backbone, images, text), images), torch.stack(maps, dim=1))


def test_many_prompts_go_in_chunks_and_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of two prompts, with a last chunk of one."""
    scene = tiny_scene("attention_pool_cnn")
    expected = scene.ours("grad_cam")
    size = scene.context().features.numel()
    for chunk in (2, 1):
        monkeypatch.setattr(gradients_module, "GRADIENT_ELEMENTS", chunk * size)
        torch.testing.assert_close(scene.ours("grad_cam"), expected, rtol=1e-5, atol=1e-8)


def test_one_forward_of_the_head_serves_all_prompts() -> None:
    scene = tiny_scene("attention_pool_cnn")
    ctx, calls = scene.context(), []
    handle = scene.backbone.pool_layer.register_forward_hook(lambda *_: calls.append(1))
    methods.get("grad_cam").function(ctx)
    handle.remove()
    assert len(calls) == 1


def test_small_gradients_survive_half_precision() -> None:
    """Strong features make gradients of 1e-6 and less, where float16 has steps of 6e-8."""
    scene = tiny_scene("gap_cnn")
    ctx = scene.context()
    ctx.features.mul_(3e4 / ctx.features.max())
    expected = methods.get("grad_cam").function(ctx)
    half = scene.backbone.half()
    features = {-1: ctx.features.half()}
    ours = methods.get("grad_cam").function(replace(ctx, backbone=half, trace=replace(ctx.trace, features=features)))
    torch.testing.assert_close(ours, expected, rtol=0, atol=3e-3 * float(expected.abs().max()))

"""Grad-CAM, XGrad-CAM, Grad-CAM++ and Finer-CAM against their equations, and against pytorch_grad_cam and torchcam."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import pytorch_grad_cam
import torch
import torchcam.methods
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, LayerCAM, XGradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor

import cliploc.methods._infra.gradients as gradients_module
from cliploc.methods import methods
from cliploc.towers._open_clip_towers import OpenClipResNet
from tests.methods.peers import (
    CNNS,
    GRID,
    Scene,
    WrappedClip,
    assert_same_maps,
    every_scene,
    min_max,
    mini_scene,
    over_input,
    tiny_scene,
)
from tests.methods.plain_vit import assert_equal, attend, plain_vit
from tests.methods.towers import clip_model, ours, photograph, twelve_blocks
from tests.towers.seam import tokenizer


@pytest.mark.parametrize("kind", CNNS)
def test_the_equation(kind: str) -> None:
    def by_hand(features: Tensor, gradients: Tensor) -> Tensor:
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
            heads = [attend(q, k, v) for q, k, v in block.project_normed(normed)]
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
@pytest.mark.parametrize(
    ("name", "theirs", "torchcams"),
    [
        ("grad_cam", GradCAM, torchcam.methods.GradCAM),
        ("xgrad_cam", XGradCAM, torchcam.methods.XGradCAM),
        ("layer_cam", LayerCAM, torchcam.methods.LayerCAM),
    ],
)
def test_the_packages_agree(make: Any, name: str, theirs: Any, torchcams: Any) -> None:
    """Over the input with `pytorch_grad_cam`, and on the grid with `torchcam`; LayerCAM of one stage."""
    scene = make()
    maps = scene.ours(name)
    assert_same_maps(over_input(maps, scene.images), scene.grad_cam_package(theirs), tolerance=1e-4)
    assert_same_maps(min_max(maps.relu()), scene.torchcam(torchcams), tolerance=1e-4)


def test_pytorch_grad_cam_agrees_on_a_vit() -> None:
    """As its users tap CLIP: the output of the last block's `ln_1`, the class token dropped."""
    model, backbone, images, text = twelve_blocks()
    towers = WrappedClip(copy.deepcopy(model.visual), text).eval()

    def on_grid(tokens: Tensor) -> Tensor:
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


@pytest.mark.parametrize("kind", CNNS)
def test_the_equation_of_xgrad_cam(kind: str) -> None:
    def by_hand(features: Tensor, gradients: Tensor) -> Tensor:
        expected = torch.zeros(GRID, dtype=torch.float64)
        for activation, slopes in zip(features, gradients, strict=True):
            if total := float(activation.sum()):
                pairs = zip(activation.flatten().tolist(), slopes.flatten().tolist(), strict=True)
                expected += sum(value / total * slope for value, slope in pairs) * activation
        return expected

    scene = tiny_scene(kind)
    torch.testing.assert_close(scene.ours("xgrad_cam").double(), scene.expected(by_hand), rtol=1e-4, atol=1e-7)


def test_a_channel_that_sums_to_zero_weighs_nothing() -> None:
    """Activations of +1 and −1 only: no division by their sum, and the other channels as before."""
    scene = tiny_scene("attention_pool_cnn")
    ctx = scene.context()
    ctx.features[:, 4] = 0
    expected = methods.get("xgrad_cam").function(ctx)
    ctx.features[:, 4].view(2, -1)[:, ::2] = 1e-9
    ctx.features[:, 4].view(2, -1)[:, 1::2] = -1e-9
    torch.testing.assert_close(methods.get("xgrad_cam").function(ctx), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [None, 0.5])
@pytest.mark.parametrize("kind", CNNS)
def test_the_equation_of_grad_cam_pp(kind: str, temperature: float | None) -> None:
    """Eq. 19 as it stands, in float64, with ∂S of the logit."""
    scene = tiny_scene(kind)
    scale = scene.backbone.logit_scale if temperature is None else 1 / temperature

    def by_hand(features: Tensor, gradients: Tensor) -> Tensor:
        expected = torch.zeros(GRID, dtype=torch.float64)
        for activation, slopes in zip(features, gradients, strict=True):
            total = float(activation.sum())
            rising = [slope for slope in (scale * slopes).flatten().tolist() if slope > 0]
            expected += sum(s * s**2 / (2 * s**2 + total * s**3) for s in rising) * activation
        return expected

    maps = scene.ours("grad_cam_pp", temperature=temperature).double()
    torch.testing.assert_close(maps, scene.expected(by_hand), rtol=1e-4, atol=1e-6)


def test_negative_sums_of_activations_stay_finite() -> None:
    """A channel whose sum is negative could make 2 + ΣA·∂S zero: the paper assumes A ≥ 0."""
    scene = tiny_scene("gap_cnn")
    ctx = scene.context()
    _, gradients = scene.features_and_gradients()
    steepest = float(gradients[0].max()) * scene.backbone.logit_scale
    channel = int(gradients[0, 0].mean((-2, -1)).argmax())
    ctx.features[0, channel] = -2 / steepest / (GRID[0] * GRID[1])
    maps = methods.get("grad_cam_pp").function(ctx)
    assert maps.isfinite().all()
    assert maps.abs().max() < 1e3


@pytest.mark.parametrize("make", [*(lambda kind=kind: tiny_scene(kind, scale=1e4) for kind in CNNS), None])
def test_pytorch_grad_cam_agrees_on_grad_cam_pp(make: Any) -> None:
    """At a high logit scale, where its 1e-6 in the denominator does not show."""
    scene = make() if make else mini_scene(scale=1e4)
    maps = scene.ours("grad_cam_pp", temperature=1e-4)
    assert_same_maps(over_input(maps, scene.images), scene.grad_cam_package(GradCAMPlusPlus))


@pytest.mark.parametrize("kind", CNNS)
@pytest.mark.parametrize(("gamma", "references"), [(0.6, 3), (0.6, 1), (1.5, 2), (0.0, 2)])
def test_the_equation_of_finer_cam(kind: str, gamma: float, references: int) -> None:
    """The gradient of the difference, one prompt at a time, with references picked by hand."""
    scene = tiny_scene(kind)
    scene = Scene(scene.backbone, scene.images, scene.backbone.encode_text(["red", "green", "a zebra", "blue"]))
    features, gradients = scene.features_and_gradients()  # [B, C, h, w], [P, B, C, h, w]
    scores = scene.backbone.encode_image(scene.images) @ scene.text.T
    maps = scene.ours("finer_cam", gamma=gamma, references=references)
    for b in range(len(features)):
        for p in range(4):
            others = sorted((q for q in range(4) if q != p), key=lambda q: abs(scores[b, q] - scores[b, p]))
            gradient = gradients[p, b]
            for q in others[:references]:
                gradient = gradient - gamma / references * gradients[q, b]
            expected = sum(gradient[c].mean() * features[b, c] for c in range(len(gradient)))
            torch.testing.assert_close(maps[b, p], expected, rtol=1e-4, atol=1e-6)


@every_scene
def test_torchcam_agrees_on_finer_cam(make: Any) -> None:
    scene = make()
    theirs = scene.torchcam(torchcam.methods.FinerCAM, base_method=torchcam.methods.GradCAM)
    assert_same_maps(min_max(scene.ours("finer_cam").relu()), theirs, tolerance=1e-4)


def test_a_name_alone_is_compared_with_the_empty_name() -> None:
    scene = tiny_scene("gap_cnn")
    pair = Scene(scene.backbone, scene.images, scene.backbone.encode_text(["red", ""]))
    alone = Scene(scene.backbone, scene.images, pair.text[:1])
    torch.testing.assert_close(alone.ours("finer_cam")[:, 0], pair.ours("finer_cam")[:, 0])
    difference: Tensor = alone.ours("finer_cam") - alone.ours("grad_cam")
    assert difference.abs().max() > 1e-3


# ---------------------------------------------------------------------------------------------------------- CLIP's RN50
NAMES = ["a photo of a cat", "tree trunk"]  # with random weights, two that a map is not flat for


class ClipScene(Scene):
    """For us the adapter's view, for the peers open_clip's model as it is, wrapped as their users wrap it."""

    def __init__(self, model: Any, backbone: OpenClipResNet, images: Tensor, scale: float) -> None:
        super().__init__(backbone, images, backbone.encode_text(NAMES), scale)
        self.model = WrappedClip(copy.deepcopy(model.visual), self.text, scale).eval().requires_grad_(False)
        self.model.visual.layer4.requires_grad_(True)  # no graph before the last stage: time and memory only

    def layers(self, stages: tuple[int, ...]) -> list[torch.nn.Module]:
        assert stages == (-1,)
        return [self.model.visual.layer4[-1]]


@pytest.fixture(scope="module")
def rn50() -> tuple[Any, OpenClipResNet, Tensor]:
    """open_clip's model, our view of it, a photograph `[1, 3, 224, 224]`."""
    model = clip_model("RN50")
    backbone = OpenClipResNet(model, tokenizer, "RN50")
    return model, backbone, backbone.normalize(photograph("cat", 224, 224))


@pytest.mark.parametrize(
    ("name", "theirs", "torchcams"),
    [
        ("grad_cam", pytorch_grad_cam.GradCAM, torchcam.methods.GradCAM),
        ("xgrad_cam", pytorch_grad_cam.XGradCAM, torchcam.methods.XGradCAM),
        ("layer_cam", pytorch_grad_cam.LayerCAM, torchcam.methods.LayerCAM),
    ],
)
def test_the_packages_agree_on_rn50(rn50: Any, name: str, theirs: Any, torchcams: Any) -> None:
    """CAM has no peer: an attention pool has no linear layer for one to read; test_cam.py has its equation."""
    scene = ClipScene(*rn50, scale=100.0)
    maps = scene.ours(name)
    assert (maps.relu().amax((-2, -1)) > 0).all(), "a flat map compares nothing"
    assert_same_maps(over_input(maps, scene.images), scene.grad_cam_package(theirs))
    assert_same_maps(min_max(maps.relu()), scene.torchcam(torchcams))


def test_pytorch_grad_cam_agrees_on_grad_cam_pp_of_rn50(rn50: Any) -> None:
    """At a scale where its 1e-6 in the denominator does not show; torchcam's leaves the division out altogether."""
    scene = ClipScene(*rn50, scale=1e6)
    maps = scene.ours("grad_cam_pp", temperature=1e-6)
    assert_same_maps(over_input(maps, scene.images), scene.grad_cam_package(pytorch_grad_cam.GradCAMPlusPlus))

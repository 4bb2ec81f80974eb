"""CAM, LayerCAM and RefineCAM against equations, pytorch_grad_cam and torchcam; maps that read no picture."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchcam.methods import CAM, GradCAM, RefineCAM
from torchcam.methods import LayerCAM as TorchcamLayerCAM

from cliploc.localizer import Localizer
from cliploc.methods import baselines, methods
from cliploc.towers.tower import Needs
from tests.methods.peers import CNNS, GRID, assert_same_maps, every_scene, min_max, mini_scene, tiny_scene
from tests.tiny import context, tower


class Linear(nn.Module):
    """A GAP tower and prompts as CAM's paper has them: stages, global average pool, one linear layer."""

    def __init__(self, scene: object) -> None:
        super().__init__()
        self.stages = scene.backbone.stages
        self.classifier = nn.Linear(scene.text.shape[1], len(scene.text), bias=False)
        self.classifier.weight.data = scene.text.clone()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images
        for stage in self.stages:
            x = stage(x)
        return self.classifier(x.mean(dim=(-2, -1)))


def test_the_mean_of_a_map_is_the_similarity_before_normalisation() -> None:
    """Zhou 2016: for a GAP tower the map is exact. A mean feature μ that is not zero takes part."""
    scene = tiny_scene("gap_cnn")
    scene.backbone.pool_layer.mean_feature.uniform_(-0.2, 0.2, generator=torch.Generator().manual_seed(0))
    features, _ = scene.features_and_gradients()
    mu = scene.backbone.pool_layer.mean_feature
    maps = scene.ours("cam")
    for b, image in enumerate(features):
        embedding = image.mean(dim=(1, 2)) - mu
        for p, direction in enumerate(scene.text):
            for y in range(image.shape[1]):
                for x in range(image.shape[2]):
                    assert maps[b, p, y, x] == pytest.approx(float((image[:, y, x] - mu) @ direction), abs=1e-5)
            assert maps[b, p].mean() == pytest.approx(float(embedding @ direction), abs=1e-5)


def test_attention_pool_reads_the_value_path() -> None:
    """Each location's position-encoded features through v_proj and c_proj, dotted with the text."""
    scene = tiny_scene("attention_pool_cnn")
    features, _ = scene.features_and_gradients()
    pool = scene.backbone.pool_layer
    maps = scene.ours("cam")
    width = features.shape[-1]
    for b, image in enumerate(features):
        for y in range(image.shape[1]):
            for x in range(width):
                token = image[:, y, x] + pool.positional_embedding[1 + y * width + x]
                value = pool.v_proj.weight @ token + pool.v_proj.bias
                reading = pool.c_proj.weight @ value + pool.c_proj.bias
                torch.testing.assert_close(maps[b, :, y, x], scene.text @ reading, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [lambda: tiny_scene("gap_cnn"), mini_scene], ids=["tiny", "mini"])
def test_torchcam_agrees(make: object) -> None:
    """torchcam reads A where we read A − μ: a constant, which min–max takes away. Without ReLU on either side."""
    scene = make()
    model = Linear(scene)
    theirs = []
    with CAM(model, model.stages[-1], fc_layer=model.classifier) as extractor:
        for prompt in range(len(scene.text)):
            scores = model(scene.images)
            theirs.append(extractor(prompt, scores)[0].detach())
    assert_same_maps(min_max(scene.ours("cam")), torch.stack(theirs, dim=1), tolerance=1e-4)


# -------------------------------------------------------------------------------------------------- LayerCAM, RefineCAM
def by_hand(scene: Any, stage: int) -> torch.Tensor:
    """Σ_c ReLU(∂s_t/∂A_c) ⊙ A_c, location by location: `[B, P, h, w]`."""
    return scene.expected(lambda a, g: sum(s.clamp(min=0) * c for s, c in zip(g, a, strict=True)), stage).float()


@pytest.mark.parametrize("stage", [-1, -2, -3])
@pytest.mark.parametrize("kind", CNNS)
def test_the_equation(kind: str, stage: int) -> None:
    """Also of an earlier stage, where gradients run through the stages after it."""
    scene = tiny_scene(kind)
    torch.testing.assert_close(scene.ours("layer_cam", stages=(stage,)), by_hand(scene, stage), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", CNNS)
def test_fused_stages(kind: str) -> None:
    """Eq. 9, tanh(2·M / max M), then the maximum on the finest grid; stage −3 is twice as fine as −2 and −1."""
    scene = tiny_scene(kind)
    fused = scene.ours("layer_cam", stages=(-1, -2, -3))
    single = {stage: by_hand(scene, stage).clamp(min=0) for stage in (-1, -2, -3)}
    assert fused.shape == (2, 3, GRID[0] * 2, GRID[1] * 2)
    expected = torch.zeros_like(fused)
    for b in range(2):
        for p in range(3):
            for stage in (-1, -2, -3):
                peak = float(single[stage][b, p].max())
                scaled = torch.tensor([math.tanh(2 * float(v) / peak) for v in single[stage][b, p].flatten()])
                scaled = scaled.view(1, 1, *single[stage].shape[-2:])
                resized = F.interpolate(scaled, size=fused.shape[-2:], mode="bilinear", align_corners=False)
                expected[b, p] = torch.maximum(expected[b, p], resized[0, 0])
    torch.testing.assert_close(fused, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stages", [(-1, -2, -3), (-3, -1)], ids=str)
@pytest.mark.parametrize("kind", CNNS)
def test_torchcam_fuses_alike_but_for_the_minimum(kind: str, stages: tuple[int, ...]) -> None:
    """It subtracts each map's minimum before the tanh; with that, ours is its map."""
    scene = tiny_scene(kind)
    theirs = scene.torchcam(TorchcamLayerCAM, stages)
    variant = torch.zeros_like(theirs)
    for stage in stages:
        scaled = torch.tanh(2 * min_max(by_hand(scene, stage).relu()))
        resized = F.interpolate(scaled, size=theirs.shape[-2:], mode="bilinear", align_corners=False)
        variant = torch.maximum(variant, resized)
    torch.testing.assert_close(variant, theirs, rtol=1e-4, atol=1e-4)
    ours = scene.ours("layer_cam", stages=stages)
    flat = [
        torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] for a, b in zip(ours[0], theirs[0], strict=True)
    ]
    assert min(flat) > 0.9


BASES = {"grad_cam": GradCAM, "layer_cam": TorchcamLayerCAM}


@pytest.mark.parametrize("kind", CNNS)
@pytest.mark.parametrize("base", ["grad_cam", "grad_cam_pp", "layer_cam"])
def test_the_equation_of_refine_cam(kind: str, base: str) -> None:
    """The product of the base's own maps, place by place; the first of three stages is twice as fine."""
    scene = tiny_scene(kind)
    fine = scene.context(Needs(features=(-3,))).trace.features[-3].shape[-2:]
    expected = torch.ones(len(scene.images), len(scene.text), *fine)
    for stage in (-1, -3):
        options = {"stages": (stage,)} if base == "layer_cam" else {"block": stage}
        for b, maps in enumerate(scene.ours(base, **options)):
            for p, one in enumerate(maps):
                positive = one.clamp(min=0)
                low, high = float(positive.min()), float(positive.max())
                scaled = (positive - low) / (high - low) if high > low else torch.zeros_like(positive)
                large = F.interpolate(scaled[None, None], size=fine, mode="bilinear", align_corners=False)
                expected[b, p] *= large[0, 0]
    assert expected.amax((-2, -1)).max() > 0
    torch.testing.assert_close(scene.ours("refine_cam", stages=(-1, -3), base=base), expected, rtol=1e-5, atol=1e-6)


@every_scene
@pytest.mark.parametrize("base", list(BASES))
def test_torchcam_agrees_on_refine_cam(make: Any, base: str) -> None:
    scene = make()
    theirs = scene.torchcam(RefineCAM, (-1, -2), base_method=BASES[base])
    assert_same_maps(min_max(scene.ours("refine_cam", base=base)), theirs, tolerance=1e-4)


# --------------------- Maps that read no picture: the box in the middle, the Gaussian in the middle, and random numbers
MAP = (5, 6)


def heat(name: str, grid: tuple[int, int], **options: Any) -> Tensor:
    """The map `[P, H, W]` of an empty picture and two prompts."""
    method = methods.get(name)
    images = torch.zeros(1, 3, *(4 * cells for cells in grid))
    return method.function(context(tower("gap_cnn", grid), images, ["red", "blue"], method.needs()), **options)[0]


def test_the_box_is_half_of_the_input() -> None:
    half = heat("centre_box", (25, 50))[0]  # [100, 200]
    assert set(half.unique().tolist()) == {0.0, 1.0}
    assert float(half.mean()) == pytest.approx(0.5, abs=0.01)
    assert torch.equal(half, half.flip(-1))
    assert torch.equal(half, half.flip(-2))


@pytest.mark.parametrize("step", ["affinity", "guided"])
def test_no_refinement_lets_it_follow_the_picture(step: str) -> None:
    picture = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    backbone = tower("gap_cnn", MAP)
    requested = {"method": "centre_box", "min_presence": 0}
    plain = Localizer(backbone, **requested)
    refined = Localizer(backbone, **requested, refine=[step])
    assert np.array_equal(plain(picture, ["red"]).maps, refined(picture, ["red"]).maps)
    assert refined.box_rule == plain.box_rule
    assert refined.describe() == plain.describe()


def test_the_gaussian_is_the_formula() -> None:
    found = heat("centre_gaussian", MAP)[0]  # [20, 24]
    for y, x in [(0, 0), (9, 11), (10, 12), (19, 5)]:
        dy, dx = (y + 0.5) / 20 - 0.5, (x + 0.5) / 24 - 0.5
        assert float(found[y, x]) == pytest.approx(math.exp(-(dx**2 + dy**2) / (2 * 0.25**2)), abs=1e-6)


def test_cells_hold_the_generators_numbers_and_another_seed_gives_others() -> None:
    method, backbone = methods.get("random"), tower("gap_cnn", MAP)
    images = torch.zeros(2, 3, 14 * 5, 14 * 3)  # odd cells, so that each has a pixel in its middle
    ctx = context(backbone, images, ["red", "a zebra"], method.needs())
    maps = method.function(ctx, seed=3)
    drawn = torch.rand(14, 14, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(maps[0, 0, 2::5, 1::3], drawn, rtol=0, atol=1e-6)
    assert torch.equal(maps[0, 0], maps[1, 1])
    assert not torch.equal(maps, method.function(ctx))
    assert "random" not in baselines(), "a draw is no baseline of boxes"

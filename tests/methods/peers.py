"""The public packages' view of a tower: a classifier whose classes are the prompts, as their users wrap CLIP."""

import functools
from typing import Any

import pytest
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.methods import Context
from cliploc.towers import create
from cliploc.towers.tower import Needs
from tests.methods.towers import GRID, TEXTS, photograph, scenes
from tests.tiny import raw_maps, tower

CNNS = ("gap_cnn", "attention_pool_cnn")


class SimilarityModel(nn.Module):
    """Images → image–text similarity logits `[B, P]`, every layer visible to hooks."""

    def __init__(self, backbone: Any, text: Tensor, scale: float) -> None:
        super().__init__()
        self.backbone, self.text, self.scale = backbone, text, scale

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for stage in self.backbone.stages:
            x = stage(x)
        embedding = F.normalize(self.backbone.pool(x), dim=-1)  # [B, D]
        return self.scale * embedding @ self.text.T


class WrappedClip(nn.Module):
    """Images → logits `[B, P]` of open_clip's own image tower."""

    def __init__(self, visual: nn.Module, text: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.visual, self.text, self.scale = visual, text, scale

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * F.normalize(self.visual(images), dim=-1) @ self.text.T


class Scene:
    """One tower, one picture, some prompts: for us a `Context`, for the peers a classifier."""

    def __init__(self, backbone: Any, images: Tensor, text: Tensor, scale: float | None = None) -> None:
        self.backbone, self.images, self.text = backbone, images, text  # text [P, D]
        self.scale = backbone.logit_scale if scale is None else scale
        self.model = SimilarityModel(backbone, text, self.scale).eval()

    def ours(self, name: str, **options: Any) -> Tensor:
        """Raw maps `[B, P, h, w]`."""
        return raw_maps(name, self.backbone, self.images, self.text, **options)

    def context(self, needs: Needs = Needs(features=(-1,)), **kwargs: Any) -> Context:
        text = self.text[None].expand(len(self.images), -1, -1)
        return Context(lambda: self.images, text, self.backbone.trace(self.images, needs), self.backbone, **kwargs)

    def features_and_gradients(self, stage: int = -1) -> tuple[Tensor, Tensor]:
        """A `[B, C, h, w]` and ∂s_t/∂A `[P, B, C, h, w]` of the cosine, prompt by prompt, through the plain stages."""
        stages = list(self.backbone.stages)
        split = len(stages) + stage + 1
        with torch.no_grad():
            features = self.images
            for module in stages[:split]:
                features = module(features)
        gradients = []
        for direction in self.text:
            leaf = features.clone().requires_grad_(True)
            x = leaf
            for module in stages[split:]:
                x = module(x)
            score = (F.normalize(self.backbone.pool(x), dim=-1) @ direction).sum()
            gradients.append(torch.autograd.grad(score, leaf)[0])
        return features, torch.stack(gradients)

    def expected(self, rule: Any, stage: int = -1) -> Tensor:
        """`rule(A [C, h, w], ∂s_t/∂A [C, h, w]) → [h, w]` of every picture and prompt: `[B, P, h, w]`, float64."""
        features, gradients = (tensor.double() for tensor in self.features_and_gradients(stage))
        rows = [torch.stack([rule(features[b], of_prompt[b]) for of_prompt in gradients]) for b in range(len(features))]
        return torch.stack(rows)

    def layers(self, stages: tuple[int, ...]) -> list[nn.Module]:
        """The peers' target layers."""
        return [self.backbone.stages[stage] for stage in stages]

    def grad_cam_package(self, peer: Any, stages: tuple[int, ...] = (-1,)) -> Tensor:
        """`pytorch_grad_cam`: maps `[B, P, H, W]` in 0–1 over the input."""
        maps = []
        with peer(model=self.model, target_layers=self.layers(stages)) as extractor:
            for prompt in range(len(self.text)):
                targets = [ClassifierOutputTarget(prompt)] * len(self.images)
                maps.append(torch.from_numpy(extractor(self.images.clone().requires_grad_(True), targets=targets)))
        return torch.stack(maps, dim=1)

    def torchcam(self, peer: Any, stages: tuple[int, ...] = (-1,), **kwargs: Any) -> Tensor:
        """`torchcam`: maps `[B, P, h, w]` in 0–1 on the grid; several stages fused by its own rule."""
        maps = []
        with peer(self.model, self.layers(stages), **kwargs) as extractor:
            for prompt in range(len(self.text)):
                scores = self.model(self.images.clone().requires_grad_(True))
                cams = extractor(prompt, scores)
                maps.append((extractor.fuse_cams(cams) if len(cams) > 1 else cams[0]).detach())
        return torch.stack(maps, dim=1)


def tiny_scene(kind: str, seed: int = 0, scale: float | None = None) -> Scene:
    """Two noisy pictures with colours in them, two planted prompts and one at random."""
    backbone = tower(kind, GRID, seed)
    return Scene(backbone, scenes(), backbone.encode_text(TEXTS), scale)


def mini_scene(side: int = 224, scale: float | None = None) -> Scene:
    """`mini` on the package's photograph of a cat, with a prompt that is there and one that is not."""
    backbone = create("mini")
    return Scene(
        backbone,
        backbone.normalize(photograph("cat", side, side)),
        backbone.encode_text(["a cat", "a fire engine"]),
        scale,
    )


def min_max(maps: Tensor) -> Tensor:
    """Each map to 0–1; a flat one to zeros."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low).masked_fill(high == low, 1)


every_scene = pytest.mark.parametrize(
    "make", [*(functools.partial(tiny_scene, kind) for kind in CNNS), mini_scene], ids=[*CNNS, "mini"]
)


def over_input(maps: Tensor, images: Tensor) -> Tensor:
    """Raw `[B, P, h, w]` → ReLU, 0–1, resized to the input, 0–1 again: what `pytorch_grad_cam` returns."""
    resized = F.interpolate(min_max(maps.relu()), size=images.shape[-2:], mode="bilinear", align_corners=False)
    return min_max(resized)


def assert_same_maps(ours: Tensor, theirs: Tensor, tolerance: float = 1e-3) -> None:
    """Every map of 0–1 agrees in shape and value, and is not flat."""
    assert ours.shape == theirs.shape
    for mine, peers in zip(ours.flatten(0, 1).flatten(1), theirs.flatten(0, 1).flatten(1), strict=True):
        assert (mine - peers).abs().max() <= tolerance
        if mine.max() > 0:
            assert torch.corrcoef(torch.stack([mine, peers]))[0, 1] >= 0.999
    assert (ours.amax((-2, -1)) > 0).any(), "every map is flat: nothing was compared"

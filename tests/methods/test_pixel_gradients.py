"""Gradients at the pixels: Integrated Gradients by its axiom and a known integral, SmoothGrad by loops; captum."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.methods import Context, methods
from cliploc.towers.tower import Trace
from tests.methods.peers import WrappedClip, tiny_scene
from tests.methods.plain_vit import open_clip_model, plain_vit
from tests.tiny import raw_maps

KINDS = ("gap_cnn", "attention_pool_cnn", "open_clip")


def scene(kind: str) -> tuple[Any, Tensor, Tensor, Any]:
    """Our tower, pictures, two texts `[P, D]`, and the peers' model, images → cosines `[B, P]`."""
    if kind == "open_clip":
        vit = plain_vit(kind)
        visual = open_clip_model().visual
        images = torch.randn(2, 3, *visual.image_size, generator=torch.Generator().manual_seed(0))  # its one size
        return vit.backbone, images, vit.text[:2], WrappedClip(visual, vit.text[:2]).eval()
    tiny = tiny_scene(kind, scale=1.0)
    return tiny.backbone, tiny.images, tiny.text, tiny.model


@pytest.mark.parametrize("kind", ["gap_cnn", "open_clip"])
@pytest.mark.parametrize("empty", ["mean", "black"])
def test_the_values_add_up_to_the_difference_of_the_scores(kind: str, empty: str) -> None:
    backbone, images, text, _ = scene(kind)
    start = backbone.normalize(torch.zeros_like(images)) if empty == "black" else torch.zeros_like(images)
    maps = raw_maps("integrated_gradients", backbone, images, text, steps=60, empty=empty)
    expected = (backbone.encode_image(images) - backbone.encode_image(start)) @ text.T
    torch.testing.assert_close(maps.sum(dim=(-2, -1)), expected, rtol=0, atol=2e-3 * float(expected.abs().max()))


def test_a_path_of_known_integral() -> None:
    """f(x) = (Σ x³)/n of one pixel's cube has the integral x³: three Gauss points are exact for its gradient 3x²."""

    class Cubes:
        def encode_image(self, images: Tensor) -> Tensor:
            return images.pow(3).flatten(1)

    images = torch.randn(1, 3, 2, 3, generator=torch.Generator().manual_seed(0))
    text = torch.ones(1, 1, images[0].numel())
    ctx = Context(lambda: images, text, Trace(torch.empty(0), (2, 3)), Cubes())  # type: ignore[arg-type]
    maps = methods.get("integrated_gradients").function(ctx, steps=3)
    torch.testing.assert_close(maps[0, 0], images[0].pow(3).sum(dim=0))


@pytest.mark.parametrize("kind", KINDS)
def test_captum_agrees_on_integrated_gradients(kind: str) -> None:
    attr = pytest.importorskip("captum.attr", reason="needs captum")
    backbone, images, text, model = scene(kind)
    maps = []
    for prompt in range(len(text)):
        pixels = attr.IntegratedGradients(model).attribute(images, target=prompt, n_steps=7).detach().float()
        h, w = backbone.grid(*images.shape[-2:])
        cells = pixels.sum(dim=1).unflatten(2, (w, -1)).unflatten(1, (h, -1))  # [B, h, pixels, w, pixels]
        maps.append(cells.sum(dim=(2, 4)))
    expected = torch.stack(maps, dim=1)
    found = raw_maps("integrated_gradients", backbone, images, text, steps=7)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", [0.0, 0.15])
def test_smooth_grad_is_the_mean_of_plain_gradients(kind: str, noise: float) -> None:
    backbone, images, text, model = scene(kind)
    draws = torch.randn(3, *images.shape[1:], generator=torch.Generator().manual_seed(0))
    expected = []
    for picture in images:
        sigma = noise * float(picture.max() - picture.min())
        for prompt in range(len(text)):
            copies = [(picture + sigma * draw)[None].requires_grad_() for draw in draws]
            gradients = [torch.autograd.grad(model(copy)[0, prompt], copy)[0][0] for copy in copies]
            pixels = torch.stack(gradients).mean(dim=0).abs().sum(dim=0)  # [H, W]
            expected.append(F.adaptive_avg_pool2d(pixels[None], backbone.grid(*images.shape[-2:]))[0])
    wanted = torch.stack(expected).view(len(images), len(text), *expected[0].shape)
    found = raw_maps("smooth_grad", backbone, images, text, samples=3, noise=noise)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * float(wanted.max()))


def test_captums_noise_tunnel_agrees() -> None:
    """With the same random numbers: all copies in one batch, from the same seed."""
    attr = pytest.importorskip("captum.attr", reason="needs captum")
    backbone, images, text, model = scene("open_clip")
    picture, maps = images[:1], []
    sigma = 0.15 * float(picture.max() - picture.min())
    for prompt in range(len(text)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tunnel = attr.NoiseTunnel(attr.Saliency(model))
            gradient = tunnel.attribute(picture, target=prompt, nt_samples=6, stdevs=sigma, abs=False)
        pixels = gradient.detach().float().abs().sum(dim=1)
        maps.append(F.adaptive_avg_pool2d(pixels, backbone.grid(*picture.shape[-2:])))
    expected = torch.stack(maps, dim=1)
    found = raw_maps("smooth_grad", backbone, picture, text, samples=6)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.max()))

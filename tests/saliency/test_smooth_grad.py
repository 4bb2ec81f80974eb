"""SmoothGrad: plain gradients one noisy copy after the other, and captum's noise tunnel."""

import pytest
import torch
from torch.nn import functional as F

from tests.saliency.test_integrated_gradients import KINDS, ours, scene


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", [0.0, 0.15])
def test_the_equation(kind: str, noise: float) -> None:
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
    found = ours(backbone, images, text, "smooth_grad", samples=3, noise=noise)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * float(wanted.max()))


def test_captum_agrees() -> None:
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
    found = ours(backbone, picture, text, "smooth_grad", samples=6)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.max()))

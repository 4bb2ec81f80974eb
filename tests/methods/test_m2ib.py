"""M2IB against its equation, one picture, prompt and step at a time, with Adam written out."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.methods.plain_vit import PlainVit, plain_vit


def passed(vit: PlainVit, image: Tensor, direction: Tensor, beta: float, steps: int) -> Tensor:
    """`[T]` nats of each token."""
    depth = len(vit.blocks)
    number = max(1, 10 * depth // 12)  # of 12 blocks, those up to `resblocks[9]`
    z = vit.entering(image)[number]  # [T, d]
    alpha, generator = torch.full_like(z, 5.0), torch.Generator().manual_seed(0)
    first, second = torch.zeros_like(z), torch.zeros_like(z)  # Adam's moments
    nats = torch.zeros_like(z)
    for step in range(1, steps + 1):
        with torch.enable_grad():
            leaf = alpha.clone().requires_grad_(True)
            share = 1 / (1 + torch.exp(-leaf))
            nats = -0.5 * (1 + torch.log((1 - share) ** 2) - (share * z) ** 2 - (1 - share) ** 2)
            noise = torch.randn(10, *z.shape, generator=generator)
            cosines = []
            for sample in noise:
                x = share * z + (1 - share) * sample
                for block in vit.blocks[number:]:
                    x = block.forward(x)
                cosines.append(F.normalize(vit.read(x[:1])[0], dim=0) @ direction)
            loss = beta * nats.mean() - sum(cosines) / len(cosines)
            (gradient,) = torch.autograd.grad(loss, leaf)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        alpha = alpha - (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    return nats.detach().sum(dim=1)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("tiny", {}),  # ten steps of ten draws take a second for each block that the loops go through
        *((kind, {"beta": 1.0, "steps": 1}) for kind in ("tiny", "open_clip", "deep")),
        *((kind, {"beta": 0.01, "steps": 4}) for kind in ("tiny", "open_clip", "deep")),
    ],
    ids=str,
)
def test_the_equation(kind: str, options: dict[str, Any]) -> None:
    vit = plain_vit(kind)
    beta, steps = options.get("beta", 0.1), options.get("steps", 10)

    def one(image: Tensor) -> Tensor:
        return torch.stack([passed(vit, image, direction, beta, steps)[1:] for direction in vit.text], dim=1)

    ours, expected = vit.ours("m2ib", **options), vit.maps(one)
    if steps == 1:
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)  # no step was made: the text has no say yet
    else:
        torch.testing.assert_close(ours, expected, rtol=5e-3, atol=5e-3 * float(expected.max()))
        assert (ours[:, 0] - ours[:, 1]).abs().max() > 0.02 * ours.max()

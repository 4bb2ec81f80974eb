"""Zero-shot TS-CAM and LCTR: attention times patches' cosines, written from the tower's modules."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.saliency.vits import QueryingVit, assert_equation, plain_forward
from tests.tiny import TinyVit


def dense_cosines(backbone: Any, entering: Tensor, direction: Tensor) -> Tensor:
    """MaskCLIP: each patch's own value through the last block's output projection and the head, · g: `[N]`."""
    block = backbone.blocks[-1]
    width = entering.shape[-1]
    values = block.ln_1(entering[0, 1:]) @ block.qkv.weight[2 * width :].T + block.qkv.bias[2 * width :]
    read = backbone.ln_post(block.out(values)) @ backbone.projection  # [N, D]
    return (read @ direction) / read.norm(dim=-1)


def ts_cam(attention: list[Tensor], pool: Tensor | None) -> Tensor:
    """What the class token, or the pool's query, looks at."""
    if pool is not None:
        return pool[0].mean(dim=0)[0]  # a pool looks once
    return sum((weights[0].mean(dim=0)[0, 1:] for weights in attention), torch.zeros(()))


def lctr(attention: list[Tensor], pool: Tensor | None) -> Tensor:
    """What it looks at through every token."""
    maps = []
    for weights in attention:
        mean = weights[0].mean(dim=0)  # [T, T]
        row = mean[0] if pool is None else torch.cat([torch.zeros(1), pool[0].mean(dim=0)[0]])
        maps.append(torch.stack([row[j] * mean[j, 1:] for j in range(len(mean))]).mean(dim=0))
    return torch.stack(maps).mean(dim=0)


@pytest.mark.parametrize("rule", [ts_cam, lctr], ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("kind", [TinyVit, QueryingVit])
@pytest.mark.parametrize(("blocks", "n"), [("all", 2), (1, 1)])
def test_the_equation(rule: Any, kind: type[TinyVit], blocks: Any, n: int) -> None:
    def one_map(backbone: Any, image: Tensor, direction: Tensor) -> Tensor:
        tokens, attention, pool, _ = plain_forward(backbone, image)
        return rule(attention[-n:], pool) * dense_cosines(backbone, tokens[-2], direction)

    assert_equation(rule.__name__, kind, one_map, blocks=blocks)

"""Zero-shot TS-CAM against its two factors, written from the tower's modules."""

from typing import Any

import pytest
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


def coupled(backbone: Any, image: Tensor, direction: Tensor, blocks: int) -> Tensor:
    tokens, attention, pool, _ = plain_forward(backbone, image)
    summed = sum(weights[0].mean(dim=0)[0, 1:] for weights in attention[-blocks:])
    if pool is not None:
        summed = pool[0].mean(dim=0)[0]
    return summed * dense_cosines(backbone, tokens[-2], direction)


@pytest.mark.parametrize(
    ("kind", "blocks", "n"),
    [(TinyVit, "all", 2), (TinyVit, 1, 1), (QueryingVit, "all", 1)],  # a pool looks once
)
def test_the_equation(kind: type[TinyVit], blocks: Any, n: int) -> None:
    assert_equation("ts_cam", kind, lambda *of: coupled(*of, n), blocks=blocks)

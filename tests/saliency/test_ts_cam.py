"""Zero-shot TS-CAM against its two factors, written from the tower's modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.saliency.vits import QueryingVit, oracle, ours, plain_forward, scenes, tiny


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
    return (summed * dense_cosines(backbone, tokens[-2], direction)).detach()


@pytest.mark.parametrize(("blocks", "n"), [("all", 2), (1, 1)])
def test_the_equation(blocks: Any, n: int) -> None:
    backbone = tiny()
    expected, text = oracle(backbone, lambda image, direction: coupled(backbone, image, direction, n))
    torch.testing.assert_close(ours("ts_cam", backbone, scenes(), text, blocks=blocks), expected)


def test_an_attention_pool_looks_once() -> None:
    backbone = tiny(QueryingVit)
    expected, text = oracle(backbone, lambda image, direction: coupled(backbone, image, direction, 1))
    torch.testing.assert_close(ours("ts_cam", backbone, scenes(), text), expected)

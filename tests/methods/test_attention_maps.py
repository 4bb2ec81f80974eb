"""Maps of attention, alone and times patches' cosines, against their equations on towers pooled three ways."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cliploc.methods import methods
from cliploc.towers.tower import Needs
from tests.methods.vits import AveragingVit, QueryingVit, assert_equation, plain_forward
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
def test_attention_times_patches(rule: Any, kind: type[TinyVit], blocks: Any, n: int) -> None:
    """Zero-shot TS-CAM and LCTR."""

    def one_map(backbone: Any, image: Tensor, direction: Tensor) -> Tensor:
        tokens, attention, pool, _ = plain_forward(backbone, image)
        return rule(attention[-n:], pool) * dense_cosines(backbone, tokens[-2], direction)

    assert_equation(rule.__name__, kind, one_map, blocks=blocks)


@pytest.mark.parametrize("kind", [TinyVit, QueryingVit, AveragingVit])
@pytest.mark.parametrize(("blocks", "n"), [("all", 2), (2, 2), (1, 1)])
def test_rollout_is_a_product_of_full_matrices(kind: type[TinyVit], blocks: Any, n: int) -> None:
    """The paper's R `[T, T]`, from the first block to the last, rows normalised; read where the embedding is made."""

    def one_map(backbone: Any, image: Tensor, _: Tensor) -> Tensor:
        _, attention, pool, _ = plain_forward(backbone, image)
        rollout = torch.eye(attention[0].shape[-1])
        for weights in attention[-n:]:
            mixed = 0.5 * weights[0].mean(dim=0) + 0.5 * torch.eye(len(rollout))
            rollout = (mixed / mixed.sum(dim=-1, keepdim=True)) @ rollout
        if pool is not None:
            return pool[0].mean(dim=0)[0] @ rollout[1:, 1:]
        return rollout[0, 1:] if backbone.pooling == "class token" else rollout[1:, 1:].mean(dim=0)

    assert_equation("rollout", kind, one_map, blocks=blocks)


@pytest.mark.parametrize("kind", [TinyVit, QueryingVit])
@pytest.mark.parametrize("block", [-1, -2])
def test_raw_attention_is_the_class_tokens_row_of_the_block_named(kind: type[TinyVit], block: int) -> None:
    """Or, for any block, that of an attention pool's query."""

    def one_map(backbone: Any, image: Tensor, _: Tensor) -> Tensor:
        _, attention, pool, _ = plain_forward(backbone, image)
        heads = attention[block][0, :, 0, 1:] if pool is None else pool[0, :, 0]  # [H, N]
        return sum(heads.unbind()) / len(heads)

    assert_equation("raw_attention", kind, one_map, block=block)
    assert methods.get("raw_attention").needs(block=block) == Needs(attention=(block,)), "more attention is kept"

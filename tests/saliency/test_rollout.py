"""Attention rollout against the product of whole matrices."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.saliency.vits import GRID, AveragingVit, QueryingVit, ours, plain_forward, scenes, tiny
from tests.tiny import TinyVit


def rolled_out(backbone: Any, image: Tensor, blocks: int) -> Tensor:
    """The paper's R `[T, T]`, from the first block to the last, rows normalised."""
    attention = plain_forward(backbone, image)[1][-blocks:]
    rollout = torch.eye(attention[0].shape[-1])
    for weights in attention:
        mixed = 0.5 * weights[0].mean(dim=0) + 0.5 * torch.eye(len(rollout))
        rollout = (mixed / mixed.sum(dim=-1, keepdim=True)) @ rollout
    return rollout.detach()


@pytest.mark.parametrize(("blocks", "n"), [("all", 2), (2, 2), (1, 1)])
def test_the_equation(blocks: Any, n: int) -> None:
    backbone = tiny()
    maps = ours("rollout", backbone, scenes(), backbone.encode_text(["red", "green"]), blocks=blocks)
    for b, image in enumerate(scenes()):
        for prompt in maps[b]:
            torch.testing.assert_close(prompt, rolled_out(backbone, image, n)[0, 1:].view(GRID))


@pytest.mark.parametrize("kind", [QueryingVit, AveragingVit])
def test_it_begins_at_whatever_makes_the_embedding(kind: type[TinyVit]) -> None:
    backbone = tiny(kind)
    maps = ours("rollout", backbone, scenes(), backbone.encode_text(["red"]))
    for b, image in enumerate(scenes()):
        rows = rolled_out(backbone, image, 2)[1:, 1:]  # [N, N]
        pool = plain_forward(backbone, image)[2]
        weights = torch.full((len(rows),), 1 / len(rows)) if pool is None else pool[0].mean(dim=0)[0].detach()
        torch.testing.assert_close(maps[b, 0], (weights @ rows).view(GRID))

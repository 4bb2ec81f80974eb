"""Chefer's relevance against the paper's matrices, one prompt and one graph at a time."""

from typing import Any

import pytest
import torch
from torch import Tensor

import cliploc.methods._infra.gradients as gradients_module
from cliploc.methods import methods
from cliploc.towers.tower import Needs
from tests.methods.vits import (
    AveragingVit,
    QueryingVit,
    assert_equation,
    block_calls,
    ours,
    plain_forward,
    scenes,
    tiny,
)
from tests.tiny import TinyVit
from tests.tolerances import assert_rounded


def relevance(backbone: Any, image: Tensor, direction: Tensor, blocks: int) -> Tensor:
    """R over the tokens, then the row of what is read, patches only: `[N]`."""
    _, attention, pool, embedding = plain_forward(backbone, image)
    score = embedding @ direction
    relevance = torch.eye(attention[0].shape[-1])
    for weights in attention[-blocks:]:
        gradient = torch.autograd.grad(score, weights, retain_graph=True)[0]
        mean = sum((g * a).clamp(min=0) for g, a in zip(gradient[0], weights[0], strict=True)) / weights.shape[1]
        relevance = relevance + mean @ relevance
    if pool is not None:
        gradient = torch.autograd.grad(score, pool, retain_graph=True)[0]
        row = (gradient * pool)[0].clamp(min=0).mean(dim=0)[0] @ relevance[1:]  # [T]
    else:
        row = relevance[0] if backbone.pooling == "class token" else relevance[1:].mean(dim=0)
    return row[1:].detach()


@pytest.mark.parametrize("kind", [TinyVit, QueryingVit, AveragingVit])
@pytest.mark.parametrize(("options", "n"), [({}, 1), ({"blocks": 1}, 1), ({"blocks": 2}, 2), ({"blocks": "all"}, 2)])
def test_the_equation(kind: type[TinyVit], options: dict[str, Any], n: int) -> None:
    assert_equation("chefer", kind, lambda *of: relevance(*of, n), **options)


def test_many_prompts_go_in_chunks_and_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny(QueryingVit)
    text = backbone.encode_text(["red", "green", "a zebra"])
    expected = ours("chefer", backbone, scenes(), text, blocks=2)
    for elements in (1, 10000):  # one prompt at a time; two at first, then one
        monkeypatch.setattr(gradients_module, "GRADIENT_ELEMENTS", elements)
        assert_rounded(ours("chefer", backbone, scenes(), text, blocks=2), expected, backbone)


def test_each_block_is_run_once_more_for_all_prompts_and_no_attention_is_traced() -> None:
    assert block_calls(tiny(), "chefer", blocks=2) == 2
    assert methods.get("chefer").needs(blocks=2) == Needs(tokens=(-1, -2))

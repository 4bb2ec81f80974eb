"""Zero-shot LCTR against sums over tokens, written from the tower's modules."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.saliency.test_ts_cam import dense_cosines
from tests.saliency.vits import QueryingVit, assert_equation, plain_forward
from tests.tiny import TinyVit


def reached(backbone: Any, image: Tensor, direction: Tensor, blocks: int) -> Tensor:
    tokens, attention, pool, _ = plain_forward(backbone, image)
    maps = []
    for weights in attention[-blocks:]:
        mean = weights[0].mean(dim=0)  # [T, T]
        row = mean[0] if pool is None else torch.cat([torch.zeros(1), pool[0].mean(dim=0)[0]])
        maps.append(torch.stack([row[j] * mean[j, 1:] for j in range(len(mean))]).mean(dim=0))
    return torch.stack(maps).mean(dim=0) * dense_cosines(backbone, tokens[-2], direction)


@pytest.mark.parametrize("kind", [TinyVit, QueryingVit])
@pytest.mark.parametrize(("blocks", "n"), [("all", 2), (1, 1)])
def test_the_equation(kind: type[TinyVit], blocks: Any, n: int) -> None:
    assert_equation("lctr", kind, lambda *of: reached(*of, n), blocks=blocks)

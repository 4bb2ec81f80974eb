"""ResCLIP against its equation on three towers."""

import pytest
import torch
from torch import Tensor

from tests.saliency.plain_vit import TOWERS, assert_equal, plain_vit
from tests.saliency.test_naclip import prior


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize(("residual", "gain"), [(0.3, 1.0), (0.8, 2.5)])
def test_the_equation(kind: str, residual: float, gain: float) -> None:
    vit = plain_vit(kind)
    bias, depth = prior(vit.grid, vit.prefix, 5.0), len(vit.blocks)
    middle = [max(1, twelfth * depth // 12) for twelfth in (6, 7, 8, 9)]  # from 1

    def one(image: Tensor) -> Tensor:
        entering, last = vit.entering(image), vit.blocks[-1]
        heads = []
        for head, (_, k, v) in enumerate(last.project(entering[-2])):
            own = torch.softmax(k @ k.T / k.shape[1] ** 0.5 + bias, dim=1)
            earlier = torch.zeros_like(own)
            for number in middle:
                q_l, k_l, _ = vit.blocks[number - 1].project(entering[number - 1])[head]
                earlier += torch.softmax(q_l @ k_l.T / q_l.shape[1] ** 0.5, dim=1) / len(middle)
            heads.append(gain * ((1 - residual) * own + residual * earlier) @ v)
        return vit.cosines(last.out(torch.cat(heads, dim=1)))

    assert_equal(vit.ours("resclip", residual=residual, gain=gain), vit.maps(one))

"""Grad-ECLIP against its equation in plain loops, in our form and in the authors' one-head form."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.methods.plain_vit import PlainVit, assert_equal, plain_vit


def embedding(vit: PlainVit, x: Tensor, gathered: Tensor) -> Tensor:
    """What the tower says of tokens `[T, d]` entering the last block when the class token gathers `[d]`."""
    block = vit.blocks[-1]
    token = x[0] + block.out(gathered)
    token = token + block.mlp_branch(token)
    return F.normalize(vit.read(token[None])[0], dim=0)


def oracle(vit: PlainVit, one_head: bool) -> Tensor:
    block = vit.blocks[-1]

    def one(image: Tensor) -> Tensor:
        x = vit.entering(image)[-2]
        q, k, v = (torch.cat(part, dim=1) for part in zip(*block.project(x), strict=True))  # each [T, d]
        widths = (
            [(0, q.shape[1])]
            if one_head
            else [(h * (n := q.shape[1] // block.heads), (h + 1) * n) for h in range(block.heads)]
        )
        parts = []
        for start, end in widths:
            weights = torch.softmax(q[0, start:end] @ k[:, start:end].T / (end - start) ** 0.5, dim=0)
            parts.append(sum(weight * row for weight, row in zip(weights, v[:, start:end], strict=True)))
        gathered = torch.cat(parts)
        query, keys = (block.out(q[0]), block.out(k)) if one_head else (q[0], k)
        near = [float(F.cosine_similarity(query, key, dim=0)) for key in keys[1:]]
        near = [(value - min(near)) / (max(near) - min(near)) for value in near]
        columns = []
        for direction in vit.text:
            with torch.enable_grad():
                leaf = gathered.clone().requires_grad_(True)
                (g,) = torch.autograd.grad(embedding(vit, x, leaf) @ direction, leaf)
            columns.append(torch.stack([(g * value).sum() * n for value, n in zip(v[1:], near, strict=True)]))
        return torch.stack(columns, dim=1)  # [N, P]

    return vit.maps(one)


@pytest.mark.parametrize("kind", ["tiny", "open_clip"])
@pytest.mark.parametrize("published", [False, True])
def test_the_equation(kind: str, published: bool) -> None:
    vit = plain_vit(kind)
    maps = vit.ours("grad_eclip", published=published)
    assert_equal(maps, oracle(vit, published))
    if not published:
        assert torch.equal(maps, vit.ours("grad_eclip"))

"""The decomposition against its equation, and that its terms and the direct ones are the whole cosine."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.methods.plain_vit import PlainVit, assert_equal, plain_vit


def norm_and_projection(vit: PlainVit) -> tuple[Any, Tensor]:
    norm = vit.backbone.last_norm
    return norm, vit.backbone.read_normed(torch.eye(len(norm.weight)))  # [d, D]


def terms(vit: PlainVit, image: Tensor) -> tuple[list[list[list[Tensor]]], list[Tensor], list[Tensor], Tensor]:
    """What the class token is the sum of: `brought[block][head][token]`, start and MLPs, biases, and it, each `[d]`."""
    tokens = vit.entering(image)
    brought, direct, biases = [], [tokens[0][0]], []
    for block, x in zip(vit.blocks, tokens, strict=False):
        of_block = []
        for head, (q, k, v) in enumerate(block.project(x)):
            weights = torch.softmax(q[0] @ k.T / q.shape[1] ** 0.5, dim=0)
            columns = slice(head * q.shape[1], (head + 1) * q.shape[1])
            of_block.append(
                [weight * block.out.weight[:, columns] @ row for weight, row in zip(weights, v, strict=True)]
            )
        brought.append(of_block)
        biases.append(block.out.bias)
        middle = x[0] + block.out.bias + sum(term for head in of_block for term in head)
        direct.append(block.mlp_branch(middle))
    return brought, direct, biases, tokens[-1][0]


def share_of(vit: PlainVit, full: Tensor, term: Tensor, parts: int | None = None) -> Tensor:
    """`[P]` what a term of the class token adds; the mean is spread over start, MLPs and `parts`; None: a bias."""
    ln, projection = norm_and_projection(vit)
    deviation = (full.var(unbiased=False) + ln.eps).sqrt()
    length = (ln(full) @ projection).norm()
    mean = 0 if parts is None else full.mean() / ((2 * len(vit.blocks) + 1) * parts)
    return (ln.weight * (term - mean) / deviation) @ projection @ vit.text.T / length


@pytest.mark.parametrize("kind", ["tiny", "open_clip"])
@pytest.mark.parametrize("blocks", [1, 2, 4])
@torch.no_grad()
def test_the_equation(kind: str, blocks: int) -> None:
    vit = plain_vit(kind)

    def one(image: Tensor) -> Tensor:
        brought, _, _, full = terms(vit, image)
        heads = [head for of_block in brought[-blocks:] for head in of_block]
        parts = len(brought[0]) * len(heads[0])
        return torch.stack(
            [sum(share_of(vit, full, head[i], parts) for head in heads) for i in range(1, len(heads[0]))]
        )

    maps = vit.ours("decomposition", blocks=blocks)
    assert_equal(maps, vit.maps(one))
    if blocks == 4:
        assert torch.equal(maps, vit.ours("decomposition"))


@pytest.mark.parametrize("kind", ["tiny", "open_clip"])
@torch.no_grad()
def test_all_terms_are_the_cosine(kind: str) -> None:
    """The map's sum over all blocks, the direct terms, what the class token brings itself, and ln_post's bias."""
    vit = plain_vit(kind)
    ln, projection = norm_and_projection(vit)
    sums = vit.ours("decomposition", blocks=len(vit.blocks)).sum(dim=(-2, -1))  # [B, P]
    for image, summed in zip(vit.images, sums, strict=True):
        brought, direct, biases, full = terms(vit, image)
        part = [head[0] for of_block in brought for head in of_block]
        parts = len(brought[0]) * len(brought[0][0])
        rest = sum(share_of(vit, full, term, parts) for term in part)
        rest = rest + sum(share_of(vit, full, term) for term in biases)
        rest = rest + sum(share_of(vit, full, term, 1) for term in direct)
        length = (ln(full) @ projection).norm()
        rest = rest + ln.bias @ projection @ vit.text.T / length
        cosine = vit.backbone.encode_image(image[None])[0] @ vit.text.T
        torch.testing.assert_close(summed + rest, cosine, rtol=0, atol=2e-5)

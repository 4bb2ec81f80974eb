"""RADSeg against its two equations on three towers, and the projection that its first step reads."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.towers.tower import Needs
from tests.methods.plain_vit import TOWERS, PlainVit, assert_equal, attend, plain_vit
from tests.towers.seam import pictures


def alike(cosines: Tensor, factor: float) -> Tensor:
    """Row by row: e^(factor · cosine) over the cosines that are not negative, as shares."""
    weights = torch.where(cosines < 0, 0.0, (factor * cosines).exp())
    return weights / weights.sum(dim=1, keepdim=True)


def cosines(x: Tensor) -> Tensor:
    return F.cosine_similarity(x[:, None], x[None], dim=2)


def expected(vit: PlainVit, scra: float, scga: float) -> Tensor:
    def one(image: Tensor) -> Tensor:
        x, block = vit.entering(image)[-2], vit.blocks[-1]
        heads = block.project(x)
        part = block.out(torch.cat([attend(q, k, v) for q, k, v in heads], dim=1)).chunk(block.heads, dim=1)
        again = [alike(cosines(o), scra) @ v for o, (_, _, v) in zip(part, heads, strict=True)]
        x = x + block.out(torch.cat(again, dim=1))
        x = x + block.mlp_branch(x)
        patches = vit.backbone.last_norm(x[vit.prefix :])  # the authors' tower gives them after its norm
        similar = cosines(patches)
        read = vit.backbone.read_normed(alike(similar - similar.mean(), scga) @ patches)
        return F.normalize(read, dim=1) @ vit.text.T

    return vit.maps(one)


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("options", [{}, {"scra": 4.0, "scga": 25.0}], ids=str)
def test_places_attend_to_those_alike_in_the_block_and_after_it(kind: str, options: dict[str, float]) -> None:
    vit = plain_vit(kind)
    assert_equal(vit.ours("radseg", **options), expected(vit, **{"scra": 10.0, "scga": 10.0, **options}))


def test_the_projection_is_before_the_layer_scale() -> None:
    """DINO's blocks scale their branches; the authors read what is not scaled yet."""
    from tests.towers.test_dinotxt import SIDE, tiny

    tower = tiny("dinov3")
    trace = tower.trace(pictures(SIDE, SIDE), Needs(dense=1))
    gathered = trace.projections[-1][2]
    block = tower.vision_head.blocks[-1]
    ours = tower.attention_output(trace, gathered) * block.ls1.gamma
    torch.testing.assert_close(ours, tower.adapters[-1].attention_branch(trace.entering[-1], gathered))

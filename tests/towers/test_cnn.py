"""What convolutional towers share: pools against independent implementations, heads that finish any stage."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from cliploc.errors import UsageError
from cliploc.towers._cnn import AT_ONCE, AttentionPool, GlobalAveragePool, run_stages
from cliploc.towers._layers import attend, attention_weights
from cliploc.towers.tower import Backbone, DenseReading, Needs
from tests.tiny import seeded, tower
from tests.tolerances import assert_rounded
from tests.towers.seam import BackboneContract

CNN_KINDS = ("gap_cnn", "attention_pool_cnn")


def attention_pool(grid=(5, 5), channels=24, heads=3, size=10, seed=0):
    pool = seeded(lambda: AttentionPool(grid, channels, heads, size), seed)
    with torch.no_grad():
        for parameter in pool.parameters():  # larger weights than at the start: attention far from uniform
            parameter.mul_(3)
    return pool.requires_grad_(False)


def features(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images(height=20, width=24, count=2):
    return features(count, 3, height, width)


def test_large_maps_are_computed_a_few_pictures_at_a_time() -> None:
    """The stages with large maps see small batches, later ones the whole batch; the outputs are those of one batch."""
    stages = [seeded(lambda i=i: torch.nn.Conv2d(3, 3, 2, stride=2), i) for i in range(5)]
    seen: list[list[int]] = [[] for _ in stages]
    x = features(5, 3, 224, 224)
    with torch.no_grad():
        for wanted in ([0, 2, 4], [1], [4]):
            expected = run_stages(stages, x, wanted)
            hooks = [
                stage.register_forward_pre_hook(lambda _, passed, stored=stored: stored.append(len(passed[0])))
                for stage, stored in zip(stages, seen, strict=True)
            ]
            found = run_stages(stages, x, wanted, AT_ONCE // (224 * 224))
            for hook in hooks:
                hook.remove()
            for ours, theirs in zip(found, expected, strict=True):
                assert_rounded(ours, theirs, stages[0])
    assert AT_ONCE == 2 * 224 * 224
    assert [max(sizes) for sizes in seen] == [2, 2, 2, 5, 5]


# ------------------------------------------------------------------------------------------------------ attention pool
@pytest.mark.parametrize(("side", "heads"), [(1, 2), (2, 1), (5, 3), (6, 4)])
def test_the_attention_pool_and_its_gradient_are_open_clips(side, heads):
    resnet = pytest.importorskip("open_clip.modified_resnet", reason="open_clip has the pool to compare with")
    theirs = seeded(lambda: resnet.AttentionPool2d(side, 24, heads, 10), 4)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.mul_(3)
    ours = AttentionPool((side, side), 24, heads, 10)
    ours.load_state_dict(theirs.state_dict())  # strict: the names are OpenAI's
    a = features(3, 24, side, side).requires_grad_(True)
    assert_rounded(ours(a), theirs(a), ours)
    direction = features(3, 10, seed=9)
    gradients = [torch.autograd.grad((pool(a) * direction).sum(), a)[0] for pool in (ours, theirs)]
    assert gradients[0].abs().max() > 1e-3
    assert_rounded(*gradients, ours)


def test_one_head_averages_the_readings_by_its_attention():
    pool = attention_pool((3, 4), heads=1)
    a = features(2, 24, 3, 4)
    tokens = torch.cat([a.mean(dim=(-2, -1))[:, None], a.flatten(2).transpose(1, 2)], dim=1)
    tokens = tokens + pool.positional_embedding
    logits = torch.einsum("bc,bnc->bn", pool.q_proj(tokens[:, 0]), pool.k_proj(tokens)) / 24**0.5
    weights = logits.softmax(dim=1)
    assert weights.max() > 3 / 13  # some token matters more than others
    readings = torch.cat(
        [pool.c_proj(pool.v_proj(tokens[:, :1])).transpose(1, 2), pool.read_locations(a).flatten(2)], dim=2
    )
    assert_rounded(pool(a), torch.einsum("bn,bdn->bd", weights, readings), pool)


def test_positions_are_resized_for_other_grids():
    """Bicubic over height and width, not swapped; the mean token's stays."""
    pool = attention_pool((4, 6))
    learnt = pool.positional_embedding[1:].T.reshape(1, 24, 4, 6)
    resized = F.interpolate(learnt, size=(7, 5), mode="bicubic", antialias=True, align_corners=False)
    other = AttentionPool((7, 5), 24, 3, 10)
    weights = pool.state_dict()
    weights["positional_embedding"] = torch.cat([pool.positional_embedding[:1], resized[0].flatten(1).T])
    other.load_state_dict(weights)
    a = features(2, 24, 7, 5)
    assert_rounded(pool(a), other(a), pool)
    assert_rounded(pool.read_locations(a), other.read_locations(a), pool)


# ------------------------------------------------------------------------------------------------------- average pool
@given(st.integers(1, 7), st.integers(1, 7))
def test_readings_of_a_gap_tower_average_to_the_pooled_feature(h, w):
    pool = GlobalAveragePool(features(6, seed=3))
    a = features(2, 6, h, w)
    assert_rounded(pool.read_locations(a).mean(dim=(-2, -1)), pool(a), h * w)
    assert_rounded(pool(a), a.mean(dim=(-2, -1)) - features(6, seed=3), h * w)


# --------------------------------------------------------------------------------------------------------------- tower
@pytest.mark.parametrize("kind", CNN_KINDS, scope="class")
class TestTinyTowers(BackboneContract):
    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls, kind: str) -> Any:
        return tower(kind)


@pytest.mark.parametrize("hw", [(20, 24), (28, 16)])
@pytest.mark.parametrize("kind", CNN_KINDS)
def test_the_head_finishes_the_tower_from_every_stage(kind, hw):
    backbone = tower(kind).requires_grad_(True)
    x = images(*hw)
    trace = backbone.trace(x, Needs(features=(-1, -2, -3)))
    assert trace.grid == backbone.grid(*hw) == (hw[0] // 4, hw[1] // 4)
    assert set(trace.features) == {-1, -2, -3}
    assert set(backbone.trace(x, Needs(features=(-2,))).features) == {-2}
    torch.testing.assert_close(trace.features[-2], backbone.stages[1](backbone.stages[0](x)).detach())
    assert not trace.embedding.requires_grad
    embedding = backbone.encode_image(x)
    torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(trace.embedding, embedding)
    for stage, stored in trace.features.items():
        stored.requires_grad_(True)
        finished = backbone.head(stored, trace, stage)
        torch.testing.assert_close(finished.detach(), embedding)
        (gradient,) = torch.autograd.grad(finished[:, 0].sum(), stored)
        assert gradient.abs().max() > 0


@pytest.mark.parametrize(("height", "grid"), [(20, 5), (21, 6), (4, 1), (1, 1)])
def test_the_grid_rounds_up(height, grid):
    assert tower("gap_cnn").grid(height, 8) == (grid, 2)


def test_refusals():
    backbone = tower("gap_cnn")
    assert isinstance(backbone, Backbone)
    for needs in (Needs(tokens=(-1,)), Needs(attention="all")):
        with pytest.raises(UsageError, match="gap_cnn is a CNN without tokens or attention: choose a method"):
            backbone.trace(images(), needs)
    with pytest.raises(UsageError, match=r"expected a stage of gap_cnn from -3 to -1 \(the last\), got -4"):
        backbone.trace(images(), Needs(features=(-4,)))
    trace = backbone.trace(images(), Needs(features=(-1,)))
    with pytest.raises(UsageError, match=r"expected a stage of gap_cnn from -3 to -1 \(the last\), got 0"):
        backbone.head(trace.features[-1], trace, 0)
    with pytest.raises(UsageError, match="gap_cnn is a CNN, but an attention rule needs a ViT tower: choose"):
        backbone.dense(trace, DenseReading(lambda q, k, v, scale: v))


# --------------------------------------------------------------------------------------------------------------- layers
SCALE = 0.3
TERMS = 8 + 11  # of a product of query and key, and of the values; in bfloat16 only the two results are rounded


def parts(dtype=torch.float32, queries=7):
    """q `[2, 3, t, 8]`, k `[2, 3, 11, 8]`, v `[2, 3, 11, 5]`, strided as the towers' are."""
    torch.manual_seed(0)
    shapes = ((2, queries, 3, 8), (2, 11, 3, 8), (2, 11, 3, 5))
    return [torch.randn(shape).to(dtype).transpose(1, 2) for shape in shapes]


def by_the_equation(q, k, v):
    weights = (torch.einsum("bhtd,bhsd->bhts", q.double(), k.double()) * SCALE).softmax(dim=-1)
    return torch.einsum("bhts,bhse->bhte", weights, v.double())


@pytest.mark.parametrize("queries", [1, 7, 11])
def test_it_is_softmax_of_the_products_times_the_values(queries):
    q, k, v = parts(queries=queries)
    expected = by_the_equation(q, k, v)
    assert_rounded(attend(q, k, v, SCALE), expected, TERMS)
    assert_rounded(attention_weights(q, k, SCALE) @ v, expected, TERMS)


@pytest.mark.parametrize("queries", [1, 11])
def test_bfloat16_rounds_and_nothing_else(queries):
    q, k, v = parts(torch.bfloat16, queries)
    ours = attend(q, k, v, SCALE)
    assert ours.dtype == torch.bfloat16
    assert_rounded(ours, by_the_equation(q, k, v), 2)

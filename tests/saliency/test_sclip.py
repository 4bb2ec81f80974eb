"""SCLIP against its equation on three towers."""

import pytest

from tests.saliency.plain_vit import TOWERS, assert_equal, attend, plain_vit


@pytest.mark.parametrize("kind", TOWERS)
def test_patches_gather_by_queries_and_by_keys(kind: str) -> None:
    """The sum of two attentions, and the block otherwise as it is."""
    vit = plain_vit(kind)
    expected = vit.last_block(lambda q, k, v: attend(q, q, v) + attend(k, k, v), residual=True, mlp=True)
    assert_equal(vit.ours("sclip"), expected)

"""ClearCLIP against its equation on three towers."""

import pytest

from tests.saliency.plain_vit import TOWERS, assert_equal, attend, plain_vit


@pytest.mark.parametrize("kind", TOWERS)
def test_patches_gather_by_queries_and_nothing_else_is_kept(kind: str) -> None:
    vit = plain_vit(kind)
    assert_equal(vit.ours("clearclip"), vit.last_block(lambda q, k, v: attend(q, q, v)))

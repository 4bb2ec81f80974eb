"""MaskCLIP against its equation on three towers."""

import pytest

from tests.saliency.plain_vit import TOWERS, assert_equal, plain_vit


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("mlp", [False, True])
def test_every_patch_is_read_by_its_own_value(kind: str, residual: bool, mlp: bool) -> None:
    vit = plain_vit(kind)
    expected = vit.last_block(lambda q, k, v: v, residual, mlp)
    assert_equal(vit.ours("maskclip", residual=residual, mlp=mlp), expected)
    if not residual and not mlp:
        assert_equal(vit.ours("maskclip"), expected)

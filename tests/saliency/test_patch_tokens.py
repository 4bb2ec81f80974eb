"""Patch tokens against their equation on three towers."""

import pytest

from tests.saliency.plain_vit import TOWERS, assert_equal, plain_vit


@pytest.mark.parametrize("kind", TOWERS)
def test_every_patch_is_read_as_it_leaves_the_tower(kind: str) -> None:
    vit = plain_vit(kind)
    assert_equal(vit.ours("patch_tokens"), vit.maps(lambda image: vit.cosines(vit.entering(image)[-1])))

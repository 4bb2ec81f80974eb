"""Raw attention against the tower's own weights."""

import pytest
import torch

from cliploc.errors import UsageError
from cliploc.saliency import methods, unfit_reason
from cliploc.tower import Needs
from tests.saliency.vits import GRID, AveragingVit, QueryingVit, ours, plain_forward, scenes, tiny
from tests.tiny import TinyVit


@pytest.mark.parametrize("block", [-1, -2])
def test_the_class_tokens_row_of_the_block_named(block: int) -> None:
    backbone = tiny()
    maps = ours("raw_attention", backbone, scenes(), backbone.encode_text(["red", "green"]), block=block)
    for b, image in enumerate(scenes()):
        attention = plain_forward(backbone, image)[1][block][0]  # [H, T, T]
        expected = sum(head[0, 1:] for head in attention.unbind()) / len(attention)
        for prompt in maps[b]:
            torch.testing.assert_close(prompt.flatten(), expected.detach())


def test_an_attention_pools_query_where_there_is_one() -> None:
    backbone = tiny(QueryingVit)
    maps = ours("raw_attention", backbone, scenes(), backbone.encode_text(["red"]))
    for b, image in enumerate(scenes()):
        pool = plain_forward(backbone, image)[2]
        expected = (pool[0, 0, 0] + pool[0, 1, 0]) / 2
        torch.testing.assert_close(maps[b, 0], expected.view(GRID).detach())


@pytest.mark.parametrize("kind", [TinyVit, AveragingVit, QueryingVit])
def test_the_poolings_that_a_method_names_are_those_it_runs_on(kind: type[TinyVit]) -> None:
    backbone = tiny(kind)
    text = backbone.encode_text(["red"])
    for method in methods:
        if "vit" not in method.towers or method.needs().guide:
            continue
        try:
            ours(method.name, backbone, scenes(), text)
        except UsageError:
            assert unfit_reason(method, backbone), method.name
        else:  # what reads the class token alone could be computed of another token, and is refused before
            of_class_token = method.poolings == {"class token"} and backbone.pooling != "class token"
            assert (unfit_reason(method, backbone) is None) != of_class_token, method.name


def test_attention_of_that_block_alone_is_kept() -> None:
    assert methods.get("raw_attention").needs(block=-3) == Needs(attention=(-3,))

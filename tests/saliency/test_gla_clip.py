"""GLA-CLIP against its equations, a place at a time; windows of one picture, and pictures by themselves."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.errors import UsageError
from tests.saliency.plain_vit import PlainVit, assert_equal, plain_vit
from tests.saliency.test_corrclip import GRID, features


def expected(vit: PlainVit, guide: Tensor, windows: bool, **options: float) -> Tensor:
    """`[B, P, h, w]`."""
    alike, rounds, beta, gamma = (
        options.get(key, default) for key, default in (("alike", 0.55), ("rounds", 2), ("beta", 0.3), ("gamma", 30.0))
    )
    groups = [list(range(len(vit.images)))] if windows else [[b] for b in range(len(vit.images))]
    maps = {}
    for group in groups:
        keys = torch.cat([F.normalize(guide[b].flatten(1).T, dim=1) for b in group])  # [places of all windows, C]

        def gather_of(b: int, group: list[int] = group, keys: Tensor = keys) -> Any:
            values: list[list[Tensor]] = []  # of each head, of all windows
            for one in group:
                heads = vit.blocks[-1].project(vit.entering(vit.images[one])[-2])
                for head, (_, _, v) in enumerate(heads):
                    planes = v[vit.prefix :].T.reshape(1, -1, *vit.grid)
                    rows = F.interpolate(planes, GRID, mode="bilinear")[0].flatten(1).T
                    values = [*values, []] if len(values) <= head else values
                    values[head] += list(rows)
            size = GRID[0] * GRID[1]
            own = keys[group.index(b) * size :][:size]
            weights = torch.stack([row_of(place, keys, alike, int(rounds), beta, gamma, len(group)) for place in own])
            turn = iter(range(len(values)))
            return lambda q, k, v: weights @ torch.stack(values[next(turn)])

        for b in group:
            path = vit.blocks[-1].branch(vit.entering(vit.images[b])[-2], gather_of(b))
            maps[b] = (F.normalize(vit.read(path), dim=1) @ vit.text.T).T.reshape(-1, *GRID)
    return torch.stack([maps[b] for b in range(len(vit.images))])


def row_of(place: Tensor, keys: Tensor, alike: float, rounds: int, beta: float, gamma: float, windows: int) -> Tensor:
    proxy = like = place
    for _ in range(rounds):
        like = keys[keys @ proxy > alike]
        like = like if len(like) else place[None]
        proxy = F.normalize(like.mean(dim=0), dim=0)
    cosines = (keys @ proxy).double()
    mean = max(0.0, float(cosines.mean()))
    logits = (cosines - (1 + beta * math.log(1 + windows)) * mean) * (1 + gamma / len(like))
    least = min(0.0, float(logits.max()))
    return logits.where(logits >= least, -torch.inf).softmax(dim=0).float()


@pytest.mark.parametrize("kind", ["tiny", "open_clip", "siglip"])
@pytest.mark.parametrize("windows", [True, False], ids=["windows", "pictures"])
def test_the_equations(kind: str, windows: bool) -> None:
    vit = plain_vit(kind)
    guide = features(len(vit.images))
    # At 1.1 no place is like any, and each remains its own proxy.
    for options in ({}, {"alike": 0.9, "rounds": 3, "beta": 1.0, "gamma": 2.0}, {"alike": 1.1}):
        with torch.no_grad():
            wanted = expected(vit, guide, windows, **options)
        assert_equal(vit.ours("gla_clip", given={"guide": lambda: guide, "windows": windows}, **options), wanted)


def test_without_rounds_it_is_refused() -> None:
    vit = plain_vit("tiny")
    with pytest.raises(UsageError, match=r"expected rounds of gla_clip to be 1 or more, got 0"):
        vit.ours("gla_clip", given={"guide": lambda: features(len(vit.images))}, rounds=0)

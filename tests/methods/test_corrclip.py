"""CorrCLIP and GLA-CLIP against their equations: class tokens and patches in one sequence; a place at a time."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.methods.plain_vit import PlainVit, assert_equal, plain_vit

GRID = (7, 9)  # the guide's


def features(count: int) -> Tensor:
    """A guide's: two kinds of places, so that some regions are alike and others are not."""
    random = torch.Generator().manual_seed(3)
    kinds = torch.randn(2, 6, generator=random)
    which = torch.randint(2, (count, *GRID), generator=random)
    return (kinds[which] + 0.3 * torch.randn(count, *GRID, 6, generator=random)).permute(0, 3, 1, 2)


def regions(kind: str, images: Tensor) -> Tensor | None:
    """Of each pixel; −1 in none."""
    count, _, height, width = images.shape
    if kind == "none":
        return None
    columns = torch.arange(width).mul(5).div(width, rounding_mode="floor")
    rows = torch.arange(height).mul(3).div(height, rounding_mode="floor")
    of = (3 * columns[None] + rows[:, None]).expand(count, -1, -1).clone()
    if kind == "some":
        of[:, : height // 4] = -1
        of[1][of[1] == 7] = -1
    return of


def merged(of: Tensor, places: Tensor, distance: float) -> Tensor:
    """Regions `[N]` of places `[N, C]`: joined one pair after the other, until none is left to join."""
    names = [int(name) for name in of.unique() if name >= 0]
    if len(names) < 2:
        return of
    means = {name: F.normalize(places[of == name].mean(dim=0), dim=0) for name in names}
    most = max(float(means[a] @ means[b]) for a in names for b in names)
    label = {name: name for name in names}
    for a in names:
        for b in names:
            if most - float(means[a] @ means[b]) <= distance:
                old, new = label[b], label[a]
                label = {name: new if one == old else one for name, one in label.items()}
    return torch.tensor([label.get(int(name), -1) for name in of])


def expected(vit: PlainVit, guide: Tensor, passed: Tensor | None, **options: float) -> Tensor:
    """`[B, P, h, w]`."""
    tau, merge, spatial, semantic = (
        options.get(key, default) for key, default in (("tau", 4), ("merge", 0.2), ("spatial", 1), ("semantic", 0.5))
    )
    maps = []
    for b, image in enumerate(vit.images):
        entering = vit.entering(image)
        places = F.normalize(guide[b].flatten(1).T, dim=1)  # [N', C]
        of = torch.full(GRID, -1) if passed is None else F.interpolate(passed[b][None, None].float(), GRID)[0, 0].long()
        of = merged(of.flatten(), places, merge)
        alike = places @ places.T
        row, column = of[:, None], of[None]
        seen = torch.where((row < 0) | (column < 0), alike > alike.mean(), row == column) | torch.eye(len(of)).bool()
        weights = (tau * alike).masked_fill(~seen, -torch.inf).softmax(dim=1)

        def gathered(tokens: Tensor, weights: Tensor = weights) -> Tensor:
            def gather(_: Tensor, __: Tensor, v: Tensor) -> Tensor:
                planes = v[vit.prefix :].T.reshape(1, -1, *vit.grid)
                return weights @ F.interpolate(planes, GRID, mode="bilinear")[0].flatten(1).T

            return vit.blocks[-1].branch(tokens, gather)

        lower = {12: 5}.get(len(vit.blocks), max(1, len(vit.blocks) - 4))
        leaving = entering[1:-2][-lower:] or entering[:1]  # of two blocks, what enters the first
        between = torch.stack(leaving).mean(dim=0)
        norm = vit.backbone.last_norm
        read = norm(gathered(entering[-2])) + spatial * norm(gathered(between))
        if vit.backbone.pooling == "class token":
            classes, of_cells = class_tokens(vit, entering[0], of)
            read = read + semantic * norm(classes[of_cells])
        found = F.normalize(vit.backbone.read_normed(read), dim=1) @ vit.text.T
        maps.append(found.T.reshape(-1, *GRID))
    return torch.stack(maps)


def class_tokens(vit: PlainVit, entering: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
    """A class token for each region, and the region's number of each place of the guide's grid."""
    tokens = F.interpolate(of.view(1, 1, *GRID).float(), vit.grid).flatten().long()
    names = tokens.unique()
    count, total = len(names), len(names) + len(entering)
    seen = torch.zeros(total, total, dtype=torch.bool)
    seen[count:, count:] = True
    seen[:count, count] = True
    seen[:count, count + vit.prefix :] = tokens == names[:, None]
    x = torch.cat([entering[:1].repeat(count, 1), entering])
    for block in vit.blocks:

        def gather(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return (q @ k.T / q.shape[1] ** 0.5).masked_fill(~seen, -torch.inf).softmax(dim=1) @ v

        x = x + block.branch(x, gather)
        x = x + block.mlp_branch(x)
    number = (names[:, None] == tokens).int().argmax(dim=0).view(1, 1, *vit.grid)
    return x[:count], F.interpolate(number.float(), GRID).flatten().long()


@pytest.mark.parametrize("kind", ["tiny", "open_clip", "deep", "siglip"])
@pytest.mark.parametrize("divided", ["none", "some", "all"])
def test_the_equations_of_corrclip(kind: str, divided: str) -> None:
    vit = plain_vit(kind)
    guide, passed = features(len(vit.images)), regions(divided, vit.images)
    for options in ({}, {"tau": 8.0, "merge": 0.6, "spatial": 0.3, "semantic": 2.0}):
        with torch.no_grad():
            wanted = expected(vit, guide, passed, **options)
        assert_equal(vit.ours("corrclip", given={"guide": lambda: guide, "regions": passed}, **options), wanted)


def of_all_windows(vit: PlainVit, guide: Tensor, windows: bool, **options: float) -> Tensor:
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
            part = keys[group.index(b) * size :][:size]
            weights = torch.stack([row_of(place, keys, alike, int(rounds), beta, gamma, len(group)) for place in part])
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
def test_the_equations_of_gla_clip(kind: str, windows: bool) -> None:
    vit = plain_vit(kind)
    guide = features(len(vit.images))
    # At 1.1 no place is like any, and each remains its own proxy.
    for options in ({}, {"alike": 0.9, "rounds": 3, "beta": 1.0, "gamma": 2.0}, {"alike": 1.1}):
        with torch.no_grad():
            wanted = of_all_windows(vit, guide, windows, **options)
        assert_equal(vit.ours("gla_clip", given={"guide": lambda: guide, "windows": windows}, **options), wanted)

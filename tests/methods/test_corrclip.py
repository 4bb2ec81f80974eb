"""CorrCLIP, GLA-CLIP and ProxyCLIP against their equations, with guides of other grids, and without one."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.errors import UsageError
from cliploc.localizer import Localizer
from cliploc.methods import fitting, methods
from tests.methods.peers import tiny_scene
from tests.methods.plain_vit import PlainVit, assert_equal, plain_vit
from tests.test_localizer import WIDE, same
from tests.tiny import tower

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


# ------------------------------------------------------------------------------------------------------------ ProxyCLIP
METHOD = methods.get("proxyclip")


class Stripes:
    """A guide whose features are two of the colours, and a constant, on a grid of its own."""

    def __init__(self, cell: int = 4, name: str = "stripes") -> None:
        self.cell, self.name, self.calls = cell, name, 0

    @property
    def weights_id(self) -> str:
        return f"{self.name} {self.cell}"

    def features(self, pixels: Tensor) -> Tensor:
        self.calls += 1
        pooled = F.avg_pool2d(pixels, self.cell)
        return torch.cat([pooled[:, :2] - 0.5, torch.full_like(pooled[:, :1], 0.1)], dim=1)


def attention_by_loops(features: list[list[float]], beta: float, gamma: float) -> list[list[float]]:
    """A of features `[N][C]`."""
    n = len(features)

    def cosine(a: list[float], b: list[float]) -> float:
        dot = sum(x * y for x, y in zip(a, b, strict=True))
        return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))

    alike = [[cosine(a, b) for b in features] for a in features]
    mean = sum(map(sum, alike)) / n**2
    rows = []
    for i in range(n):
        logits = [gamma * (alike[i][j] - beta * mean) for j in range(n)]
        powers = [math.exp(one) if one >= 0 or i == j else 0.0 for j, one in enumerate(logits)]
        rows.append([one / sum(powers) for one in powers])
    return rows


@pytest.mark.parametrize("size", [(5, 6), (7, 9), (3, 4)], ids=["the tower's grid", "finer", "coarser"])
@pytest.mark.parametrize("options", [{}, {"beta": 0.6, "gamma": 8.0}], ids=["published", "other"])
def test_the_equation(size: tuple[int, int], options: dict[str, float]) -> None:
    scene = tiny_scene("vit")
    tiny: Any = scene.backbone
    features = torch.randn(2, 5, *size, generator=torch.Generator().manual_seed(0)) + 0.5
    ctx = scene.context(METHOD.needs(), guide=lambda: features)
    maps = METHOD.function(ctx, **options)
    assert maps.shape == (2, ctx.text.shape[1], *size)
    for b in range(2):
        x = tiny.embed(scene.images[b : b + 1])
        for block in tiny.blocks[:-1]:
            x, _ = block(x)
        last = tiny.blocks[-1]
        _, _, v = last.project(x)  # [1, H, 1+N, d/H]
        joined = last_values = v[0, :, 1:].transpose(0, 1).flatten(1)  # [N, d], heads side by side
        planes = last_values.T.reshape(1, -1, *ctx.trace.grid)
        joined = F.interpolate(planes, size, mode="bilinear", align_corners=False)[0].flatten(1).T  # [N', d]
        beta, gamma = options.get("beta", 1.2), options.get("gamma", 3.0)
        rows = attention_by_loops(features[b].flatten(1).T.tolist(), beta, gamma)
        for i, row in enumerate(rows):
            gathered = torch.stack([a * value for a, value in zip(row, joined, strict=True)]).sum(dim=0)
            read = F.normalize(tiny.ln_post(last.out(gathered)) @ tiny.projection, dim=0)
            expected = ctx.text[b] @ read
            torch.testing.assert_close(maps[b, :, i // size[1], i % size[1]], expected, rtol=1e-4, atol=1e-5)


def test_behind_the_localizer_all_that_compares_places_asks_the_guide_once() -> None:
    guide, backbone = Stripes(), tower("vit", (8, 8))
    options: dict[str, Any] = {"templates": "a {} thing", "threshold": 0.5, "min_presence": 0}
    localizer = Localizer(backbone, method="proxyclip", refine=["affinity", "lposs"], guide=guide, **options)
    found = localizer(WIDE, ["red", "blue"])
    assert found.heatmaps.shape == (2, *WIDE.shape[:2])
    assert guide.calls == 1
    several = next(localizer.compare([WIDE], ["red", "blue"], ["proxyclip", "naclip"]))
    assert guide.calls == 2
    same(several["proxyclip"], found)
    for step in ("affinity", "lposs"):
        with_guide, without = (
            Localizer(backbone, method="naclip", refine=[step], guide=one, **options)(WIDE, ["red"]).maps
            for one in (guide, None)
        )
        assert abs(with_guide - without).max() > 1e-3, f"{step} does not read the guide"


def test_a_mirrored_picture_has_the_mirrored_map() -> None:
    localizer = Localizer(
        tower("vit", (8, 8)), method="proxyclip", refine=["affinity"], guide=Stripes(8), flip=True, threshold=0.5
    )
    maps, mirrored = localizer(WIDE, ["red"]).maps, localizer(WIDE[:, ::-1].copy(), ["red"]).maps
    torch.testing.assert_close(torch.tensor(mirrored[..., ::-1].copy()), torch.tensor(maps), rtol=0, atol=1e-3)


def test_the_guide_is_part_of_a_runs_identity() -> None:
    backbone = tower("vit", (8, 8))
    reported = [
        Localizer(backbone, method="naclip", guide=one).describe()["guide"] for one in (Stripes(), Stripes(8), None)
    ]
    assert reported == [{"name": "stripes", "weights": "stripes 4"}, {"name": "stripes", "weights": "stripes 8"}, None]


def test_without_a_guide_it_is_refused_and_offered_nowhere() -> None:
    backbone = tower("vit", (8, 8))
    assert "proxyclip" not in fitting(backbone)
    assert "proxyclip" in fitting(backbone, guided=True)
    with pytest.raises(UsageError, match=r"^proxyclip needs a guide, a second image tower, such as --guide dinov2-s"):
        Localizer(backbone, method="proxyclip")
    with pytest.raises(UsageError, match=r"^proxyclip needs a guide"):
        next(Localizer(backbone, method="naclip").compare([WIDE], ["red"], ["proxyclip"]))


def test_a_row_without_a_like_place_keeps_itself() -> None:
    from cliploc.methods.proxyclip import proxy_attention

    features = torch.eye(4).view(1, 4, 2, 2)  # no two places are alike
    torch.testing.assert_close(proxy_attention(features, 1.2, 3.0)[0], torch.eye(4))
    assert proxy_attention(torch.ones(1, 4, 2, 2), 1.2, 3.0)[0].equal(torch.eye(4)), "all equal: none above the mean"

"""ProxyCLIP against its equation in plain loops, with guides of other grids, and what is said without one."""

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
from tests.test_localizer import WIDE, same
from tests.tiny import tower

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

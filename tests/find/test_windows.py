"""Windows of a picture, seen one by one and put together: by hand, and what must not depend on them."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from cliploc.find.looks import Look, StitchedFeatures
from cliploc.images.geometry import Frame, padding_least
from cliploc.methods import min_max
from cliploc.methods.cam import cam
from cliploc.refine.affinity import directions, spread_along
from cliploc.towers.tower import Needs, Trace
from tests.test_localizer import TERMS, WIDE, build, photo, same
from tests.tiny import context
from tests.tolerances import STRETCHED, assert_rounded


def spread(features, maps, cut):
    return spread_along(directions(features), maps, cut)


def raw_cam(backbone, pixels):
    """`[1, 2, h, w]` of red and blue, and the features that it came of."""
    images = backbone.normalize(torch.tensor(np.asarray(pixels)).permute(2, 0, 1)[None] / 255)
    ctx = context(backbone, images, ["a red thing", "a blue thing"], Needs(features=(-1, backbone.middle_stage)))
    return cam(ctx).relu(), ctx.trace.features[backbone.middle_stage]


def test_the_map_is_the_mean_of_the_whole_picture_and_its_stitched_windows(backbones):
    backbone, image = backbones["gap_cnn"], Image.fromarray(WIDE)
    base = Frame.fit("squash", (64, 96), (32, 32))
    whole = F.interpolate(raw_cam(backbone, base.apply(image))[0], size=(32, 32), mode="bilinear")[0]
    windows = Frame.windows((64, 96), (32, 32), 2)  # the picture at 96×64, windows of 32 half overlapping
    assert len(windows) == 3 * 5
    stitched = base.stitch(windows, torch.cat([raw_cam(backbone, window.apply(image))[0] for window in windows]))
    expected = min_max(min_max(whole) + min_max(stitched))
    found = build(backbone, windows=(2,))(WIDE, ["red", "blue"])
    assert_rounded(found.maps, expected, TERMS, STRETCHED)
    assert np.abs(found.maps - build(backbone)(WIDE, ["red", "blue"]).maps).max() > 0.05


SQUARE = photo((64, 64), red=(6, 8, 30, 28), blue=(40, 36, 60, 62))


def test_steps_on_the_grid_follow_the_mean_once_with_the_stitched_features_of_the_smallest_windows(backbones):
    backbone, image = backbones["gap_cnn"], Image.fromarray(SQUARE)
    windows = Frame.windows((64, 64), (32, 32), 2)  # 3×3 of a picture that keeps its size
    total, covered = torch.zeros(12, 32, 32), torch.zeros(32, 32)
    for window in windows:
        left, top = (-offset // 2 for offset in window.offset_xy)  # the middle stage has cells of 2 pixels
        total[:, top : top + 16, left : left + 16] += raw_cam(backbone, window.apply(image))[1][0]
        covered[top : top + 16, left : left + 16] += 1
    stitched = (total / covered)[None]
    mean = torch.from_numpy(build(backbone, windows=(2, 1.5))(SQUARE, ["red", "blue"]).maps)[None]
    on_grid = F.interpolate(mean, size=(32, 32), mode="area")
    expected = min_max(0.8 * min_max(spread(stitched, on_grid, 0.2)) + 0.2 * on_grid)
    found = build(backbone, windows=(1.5, 2), refine=["affinity"])(SQUARE, ["red", "blue"])
    assert_rounded(found.maps, expected[0], TERMS, STRETCHED)


def test_steps_on_the_grid_read_the_whole_picture_where_windows_are_no_finer(backbones):
    backbone, image = backbones["gap_cnn"], Image.fromarray(WIDE)
    mean = torch.from_numpy(build(backbone, windows=(1,))(WIDE, ["red", "blue"]).maps)[None]
    features = raw_cam(backbone, Frame.fit("squash", (64, 96), (32, 32)).apply(image))[1]
    on_grid = F.interpolate(mean, size=features.shape[-2:], mode="area")
    refined = F.interpolate(spread(features, on_grid, 0.1), size=(32, 32), mode="bilinear")
    found = build(backbone, windows=(1,), refine=["affinity"])(WIDE, ["red", "blue"])
    assert_rounded(found.maps, min_max(refined)[0], TERMS, STRETCHED)


def test_a_small_thing_is_there_because_a_window_shows_it(backbones):
    """A tower of colours: the share of red is small in the whole picture, and large in one of nine windows."""
    picture = photo((96, 96), red=(70, 70, 92, 92))
    how = {"method": "grad_cam", "min_presence": 0}
    plain, windowed = (
        next(build(backbones["vit"], windows=w, **how).stream([picture], ["red", "green"], presence=True))
        for w in ((), (2,))
    )
    assert windowed.presence[0] > plain.presence[0]
    assert_rounded(windowed.scores, plain.scores, TERMS, 1)  # still of the whole picture


@pytest.mark.parametrize("refine", [[], ["affinity"]])
def test_a_picture_too_narrow_for_windows_is_seen_as_a_whole_beside_others(backbones, refine):
    narrow = photo((512, 8), red=(100, 0, 300, 8))
    localizer = build(backbones["gap_cnn"], windows=(2,), refine=refine)
    alone, [beside, other] = localizer(narrow, ["red"]), localizer([narrow, WIDE], ["red"])
    same(beside, alone)
    assert alone.notes == ("too narrow for windows: it is seen as a whole only",)
    if not refine:
        assert_rounded(alone.maps, build(backbones["gap_cnn"])(narrow, ["red"]).maps, TERMS, STRETCHED)
    same(other, localizer(WIDE, ["red"]))


def test_padding_gives_no_heat_and_takes_none():
    """Each channel's least value there would be a feature like no other, beside which the whole picture is alike."""
    picture = (16, 32)  # in an input of 32×32: rows 8 to 23
    frame, windows = Frame.fit("pad", picture, (32, 32)), Frame.windows(picture, (16, 16), 1)
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(len(windows), 6, 8, 8, generator=rng)
    stitched = StitchedFeatures(0, [frame], {2: (32, 32)}, flipped=False)
    look = Look(tuple(windows), (0,) * len(windows), flipped=False, windows=0)
    stitched.add(look, Trace(torch.zeros(len(windows), 4), (8, 8), {2: features}))
    [found] = stitched.over(Trace(torch.zeros(1, 4), (16, 16), {2: torch.zeros(1, 6, 16, 16)})).values()
    heat = torch.rand(1, 2, 32, 32, generator=rng)
    spread_out = spread(found, heat, 0.2)
    assert_rounded(spread_out[..., 8:24, :], spread(found[..., 8:24, :], heat[..., 8:24, :], 0.2), 32 * 32)
    padding = torch.cat([heat[..., :8, :], heat[..., 24:, :]], dim=2)
    assert_rounded(torch.cat([spread_out[..., :8, :], spread_out[..., 24:, :]], dim=2), padding, 32 * 32)


@pytest.mark.parametrize("flipped", [False, True])
def test_padding_has_the_least_value_of_the_picture(flipped):
    wide, tall = Frame.fit("pad", (16, 32), (32, 32)), Frame.fit("pad", (32, 12), (32, 32))
    maps = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    maps[:, :, 8, 8] = 0.5  # in both pictures
    maps[:, :, 0, 0] = -1  # in neither
    found = padding_least(maps, [wide, tall], flipped)
    inside = (slice(4, 12), slice(None)), (slice(None), slice(5, 11))
    for one, before, (rows, columns) in zip(found, maps, inside, strict=True):
        assert torch.equal(one[:, rows, columns], before[:, rows, columns])
        least = before[:, rows, columns].amin(dim=(1, 2))
        outside = torch.ones(16, 16, dtype=torch.bool)
        outside[rows, columns] = False
        assert torch.equal(one[:, outside], least[:, None].expand(-1, int(outside.sum())))
    squash = [Frame.fit("squash", (16, 32), (32, 32))] * 2
    assert padding_least(maps, squash, flipped) is maps


def test_windows_that_fade_have_no_seam_and_count_whole_where_one_is_alone():
    """Two windows, one of 0 and one of 1, side by side: a mean has a step of a half at each edge, a fading one none."""
    frame, windows = Frame.fit("squash", (32, 48), (32, 48)), Frame.windows((32, 48), (32, 32), 1)
    assert len(windows) == 2  # at 0 and at 16
    maps = torch.zeros(2, 1, 8, 8)
    maps[1] = 1
    step, fading = (frame.stitch(windows, maps, fading=fades)[0, 0] for fades in (False, True))
    assert step.tolist() == [0.0] * 16 + [0.5] * 16 + [1.0] * 16
    assert fading[:16].tolist() == [0.0] * 16
    assert fading[32:].tolist() == [1.0] * 16
    within = (torch.arange(16) + 0.5) / 16  # of the overlap: one window's weight rises as the other's falls
    torch.testing.assert_close(fading[16:32], within)

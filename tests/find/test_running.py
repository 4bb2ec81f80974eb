"""Work done ahead of who takes the results, and names some at a time: order, threads, errors, and the same results."""

import pickle
import threading
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from cliploc.boxes import BoxRule
from cliploc.errors import ModelError, UsageError
from cliploc.find.passes import ForwardPass, StitchedFeatures
from cliploc.find.running import computed_ahead
from cliploc.images.geometry import Frame, padding_least
from cliploc.localizer import Localizer
from cliploc.methods import min_max
from cliploc.methods.cam import cam
from cliploc.refine.affinity import directions, spread_along
from cliploc.towers.tower import Needs, Trace
from tests.test_localizer import TERMS, WIDE, build, photo, same
from tests.tiny import KINDS, context, tower
from tests.tolerances import STRETCHED, assert_rounded


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("cliploc-tower")]


def silent(*_):
    return None


def ahead_of(items, work, told=silent, halved=silent):
    """`computed_ahead`, of batches of one item; all is made in `work`."""

    def worked(batch, tell):
        made = work(batch[0], tell)
        return lambda: made

    return closing(computed_ahead(([item] for item in items), worked, told, halved))


@pytest.mark.parametrize("count", [0, 1, 5])
def test_items_keep_their_order_and_the_next_ones_job_runs_in_a_thread_of_its_own(count):
    where = []

    def work(item, _):
        where.append(threading.current_thread().name.startswith("cliploc-tower"))
        return item**2

    with ahead_of(range(count), work) as ahead:
        assert list(ahead) == [([n], n * n) for n in range(count)]
    assert where == [n > 0 for n in range(count)]  # so a single item starts none
    assert threads() == []


@pytest.mark.parametrize("of", ["items", "a job"])
def test_an_error_comes_after_the_results_before_it(of):
    def items():
        yield from (0, 1)
        if of == "items":
            raise OSError("broken")
        yield 2

    def work(item, _):
        if item == 2:
            raise OSError("broken")
        return item

    got = []
    with pytest.raises(OSError, match="broken"), ahead_of(items(), work) as ahead:
        got += (result for _, result in ahead)
    assert got == [0, 1]


def test_an_item_that_the_model_fails_on_is_lost_alone_but_not_all_of_them_one_by_one():
    def work(batch, _):
        if bad & {*batch}:
            raise ModelError(f"no number for {min(bad & {*batch})}")
        return lambda: sum(batch)

    bad = {1, 3}
    with closing(computed_ahead(iter([[0, 1, 2], [3]]), work, silent, silent, apart=True)) as ahead:
        assert [(items, str(made)) for items, made in ahead] == [
            ([0], "0"),
            ([1], "no number for 1"),
            ([2], "2"),
            ([3], "no number for 3"),
        ]
    bad, got = {*range(20)}, []
    with pytest.raises(ModelError):
        got += computed_ahead(iter([[*range(20)]]), work, silent, silent, apart=True)
    assert len(got) == 8, "then the model itself seems to be broken"


def test_leaving_early_ends_a_job_when_it_next_tells_something():
    begun, ended = threading.Event(), threading.Event()

    def work(item, tell):
        if item == 1:
            begun.set()
            try:
                while True:
                    tell(0, 0)
            finally:
                ended.set()
        return item

    with ahead_of([0, 1], work) as ahead:
        next(iter(ahead))
        assert begun.wait(10)
    assert ended.is_set()
    assert threads() == []


# --------------------------------------------------------------------------------------------------- thousands of names
NAMES = ["red", "green", "blue", "nothing|grey", "a wall", "dusk", "red thing"]
NARROW = photo((20, 60), red=(4, 4, 12, 12))


def with_lots(localizer: Any, values: int | None) -> Any:
    """The localizer, with maps of so many values in memory together."""
    localizer.flow.steps.values_at_once = values
    return localizer


@settings(max_examples=4, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=7, unique=True),
    lot=st.integers(1, 8),
    options=st.fixed_dictionaries(
        {
            "windows": st.sampled_from([(), (2,), (1.5, 2)]),
            "scales": st.sampled_from([(1,), (1, 1.5)]),
            "flip": st.booleans(),
            "resize": st.sampled_from(["squash", "pad"]),
            "refine": st.sampled_from([[], ["affinity"], ["pamr"], ["lposs", "pamr"]]),
            "min_presence": st.sampled_from([0, 0.5]),
        }
    ),
    absent=st.booleans(),
)
def test_no_result_depends_on_which_names_are_worked_on_together(backbones, kind, names, lot, options, absent):
    localizer = build(backbones[kind], method="grad_cam", **options)
    pictures = [WIDE, NARROW]
    together = list(with_lots(localizer, 10**9).stream(pictures, names, absent_maps=absent))
    apart = list(with_lots(localizer, lot * 32 * 32).stream(pictures, names, absent_maps=absent))
    light = list(localizer.stream(pictures, names, absent_maps=absent, keep_maps=False))
    for one, other, without in zip(apart, together, light, strict=True):
        same(one, other)
        same(replace(without, maps=other.maps, has_maps=True), other)
        assert without.maps.shape == other.maps.shape
        assert without.maps.strides == (0, 0, 0)  # a single zero


@pytest.mark.filterwarnings("error")
def test_maps_that_were_not_kept_are_zeros_without_a_warning():
    localizer = Localizer(tower("gap_cnn", (8, 8)), method="cam", min_presence=0)
    [found] = localizer.stream(
        [np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)], ["thing"], keep_maps=False
    )
    assert found.found.all()
    assert not found.heatmaps.any()
    of_picture = found.maps_over_picture((8, 9))
    assert (of_picture.shape, of_picture.any()) == ((1, 8, 9), False)
    assert len(found.to_supervision(masks=False)) == len(found.boxes)
    again = pickle.loads(pickle.dumps(found))
    assert again.maps.base.size == 1  # else ten thousand names are gigabytes again
    assert again.heatmaps.shape == found.heatmaps.shape
    for of_maps in (lambda: found.masks, found.label_map, found.to_supervision, lambda: found.boxes_by(BoxRule(0.3))):
        with pytest.raises(UsageError, match="leave keep_maps=False out"):
            of_maps()


# -------------------------------------------------------------------------------------------------------------- windows
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
    forward = ForwardPass(tuple(windows), (0,) * len(windows), flipped=False, windows=0)
    stitched.add(forward, Trace(torch.zeros(len(windows), 4), (8, 8), {2: features}))
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

"""Where a pixel lies in the model's input, and back: every policy, any shape of picture; and run lengths."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pycocotools import mask as coco
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from cliploc.errors import InputError
from cliploc.images import rle
from cliploc.images.geometry import MAX_ASPECT_RATIO, PAD_COLOUR, Frame, Mosaic, iou_matrix, window_starts
from cliploc.options import POLICIES

policies = st.sampled_from(POLICIES)
sides = st.integers(8, 3000)
input_sides = st.sampled_from([32, 96, 224, 225, 336, 448])


@st.composite
def frames(draw, side=sides, in_side=input_sides):
    original_hw = draw(st.tuples(side, side))
    assume(max(original_hw) / min(original_hw) <= MAX_ASPECT_RATIO)
    return Frame.fit(draw(policies), original_hw, draw(st.tuples(in_side, in_side)))


@st.composite
def boxes_in(draw, height, width):
    x0, y0 = draw(st.floats(0, width - 1)), draw(st.floats(0, height - 1))
    return [x0, y0, draw(st.floats(x0, width)), draw(st.floats(y0, height))]


def rectangle(original_hw, box):
    image = Image.new("RGB", original_hw[::-1])
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill="white")
    return image


# ------------------------------------------------------------------------------------------------------------- boxes
@given(st.data())
def test_a_box_survives_the_round_trip_exactly(data):
    frame = data.draw(frames())
    box = data.draw(boxes_in(*frame.original_hw))
    back = frame.to_original(frame.to_input([box]))[0]
    np.testing.assert_allclose(back, box, rtol=0, atol=1e-9 * max(frame.original_hw))


@given(st.data())
def test_a_box_drawn_in_the_picture_is_seen_where_the_frame_says(data):
    """Through real pixels: drawn, resized, cropped or padded, thresholded, mapped back."""
    frame = data.draw(frames(side=st.integers(8, 400), in_side=st.sampled_from([32, 64, 97])))
    scale_x, scale_y = frame.scale_xy
    # At least four input pixels a side, so that bicubic smoothing leaves a plateau, and inside what a crop shows.
    x0, y0, x1, y1 = frame.to_original([0, 0, frame.input_hw[1], frame.input_hw[0]])[0]
    low_x, high_x, low_y, high_y = int(np.ceil(x0)), int(x1), int(np.ceil(y0)), int(y1)
    side_x, side_y = int(np.ceil(4 / scale_x)), int(np.ceil(4 / scale_y))
    assume(high_x - low_x >= side_x and high_y - low_y >= side_y)
    left, top = data.draw(st.integers(low_x, high_x - side_x)), data.draw(st.integers(low_y, high_y - side_y))
    box = [left, top, data.draw(st.integers(left + side_x, high_x)), data.draw(st.integers(top + side_y, high_y))]

    seen = np.asarray(frame.apply(rectangle(frame.original_hw, box)).convert("L")) > 127
    ys, xs = np.nonzero(seen)
    back = frame.to_original([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])[0]
    one_input_pixel = np.array([1 / scale_x, 1 / scale_y] * 2)
    assert (np.abs(back - box) <= one_input_pixel + 1e-6).all(), (frame, box, back)


@given(st.data())
def test_boxes_come_back_inside_the_picture_unless_told_not_to(data):
    frame = data.draw(frames())
    height, width = frame.original_hw
    far = np.array([[-50.0, -60.0, frame.input_hw[1] + 70.0, frame.input_hw[0] + 80.0]])
    x0, y0, x1, y1 = frame.to_original(far)[0]
    assert x0 >= 0
    assert y0 >= 0
    assert x1 <= width
    assert y1 <= height
    np.testing.assert_allclose(frame.to_input(frame.to_original(far, clip=False)), far, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------ frames
@given(frames())
def test_each_policy_shows_what_it_promises(frame):
    (in_height, in_width), (w, h) = frame.input_hw, frame.resized_wh
    x0, y0, x1, y1 = frame.visible_xyxy
    assert 0 <= x0 < x1 <= in_width
    assert 0 <= y0 < y1 <= in_height
    covers = w >= in_width and h >= in_height
    fits = w <= in_width and h <= in_height
    assert covers or fits
    if covers:  # squash and crop leave no padding
        assert (x0, y0, x1, y1) == (0, 0, in_width, in_height)
    else:  # pad shows all of the picture, centred
        assert (x1 - x0, y1 - y0) == (w, h)
        assert abs(x0 - (in_width - x1)) <= 1
        assert abs(y0 - (in_height - y1)) <= 1


@given(st.integers(8, 700), st.integers(8, 700), st.sampled_from([32, 96, 224]))
@example(375, 500, 224)
@example(500, 375, 224)
@example(224, 224, 224)
@example(224, 300, 224)
@example(10, 45, 224)  # 45 · (224 / 10) is 1007.99… in floats: one pixel short if computed so
@example(333, 500, 224)
def test_crop_equals_clips_own_preprocessing_pixel_for_pixel(height, width, side):
    assume(max(height, width) / min(height, width) <= 12)
    pixels = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    frame = Frame.fit("crop", (height, width), (side, side))
    clips = CenterCrop(side)(Resize(side, InterpolationMode.BICUBIC)(image))
    np.testing.assert_array_equal(np.asarray(frame.apply(image)), np.asarray(clips))


def test_padding_is_the_mean_colour_and_the_picture_is_untouched(photo):
    frame = Frame.fit("pad", (43, 61), (64, 64))
    pixels = np.asarray(frame.apply(photo))
    x0, y0, x1, y1 = frame.visible_xyxy
    resized = photo.resize(frame.resized_wh, Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(pixels[y0:y1, x0:x1], np.asarray(resized))
    outside = np.ones(pixels.shape[:2], bool)
    outside[y0:y1, x0:x1] = False
    assert outside.any()
    assert (pixels[outside] == PAD_COLOUR).all()


def test_refusals():
    for policy in ("crop", "pad"):
        for original_hw in ((10, 501), (501, 10)):
            with pytest.raises(InputError, match=rf"too narrow for the '{policy}' policy .*at most 50:1.*squash"):
                Frame.fit(policy, original_hw, (32, 32))
        Frame.fit(policy, (10, 500), (32, 32))  # just allowed
    Frame.fit("squash", (10, 5000), (32, 32))
    narrow = r"1000×10 is too narrow for windows \(expected at most 50:1\).*leave --windows out"
    with pytest.raises(InputError, match=narrow):
        Frame.windows((10, 1000), (224, 224), 1)


# -------------------------------------------------------------------------------------------------------------- maps
def test_a_map_is_zero_where_the_picture_was_cropped_away():
    frame = Frame.fit("crop", (40, 100), (32, 32))
    back = frame.map_to_original(torch.ones(1, 4, 4))[0]
    np.testing.assert_allclose(back[:, 30:70], 1, atol=1e-6)  # 100 → 80 wide, 24 cut off each side: 30 of the original
    assert back[:, :30].abs().max() == 0
    assert back[:, 70:].abs().max() == 0
    upright = Frame.fit("crop", (100, 40), (32, 32)).map_to_original(torch.ones(1, 4, 4))[0]
    np.testing.assert_allclose(upright, back.T, atol=1e-6)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_map_over_the_whole_picture_at_another_size(policy):
    """Twice as large is twice as fine; where the picture was cropped away, both are zero."""
    frame = Frame.fit(policy, (40, 100), (32, 32))
    maps = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(1))
    fine, coarse = frame.map_to_picture(maps, (80, 200))[0], frame.map_to_original(maps)[0]
    assert fine.shape == (80, 200)
    assert ((fine[::2, ::2] == 0) == (coarse == 0)).all()
    inner = fine.view(40, 2, 100, 2).mean(dim=(1, 3))
    torch.testing.assert_close(inner, coarse, rtol=0, atol=0.1)
    squeezed = frame.map_to_picture(maps, (40, 50))[0]
    torch.testing.assert_close(squeezed, coarse.view(40, 50, 2).mean(dim=2), rtol=0, atol=0.1)


def coordinates(frame, cells):
    """`[2, cells, cells]`: the original's x and y at the centres of the grid's cells, a map that is linear in both."""
    centres = np.arange(cells) + 0.5
    x = (centres * frame.input_hw[1] / cells - frame.offset_xy[0]) / frame.scale_xy[0]
    y = (centres * frame.input_hw[0] / cells - frame.offset_xy[1]) / frame.scale_xy[1]
    return torch.tensor(np.stack([np.broadcast_to(x, (cells, cells)), np.broadcast_to(y[:, None], (cells, cells))]))


@given(policies, st.integers(8, 90), st.integers(8, 90))
@example("crop", 34, 33)  # resized to 64×65 and cut at offset 0: not the whole picture
def test_a_map_of_the_originals_coordinates_comes_back_as_them(policy, height, width):
    assume(max(height, width) / min(height, width) <= 3)
    frame = Frame.fit(policy, (height, width), (64, 64))
    back = frame.map_to_original(coordinates(frame, 32))  # [2, H, W]
    x0, y0, x1, y1 = frame.to_original([0, 0, 64, 64])[0]
    inset_x, inset_y = (1 / scale for scale in frame.scale_xy)  # half a cell at the edge is clamped
    xs, ys = np.arange(width) + 0.5, np.arange(height) + 0.5
    xs, ys = xs[(xs > x0 + inset_x) & (xs < x1 - inset_x)], ys[(ys > y0 + inset_y) & (ys < y1 - inset_y)]
    seen = back[:, ys.astype(int)][:, :, xs.astype(int)].numpy()
    np.testing.assert_allclose(seen[0], np.broadcast_to(xs, seen[0].shape), atol=0.02)
    np.testing.assert_allclose(seen[1], np.broadcast_to(ys[:, None], seen[1].shape), atol=0.02)


@given(policies, st.integers(8, 90), st.integers(8, 90))
def test_the_same_slope_at_two_scales_meets_on_one_input(policy, height, width):
    assume(max(height, width) / min(height, width) <= 3)
    small, large = (Frame.fit(policy, (height, width), (side, side)) for side in (64, 160))
    moved = large.map_to_frame(coordinates(large, 40), small)
    wanted = coordinates(small, 64)
    x0, y0, x1, y1 = small.visible_xyxy
    margin = 4  # the outermost half cell is clamped
    inner = (slice(None), slice(y0 + margin, y1 - margin), slice(x0 + margin, x1 - margin))
    assume(wanted[inner].numel() > 0)
    assert ((moved[inner] - wanted[inner]).abs() <= 0.02).all()  # of an original pixel


# ----------------------------------------------------------------------------------------------------------- windows
@given(st.integers(1, 500), st.integers(1, 5000), st.integers(1, 500))
def test_windows_cover_a_side_to_its_end_and_no_further(window, beyond, stride):
    length, stride = window + beyond - 1, min(stride, window)
    starts = window_starts(length, window, stride)
    assert starts[0] == 0
    assert starts[-1] + window == length
    assert all(0 < after - before <= stride for before, after in itertools.pairwise(starts))
    assert len(starts) == max(length - window + stride - 1, 0) // stride + 1  # the segmentation protocols' count


@given(st.tuples(sides, sides), st.tuples(input_sides, input_sides), st.sampled_from([1, 1.5, 2]))
def test_windows_show_every_part_of_a_picture_unstretched(original_hw, input_hw, multiple):
    assume(max(original_hw) / min(original_hw) <= 8)  # else thousands of windows
    windows = Frame.windows(original_hw, input_hw, multiple)
    height, width = original_hw
    for window in windows:
        assert window.visible_xyxy == (0, 0, *input_hw[::-1])
        assert abs(window.resized_wh[0] * height - window.resized_wh[1] * width) <= max(width, height)  # one pixel
    corners = np.concatenate([w.to_original([0, 0, *input_hw[::-1]], clip=False) for w in windows])
    assert (corners[:, :2].min(axis=0).round(6) == 0).all()
    np.testing.assert_allclose(corners[:, 2:].max(axis=0), (width, height))
    smallest = min(window.resized_wh[axis] / input_hw[::-1][axis] for window in windows for axis in (0, 1))
    assert smallest == pytest.approx(multiple, abs=0.51 / min(input_hw))


@pytest.mark.parametrize("policy", POLICIES)
@given(st.integers(40, 200), st.integers(40, 200), st.integers(8, 90), st.integers(8, 90))
def test_windows_of_a_slope_stitched_together_are_the_slope(policy, height, width, rows, columns):
    """A map whose values are the original's coordinates, cut into windows and put together, is what it was."""
    base = Frame.fit(policy, (height, width), (64, 64))
    windows = Frame.windows((height, width), (64, 64), 2)
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    slopes = []
    for window in windows:
        (sx, sy), (ox, oy) = window.scale_xy, window.offset_xy
        slopes.append(torch.stack([(x - ox) / sx, (y - oy) / sy]))
    stitched = base.stitch(windows, torch.stack(slopes))
    (sx, sy), (ox, oy) = base.scale_xy, base.offset_xy
    x0, y0, x1, y1 = base.visible_xyxy
    expected = torch.stack([(x - ox) / sx, (y - oy) / sy])[:, y0:y1, x0:x1]
    # A border pixel of a window is repeated outwards, which moves a value by less than a pixel of the window.
    atol = 1.01 * max(1 / min(windows[0].scale_xy), 1 / min(base.scale_xy))
    np.testing.assert_allclose(stitched[:, y0:y1, x0:x1], expected, atol=atol)

    mosaic = Mosaic(base, (rows, columns))  # any grid over the same input
    for window, values in zip(windows, slopes, strict=True):
        mosaic.add(window, values)
    y, x = torch.meshgrid(
        (torch.arange(rows) + 0.5) * 64 / rows, (torch.arange(columns) + 0.5) * 64 / columns, indexing="ij"
    )
    shown = (x > x0) & (x < x1) & (y > y0) & (y < y1)
    np.testing.assert_allclose(mosaic.mean_feature()[0][shown], ((x - ox) / sx)[shown], atol=atol)
    np.testing.assert_allclose(mosaic.mean_feature()[1][shown], ((y - oy) / sy)[shown], atol=atol)


# --------------------------------------------------------------------------------------------------------------- IoU
whole_boxes = st.tuples(*[st.integers(0, 12)] * 4).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)


@given(st.lists(whole_boxes, max_size=5), st.lists(whole_boxes, max_size=5))
def test_iou_counts_pixels(a, b):
    def covered(box):
        pixels = np.zeros((12, 12), bool)
        pixels[box[1] : box[3], box[0] : box[2]] = True
        return pixels

    iou = iou_matrix(a, b)
    assert iou.shape == (len(a), len(b))
    for i, one in enumerate(a):
        for j, other in enumerate(b):
            union = (covered(one) | covered(other)).sum()
            expected = (covered(one) & covered(other)).sum() / union if union else 0
            assert iou[i, j] == pytest.approx(expected, abs=1e-6)
    np.testing.assert_array_equal(iou, iou_matrix(b, a).T)


# ---------------------------------------------------------- COCO's run lengths against pycocotools, and what is refused
seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)  # arrays of hypothesis's own are mostly alike all over
MASKS = seeds.map(lambda rng: rng.random(rng.integers(1, 31, 2)) < rng.random())


@given(MASKS)
def test_codes_are_read_back_as_pycocotools_reads_them(mask):
    ours = rle.encode(mask)
    assert (rle.decode(ours) == mask).all()
    assert (coco.decode(ours) == mask).all()
    assert (rle.decode({"size": ours["size"], "counts": rle.uncompressed(ours["counts"]).tolist()}) == mask).all()


@given(st.lists(st.integers(0, 2**28), max_size=9))
def test_long_runs_survive_the_text(counts):
    assert rle.uncompressed(rle.compressed(np.array(counts, np.int64))).tolist() == counts


@given(MASKS)
def test_runs_are_those_of_a_plain_loop(mask):
    flat, expected, value = mask.ravel().tolist(), [0], False
    for pixel in flat:
        if pixel != value:
            expected.append(0)
            value = pixel
        expected[-1] += 1
    assert rle.runs(mask.ravel()).tolist() == expected
    assert rle.of_runs(rle.runs(mask.ravel())).tolist() == flat


@given(st.lists(MASKS, min_size=1, max_size=4), st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_masks_are_placed_united_and_bounded_in_runs_as_in_pixels(parts, at):
    """Parts of one picture, of which each has all the height, all the width, or less."""
    height, width = (at[i] // 2 + max(part.shape[i] for part in parts) for i in (0, 1))
    pictures, codes = [], []
    for part in parts:
        top, left = (min(at[i], side - part.shape[i]) for i, side in ((0, height), (1, width)))
        whole = np.zeros((height, width), bool)
        whole[top : top + part.shape[0], left : left + part.shape[1]] = part
        pictures.append(whole)
        codes.append(rle.placed(part, left, top, (height, width)))
        assert codes[-1].tolist() == rle.runs(whole.ravel(order="F")).tolist()
        rows, columns = np.nonzero(whole)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0, 0, 0, 0]
        assert rle.bounds(codes[-1], height) == box
        found, *corner = rle.part_of(rle.encode(whole))
        assert (found == whole[box[1] : box[3], box[0] : box[2]]).all()
        assert corner == box[:2]
    assert rle.united(codes).tolist() == rle.runs(np.any(pictures, axis=0).ravel(order="F")).tolist()


def test_a_box_holds_a_run_over_two_columns_and_no_empty_run():
    part, left, top = rle.part_of({"size": [3, 4], "counts": [2, 2, 5, 0, 3]})
    assert (part.tolist(), left, top) == ([[False, True], [False, False], [True, False]], 0, 0)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ({"size": [2, 2], "counts": "2"}, r"add up to its 2 × 2 pixels, got 2"),
        ({"size": [2, 2], "counts": [5, -1]}, r"add up to its 2 × 2 pixels"),
        ({"size": [2, 2], "counts": [2**58] * 64 + [4]}, r"add up to its 2 × 2 pixels"),  # 4 in 64 bits
        ({"size": [2, 2], "counts": "P" * 20 + "0"}, "expected a mask as COCO's run lengths"),
        ({"size": [2, 2], "counts": "p2"}, "expected a mask as COCO's run lengths"),  # the letter after the last
        ({"counts": "22"}, "expected a mask as COCO's run lengths"),
    ],
)
def test_what_is_no_code_is_refused(code, words):
    with pytest.raises(InputError, match=words):
        rle.decode(code)

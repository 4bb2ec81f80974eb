"""Masks against plain loops, on every kind of frame."""

import itertools
import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco

from cliploc.boxes import BoxRule
from cliploc.boxes.masks import GrabCutMasks, merged, outlines
from cliploc.boxes.reasons import boxes_of
from cliploc.document import to_document
from cliploc.draw.overlay import draw_names, scaled
from cliploc.errors import UsageError
from cliploc.images.geometry import Frame
from cliploc.localization import Localization
from tests.commands import CAT, PHOTOS, document_of, refused, refused_in_one_line


def result_of(maps, frame, rule, found=None, threshold=None):
    names = tuple(f"name {p}" for p in range(len(maps)))
    there = np.ones(len(maps), bool) if found is None else np.array(found)
    boxes = boxes_of(frame, maps, there, names, rule)
    there = there & np.isin(np.arange(len(maps)), boxes.label)
    return Localization(
        "a.png", Image.new("RGB", frame.original_hw[::-1]), names, np.zeros(len(maps), np.float32), None, there,
        tuple(None if one else "no" for one in there), maps, frame, boxes, threshold=threshold, rule=rule,
    )  # fmt: skip


@st.composite
def results(draw):
    policy = draw(st.sampled_from(["squash", "crop", "pad"]))
    side = draw(st.integers(6, 14))
    original_hw = draw(st.tuples(st.integers(4, 40), st.integers(4, 40)))
    frame = Frame.fit(policy, original_hw, (side, side))
    x0, y0, x1, y1 = frame.visible_xyxy
    assume(x1 > x0 and y1 > y0)
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    maps = rng.random((draw(st.integers(1, 3)), side, side), dtype=np.float32)
    if draw(st.booleans()):
        maps = np.stack([cv2.GaussianBlur(one, (3, 3), 0) for one in maps])
    maps = (maps - maps.min()) / (maps.max() - maps.min())
    rule = BoxRule(
        draw(st.sampled_from([0.3, 0.5, 0.8, "auto"])),
        min_area=draw(st.sampled_from([0.0, 0.02])),
        nms_iou=draw(st.sampled_from([None, 0.5])),
        max_boxes=draw(st.sampled_from([None, 2])),
        split_peaks=draw(st.sampled_from([1.0, 0.1])),
    )
    return result_of(maps, frame, rule)


@settings(max_examples=100, deadline=None)
@given(results())
def test_a_mask_has_hot_pixels_inside_its_box_that_no_other_box_of_the_name_has(result):
    masks, heat = result.masks, result.heatmaps
    height, width = result.frame.original_hw
    x0, y0, x1, y1 = result.frame.visible_xyxy
    y, x = np.mgrid[:height, :width] + 0.5
    taken = np.zeros_like(masks.of_names)
    for box, mask, p in zip(result.boxes.xyxy, masks.of_boxes, result.boxes.label, strict=True):
        inside = (x > box[0] - 1) & (x < box[2] + 1) & (y > box[1] - 1) & (y < box[3] + 1)
        assert mask.any()
        assert inside[mask].all()
        rows, columns = mask.any(axis=1).sum(), mask.any(axis=0).sum()
        if mask.sum() < rows * columns:  # else it may be the box of a region in which no pixel's middle is hot
            assert masks.of_names[p][mask].all()
            assert not (taken[p] & mask).any()
            taken[p] |= mask
    if result.rule.threshold != "auto":
        levels = result.rule.threshold * result.maps[:, y0:y1, x0:x1].max(axis=(1, 2))
        for p, level in enumerate(levels):
            assert masks.of_names[p][heat[p] > level + 1e-5].all() or not result.found[p]


@settings(max_examples=40, deadline=None)
@given(results())
def test_each_pixel_of_a_label_map_has_the_hottest_name_above_its_threshold(result):
    labels, heat = result.masks.label_map(), result.heatmaps
    of_names = result.masks.of_names
    for y, x in itertools.product(range(labels.shape[0]), range(labels.shape[1])):
        above = [p for p in range(len(heat)) if of_names[p, y, x]]
        assert labels[y, x] == (1 + max(above, key=lambda p: heat[p, y, x]) if above else 0)


def test_names_that_are_not_found_have_no_mask():
    maps = np.ones((2, 4, 4), np.float32)
    masks = result_of(maps, Frame.fit("squash", (8, 8), (4, 4)), BoxRule(), found=[True, False]).masks
    assert masks.of("name 0").all()
    assert not masks.of("name 1").any()
    assert (masks.label_map() == 1).all()
    equal = result_of(maps, Frame.fit("squash", (8, 8), (4, 4)), BoxRule())
    assert (equal.label_map() == 1).all()
    assert len(masks) == 1
    with pytest.raises(UsageError, match="expected one of the names asked for"):
        masks.of("name 2")


def test_regions_with_boxes_that_overlap_keep_their_own_masks():
    heat = np.zeros((1, 6, 6), np.float32)
    heat[0, 0, :] = heat[0, :, 0] = 1
    heat[0, 5, 2:] = heat[0, 2:, 5] = 0.9
    heat[0, 0, 5] = heat[0, 5, 0] = 0
    result = result_of(heat, Frame.fit("squash", (6, 6), (6, 6)), BoxRule(0.5, nms_iou=None))
    first, second = result.masks.of_boxes
    assert not (first & second).any()
    assert ((first | second) == (heat[0] > 0.5)).all()


def test_parts_of_a_divided_region_divide_its_mask():
    heat = np.array([[[0.5, 1.0, 0.6, 0.9, 0.5]]], np.float32)
    result = result_of(heat, Frame.fit("squash", (1, 5), (1, 5)), BoxRule(0.4, split_peaks=0.2))
    assert result.masks.of_boxes[:, 0].tolist() == [[True, True, True, False, False], [False, False, False, True, True]]


def test_a_box_that_the_rule_does_not_make_holds_the_hot_pixels_inside():
    result = result_of(np.ones((1, 4, 4), np.float32), Frame.fit("squash", (4, 4), (4, 4)), BoxRule())
    moved = replace(result.boxes, xyxy=np.array([[1, 1, 3, 4]], np.float32))
    assert replace(result, boxes=moved).masks.of_boxes[0].sum() == 6


def test_a_region_between_the_middles_of_all_pixels_has_its_box_as_mask():
    heat = np.zeros((1, 64, 64), np.float32)
    heat[0, :, 33] = 1
    result = result_of(heat, Frame.fit("squash", (4, 4), (64, 64)), BoxRule(0.9))
    assert result.masks.of_boxes.sum() == 4


def test_supervision_gets_masks():
    result = result_of(np.ones((1, 4, 4), np.float32), Frame.fit("squash", (4, 5), (4, 4)), BoxRule())
    assert result.to_supervision().mask.shape == (1, 4, 5)
    none = replace(result, boxes=result.boxes.where([]))
    assert none.to_supervision().mask.shape == (0, 4, 5)
    assert len(none.masks) == 0
    assert result.to_supervision(masks=False).mask is None


# ------------------------------------------------------------------------------------------------------------ GrabCut
def warm_discs(*discs: tuple[int, int, int], size_wh: tuple[int, int] = (160, 120)) -> tuple[Localization, np.ndarray]:
    """Red discs (x, y, radius) on noisy grass, each with a round hill of heat that is smaller; and the true mask."""
    width, height = size_wh
    y, x = np.mgrid[:height, :width]
    away = [np.hypot(x - left, y - top) / radius for left, top, radius in discs]
    truth = np.min(away, axis=0) < 1
    noise = np.random.default_rng(0).normal(0, 12, (height, width, 3))
    pixels = (np.where(truth[..., None], (200, 40, 30), (60, 140, 50)) + noise).clip(0, 255).astype(np.uint8)
    heat = np.exp(-((np.min(away, axis=0) / 0.9) ** 2)).astype(np.float32)
    result = result_of(heat[None], Frame.fit("squash", (height, width), (height, width)), BoxRule(0.5))
    return replace(result, image=Image.fromarray(pixels), mask_source=GrabCutMasks()), truth


def shared(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


def test_grabcut_finds_the_edge_that_the_heat_misses():
    found, truth = warm_discs((80, 60, 40))
    assert shared(replace(found, mask_source=None).masks.of_boxes[0], truth) < 0.7
    assert shared(found.masks.of_boxes[0], truth) > 0.95
    assert (found.name_mask(0) == found.masks.of_boxes[0]).all()
    assert not replace(found, names=("red", "blue"), found=np.ones(2, bool)).name_mask(1).any()
    assert ((found.label_map() == 1) == found.name_mask(0)).all()
    smaller = replace(found, image=found.image.resize((80, 60)))  # as the page keeps it
    assert shared(smaller.masks.of_boxes[0], truth) > 0.93
    large, truth = warm_discs((400, 300, 200), size_wh=(800, 600))
    assert shared(large.masks.of_boxes[0], truth) > 0.95


def test_grabcut_gives_each_box_its_own_thing():
    found, truth = warm_discs((45, 60, 33), (112, 60, 33))  # they nearly touch
    masks = found.masks
    assert len(masks) == 2
    assert not (masks.of_boxes[0] & masks.of_boxes[1]).any()
    assert shared(masks.of("name 0"), truth) > 0.95
    for box, mask in zip(found.boxes.xyxy, masks.of_boxes, strict=True):
        x = (box[0] + box[2]) / 2
        assert abs(np.argwhere(mask)[:, 1].mean() - x) < 2
    one = replace(found, boxes=found.boxes.where([1]))
    assert (one.masks.of_boxes[0] == masks.of_boxes[1]).all()


def test_grabcut_is_the_same_every_time_and_leaves_the_random_numbers_of_opencv_alone():
    def drawn() -> list[float]:
        return cv2.randu(np.zeros(4), 0, 1).ravel().tolist()

    found, _ = warm_discs((80, 60, 40))
    made = []
    for seed in range(4):
        cv2.setRNGSeed(seed)
        first, expected = drawn(), drawn()
        cv2.setRNGSeed(seed)
        assert drawn() == first
        made.append(replace(found).masks.of_boxes)
        assert drawn() == expected
    assert all((one == made[0]).all() for one in made)


@settings(max_examples=30, deadline=None)
@given(results())
def test_grabcut_gives_every_box_a_mask(result):
    """Also of pictures of a few pixels, of one colour, and where everything is hot."""
    drawn = replace(result, mask_source=GrabCutMasks())
    plain = dict(result.box_masks())
    for index, mask in drawn.box_masks():
        assert mask.shape == result.frame.original_hw
        assert mask.any() or not plain[index].any()


def test_masks_of_a_source_are_drawn_once_for_files_and_sheets():
    class Counting(GrabCutMasks):
        calls = 0

        def box_masks(self, found):
            self.calls += 1
            return super().box_masks(found)

    found, _ = warm_discs((45, 60, 33), (112, 60, 33))
    found = replace(found, mask_source=Counting())
    sheet = scaled(found, (80, 60))
    for name in range(2):
        draw_names(sheet, [0][:name], masks=True)
    assert found.label_map().any()
    assert "mask" in to_document([found], [], {}, True)["pictures"][0]["names"][0]["boxes"][0]
    assert found.mask_source.calls == 1


# ----------------------------------------------------------------------------------------------------------- outlines
seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)  # arrays of hypothesis's own are mostly alike all over
MASKS = seeds.map(lambda rng: rng.random(rng.integers(1, 17, 2)) < rng.random())


@given(MASKS)
def test_outlines_along_centres_give_the_mask_again(mask):
    canvas = np.zeros(mask.shape, np.uint8)
    rings = outlines(mask, along="centres")
    cv2.fillPoly(canvas, [np.floor(ring.points).astype(np.int32) for ring in rings], 1)
    assert (canvas.astype(bool) == mask).all()
    assert sum(not ring.hole for ring in rings) == cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1


@given(MASKS)
def test_outlines_along_edges_have_the_area_of_the_mask(mask):
    rings = outlines(mask)
    area = 0.0
    for ring in rings:
        x, y = ring.points.T.astype(float)
        one = abs((x * np.roll(y, 1) - y * np.roll(x, 1)).sum()) / 2
        area += -one if ring.hole else one
    corners = 4 * mask.sum()
    assert abs(area - mask.sum()) <= corners / 8


def filled(mask, polygons):
    """As Ultralytics reads each: corners rounded down, filled by `cv2.fillPoly`."""
    canvas = np.zeros(mask.shape, np.uint8)
    for polygon in polygons:
        cv2.fillPoly(canvas, [np.floor(polygon).astype(np.int32)], 1)
    return canvas.astype(bool)


@st.composite
def several_pieces(draw):
    """Rectangles, some of them cut out again: pieces, holes, and pieces in holes."""
    mask = np.zeros((draw(st.integers(5, 70)), draw(st.integers(5, 70))), bool)
    for _ in range(draw(st.integers(1, 9))):
        y, x = draw(st.integers(0, mask.shape[0] - 1)), draw(st.integers(0, mask.shape[1] - 1))
        mask[y : y + draw(st.integers(1, 40)), x : x + draw(st.integers(1, 40))] = draw(st.booleans())
    return mask


@given(MASKS | several_pieces())
@settings(max_examples=100, deadline=None)
def test_one_polygon_has_all_pixels_and_lines_between_pieces(mask):
    read = filled(mask, [merged(mask)] if mask.any() else [])
    assert not (mask & ~read).any()


def test_holes_and_pieces_are_joined_where_they_are_near():
    mask = np.zeros((40, 60), bool)
    mask[5:30, 5:30] = True
    mask[12:20, 12:20] = False
    mask[14:17, 14:17] = True  # in the hole
    read = filled(mask, [merged(mask)])
    assert not (mask & ~read).any()
    assert (read & ~mask).sum() <= 2
    mask[33:38, 28:55] = True
    assert (filled(mask, [merged(mask)]) & ~mask).sum() <= 2 + 6  # of 706 pixels


# ------------------------------------------------------------------------------------------------------- command line
def test_masks_are_in_the_json_and_drawn(tmp_path):
    asked = ("-p", "cat|kitten", "-p", "dog", "--masks", "--out", tmp_path, "--min-presence", "0.1", "--recipe", "fast")
    pictures = document_of("localize", CAT, PHOTOS / "dogs.jpg", *asked)["pictures"]
    legend = json.loads((tmp_path / "labels.json").read_text())["labels"]
    assert [one["name"] for one in legend] == [None, "cat", "dog"]
    boxes = 0
    for picture in pictures:
        labels = Image.open(tmp_path / picture["label_map"])
        assert (labels.mode, labels.size) == ("P", (picture["width"], picture["height"]))
        assert Image.open(tmp_path / picture["masks"]).width == Image.open(tmp_path / picture["overlay"]).width
        for value, name in enumerate(picture["names"], start=1):
            if not name["found"]:
                assert name["mask"] is None
                continue
            whole = coco.decode(name["mask"]).astype(bool)
            assert not ((np.asarray(labels) == value) & ~whole).any()
            colour = labels.convert("RGB").getpixel(tuple(np.argwhere(np.asarray(labels) == value)[0][::-1].tolist()))
            assert "#{:02x}{:02x}{:02x}".format(*colour) == legend[value]["colour"]
            for box in name["boxes"]:
                boxes += 1
                x, y, width, height = coco.toBbox(box["mask"])
                assert box["mask"]["size"] == [picture["height"], picture["width"]]
                apart = np.abs(np.array(box["xyxy"]) - [x, y, x + width, y + height])
                assert apart.max() < 2  # at 224 pixels or more of the map
    assert boxes > 1


def test_masks_need_a_place_and_spare_what_is_read(tmp_path):
    refused_in_one_line(["localize", CAT, "-p", "cat", "--masks"], "--json or --out")
    names = tmp_path / "labels.json"
    names.write_text("cat\n")
    refused("localize", CAT, "--labels", names, "--masks", "--out", tmp_path)
    assert names.read_text() == "cat\n"

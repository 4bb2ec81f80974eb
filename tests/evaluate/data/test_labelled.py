"""The readers of segmentation sets: published layouts, labels as mmsegmentation takes them, every kind of problem."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliploc.evaluate.data import labelled_readers, open_labelled
from cliploc.images.rle import draw, draw_all, outlines_of
from cliploc.values import ignored_label
from tests.evaluate.data import labelled
from tests.evaluate.data.folders import picture

COUNTS = {
    "voc21": 21, "voc20": 20, "context60": 60, "context59": 59, "coco_object": 81, "coco_stuff": 171,
    "cityscapes": 19, "ade20k": 150, "context459": 459, "ade847": 847,
}  # fmt: skip


@pytest.mark.parametrize("name", labelled_readers.names())
def test_every_reader_gives_pictures_with_label_maps_of_their_size(name, tmp_path):
    if name == "imagenet_seg":
        pytest.importorskip("h5py")
    dataset = open_labelled(name, labelled.BUILD[name](tmp_path))
    assert len(dataset.classes) == COUNTS.get(name, 2)
    assert len(dataset) >= 1
    for one in dataset.samples:
        assert one.size_wh == labelled.SIZE == one.picture().size
        truth = one.truth.read()
        assert truth.shape == one.size_wh[::-1]
        assert all(
            0 <= label < len(dataset.classes) or label == ignored_label(len(dataset.classes))
            for label in np.unique(truth)
        )
        json.dumps(one.truth.facts)


@pytest.mark.parametrize(
    ("name", "number", "expected"),
    [
        ("voc21", 0, {0, 1, 255}),
        ("voc20", 0, {0, 255}),  # the background and the edges do not count
        ("voc20", 1, {19, 2, 255}), ("context59", 1, {58, 2}), ("ade20k", 0, {149, 255}),
        ("context459", 0, {0, 255}),  # a class
        ("ade847", 0, {0, 255, 65535}), ("coco_stuff", 0, {0, 170}), ("cityscapes", 1, {3, 255}),
    ],
)  # fmt: skip
def test_labels_are_those_that_mmsegmentation_takes(name, number, expected, tmp_path):
    dataset = open_labelled(name, labelled.BUILD[name](tmp_path))
    assert set(np.unique(dataset.samples[number].truth.read()).tolist()) == expected


def test_coco_object_out_of_polygons_smaller_things_on_top(tmp_path):
    first, second = open_labelled("coco_object", labelled.coco_object(tmp_path)).samples
    truth = first.truth.read()
    assert truth[15, 25] == 16  # category 17 is the sixteenth
    assert truth[30, 15] == 1
    assert truth[2, 2] == 0
    crowd = second.truth.read()
    assert set(np.unique(crowd[:, 10:15]).tolist()) == {80}
    assert set(np.unique(np.delete(crowd, np.s_[10:15], axis=1)).tolist()) == {0}


def test_coco_object_takes_label_maps_if_any(tmp_path):
    dataset = open_labelled("coco_object", labelled.striped("coco_object", tmp_path))
    assert set(np.unique(dataset.samples[0].truth.read()).tolist()) == {0, 80}


points = st.lists(st.floats(-3, 30, allow_nan=False).map(lambda x: round(x, 2)), min_size=6, max_size=16)


@given(st.lists(st.lists(points.filter(lambda one: len(one) % 2 == 0), min_size=1, max_size=3), max_size=6))
@settings(max_examples=60, deadline=None)
def test_polygons_drawn_together_have_the_pixels_of_each(polygons):
    hw = (23, 27)
    wanted = np.zeros(hw, bool)
    for rings in polygons:
        wanted |= np.logical_xor.reduce([draw(tuple(ring), hw) for ring in rings])
    assert (draw_all([[tuple(ring) for ring in rings] for rings in polygons], hw) == wanted).all()


def test_problems_are_named_and_the_other_pictures_stay(tmp_path):
    base = labelled.striped("ade20k", tmp_path) / "ADEChallengeData2016"
    for number in range(2, 7):
        picture(base / "images" / "validation" / f"ADE_val_{number}.jpg", labelled.SIZE, 6 if number == 5 else 1)
        labelled.labels(base / "annotations" / "validation" / f"ADE_val_{number}.png", [1, 2])
    maps = base / "annotations" / "validation"
    (maps / "ADE_val_2.png").unlink()
    (maps / "ADE_val_3.png").write_bytes(b"no picture")
    labelled.labels(maps / "ADE_val_4.png", [1, 2], (30, 20))
    (base / "images" / "validation" / "ADE_val_6.jpg").write_bytes(b"no picture")
    dataset = open_labelled("ade20k", tmp_path)
    assert [one.id for one in dataset.samples] == ["ADE_val_0", "ADE_val_1"]
    assert {(one.source, one.kind) for one in dataset.problems} == {
        ("ADE_val_2", "missing mask"),
        ("ADE_val_3", "broken mask"),
        ("ADE_val_4", "size mismatch"),
        ("ADE_val_5", "turned picture"),
        ("ADE_val_6", "broken picture"),
    }
    (mismatch,) = [one.reason for one in dataset.problems if one.kind == "size mismatch"]
    assert mismatch == "the picture has 60×44, its label map ADE_val_4.png has 30×20: left out"


def test_a_picture_without_a_name_is_left_out_of_imagenet_segmentation(tmp_path):
    pytest.importorskip("h5py")
    dataset = open_labelled("imagenet_seg", labelled.imagenet_seg(tmp_path))
    assert dataset.samples[0].name == "tabby cat|tabby"
    assert [one.kind for one in dataset.problems] == ["label mismatch"] * 2


# ------------------------------------------------------------------------------------------------------- damaged files
@pytest.mark.parametrize(
    "segmentation",
    [
        None, {}, {"counts": "abc"}, {"counts": [-5, 1205]}, {"counts": [2**62, 2**62]}, [[1, 2, 3, 4, 5, 6, 7]],
        [["a"] * 6], [[float("nan")] * 6], [[0, 0, 1e9, 0, 1e9, 1e9]], [[0, 0, -21, 0, 5, 5]],
    ],
    ids=lambda one: str(one)[:30],
)  # fmt: skip
def test_outlines_that_are_none_are_refused_before_they_are_drawn(segmentation):
    with pytest.raises(ValueError, match=r"expected a|^run lengths of|polygon"):  # ours, not NumPy's
        outlines_of(segmentation, (40, 30))
    assert outlines_of([corners := (-20, -20, 60, -20, 60, 45)], (40, 30)) == (corners,)  # as far outside as allowed

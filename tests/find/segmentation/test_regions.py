"""Votes of regions against plain loops, and the regions of pictures whose parts are known."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from cliploc.errors import InputError, UsageError
from cliploc.find.segmentation.protocol import protocol_for
from cliploc.find.segmentation.regions import ColourRegions, FileRegions, voted
from cliploc.find.segmentation.segmenter import Segmenter
from cliploc.images.reading import load, read_labels
from cliploc.localizer import Localizer
from cliploc.options import SegmentationOptions
from cliploc.support.reporter import SILENT
from tests.commands import COFFEE, create_once, document_of

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)
ASKED = ("-p", "cup", "-p", "spoon", "--background", "table", "--window", "0", "--template", "name-only")


@given(SHAPES.flatmap(lambda hw: st.tuples(hnp.arrays(np.int16, hw, elements=st.integers(0, 3)),
                                           hnp.arrays(np.int32, hw, elements=st.integers(-1, 3)))))  # fmt: skip
def test_a_region_gets_the_label_that_most_of_its_pixels_have(maps):
    labels, regions = maps
    after = voted(labels, regions)
    assert after.dtype == labels.dtype
    for place in np.ndindex(labels.shape):
        if regions[place] < 0:
            assert after[place] == labels[place]
            continue
        votes = labels[regions == regions[place]].tolist()
        assert after[place] == min(set(votes), key=lambda label: (-votes.count(label), label))


def test_regions_of_colour_are_the_parts_of_a_picture():
    pytest.importorskip("sklearn")
    colours = np.array([[(200, 30, 30), (30, 160, 40)], [(30, 40, 200), (230, 230, 220)]])
    pixels = colours.repeat(100, axis=0).repeat(128, axis=1) + np.random.default_rng(0).normal(0, 9, (200, 256, 3))
    regions = ColourRegions(4)(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    assert regions.shape == (200, 256)
    parts = [regions[:98, :126], regions[:98, 130:], regions[102:, :126], regions[102:, 130:]]
    assert [len(np.unique(part)) for part in parts] == [1] * 4
    assert len({int(part[0, 0]) for part in parts}) == 4


@pytest.mark.parametrize("size_wh", [(1, 1), (3, 200), (700, 5), (5, 5)])
def test_any_picture_has_regions_of_colour(size_wh):
    pytest.importorskip("sklearn")
    pixels = np.random.default_rng(0).integers(0, 256, (*size_wh[::-1], 3), np.uint8)
    regions = ColourRegions()(Image.fromarray(pixels))
    assert regions.shape == size_wh[::-1]
    assert regions.min() == 0
    assert regions.max() < max(24, size_wh[0] * size_wh[1])


def test_the_command_line_and_callers_with_own_regions_get_the_vote(tmp_path):
    pytest.importorskip("sklearn")
    picture = load(COFFEE).image
    localizer = Localizer(create_once("mini", None, "cpu", precision="fp32"), method="cam", templates="name-only")
    protocol = protocol_for(["cup", "spoon"], ["table"], SegmentationOptions(window=0))
    segmenter = Segmenter(localizer, protocol, {"cam": {}})
    assert protocol.regions == "none"
    plain, regions = segmenter.label_maps(picture)["cam"], ColourRegions()(picture)
    assert (segmenter.label_maps(picture, regions=regions)["cam"] == voted(plain, regions)).all()
    document = document_of("segment", COFFEE, *ASKED, "--regions", "colour", "--out", tmp_path)
    with Image.open(tmp_path / document["pictures"][0]["label_map"]) as written:
        assert (np.asarray(written) == voted(plain, regions)).all()
    assert (voted(plain, regions) != plain).any()
    assert document["settings"]["protocol"]["regions"] == "colour"
    assert "regions" not in protocol.describe()


@pytest.fixture
def halves(tmp_path):
    """A folder with the regions of the photograph: none, left, right."""
    (tmp_path / "regions").mkdir()
    numbers = np.zeros(load(COFFEE).image.size[::-1], np.uint8)
    numbers[40:, : numbers.shape[1] // 2], numbers[40:, numbers.shape[1] // 2 :] = 1, 9
    Image.fromarray(numbers).save(tmp_path / "regions/coffee.png")
    return tmp_path / "regions"


def test_regions_of_files_vote_and_are_part_of_a_runs_identity(halves, tmp_path):
    maps = []
    for out, more in (("plain", ()), ("ours", ("--regions", f"files:{halves}"))):
        document = document_of("segment", COFFEE, *ASKED, *more, "--out", tmp_path / out)
        maps.append(read_labels(tmp_path / out / document["pictures"][0]["label_map"]))
    regions = read_labels(halves / "coffee.png") - 1
    assert (maps[1] == voted(maps[0], regions)).all()
    assert (maps[1] != maps[0]).any()
    before = FileRegions(halves).id
    Image.fromarray(regions.astype(np.uint8)).save(halves / "coffee.png")
    assert FileRegions(halves).id != before


def raw(segmenter, images, regions=None):
    asked = (segmenter._queries, segmenter._words, segmenter.tasks, SILENT)
    (found,) = segmenter._windows(images, *asked, regions).of.values()
    return found  # [W, Q, h, w]


def segmenter_of(method, **options):
    backbone = create_once("mini-vit", None, "cpu", precision="fp32")
    localizer = Localizer(backbone, method=method, templates="name-only", guide="mini", **options)
    asked = SegmentationOptions(short_side=224, window=192, stride=96)
    return Segmenter(localizer, protocol_for(["cup", "spoon"], ["table"], asked), {method: {}})


def test_corrclip_reads_the_regions_of_each_window():
    segmenter = segmenter_of("corrclip")
    images = segmenter._input(load(COFFEE).image)
    regions = np.random.default_rng(0).integers(-1, 3, (7, 9)).astype(np.int32)
    regions = regions.repeat(32, axis=0).repeat(images.shape[-1] // 9 + 1, axis=1)[:, : images.shape[-1]]
    whole = raw(segmenter, images, regions)
    last = raw(segmenter, images[..., -192:, -192:], regions[-192:, -192:])
    torch.testing.assert_close(whole[-1:], last, rtol=0, atol=1e-5)
    for other in (None, regions[::-1].copy()):
        assert (raw(segmenter, images, other) - whole).abs().max() > 1e-3


def test_gla_clip_sees_all_windows_at_once():
    """By whatever batch size; its maps change where those of methods that see a window each do not."""
    maps = []
    for batch in (1, 8):
        segmenter = segmenter_of("gla_clip", batch_size=batch)
        images = segmenter._input(load(COFFEE).image)
        maps.append(raw(segmenter, images))
    assert len(maps[0]) > 1
    torch.testing.assert_close(maps[0], maps[1], rtol=0, atol=1e-5)
    assert (raw(segmenter, images[..., :192, :192]) - maps[0][:1]).abs().max() > 1e-3


def test_where_memory_lacks_windows_are_seen_in_halves_and_joined(monkeypatch):
    """Tower and guide see a window at a time, their attention still all of them."""
    segmenter = segmenter_of("gla_clip", batch_size=8)
    images = segmenter._input(load(COFFEE).image)
    expected = raw(segmenter, images)
    seen = []

    def one_at_a_time(own):
        def run(batch, **how):
            seen.append(len(batch))
            if len(batch) > 1:
                raise RuntimeError("out of memory")
            return own(batch, **how)

        return run

    for of, name in ((segmenter.backbone, "trace"), (segmenter.localizer.guide, "features")):
        monkeypatch.setattr(of, name, one_at_a_time(getattr(of, name)))
    torch.testing.assert_close(raw(segmenter, images), expected, rtol=0, atol=1e-5)
    assert max(seen) > 1
    assert seen.count(1) == 2 * len(expected)


def test_what_cannot_be_is_one_line(monkeypatch, halves):
    with pytest.raises(InputError, match=r"^cat: expected its regions at .*cat\.png, found none"):
        FileRegions(halves)(Image.new("RGB", (9, 9)), "cat")
    with pytest.raises(InputError, match=r"expected 9×9 pixels as its picture has, got"):
        FileRegions(halves)(Image.new("RGB", (9, 9)), "coffee")
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(UsageError, match=r"^regions of colour needs scikit-learn: pip install 'cliploc\[regions\]'$"):
        ColourRegions()

"""Votes of regions against plain loops, and the regions of pictures whose parts are known."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from cliploc.config import SegmentationOptions
from cliploc.errors import UsageError
from cliploc.images import load
from cliploc.localizer import Localizer
from cliploc.segmentation import Segmenter, protocol_for
from cliploc.segmentation.regions import ColourRegions, voted
from tests.commands import COFFEE, cliploc_, create_once, document_of

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


def test_what_cannot_be_is_one_line(monkeypatch):
    said = cliploc_("segment", COFFEE, *ASKED, "--regions", "edges").err.splitlines()[-1]
    assert said == "cliploc: expected --regions as none, colour or sam:FOLDER, got 'edges'"
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(UsageError, match=r"^regions of colour needs sklearn: pip install 'cliploc\[regions\]'$"):
        ColourRegions()

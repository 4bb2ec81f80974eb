"""Thousands of names: their maps are made some at a time, and no result shows which ones were made together."""

import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliploc.boxes import BoxRule
from cliploc.errors import UsageError
from cliploc.localizer import Localizer
from tests.test_localizer import WIDE, build, photo, same
from tests.tiny import KINDS, tower

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

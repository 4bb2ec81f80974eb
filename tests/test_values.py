"""The values handed from stage to stage refuse what would go wrong later."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cliploc.errors import UsageError
from cliploc.geometry import Frame
from cliploc.localization import Localization
from cliploc.method import Context
from cliploc.tower import Needs
from cliploc.values import Boxes, TextSet
from tests.tiny import KINDS, tower

indices = st.one_of(st.just("all"), st.lists(st.integers(-9, -1), max_size=4, unique=True).map(tuple))
needs = st.builds(Needs, st.lists(st.integers(-9, -1), max_size=4, unique=True).map(tuple), indices, indices)


def wanted(value):
    return set(range(-9, 0)) if value == "all" else set(value)


@given(needs, needs)
def test_the_union_of_needs_serves_both_and_no_more(a, b):
    union = a | b
    for field in ("features", "tokens", "attention"):
        both = wanted(getattr(a, field)) | wanted(getattr(b, field))
        assert wanted(getattr(union, field)) == both
        assert (getattr(union, field) == "all") == ("all" in (getattr(a, field), getattr(b, field)))
    assert union == b | a
    assert union | a == union
    assert wanted((a | Needs()).features) == wanted(a.features)


@pytest.mark.parametrize("field", ["features", "tokens", "attention"])
def test_needs_count_from_the_end(field):
    with pytest.raises(UsageError, match=rf"Needs\.{field} counts from the end \(−1 is the last\), got \(0,\)"):
        Needs(**{field: (0,)})


def test_names_and_synonyms_belong_together():
    with pytest.raises(UsageError, match="expected at least one name to look for, got none"):
        TextSet((), (), ("{}",))
    with pytest.raises(ValueError, match="2 names but 1 lists of synonyms"):
        TextSet(("a", "b"), (("a",),), ("{}",))
    for template in ("a", "{} {}", "{0}"):
        with pytest.raises(UsageError, match=r"expected a template with one \{\} for the name, got"):
            TextSet(("a",), (("a",),), (template,))


def boxes(n=3, **changes):
    values = {
        "xyxy": np.arange(4 * n, dtype=np.float32).reshape(n, 4),
        "score": np.linspace(1, 0, n, dtype=np.float32),
        "label": np.array([0, 1, 0][:n]),
        "names": ("cat", "dog", "bird"),
    }
    return Boxes(**{**values, **changes})


def test_boxes_of_a_name():
    assert len(boxes()) == 3
    assert boxes().of("cat").tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert boxes().of("bird").shape == (0, 4)
    with pytest.raises(UsageError, match=r"expected one of the names asked for \(cat, dog, bird\), got 'cow'"):
        boxes().of("cow")


@pytest.mark.parametrize(
    "change",
    [
        {"xyxy": np.zeros((3, 5), np.float32)},
        {"xyxy": np.zeros((2, 4), np.float32)},
        {"score": np.zeros(2, np.float32)},
        {"label": np.zeros((3, 1), np.int64)},
    ],
    ids=["five numbers", "too few boxes", "too few scores", "labels in a column"],
)
def test_boxes_whose_parts_do_not_fit_are_refused(change):
    with pytest.raises(ValueError, match=r"expected xyxy \[n, 4\], score \[n\] and label \[n\], got"):
        boxes(**change)


def localization(original_wh=(30, 20), policy="squash"):
    maps = np.zeros((2, 16, 16), np.float32)
    maps[0, 4:8, 8:12] = 1
    return Localization(
        source="a.jpg",
        image=Image.new("RGB", original_wh),
        names=("cat", "dog"),
        scores=np.zeros(2, np.float32),
        presence=None,
        found=np.array([True, False]),
        reasons=(None, "no"),
        maps=maps,
        frame=Frame.fit(policy, original_wh[::-1], (16, 16)),
        boxes=Boxes(np.array([[15, 5, 22.5, 10]], np.float32), np.ones(1, np.float32), np.array([0]), ("cat", "dog")),
    )


def test_heatmaps_have_the_originals_size_and_stay_between_0_and_1():
    for policy, original_wh in [("squash", (30, 20)), ("crop", (20, 31)), ("pad", (200, 100))]:
        found = localization(original_wh, policy)
        heatmaps = found.heatmaps
        assert heatmaps.shape == (2, original_wh[1], original_wh[0])
        assert heatmaps.dtype == np.float32
        assert heatmaps.min() >= 0
        assert 0.9 < heatmaps[0].max() <= 1
        assert heatmaps[1].max() == 0
    hot = localization((32, 32)).heatmaps[0]
    ys, xs = np.nonzero(hot > 0.5)
    assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (16, 8, 24, 16)


def test_values_are_frozen():
    for value, field in [(boxes(), "names"), (localization(), "maps"), (Needs(), "tokens")]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field, None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_context_embeds_in_batches_as_at_once(kind):
    backbone = tower(kind)
    images = torch.randn(7, 3, *backbone.input_hw, generator=torch.Generator().manual_seed(1))
    sizes = []
    encode = backbone.encode_image
    backbone.encode_image = lambda chunk: sizes.append(len(chunk)) or encode(chunk)
    trace = backbone.trace(images, Needs())
    ctx = Context(lambda: images, torch.zeros(7, 1, backbone.embedding_size), trace, backbone, 3)
    torch.testing.assert_close(ctx.embed(images), encode(images))
    assert sizes == [3, 3, 1]

"""What decides of a map: its order alone, or its values up to their unit; and no picture is scored twice."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cliploc.config import FaithfulnessOptions
from cliploc.faithfulness import Judged, Scorer, chosen_metrics, faithfulness_metrics
from tests.faithfulness.models import HW, judged, picture, random_heat, weights

BY_ORDER = ("deletion", "insertion", "positive", "negative", "road")


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=48, max_size=48), st.sampled_from(["cube", "affine", "exp"]))
def test_only_the_order_of_the_map_counts(values: list[int], how: str) -> None:
    heat = torch.tensor(values, dtype=torch.float64).view(HW)
    other = {"cube": heat**3, "affine": 3 * heat - 7, "exp": (heat / 10).exp()}[how]
    images, of = picture(), weights()
    first, second = (judged(one, images, of, steps=6) for one in (heat, other))
    for metric in chosen_metrics(BY_ORDER):
        assert metric.measure(first) == metric.measure(second)


@settings(max_examples=25, deadline=None)
@given(st.floats(0.01, 100), st.integers(0, 10**6))
def test_the_heats_unit_does_not_count_where_the_map_is_compared_with_changes(scale: float, seed: int) -> None:
    images, of, heat = picture((14, 14)), weights(hw=(14, 14)) / 8, random_heat((14, 14), seed)
    shared: dict[object, object] = {}
    measured = [judged(one, images, of, shared=shared) for one in (heat, scale * heat)]
    for metric in chosen_metrics(["infidelity", "sensitivity_n"]):
        one, other = (metric.measure(each).values[metric.name] for each in measured)
        assert one == pytest.approx(other, rel=1e-3, abs=1e-9)


SIDE = (56, 56)  # so large that no two of the squares of infidelity are the same


def test_no_changed_picture_is_scored_twice() -> None:
    of, seen, shared = weights(hw=SIDE) / 8, [], {}

    def encode(images: Tensor) -> Tensor:
        seen.extend(one.numpy().tobytes() for one in images)
        return images.flatten(1) @ of.flatten(1).T

    metrics = chosen_metrics([one.name for one in faithfulness_metrics if not one.needs_method])
    scorer, options = Scorer(encode, torch.eye(3), 0.5), FaithfulnessOptions(steps=7)
    for seed in (2, 3):
        one = Judged(picture(SIDE), random_heat(SIDE, seed), 0, None, scorer, lambda x: x - 1, options, shared)
        for metric in metrics:
            metric.measure(one)
    assert len(seen) > 200
    assert len(set(seen)) == len(seen)

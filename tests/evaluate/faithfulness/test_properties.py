"""The order of a map alone decides where a metric says so, and no picture is scored twice."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cliploc.evaluate.tasks.faithfulness.judged import Judged, Scorer
from cliploc.evaluate.tasks.faithfulness.metrics import chosen_metrics, faithfulness_metrics
from cliploc.options import FaithfulnessOptions
from tests.evaluate.faithfulness.models import HW, judged, picture, random_heat, weights

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


SIDE = (56, 56)


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
    assert len(seen) > 50
    assert len(set(seen)) == len(seen)

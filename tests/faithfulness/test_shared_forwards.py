"""Nothing goes through the tower twice: the pictures of all metrics and maps."""

import torch
from torch import Tensor

from cliploc.config import FaithfulnessOptions
from cliploc.faithfulness import Judged, Scorer, chosen_metrics, faithfulness_metrics
from tests.faithfulness.models import picture, random_heat, weights

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

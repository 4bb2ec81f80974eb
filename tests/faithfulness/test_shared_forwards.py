"""Nothing goes through the tower twice: the pictures of all metrics and maps, and the other maps of all methods."""

import torch
from torch import Tensor, nn

from cliploc.config import FaithfulnessOptions
from cliploc.faithfulness import Faithfulness, Judged, Scorer, chosen_metrics, faithfulness_metrics
from cliploc.localizer import Localizer
from tests.faithfulness.models import picture, random_heat, weights
from tests.tiny import tower

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


def test_other_maps_of_several_methods_share_their_forward_passes() -> None:
    """The second name's and the three random towers': as many passes for three methods as for one."""
    passes = []
    for methods in (["layer_cam"], ["layer_cam", "cam", "random"]):
        backbone = tower("gap_cnn", (6, 5))
        first = next(one for one in backbone.modules() if isinstance(one, nn.Conv2d))
        counted: list[int] = []
        first.register_forward_hook(lambda *_, counted=counted: counted.append(1))
        localizer = Localizer(backbone, method="cam", resize="squash", min_presence=0)
        metrics = chosen_metrics(["names", "randomisation"])
        of = Faithfulness(localizer, ["red", "green"], metrics, {one: {} for one in methods})
        found = of.measure(of.see("a", torch.zeros(48, 40, 3, dtype=torch.uint8).numpy()))
        passes.append((len(counted), found["layer_cam"]))
    assert passes[0] == passes[1]

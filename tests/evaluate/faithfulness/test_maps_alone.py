"""The grid pointing game, and the passes that methods share for further maps."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from cliploc.evaluate.tasks.faithfulness.measure import Faithfulness
from cliploc.evaluate.tasks.faithfulness.metrics import chosen_metrics
from cliploc.evaluate.tasks.faithfulness.metrics.grid_pointing import cells
from cliploc.localizer import Localizer
from tests.evaluate.faithfulness.models import judged, other_maps, picture, random_heat, weights
from tests.tiny import tower


@pytest.mark.parametrize("hw", [(6, 8), (7, 9)])
def test_the_grid_has_the_picture_in_one_cell_and_its_heat_is_counted_there(hw: tuple[int, int]) -> None:
    images, of, seen = picture(hw), weights(hw=hw), []
    heat = random_heat(hw)

    def of_pictures(_: object, pictures: Tensor) -> Tensor:
        seen.append(pictures)
        return heat[None]

    for seed in range(4):
        one = judged(heat, images, of, others=other_maps(of_pictures=of_pictures), seed=seed)
        found = chosen_metrics(["grid_pointing"])[0].measure(one).values["grid_pointing"]
        places = cells(*hw)
        assert len({(y, x) for rows, columns in places for y in range(hw[0])[rows] for x in range(hw[1])[columns]}) == (
            hw[0] * hw[1]
        )
        rows, columns = places[random.Random(seed).randrange(4)]
        expected = sum(heat[y, x] for y in range(hw[0])[rows] for x in range(hw[1])[columns]) / heat.sum()
        assert found == pytest.approx(float(expected), rel=1e-5)
        small = torch.nn.functional.interpolate(
            images, seen[-1][0, :, rows, columns].shape[-2:], mode="bilinear", antialias=True
        )
        assert torch.equal(seen[-1][0, :, rows, columns], small[0])


def test_a_blind_map_counts_a_quarter_and_methods_share_the_pass() -> None:
    backbone = tower("gap_cnn", (6, 6))
    localizer = Localizer(backbone, method="cam", resize="squash", min_presence=0)
    passes: list[int] = []
    next(one for one in backbone.modules() if isinstance(one, torch.nn.Conv2d)).register_forward_hook(
        lambda _, given, __: passes.append(len(given[0]))
    )
    metrics = chosen_metrics(["grid_pointing", "names", "randomisation"])
    counted = []
    for methods in (["layer_cam", "centre_box"], ["layer_cam", "centre_box", "cam", "random"]):
        passes.clear()
        of = Faithfulness(localizer, ["red", "green"], metrics, {one: {} for one in methods})
        found = of.measure(of.see("a", np.full((48, 40, 3), 90, np.uint8)))
        assert found["centre_box"].values["grid_pointing"] == pytest.approx(0.25)
        counted.append((len(passes), sum(passes), found["layer_cam"]))
    assert counted[0] == counted[1]

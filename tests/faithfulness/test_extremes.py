"""Maps whose numbers are known: the best and the worst there can be; and what only the order of a map's values decides.

Those of infidelity and sensitivity-n are in test_infidelity.py, those of maps that hear no name in test_sanity.py.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cliploc.faithfulness import OtherMaps, chosen_metrics
from tests.faithfulness.models import HW, judged, picture, random_heat, scorer, weights

BY_ORDER = ("deletion", "insertion", "positive", "negative", "road")


@pytest.mark.parametrize("name", ["deletion", "insertion", "positive", "negative"])
def test_a_linear_models_own_map_is_the_best_and_its_inverse_the_worst(name: str) -> None:
    """Two names, the second always 0: the first's cosine falls by each pixel's share, so the order can be perfect."""
    images, of = picture(), weights(1)
    share = (images[0] * of[0]).sum(dim=0)  # of each pixel in the logit
    of = torch.cat([of, torch.zeros_like(of)])
    [metric] = chosen_metrics([name])
    sign = 1 if metric.numbers[name].best == "low" else -1
    label = int(share.sum() < 0)  # what the model says of the whole picture
    share = share if label == 0 else -share
    maps = [share, -share, *(random_heat(seed=seed) for seed in range(30))]
    found = [metric.measure(judged(one, images, of, label, steps=48, baseline="zero")) for one in maps]
    for key in metric.numbers:
        areas = [sign * float(one.values[key] or 0) for one in found]
        if key.endswith("_cosine") and label:
            continue  # the second name's cosine is always 0
        assert areas[0] == min(areas), key
        assert areas[1] == max(areas), key
        assert areas[0] < areas[1], key


def test_the_mask_of_a_linear_models_evidence_is_the_best_and_its_inverse_the_worst() -> None:
    """Of all maps in 0–1 the picture times the map scores highest where the map is 1 at what speaks for the name."""
    images, of = picture(seed=5), weights(1)
    share = (images[0] * of[0]).sum(dim=0)
    of = torch.cat([of, torch.zeros_like(of)])
    drop, increase = chosen_metrics(["average_drop", "increase"])
    maps = [(share > 0).float(), (share < 0).float(), *(random_heat(seed=seed) for seed in range(30))]
    drops = [float(drop.measure(judged(one, images, of)).values["average_drop"] or 0) for one in maps]
    assert drops[0] == 0
    assert drops[1] == max(drops) > 0.9
    assert increase.measure(judged(maps[0], images, of)).values["increase"] == 1
    assert increase.measure(judged(maps[1], images, of)).values["increase"] == 0
    whole = torch.ones(HW)
    assert drop.measure(judged(whole, images, of)).values["average_drop"] == pytest.approx(0, abs=1e-6)
    assert increase.measure(judged(whole, images, of)).values["increase"] == 0


def test_road_of_one_square_on_a_flat_picture() -> None:
    """The model sees that square alone: hottest, it goes first and stays to the last; coldest, the other way round."""
    images, of = torch.zeros(1, 3, 20, 20), torch.zeros(2, 3, 20, 20)
    images[..., 4:10, 7:13] = 1
    of[0, :, 4:10, 7:13] = 0.05
    square = images[0, 0] + 0.1 * random_heat((20, 20))
    [road] = chosen_metrics(["road"])
    whole, gone = (
        float(scorer(of)(1, lambda *_, one=one: one, 0).probability) for one in (images, torch.zeros_like(images))
    )
    best, worst = (road.measure(judged(one, images, of)).values["road"] for one in (square, -square))
    assert best == pytest.approx((whole - gone) / 2, abs=0.005)  # but for the imputation's noise
    assert worst == pytest.approx(-(whole - gone) / 2, abs=0.005)


def test_a_map_of_everything_has_no_adcc_and_a_coherent_small_one_nearly_all() -> None:
    """A map that marks all explains nothing; one pixel that is all evidence, and marked again, everything."""
    images, of = torch.zeros(1, 3, *HW), torch.zeros(2, 3, *HW)
    images[..., 2, 3] = of[0, :, 2, 3] = 1
    one, all_of_it = images[0, 0], torch.ones(HW)

    def adcc(heat: torch.Tensor) -> float | None:
        others = OtherMaps(lambda _: heat, lambda: heat, lambda _: heat)
        return chosen_metrics(["adcc"])[0].measure(judged(heat, images, of, others=others)).values["adcc"]

    assert adcc(all_of_it) == 0
    assert adcc(one) == pytest.approx(3 / (2 + 1 / (1 - 1 / 48)))


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

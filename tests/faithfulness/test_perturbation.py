"""Positive and negative perturbation, average drop, increase and ADCC, from the papers' formulas in plain loops."""

import pytest
import torch
from torch import Tensor

from cliploc.faithfulness import OtherMaps, chosen_metrics
from tests.faithfulness.models import HW, hottest_first, judged, measured, picture, probability, random_heat, weights


@pytest.mark.parametrize("label", [None, 1, 2])
@pytest.mark.parametrize("name", ["positive", "negative"])
def test_accuracy_without_the_hottest_or_coldest_tenths(name: str, label: int | None) -> None:
    images, of, heat = picture(), weights(), random_heat()
    order = hottest_first(heat) if name == "positive" else hottest_first(heat)[::-1]
    right = []
    first = max(range(3), key=lambda one: probability(images[0], of, one))
    for tenth in range(1, 10):
        seen = images[0].clone()
        for y, x in order[: int(48 * tenth / 10)]:
            seen[:, y, x] = -2.0  # black, normalised
        right.append(
            float(max(range(3), key=lambda one: probability(seen, of, one)) == (first if label is None else label))
        )
    found = measured(name, heat, images, of, label=label)
    assert found.curves[name] == right
    assert found.values[name] == pytest.approx((sum(right) - right[0] / 2 - right[-1] / 2) / 8)


@pytest.mark.parametrize("seed", range(4))
def test_drop_and_increase_of_the_masked_picture(seed: int) -> None:
    images, of, heat = picture(seed=seed), weights(), random_heat(seed=seed)
    before = probability(images[0], of)
    after = probability(images[0] * heat, of)
    drop = measured("average_drop", heat, images, of).values["average_drop"]
    assert drop == pytest.approx(max(0.0, before - after) / before, abs=1e-5)
    assert measured("increase", heat, images, of).values["increase"] == float(after > before)


def test_a_name_without_any_probability_has_nothing_to_lose() -> None:
    """In float32 a softmax is 0 for a logit that is 104 below another: a high logit scale, or a label that is wrong."""
    images, of, heat = 1000 * picture(), weights(), random_heat()
    logits = (of * images).flatten(1).sum(dim=1)
    one = judged(heat, images, of, target=int(logits.argmin()))
    assert float(one.whole.probability) == 0
    drop, increase = chosen_metrics(["average_drop", "increase"])
    assert drop.measure(one).values["average_drop"] == 0
    assert increase.measure(one).values["increase"] == float(one.masked.probability > 0)


def test_adcc_is_the_harmonic_mean() -> None:
    images, of, heat, again = picture(), weights(), random_heat(), random_heat(seed=5)
    asked: list[Tensor] = []

    def of_picture(masked: Tensor) -> Tensor:
        asked.append(masked)
        return again

    def unused(*_: object) -> Tensor:
        raise AssertionError

    others = OtherMaps(of_picture, unused, unused, unused, unused)
    values = measured("adcc", heat, images, of, others=others).values
    assert torch.equal(asked[0], images * heat)
    a = [float(one) - float(heat.mean()) for one in heat.flatten()]
    b = [float(one) - float(again.mean()) for one in again.flatten()]
    correlation = sum(x * y for x, y in zip(a, b, strict=True)) / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5
    coherency, simplicity = (1 + correlation) / 2, 1 - sum(heat.flatten().tolist()) / (HW[0] * HW[1])
    before = probability(images[0], of)
    kept = 1 - max(0.0, before - probability(images[0] * heat, of)) / before
    assert values["adcc"] == pytest.approx(3 / (1 / coherency + 1 / simplicity + 1 / kept), abs=1e-5)
    assert (values["coherency"], values["complexity"]) == pytest.approx((coherency, 1 - simplicity), abs=1e-6)

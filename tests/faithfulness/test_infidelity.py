"""Infidelity and sensitivity-n: plain loops, and captum's infidelity."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cliploc.faithfulness.infidelity import squares
from cliploc.faithfulness.sensitivity_n import SHARES, SUBSETS, subsets
from tests.faithfulness.models import measured, picture, probability, random_heat, scorer, weights

SIDE = (28, 28)


def test_infidelity_is_the_formula() -> None:
    images, of, heat = picture(SIDE), weights(hw=SIDE) / 8, random_heat(SIDE)
    whole = probability(images[0], of)
    heats, changes = [], []
    for hidden in squares(0, *SIDE):
        heats.append(sum(float(heat[y, x]) for y, x in hidden.nonzero().tolist()))
        changes.append(whole - probability(torch.where(hidden, 0.0, images[0]), of))
    scale = sum(h * c for h, c in zip(heats, changes, strict=True)) / sum(h * h for h in heats)
    expected = sum((scale * h - c) ** 2 for h, c in zip(heats, changes, strict=True)) / len(heats)
    assert measured("infidelity", heat, images, of).values["infidelity"] == pytest.approx(expected, rel=1e-3)


def test_infidelity_is_captums() -> None:
    metrics = pytest.importorskip("captum.metrics", reason="needs captum")
    images, of, heat = picture(SIDE), weights(hw=SIDE) / 8, random_heat(SIDE)
    hidden, logits = squares(0, *SIDE), scorer(of)
    drawn = iter(hidden)

    def perturb(inputs: Tensor) -> Any:
        """captum asks for one after the other; a map of one channel for three: a third of it for each."""
        mask = torch.stack([next(drawn) for _ in inputs])[:, None].expand_as(inputs)
        return mask.float(), inputs * ~mask

    theirs = metrics.infidelity(
        lambda x: logits(len(x), lambda first, last: x[first:last], 0).probability,
        perturb, images, heat.expand(1, 3, -1, -1) / 3, n_perturb_samples=len(hidden), normalize=True,
    )  # fmt: skip
    assert measured("infidelity", heat, images, of).values["infidelity"] == pytest.approx(float(theirs), rel=1e-3)


def test_sensitivity_n_is_the_correlation_over_draws() -> None:
    images, of, heat = picture(SIDE), weights(hw=SIDE) / 8, random_heat(SIDE)
    whole = probability(images[0], of)
    found = []
    cells = subsets(0)
    for n in range(len(SHARES)):
        heats, changes = [], []
        for drawn in cells[n * SUBSETS : (n + 1) * SUBSETS]:
            gone = drawn.repeat_interleave(2, 0).repeat_interleave(2, 1)  # cells of 2×2 pixels
            assert int(drawn.sum()) == round(SHARES[n] * 196)
            heats.append(float(heat[gone].sum()))
            changes.append(whole - probability(torch.where(gone, 0.0, images[0]), of))
        found.append(np.corrcoef(heats, changes)[0, 1])
    ours = measured("sensitivity_n", heat, images, of)
    assert ours.curves["sensitivity_n"] == pytest.approx(found, abs=1e-3)
    assert ours.values["sensitivity_n"] == pytest.approx(np.mean(found), abs=1e-3)

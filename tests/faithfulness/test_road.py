"""ROAD: the neighbours' equations, pytorch-grad-cam's imputation, and the combination of both ends."""

import numpy as np
import pytest
import torch

from cliploc.faithfulness import chosen_metrics
from cliploc.faithfulness._infra.fill import imputed
from tests.faithfulness.models import HW, hottest_first, judged, picture, probability, random_heat, weights


def test_each_removed_pixel_is_the_weighted_mean_of_its_neighbours() -> None:
    images = picture((5, 6))
    removed = random_heat((5, 6)) < 0.6
    made = imputed(images, removed, noise=0)
    assert torch.equal(made[0][:, ~removed], images[0][:, ~removed])
    for y, x in removed.nonzero().tolist():
        total, weight = torch.zeros(3), 0.0
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                if (dy or dx) and 0 <= y + dy < 5 and 0 <= x + dx < 6:
                    own = 1 / 12 if dy and dx else 1 / 6
                    total, weight = total + own * made[0, :, y + dy, x + dx], weight + own
        assert torch.allclose(made[0, :, y, x], total / weight, atol=1e-5)


def test_the_imputation_is_pytorch_grad_cams() -> None:
    road = pytest.importorskip("pytorch_grad_cam.metrics.road", reason="needs grad-cam")
    images, removed = picture((16, 12)), random_heat((16, 12)) < 0.5
    theirs = road.NoisyLinearImputer(noise=0)(images[0], (~removed).float())
    assert torch.allclose(imputed(images, removed, noise=0)[0], theirs, atol=1e-5)


def test_the_noise_is_seeded_and_small() -> None:
    images, removed = picture((16, 12)), random_heat((16, 12)) < 0.9
    clean, noisy = imputed(images, removed, noise=0), imputed(images, removed, seed=4)
    assert torch.equal(noisy, imputed(images, removed, seed=4))
    difference = (noisy - clean)[0][:, removed]
    assert 0.008 < float(difference.std()) < 0.012


def test_it_is_the_difference_of_both_ends() -> None:
    images, of, heat = picture(), weights(), random_heat()
    order = hottest_first(heat)
    scores = {}
    for which, places in (("most", order), ("least", order[::-1])):
        for share in (0.2, 0.4, 0.6, 0.8):
            removed = torch.zeros(HW, dtype=torch.bool)
            for y, x in places[: int(48 * share)]:
                removed[y, x] = True
            scores[which, share] = probability(imputed(images, removed)[0], of)
    most, least = (
        np.mean([value for (end, _), value in scores.items() if end == which]) for which in ("most", "least")
    )
    measured = chosen_metrics(["road"])[0].measure(judged(heat, images, of))
    assert measured.values["road"] == pytest.approx((least - most) / 2, abs=1e-5)

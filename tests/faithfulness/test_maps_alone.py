"""Metrics of maps and further maps: sparseness, max-sensitivity, completeness, smooth MPRT, the grid pointing game."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from cliploc.demo import demo_photos
from cliploc.faithfulness import Faithfulness, Judged, OtherMaps, Scorer, chosen_metrics
from cliploc.faithfulness.grid_pointing import cells
from cliploc.faithfulness.max_sensitivity import noise
from cliploc.faithfulness.sparseness import gini
from cliploc.localizer import Localizer
from tests.faithfulness.models import HW, SmallClassifier, judged, measured, other_maps, picture, random_heat, weights
from tests.tiny import tower


def others(of_pictures: Callable[[Tensor, float], Tensor], raw: Tensor | None = None) -> OtherMaps:
    return other_maps(of_pictures=lambda _, images, share: of_pictures(images, share), raw=lambda: raw)


def gradients(images: Tensor) -> Tensor:
    """A map that depends on the picture: |∂s/∂x| of a classifier, `[n, H, W]`."""
    model = SmallClassifier()
    with torch.enable_grad():
        x = images.clone().requires_grad_()
        return torch.autograd.grad(model(x)[:, 1].sin().sum(), x)[0].abs().sum(dim=1)


def test_sparseness_is_the_mean_difference_of_all_pairs() -> None:
    """Gini's own definition: Σ_i Σ_j |a_i − a_j| / (2 n² mean)."""
    heat = random_heat() ** 3
    values = heat.flatten().tolist()
    pairs = sum(abs(a - b) for a in values for b in values)
    expected = pairs / (2 * len(values) * sum(values))
    assert measured("sparseness", heat, picture(), weights()).values["sparseness"] == pytest.approx(expected, rel=1e-6)
    assert gini(torch.ones(4, 4)) == pytest.approx(0)
    assert gini(torch.zeros(4, 4)) is None


def test_sparseness_is_that_of_quantus() -> None:
    quantus = pytest.importorskip("quantus", reason="needs quantus")
    heat = random_heat() ** 3
    metric = quantus.Sparseness(normalise=False, disable_warnings=True)
    [theirs] = metric(model=None, x_batch=np.zeros((1, 3, *HW)), y_batch=np.zeros(1), a_batch=heat[None, None].numpy())
    assert gini(heat) == pytest.approx(theirs, abs=1e-5)  # Quantus adds 1e-7 to each value


def test_max_sensitivity_is_captums() -> None:
    """The largest ‖Φ(x + ε) − Φ(x)‖ / ‖Φ(x)‖ of the same draws; the plain loop, and captum's function."""
    images = picture((16, 16))
    heat = gradients(images)[0]
    one = judged(heat, images, weights(hw=(16, 16)), others=others(lambda pictures, _: gradients(pictures)), seed=5)
    found = chosen_metrics(["max_sensitivity"])[0].measure(one).values["max_sensitivity"]
    drawn = noise(one)
    assert drawn.abs().max() <= 0.02
    assert drawn.abs().max() > 0.0199
    changes = [float((gradients(images + each)[0] - heat).norm() / heat.norm()) for each in drawn]
    assert found == pytest.approx(max(changes), rel=1e-4)
    metrics = pytest.importorskip("captum.metrics", reason="needs captum")
    theirs = metrics.sensitivity_max(  # it asks with a tuple, then with a tensor, and expects tuples
        lambda x: (gradients(x[0] if isinstance(x, tuple) else x)[:, None],),
        images, lambda inputs: inputs + drawn, n_perturb_samples=10,
    )  # fmt: skip
    assert found == pytest.approx(float(theirs), rel=1e-4)


def test_completeness_of_a_linear_models_own_map_is_exact_and_its_error_a_share() -> None:
    images, of = picture(), weights()
    own = (of[0] * images[0]).sum(dim=0)  # its sum is f(x) − f(0)
    for factor, expected in ((1.0, 0.0), (3.0, 0.5), (-1.0, 1.0)):
        found = measured("completeness", random_heat(), images, of, others=others(lambda *_: images, factor * own))
        assert found.values["completeness"] == pytest.approx(expected, abs=1e-5)


def test_its_two_sides_are_captums_convergence_delta() -> None:
    """Of integrated gradients with few steps, whose sum is not quite the change of the score."""
    attr = pytest.importorskip("captum.attr", reason="needs captum")
    images, of = picture(), weights(names=2) / 8

    def bent(x: Tensor) -> Tensor:
        return (x.flatten(1) @ of.flatten(1).T).sin()

    found, delta = attr.IntegratedGradients(bent).attribute(
        images, torch.zeros_like(images), target=0, n_steps=3, method="riemann_left", return_convergence_delta=True
    )
    one = Judged(
        images, random_heat(), 0, None, Scorer(bent, torch.eye(2), 1.0), lambda x: x,
        others=others(lambda *_: images, found[0].sum(dim=0)),
    )  # fmt: skip
    error = chosen_metrics(["completeness"])[0].measure(one).values["completeness"]
    total = float(found.sum())
    assert error == pytest.approx(abs(float(delta)) / (abs(total) + abs(total - float(delta))), rel=1e-3)


@pytest.mark.parametrize("kind", ["gap_cnn", "vit"])
def test_integrated_gradients_are_complete(kind: str) -> None:
    localizer = Localizer(tower(kind, (6, 5)), method="grad_cam", resize="squash", min_presence=0)
    methods = {"integrated_gradients": {"steps": 60}}
    of = Faithfulness(localizer, ["red", "green"], chosen_metrics(["completeness"]), methods)
    found = of.measure(of.see("a", np.random.default_rng(0).integers(0, 255, (48, 40, 3), np.uint8)))
    assert found["integrated_gradients"].values["completeness"] < 0.05


def test_smooth_mprt_is_the_rank_correlation_of_mean_maps() -> None:
    images, asked = picture(), {}

    def of_pictures(pictures: Tensor, share: float) -> Tensor:
        asked[share] = pictures
        return pictures.abs().sum(dim=1) ** (1 + share) + share * random_heat(seed=int(8 * share))

    one = judged(random_heat(), images, weights(), others=others(of_pictures), seed=3)
    found = chosen_metrics(["smooth_mprt"])[0].measure(one)
    assert list(asked) == [0, 0.25, 0.5, 1.0]
    assert all(torch.equal(pictures, asked[0]) for pictures in asked.values())
    assert torch.equal(asked[0][-1], images[0])
    spread = float((asked[0][:-1] - images).std() / (images.max() - images.min()))
    assert spread == pytest.approx(0.1, rel=0.1)
    mean = {share: of_pictures(pictures, share).mean(dim=0).flatten() for share, pictures in asked.items()}
    expected = [spearmanr(mean[0], mean[share]).statistic for share in (0.25, 0.5, 1.0)]
    assert found.curves["smooth_mprt"] == pytest.approx(expected, abs=1e-6)
    assert found.values["smooth_mprt"] == found.curves["smooth_mprt"][-1]


@pytest.mark.parametrize("hw", [(6, 8), (7, 9)])
def test_the_grid_has_the_picture_in_one_cell_and_its_heat_is_counted_there(hw: tuple[int, int]) -> None:
    images, of, seen = picture(hw), weights(hw=hw), []
    heat = random_heat(hw)

    def of_pictures(pictures: Tensor, _: float) -> Tensor:
        seen.append(pictures)
        return heat[None]

    for seed in range(4):
        one = judged(heat, images, of, others=others(of_pictures), seed=seed)
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
    metrics = chosen_metrics(["grid_pointing", "max_sensitivity", "smooth_mprt", "names", "randomisation"])
    counted = []
    for methods in (["layer_cam", "centre_box"], ["layer_cam", "centre_box", "cam", "random"]):
        passes.clear()
        of = Faithfulness(localizer, ["red", "green"], metrics, {one: {} for one in methods})
        found = of.measure(of.see("a", np.full((48, 40, 3), 90, np.uint8)))
        assert found["centre_box"].values["grid_pointing"] == pytest.approx(0.25)
        assert found["centre_box"].values["max_sensitivity"] == 0
        assert found["centre_box"].values["smooth_mprt"] == pytest.approx(1)
        assert of.spent["grid_pointing"].maps == len(methods)
        assert of.spent["grid_pointing"].passes == len(list(demo_photos()))
        counted.append((len(passes), sum(passes), found["layer_cam"]))
    assert counted[0] == counted[1]

"""Metrics that change the picture, from the papers' formulas in plain loops, and beside other packages."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from cliploc.evaluate.tasks.faithfulness.measure import Judged, Scorer, blur_kernel, blurred, fill_of
from cliploc.evaluate.tasks.faithfulness.metrics import chosen_metrics
from cliploc.evaluate.tasks.faithfulness.metrics.road import imputed
from tests.evaluate.faithfulness.models import (
    HW,
    SmallClassifier,
    hottest_first,
    judged,
    judged_by,
    measured,
    other_maps,
    picture,
    probability,
    random_heat,
    weights,
)


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
    assert float(one.original.probability) == 0
    drop, increase = chosen_metrics(["average_drop", "increase"])
    assert drop.measure(one).values["average_drop"] == 0
    assert increase.measure(one).values["increase"] == float(one.masked.probability > 0)


def test_adcc_is_the_harmonic_mean() -> None:
    images, of, heat, again = picture(), weights(), random_heat(), random_heat(seed=5)
    asked: list[Tensor] = []

    def of_picture(masked: Tensor) -> Tensor:
        asked.append(masked)
        return again

    values = measured("adcc", heat, images, of, others=other_maps(of_picture=of_picture)).values
    assert torch.equal(asked[0], images * heat)
    a = [float(one) - float(heat.mean()) for one in heat.flatten()]
    b = [float(one) - float(again.mean()) for one in again.flatten()]
    correlation = sum(x * y for x, y in zip(a, b, strict=True)) / (sum(x * x for x in a) * sum(y * y for y in b)) ** 0.5
    coherency, simplicity = (1 + correlation) / 2, 1 - sum(heat.flatten().tolist()) / (HW[0] * HW[1])
    before = probability(images[0], of)
    kept = 1 - max(0.0, before - probability(images[0] * heat, of)) / before
    assert values["adcc"] == pytest.approx(3 / (1 / coherency + 1 / simplicity + 1 / kept), abs=1e-5)
    assert (values["coherency"], values["complexity"]) == pytest.approx((coherency, 1 - simplicity), abs=1e-6)


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


# -------------------------------------------------------------------------------------------------- deletion, insertion
DELETION, INSERTION = chosen_metrics(["deletion", "insertion"])


@pytest.mark.parametrize("steps", [4, 5, 48])
@pytest.mark.parametrize("name", ["deletion", "insertion"])
def test_they_are_rises_loops(name: str, steps: int) -> None:
    """RISE's code: from a start to an end, the next step of hottest pixels, a score each, their area."""
    images, of, heat = picture(), weights(), random_heat()
    heat[2, 3] = heat[4, 4]  # one tie
    start, end = (images[0], torch.zeros(3, *HW)) if name == "deletion" else (blurred(images)[0], images[0])
    pixels = HW[0] * HW[1]
    step = -(-pixels // steps)
    n = -(-pixels // step)
    order, current, scores = hottest_first(heat), start.clone(), []
    for i in range(n + 1):
        scores.append(probability(current, of))
        for y, x in order[i * step : (i + 1) * step]:
            current[:, y, x] = end[:, y, x]
    found = measured(name, heat, images, of, steps=steps)
    assert found.curves[name] == pytest.approx(scores, abs=1e-5)
    expected = (sum(scores) - scores[0] / 2 - scores[-1] / 2) / n
    assert found.values[name] == pytest.approx(expected, abs=1e-5)


def test_the_published_protocol_has_225_scores() -> None:
    of = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) / 1000
    heat = random_heat((224, 224))
    logits = Scorer(lambda x: x.flatten(1) @ of.flatten(1).T, torch.eye(2), 1.0)
    one = Judged(picture((224, 224)), heat, 0, None, logits, lambda x: x)
    assert one.steps[:3] == [0, 224, 448]
    assert len(DELETION.measure(one).curves["deletion"]) == 225


def test_the_kernel_is_rises() -> None:
    """RISE blurs a point on 11×11 by scipy's filter, which reflects at the edges."""
    point = np.zeros((11, 11))
    point[5, 5] = 1
    np.testing.assert_allclose(blur_kernel().numpy(), gaussian_filter(point, 5), atol=1e-7)


def test_it_is_torch_cams_number_on_a_classifier() -> None:
    methods = pytest.importorskip("torchcam.methods", reason="needs torchcam")
    metrics = pytest.importorskip("torchcam.metrics", reason="needs torchcam")
    if not hasattr(metrics, "DeletionInsertionMetric"):
        pytest.skip("this torchcam has no deletion and insertion")
    model = SmallClassifier().eval()
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    with methods.CAM(model, target_layer=model.features, fc_layer="fc", input_shape=(3, 32, 32)) as extractor:
        theirs = metrics.DeletionInsertionMetric(extractor, lambda logits: logits.softmax(dim=-1), steps=16)
        theirs.update(images)
        summary = theirs.summary()
        logits = model(images)
        target = int(logits.argmax())
        [cam] = extractor(target, logits)
    heat = F.interpolate(cam[:, None], (32, 32), mode="bilinear", align_corners=False)[0, 0]
    ours = judged_by(model, heat.detach(), images, target, steps=16, baseline="zero")
    assert DELETION.measure(ours).values["deletion"] == pytest.approx(summary["deletion_auc"], abs=1e-6)
    assert INSERTION.measure(ours).values["insertion"] == pytest.approx(summary["insertion_auc"], abs=1e-6)


def test_what_stands_in_the_place_of_removed_pixels() -> None:
    images = picture((32, 32))
    expected = {"zero": torch.zeros(1), "black": torch.tensor(-2.0), "mean": images.mean(dim=(-2, -1), keepdim=True)}
    for kind, values in expected.items():
        made = fill_of(kind, images, lambda pixels: (pixels - 0.5) / 0.25)
        torch.testing.assert_close(made, values.expand_as(images))
    flat = fill_of("blur", torch.ones_like(images), lambda pixels: pixels)
    assert torch.allclose(flat[0, :, 16, 16], torch.ones(3), atol=1e-5)  # far from the edges


# Quantus's pixel flipping is deletion with another end: the same curves for deletion, and backwards for insertion. Run
# with quantus 0.6.0, scikit-image 0.26.0 and NumPy 2.4. Its own area is not asked for: it calls `np.trapz`, which NumPy
# 2.4 no longer has.
SIDE, STEP = 24, 32  # pixels of a side; pixels of a step, of which Quantus wants three times to divide the picture


@pytest.mark.parametrize("heat", [random_heat((SIDE, SIDE)), random_heat((SIDE, SIDE), seed=9) ** 4])
def test_the_curves_are_those_of_quantus(heat: Tensor) -> None:
    quantus = pytest.importorskip("quantus", reason="needs quantus")
    model = SmallClassifier().eval()
    images = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    target = int(model(images).argmax())

    def flipped(map_: Tensor) -> list[float]:
        """A map of one channel is repeated for three, whose equal values go in one step."""
        metric = quantus.PixelFlipping(
            features_in_step=3 * STEP, perturb_baseline=0.0, normalise=False, disable_warnings=True
        )
        [curve] = metric(
            model=model, x_batch=images.numpy(), y_batch=np.array([target]), a_batch=map_[None, None].numpy(),
            channel_first=True, softmax=True,
        )  # fmt: skip
        return [float(one) for one in curve]

    ours = judged_by(model, heat, images, target, steps=SIDE * SIDE // STEP, baseline="zero")
    deletion, insertion = (one.measure(ours).curves for one in chosen_metrics(["deletion", "insertion"]))
    assert deletion["deletion"][1:] == pytest.approx(flipped(heat), abs=1e-6)
    assert insertion["insertion"][-2::-1] == pytest.approx(flipped(1 - heat), abs=1e-6)

"""RISE's deletion and insertion: plain loops, RISE's blur, the numbers of torch-cam and of Quantus."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from cliploc.evaluate.tasks.faithfulness.judged import Judged, Scorer, blur_kernel, blurred, fill_of
from cliploc.evaluate.tasks.faithfulness.metrics import chosen_metrics
from tests.evaluate.faithfulness.models import (
    HW,
    SmallClassifier,
    hottest_first,
    judged_by,
    measured,
    picture,
    probability,
    random_heat,
    weights,
)

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

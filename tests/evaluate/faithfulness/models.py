"""Small models whose numbers are known: what the metrics' oracles and extremes stand on."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from cliploc.evaluate.tasks.faithfulness.measure import Judged, Measured, OtherMaps, Scorer
from cliploc.evaluate.tasks.faithfulness.metrics import chosen_metrics
from cliploc.options import FaithfulnessOptions

HW = (6, 8)


def weights(names: int = 3, hw: tuple[int, int] = HW, seed: int = 0) -> Tensor:
    """`[K, 3, H, W]` of a linear model: the logit of a name is Σ w x."""
    return torch.randn(names, 3, *hw, generator=torch.Generator().manual_seed(seed))


def picture(hw: tuple[int, int] = HW, seed: int = 1) -> Tensor:
    return torch.randn(1, 3, *hw, generator=torch.Generator().manual_seed(seed))


def scorer(of: Tensor) -> Scorer:
    """The names are unit vectors, so that cosines are the logits themselves."""
    return Scorer(lambda images: images.flatten(1) @ of.flatten(1).T, torch.eye(len(of)), 0.5, 7)


def judged(heat: Tensor, images: Tensor, of: Tensor, target: int = 0, label: int | None = None, **more: Any) -> Judged:
    options = FaithfulnessOptions(**{key: more.pop(key) for key in ("steps", "baseline") if key in more})
    return Judged(images, heat, target, label, scorer(of), lambda x: (x - 0.5) / 0.25, options, **more)


def measured(name: str, *of: Any, **more: Any) -> Measured:
    """What one metric says of `judged` by these arguments."""
    return chosen_metrics([name])[0].measure(judged(*of, **more))


def other_maps(**given: Any) -> OtherMaps:
    """Maps by these functions; the others must not be asked for."""

    def unused(*_: object) -> Any:
        raise AssertionError

    return OtherMaps(**{**{one.name: unused for one in fields(OtherMaps)}, **given})


class SmallClassifier(nn.Module):
    """One convolution, average pooling, one linear layer: CAM is defined on it."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.features, self.fc = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.ReLU()), nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.features(images).mean(dim=(2, 3)))


def judged_by(model: SmallClassifier, heat: Tensor, images: Tensor, target: int, **options: Any) -> Judged:
    """A map of a name of the classifier."""
    scored = Scorer(model, torch.eye(5), 1.0)
    return Judged(images, heat, target, None, scored, lambda x: x, FaithfulnessOptions(**options))


def probability(images: Tensor, of: Tensor, target: int = 0, scale: float = 0.5) -> float:
    """Of one picture `[3, H, W]`, by plain sums."""
    pixels = images.flatten().tolist()  # numbers: tensors of one number are slow
    logits = [scale * sum(a * b for a, b in zip(one.flatten().tolist(), pixels, strict=True)) for one in of]
    powers = [2.718281828459045 ** (one - max(logits)) for one in logits]
    return powers[target] / sum(powers)


def hottest_first(heat: Tensor) -> list[tuple[int, int]]:
    places = [(y, x) for y in range(heat.shape[0]) for x in range(heat.shape[1])]
    return sorted(places, key=lambda place: -float(heat[place]))  # stable: of equal ones the upper left


def random_heat(hw: tuple[int, int] = HW, seed: int = 2) -> Tensor:
    return torch.rand(hw, generator=torch.Generator().manual_seed(seed))

"""Batch norms folded into convolutions: the same numbers from a copy, and only where the order is known."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from cliploc.backbones._layers import fold_batch_norms
from tests.backbones.small_clip import season, small_clip
from tests.tiny import seeded
from tests.tolerances import assert_rounded


def batch_norms(module: nn.Module) -> int:
    return sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())


def test_folded_tower_gives_the_same_numbers():
    visual = small_clip().visual
    folded = fold_batch_norms(visual)
    assert batch_norms(visual) == 3 + 4 * 4
    assert batch_norms(folded) == 0
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = visual(images), folded(images)
    assert (found - expected).norm() / expected.norm() < 1e-5


def test_the_module_itself_is_not_changed():
    visual = small_clip().visual.train()
    before, structure = copy.deepcopy(visual.state_dict()), repr(visual)
    folded = fold_batch_norms(visual)
    assert repr(visual) == structure
    assert visual.training
    assert not folded.training
    assert all(torch.equal(before[name], value) for name, value in visual.state_dict().items())
    assert all(parameter.requires_grad for parameter in visual.parameters())
    shared = {p.data_ptr() for p in visual.parameters()} & {p.data_ptr() for p in folded.parameters()}
    assert not shared


class Named(nn.Module):
    """A convolution and a norm by ResNet's names, run in that order."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn1(self.conv1(x))


class Unrelated(nn.Module):
    """A norm before its convolution, under names that say nothing of the order."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


@pytest.mark.parametrize(
    ("build", "left"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), 0),
        (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)), 1),
        (lambda: Named(nn.BatchNorm2d(4)), 0),
        (lambda: Named(BatchNormAct2d(4)), 1),
        (lambda: Named(nn.BatchNorm2d(4, track_running_stats=False)), 1),
        (Unrelated, 1),
    ],
    ids=["sequential", "norm first", "named", "norm with activation", "norm of the batch", "other names"],
)
def test_only_known_patterns_are_folded(build, left):
    module = seeded(build, 1).eval()
    if not any(norm.running_mean is None for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)):
        season(module)
    folded = fold_batch_norms(module)
    images = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    assert_rounded(folded(images), module(images), module)
    assert batch_norms(folded) == left

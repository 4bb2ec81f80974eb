"""`mini`, the small CNN in the package: EfficientNet-Lite0 and `_mini_text`; by tools/build_mini.py, docs/mini.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from cliploc.backbones._catalogue import ModelEntry, describe_preprocessing, models, refuse_other_weights
from cliploc.backbones._cnn import ConvolutionalBackbone, GlobalAveragePool, StageMixture
from cliploc.backbones._efficientnet_lite import EfficientNetLite0
from cliploc.backbones._layers import resolve_precision
from cliploc.backbones._mini_text import MiniTextTower
from cliploc.tower import MIXTURE, Pooling

WEIGHTS = Path(__file__).parent / "mini_weights"
MIXTURE_FILE = "mixture.safetensors"  # stage → [32, C]
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # Google's (x·255 − 127)/128


class Mini(ConvolutionalBackbone):
    """EfficientNet-Lite0 and class-anchor text in one joint space of 1,280 dimensions."""

    name = "mini"
    input_hw = (224, 224)
    pooling: Pooling = "global average"
    stride = 32
    middle_stage = MIXTURE  # 32 channels, stride 16, from three stages; learnt from masks by tools/build_mixture.py
    embedding_size = 1280
    text: MiniTextTower

    def __init__(
        self,
        tower: EfficientNetLite0,
        mean_feature: Tensor,
        text: MiniTextTower,
        facts: dict[str, Any],
        mixture: StageMixture,
    ) -> None:
        super().__init__(tower.stages(), MEAN, STD)
        self.mixture = mixture
        self.pool_layer = GlobalAveragePool(mean_feature)
        self.text = text
        self.logit_scale = float(facts["logit_scale"])
        self.calibration = (facts["presence"]["scale"], facts["presence"]["bias"])  # by tools/build_mini.py

    @classmethod
    def bundled(cls, folder: Path = WEIGHTS) -> Mini:
        """Loads the model in the package, frozen, in eval mode, on the CPU."""
        tensors = {name: tensor.float() for name, tensor in load_file(folder / "image.safetensors").items()}
        facts = json.loads((folder / "mini.json").read_text())
        tower, text = EfficientNetLite0.of(tensors), MiniTextTower.load(folder)
        mixture = StageMixture({int(stage): weight for stage, weight in load_file(folder / MIXTURE_FILE).items()})
        return cls(tower, tensors["mean_feature"], text, facts, mixture).eval().requires_grad_(False)

    def pool(self, features: Tensor) -> Tensor:
        return self.pool_layer(features)

    def read_locations(self, features: Tensor) -> Tensor:
        """The reading of each location: the features `[B, 1280, h, w]` minus μ, which is exact."""
        return self.pool_layer.read_locations(features)

    def unknown_reason(self, word: str) -> str | None:
        return self.text.unknown_reason(word)

    def remark(self, word: str) -> str | None:
        return self.text.remark(word)


def _build(pretrained: str | None, device: str, precision: str) -> Mini:
    refuse_other_weights("mini", pretrained)
    mini = Mini.bundled()
    mini.stages.to(resolve_precision(precision, device))  # pooling and text stay in float32
    return mini.to(device)


models.register(
    "mini",
    ModelEntry(
        name="mini",
        build=_build,
        kind="cnn",
        pooling="global average",
        input_hw=Mini.input_hw,
        parameters=4.7,
        licence="Apache-2.0",
        about="bundled: EfficientNet-Lite0 and word vectors; runs offline, knows what resembles ImageNet's classes",
        preprocessing={"": describe_preprocessing(Mini.resize_policy, Mini.interpolation, MEAN, STD)},
    ),
)

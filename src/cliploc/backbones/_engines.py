"""What computes an image tower: torch, or OpenVINO on the CPU, which is an optional extra."""

from __future__ import annotations

import copy

from cliploc.backbones._cnn import ConvolutionalBackbone, run_stages
from cliploc.backbones._openvino import OpenVino
from cliploc.config import EngineBackend
from cliploc.errors import UsageError
from cliploc.tower import Backbone


def with_engine(backbone: Backbone, engine: EngineBackend) -> Backbone:
    """The same model, with shared weights, whose tower is computed by an engine.

    Only what needs no gradient runs there: `trace` and `encode_image`. `head`, through which methods take gradients,
    stays in torch.

    Example:
        >>> from cliploc.backbones import create
        >>> mini = create("mini")
        >>> with_engine(mini, "torch") is mini
        True
    """
    if isinstance(backbone, ConvolutionalBackbone):
        if isinstance(backbone.runner, OpenVino) == (engine == "openvino"):
            return backbone
        copied = copy.copy(backbone)  # the weights are shared
        copied.runner = OpenVino.of(backbone.device, backbone.dtype) if engine == "openvino" else run_stages
        return copied
    if engine == "openvino":
        raise UsageError(
            f"engine-backend openvino computes CNN towers, {backbone.name} is a {backbone.kind.upper()}: use "
            "engine-backend torch"
        )
    return backbone

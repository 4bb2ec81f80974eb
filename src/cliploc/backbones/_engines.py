"""What computes an image tower: torch, or OpenVINO on the CPU (`pip install 'cliploc[openvino]'`)."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cliploc._imports import install, not_installed
from cliploc.backbones._cnn import ConvolutionalBackbone, run_in_parts, run_stages
from cliploc.config import EngineBackend
from cliploc.errors import UsageError
from cliploc.tower import Backbone

HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}  # OpenVINO's names of the precisions
# Pictures that run together. Two share the reading of the weights; the layers' outputs of more leave the cache.
TOGETHER = 2


def with_engine(backbone: Backbone, engine: EngineBackend) -> Backbone:
    """The same model whose `trace` and `encode_image` an engine computes; `head`, with its gradients, stays torch's."""
    if isinstance(backbone, ConvolutionalBackbone):
        if isinstance(backbone.runner, OpenVino) == (engine == "openvino"):
            return backbone
        copied = copy.copy(backbone)  # the weights are shared
        copied.runner = OpenVino.of(backbone.device, backbone.dtype) if engine == "openvino" else run_in_parts
        return copied
    if engine == "openvino":
        raise UsageError(
            f"engine-backend openvino computes CNN towers, {backbone.name} is a {backbone.kind.upper()}: use "
            "engine-backend torch"
        )
    return backbone


class OpenVino:
    """`run_stages` in OpenVINO on the CPU, compiled for each size and precision, for two pictures and for one."""

    def __init__(self) -> None:
        self._compiled: dict[tuple[object, ...], Any] = {}
        self._alone = threading.Lock()  # a network's memory holds one input and one output: threads take turns

    @classmethod
    def of(cls, device: torch.device, dtype: torch.dtype) -> OpenVino:
        """A runner for a tower on a device and of a precision."""
        if device.type != "cpu" or dtype not in HINTS:
            raise UsageError(
                "engine-backend openvino computes on the CPU in fp32 or bf16, got a tower on "
                f"{device.type} in {str(dtype).removeprefix('torch.')}: use engine-backend torch"
            )
        try:
            import openvino  # noqa: F401
        except ImportError as error:
            raise not_installed(error, install("openvino", "engine-backend openvino")) from None
        return cls()

    def __deepcopy__(self, memo: dict[int, Any]) -> OpenVino:
        """A runner that has compiled nothing, as the copy's weights may change."""
        return OpenVino()

    def __call__(self, stages: Sequence[nn.Module], x: Tensor, wanted: Sequence[int]) -> list[Tensor]:
        """The outputs of the wanted stages, in the precision of `x` `[B, 3, H, W]`."""
        with self._alone:
            parts = [self._run(stages, part, wanted) for part in torch.split(x, TOGETHER)]
        return [torch.cat(outputs) for outputs in zip(*parts, strict=True)]

    def _run(self, stages: Sequence[nn.Module], x: Tensor, wanted: Sequence[int]) -> list[Tensor]:
        key = (tuple(x.shape), x.dtype, tuple(wanted), torch.get_num_threads())
        if key not in self._compiled:
            import openvino

            size = list(x.shape)
            with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
                warnings.simplefilter("ignore")  # torch's tracer warns that sizes become constants, as they should
                network = _Stages(stages, wanted).eval()
                converted = openvino.convert_model(network, example_input=torch.zeros(size), input=size)
            settings = {
                "INFERENCE_PRECISION_HINT": HINTS[x.dtype],
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "NUM_STREAMS": 1,
                "ENABLE_CPU_PINNING": False,  # a pinned thread waits for whatever else runs on its processor
            }
            self._compiled[key] = openvino.Core().compile_model(converted, "CPU", settings)
        results = self._compiled[key]([x.float().contiguous().numpy()], share_outputs=False)
        return [torch.from_numpy(results[number]).to(x.dtype) for number in range(len(wanted))]


class _Stages(nn.Module):
    """The stages up to the last that is wanted, as one module."""

    def __init__(self, stages: Sequence[nn.Module], wanted: Sequence[int]) -> None:
        super().__init__()
        # In float32 whatever the tower's precision is, as OpenVINO converts the weights itself.
        self.stages = nn.ModuleList(copy.deepcopy(list(stages[: wanted[-1] + 1]))).float()
        self.wanted = wanted

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(run_stages(list(self.stages), x, self.wanted))

"""Base class of convolutional towers: stages run one after another, then a head that makes one embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.errors import UsageError
from cliploc.towers._backbone import Backbone
from cliploc.towers._layers import resize_positions
from cliploc.towers.tower import MIXTURE, DenseReading, Needs, TowerKind, Trace

AT_ONCE = 2 * 224 * 224  # pixels that the first stages take at once on a CPU: their widest maps then stay in its caches
LARGE = 8  # maps with more than an eighth of the picture's side are large


def run_stages(stages: Sequence[nn.Module], x: Tensor, wanted: Sequence[int], at_once: int = 0) -> list[Tensor]:
    """The outputs `[B, C, h, w]` of the wanted stages, from the start and ascending, for `x` `[B, 3, H, W]`.

    Where maps are large, `at_once` pictures go through each stage at a time; 0: all.
    """
    width, parts, outputs = x.shape[-1], list(torch.split(x, at_once or len(x))), []
    for index, stage in enumerate(stages[: wanted[-1] + 1]):
        if parts[0].shape[-1] * LARGE <= width:
            parts = [_joined(parts)]
        parts = [stage(part) for part in parts]
        if index in wanted:
            outputs.append(_joined(parts))
    return outputs


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class ConvolutionalBackbone(Backbone):
    """A `Backbone` of CNN stages: a subclass has a `pool_layer`, or its own `pool` and `read_locations`."""

    kind: TowerKind = "cnn"
    channels_last = True  # halves the time of mini's forward pass on a CPU
    mixture: StageMixture | None  # what `MIXTURE` asks for
    pool_layer: GlobalAveragePool | AttentionPool

    def __init__(self, stages: Sequence[nn.Module], mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(mean, std)
        self.stages = nn.ModuleList(stages)
        self.stages.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mixture = None

    def pool(self, features: Tensor) -> Tensor:
        """The last stage's features `[B, C, h, w]` → `[B, D]`, not normalised; differentiable."""
        return self.pool_layer(features)

    def read_locations(self, features: Tensor) -> Tensor:
        """The last stage's features `[B, C, h, w]` → the joint-space reading of each location `[B, D, h, w]`."""
        return self.pool_layer.read_locations(features)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return -(-height // self.stride), -(-width // self.stride)

    def _stage_index(self, stage: int) -> int:
        if not -len(self.stages) <= stage < 0:
            raise UsageError(f"expected a stage of {self.name} from {-len(self.stages)} to -1 (the last), got {stage}")
        return len(self.stages) + stage

    def run(self, images: Tensor, needs: Needs) -> Trace:
        if needs.only_vit:
            raise UsageError(f"{self.name} is a CNN without tokens or attention: choose a method for CNN towers")
        mixture = self.mixture if MIXTURE in needs.features else None
        plain = {stage for stage in needs.features if stage != MIXTURE or mixture is None}
        stage_of = {self._stage_index(stage): stage for stage in plain | set(mixture.stages if mixture else ())}
        wanted = sorted({*stage_of, len(self.stages) - 1})
        x, split = images.to(self.device, self.dtype), self.device.type == "cpu" and not torch.is_grad_enabled()
        at_once = max(1, AT_ONCE // (x.shape[-2] * x.shape[-1])) if split else 0
        outputs = run_stages(list(self.stages), x, wanted, at_once)  # each [B, C, h, w]
        features = {stage_of[index]: output for index, output in zip(wanted, outputs, strict=True) if index in stage_of}
        last = outputs[-1]
        if mixture is not None:
            mixed = mixture(features)
            features = {**{stage: features[stage] for stage in plain}, MIXTURE: mixed}
        embedding = F.normalize(self.pool(last).float(), dim=-1)  # [B, D]
        return Trace(embedding, (last.shape[-2], last.shape[-1]), features)

    def head(self, features: Tensor, trace: Trace, stage: int = -1) -> Tensor:  # noqa: ARG002  (a ViT needs the trace)
        x = features.to(self.dtype)
        for module in list(self.stages)[self._stage_index(stage) + 1 :]:
            x = module(x)
        return F.normalize(self.pool(x).float(), dim=-1)

    def dense(self, trace: Trace, reading: DenseReading = DenseReading()) -> Tensor:
        if reading.rule is not None:
            raise UsageError(
                f"{self.name} is a CNN, but an attention rule needs a ViT tower: choose another model, such as mini-vit"
            )
        return self.read_locations(trace.features[-1]).float()


class StageMixture(nn.Module):
    """A reading of stages, Σ_s W_s F_s, W_s `[D, C]` by stage from the end, each resized to the earliest's grid."""

    def __init__(self, weights: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.stages = sorted(weights)  # the earliest first
        for stage in self.stages:
            self.register_buffer(f"of_stage_{-stage}", weights[stage].float())

    def forward(self, features: Mapping[int, Tensor]) -> Tensor:
        """Stage → `[B, C, h, w]`, in any precision; returns `[B, D, h, w]` float32."""
        total: Tensor | None = None
        for stage in self.stages:
            read = torch.einsum("dc,bchw->bdhw", self.get_buffer(f"of_stage_{-stage}"), features[stage].float())
            total = read if total is None else total + F.interpolate(read, total.shape[-2:], mode="bilinear")
        assert total is not None, "a mixture of no stage"
        return total


class GlobalAveragePool(nn.Module):
    """Average pooling, minus a fixed mean feature μ: f = mean_hw A − μ. Each location reads exactly A − μ (CAM)."""

    mean_feature: Tensor

    def __init__(self, mean_feature: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean_feature", mean_feature)

    def forward(self, features: Tensor) -> Tensor:
        """The pooled features: `[B, C, h, w]` → `[B, C]`."""
        return features.mean(dim=(-2, -1)) - self.mean_feature

    def read_locations(self, features: Tensor) -> Tensor:
        """The reading of each location: `[B, C, h, w]` → `[B, C, h, w]`."""
        return features - self.mean_feature[:, None, None]


class AttentionPool(nn.Module):
    """CLIP's attention pool with OpenAI's tensor names, in plain products: fused attention has slow gradients."""

    def __init__(self, grid: tuple[int, int], channels: int, heads: int, size: int) -> None:
        super().__init__()
        self.grid, self.heads = grid, heads
        self.positional_embedding = nn.Parameter(torch.randn(grid[0] * grid[1] + 1, channels) / channels**0.5)
        self.q_proj = nn.Linear(channels, channels)
        self.k_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, size)

    def _positions(self, features: Tensor) -> Tensor:
        """The mean token's position, then those of the features' grid: `[1+N, C]`."""
        return resize_positions(self.positional_embedding, 1, self.grid, (features.shape[-2], features.shape[-1]))

    def forward(self, features: Tensor) -> Tensor:
        """`[B, C, h, w]` → `[B, D]`; one query, so q·(W_k x) = (W_kᵀ q)·x and Σ a_n W_v x_n = W_v Σ a_n x_n."""
        x = features.flatten(2).transpose(1, 2)  # [B, N, C]
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)  # [B, 1+N, C]
        x = x + self._positions(features)
        c = x.shape[-1]
        size = c // self.heads
        q = (self.q_proj(x[:, 0]) * size**-0.5).unflatten(1, (self.heads, size))  # [B, H, C/H]
        towards = torch.einsum("bhe,hec->bhc", q, self.k_proj.weight.view(self.heads, size, c))  # [B, H, C]
        attention = (towards @ x.transpose(1, 2)).softmax(dim=-1)  # [B, H, 1+N]
        gathered = attention @ x  # [B, H, C]
        values = torch.einsum("bhc,hec->bhe", gathered, self.v_proj.weight.view(self.heads, size, c))  # [B, H, C/H]
        return self.c_proj(values.flatten(1) + self.v_proj.bias)  # [B, D]

    def read_locations(self, features: Tensor) -> Tensor:
        """The value path (Zhou 2022), with positions, `[B, C, h, w]` → `[B, D, h, w]`; the pool is its mean."""
        h, w = features.shape[-2:]
        x = features.flatten(2).transpose(1, 2) + self._positions(features)[1:]  # [B, N, C]
        dense: Tensor = self.c_proj(self.v_proj(x)).transpose(1, 2)  # [B, D, N]
        return dense.reshape(dense.shape[0], -1, h, w)

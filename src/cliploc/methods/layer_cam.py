"""LayerCAM: every location of every channel has its own weight, so that earlier, finer stages can be read too."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.errors import UsageError
from cliploc.methods._infra.gradients import map_gradients
from cliploc.methods._infra.method import Context
from cliploc.methods._infra.method_registry import saliency
from cliploc.towers.tower import Needs

GAMMA = 2.0  # the paper's scale coefficient of the fusion


def _needs(stages: Sequence[int] = (-1,)) -> Needs:
    if not stages or any(stage >= 0 for stage in stages):
        raise UsageError(f"expected stages counted from the end for layer_cam, got {tuple(stages)}: -1 is the last")
    return Needs(features=tuple(stages))


@saliency(
    "layer_cam",
    title="LayerCAM",
    paper="Jiang et al. 2021, LayerCAM: Exploring Hierarchical Class Activation Maps for Localization, IEEE TIP",
    family="gradient",
    towers=("cnn",),
    needs=_needs,
    relu=True,
    threshold=0.25,
)
def layer_cam(ctx: Context, stages: Sequence[int] = (-1,)) -> Tensor:  # [B, P, h, w]
    """map_t = ReLU(Σ_c ReLU(∂s_t/∂A_c) ⊙ A_c); several stages are fused.

    Fusion: each stage's map M becomes tanh(γ M / max M) with γ = 2 (the paper's Eq. 9; the paper scales its shallow
    stages only), is resized (bilinear) to the finest of the grids, and the maximum is taken at each location. s_t is
    the cosine. Not defined on a ViT: ReLU(gradient) ⊙ A assumes A ≥ 0, and tokens have both signs.

    Peers: for one stage, `pytorch_grad_cam.LayerCAM` and `torchcam.methods.LayerCAM` give the same map. For several,
    `torchcam`'s `fuse_cams` does where each map's minimum is 0; `pytorch_grad_cam` takes the mean of normalised maps.

    Args:
        stages: which ones, counted from the end: (-1,) is the last, (-1, -2, -3) fuses three.
    """

    def weigh(features: Tensor, gradients: Tensor) -> Tensor:
        return torch.einsum("bpchw,bchw->bphw", gradients.relu(), features)

    maps = [map_gradients(ctx, weigh, stage) for stage in _needs(stages).features]  # each [B, P, h, w]
    if len(maps) == 1:
        return maps[0]
    height, width = max((m.shape[-2], m.shape[-1]) for m in maps)
    fused = []
    for stage_map in maps:
        positive = stage_map.relu()
        peak = positive.amax(dim=(-2, -1), keepdim=True)
        scaled = torch.tanh(GAMMA * positive / peak.masked_fill(peak == 0, 1))
        fused.append(F.interpolate(scaled, size=(height, width), mode="bilinear", align_corners=False))
    return torch.stack(fused).amax(dim=0)  # [B, P, h, w]

"""LayerCAM: every location of every channel has its own weight, so that earlier, finer stages can be read too."""

import torch
from torch import Tensor

from cliploc.methods import Context, Needs, Stages, gradient_cam, map_gradients, on_finest

GAMMA = 2.0  # the paper's scale coefficient of the fusion


@gradient_cam(
    "layer_cam",
    title="LayerCAM",
    paper="Jiang et al. 2021, LayerCAM: Exploring Hierarchical Class Activation Maps for Localization, IEEE TIP",
    needs=lambda stages=(-1,): Needs(features=tuple(stages)),
    threshold=0.25,
)
def layer_cam(ctx: Context, stages: Stages = (-1,)) -> Tensor:  # [B, P, h, w]
    """map_t = ReLU(Σ_c ReLU(∂s_t/∂A_c) ⊙ A_c); several stages are fused.

    Fusion: each stage's map M becomes tanh(γ M / max M) with γ = 2 (the paper's Eq. 9; the paper scales its shallow
    stages only), is resized (bilinear) to the finest of the grids, and the maximum is taken at each location. s_t is
    the cosine. Not defined on a ViT: ReLU(gradient) ⊙ A assumes A ≥ 0, and tokens have both signs.

    Peers: for one stage, `pytorch_grad_cam.LayerCAM` and `torchcam.methods.LayerCAM` give the same map. For several,
    `torchcam`'s `fuse_cams` does where each map's minimum is 0; `pytorch_grad_cam` takes the mean of normalised maps.

    Args:
        stages: which ones, counted from the end: (-1,) is the last, (-1, -2, -3) fuses three.
    """
    maps = [map_gradients(ctx, lambda a, g: torch.einsum("bpchw,bchw->bphw", g.relu(), a), stage) for stage in stages]
    if len(maps) == 1:
        return maps[0]
    positive = [stage_map.relu() for stage_map in maps]
    peaks = [stage_map.amax(dim=(-2, -1), keepdim=True) for stage_map in positive]
    fused = [torch.tanh(GAMMA * m / peak.masked_fill(peak == 0, 1)) for m, peak in zip(positive, peaks, strict=True)]
    return on_finest(fused).amax(dim=0)

"""XGrad-CAM: channels weighted by the gradients where they are active."""

import torch
from torch import Tensor

from cliploc.methods import Context, gradient_cam, map_gradients


@gradient_cam(
    "xgrad_cam",
    title="XGrad-CAM",
    paper="Fu et al. 2020, Axiom-based Grad-CAM: Towards Accurate Visualization and Explanation of CNNs, BMVC",
    threshold=0.1,
)
def xgrad_cam(ctx: Context) -> Tensor:  # [B, P, h, w]
    """map_t = ReLU(Σ_c w_tc A_c), w_tc = Σ_hw (A_c / Σ_hw A_c) ∂s_t/∂A_c.

    s_t is the cosine. A channel whose activations sum to zero, up to rounding, has weight 0: after ReLU such a channel
    is off. With average pooling it is Grad-CAM. Not defined on a ViT: a sum of tokens of both signs means nothing.
    Peers: `pytorch_grad_cam.XGradCAM` and `torchcam.methods.XGradCAM` add 1e-7 and 1e-8 to the sum instead.
    """

    def weighted(a: Tensor, g: Tensor) -> Tensor:
        total = a.sum(dim=(-2, -1))  # [B, C]
        off = total.abs() <= 1e-6 * a.abs().sum(dim=(-2, -1))
        share = a / total.masked_fill(off, 1)[..., None, None]  # [B, C, h, w]
        weights = torch.einsum("bpchw,bchw->bpc", g, share).masked_fill(off[:, None], 0)
        return torch.einsum("bpc,bchw->bphw", weights, a)

    return map_gradients(ctx, weighted)

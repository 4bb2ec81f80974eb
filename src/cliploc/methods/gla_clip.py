"""GLA-CLIP: ProxyCLIP whose places attend to those of all windows of the picture, by a mean of the places like them."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.methods import Context, Count, DenseReading, Needs, dense_cosine, patch_cosines, softmax_from_zero
from cliploc.methods.proxyclip import resized_values


@patch_cosines(
    "gla_clip",
    title="GLA-CLIP",
    paper="Lee et al. 2026, Looking Beyond the Window: Global-Local Aligned CLIP for Training-free Open-Vocabulary "
    "Semantic Segmentation, CVPR",
    needs=Needs(dense=1, guide=True, windows=True),
    threshold=0.7,  # ProxyCLIP's
)
def gla_clip(
    ctx: Context, alike: float = 0.55, rounds: Count = 2, beta: float = 0.3, gamma: float = 30.0
) -> Tensor:  # [B, P, h, w] on the guide's grid
    """map_t = cos(r, g_t), r = W_proj · ln_post(out_proj(A·v)), where A and v are those of all W windows together.

    k_j are the guide's features of all places of all windows, of unit length. The proxy of place i begins as k_i. In
    each round it becomes, at unit length, the mean of the k_j with p_i·k_j > alike; n_i is how many these were in the
    last round. S_ij = p_i·k_j, m_i = max(0, mean_j S_ij), L_ij = γ_i (S_ij − β m_i), β = 1 + beta · ln(1 + W),
    γ_i = 1 + gamma / n_i. A_i = softmax over the j with L_ij ≥ 0, or over the greatest where none is.

    This is ProxyCLIP's form of the method, with the constants of the authors' script. Their form of ClearCLIP is not
    here: as released (ba74915) it stops with a TypeError, as it asks for a β of two counts of places that the code does
    not define. Windows are those of `cliploc segment` and of segmentation benchmarks; else a picture is one window.

    Args:
        alike: the least cosine with a proxy of the places that it is the mean of.
        rounds: how often proxies are computed.
        beta: how fast more is subtracted with more windows.
        gamma: how much sharper the softmax is for places with few like them.
    """
    assert ctx.guide is not None  # as `Needs.guide` says
    features = F.normalize(ctx.guide().float(), dim=1)  # [B, C, h', w']
    grid, prefix = (features.shape[-2], features.shape[-1]), ctx.transformer.prefix_tokens
    of_windows = features.flatten(2).transpose(1, 2)  # [B, N', C]
    windows = len(of_windows) if ctx.windows else 1
    share = 1 + beta * math.log1p(windows)

    def rule(q: Tensor, k: Tensor, v: Tensor, scale: Tensor | float) -> Tensor:  # noqa: ARG001
        values = resized_values(v[:, :, prefix:], ctx.trace.grid, grid)  # [B, H, N', d/H]
        gathered = []
        for start in range(0, len(of_windows), windows):
            keys = of_windows[start : start + windows].flatten(0, 1)  # [W·N', C]
            of_all = values[start : start + windows].transpose(0, 1).flatten(1, 2)  # [H, W·N', d/H]
            for places in of_windows[start : start + windows]:  # a window's rows at a time, as there may be many
                gathered.append(_attention(places, keys, alike, rounds, share, gamma) @ of_all)
        return torch.cat([v[:, :, :prefix].float(), torch.stack(gathered)], dim=2)

    return dense_cosine(ctx, DenseReading(rule, grid=grid))


def _attention(places: Tensor, keys: Tensor, alike: float, rounds: int, share: float, gamma: float) -> Tensor:
    """A's rows `[N, M]` of places `[N, C]` and keys `[M, C]`, both of unit length."""
    proxies = places
    for _ in range(rounds):
        like = (proxies @ keys.T > alike).float()  # [N, M]
        count = like.sum(dim=1, keepdim=True)
        # A proxy that is like no place, which a mean can be, is the place itself again.
        proxies = F.normalize(torch.where(count == 0, places, like @ keys), dim=1)
    cosines = proxies @ keys.T
    mean = cosines.mean(dim=1, keepdim=True).clamp(min=0)
    logits = (cosines - share * mean) * (1 + gamma / count.clamp(min=1))
    return softmax_from_zero(logits)

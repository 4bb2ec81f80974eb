"""PEARL: in the last block, keys are rotated onto the queries before patches attend by them."""

import torch
from torch import Tensor

from cliploc.methods import Context, DenseReading, NotNegative, attend, dense_cosine, patch_cosines

STEPS = 5  # of Newton–Schulz, in the authors' code
EPSILON = 1e-6  # added to the diagonal before them


@patch_cosines(
    "pearl",
    title="PEARL",
    paper="Pei et al. 2026, Geometry Aligns Semantics for Training-Free Open-Vocabulary Semantic Segmentation, CVPR",
    threshold=0.65,
)
def pearl(ctx: Context, key_weight: NotNegative = 0.08) -> Tensor:  # [B, P, h, w]
    """map_t = cos(r, g_t), r = W_proj · ln_post(out_proj(softmax(s·q(kR)ᵀ + 0.08·s·k_c k_cᵀ)·v)), s = 1/√d_h.

    R is the orthogonal matrix that brings keys nearest to queries: k_c = k − Σ_i w_i k_i and q_c = q − Σ_i w_i q_i with
    w_i ∝ ‖q_i‖ (0 for the class token), M = k_cᵀ q_c, R = M (MᵀM)^−½. The inverse root is the authors': five
    Newton–Schulz steps on MᵀM/‖MᵀM‖ + 10⁻⁶·I, which leave R not quite orthogonal; a singular value decomposition gives
    other maps. All tokens take part; no residual, no MLP. The paper's second part, which spreads the classes' scores
    over the picture, is `--propagation tlp` of segmentation.

    Args:
        key_weight: the weight of the attention by keys alone.
    """

    def rule(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        q, k = q.float(), k.float()  # [B, H, T, d/H]
        weights = q.norm(dim=-1, keepdim=True)  # [B, H, T, 1]
        weights[:, :, : ctx.transformer.prefix_tokens] = 0
        weights = weights / weights.sum(dim=2, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
        q_centred, k_centred = (x - (weights * x).sum(dim=2, keepdim=True) for x in (q, k))
        aligned = k @ _polar_factor(k_centred.transpose(-2, -1) @ q_centred)  # [B, H, T, d/H]
        # Both logits in one product, so that fused attention stores no [T, T].
        ours, theirs = torch.cat([q, key_weight * k_centred], dim=-1), torch.cat([aligned, k_centred], dim=-1)
        return attend(ours, theirs, v.float(), scale)

    return dense_cosine(ctx, DenseReading(rule))


def _polar_factor(matrix: Tensor) -> Tensor:
    """M (MᵀM)^−½ of `[…, n, n]`, by a fixed number of Newton–Schulz steps."""
    gram = matrix.transpose(-2, -1) @ matrix
    size = gram.norm(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(gram.dtype).tiny)  # Frobenius
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    root, inverse = gram / size + EPSILON * eye, eye.expand_as(gram)
    for _ in range(STEPS):
        step = 1.5 * eye - 0.5 * inverse @ root
        root, inverse = root @ step, step @ inverse
    factor: Tensor = matrix @ inverse / size.sqrt()
    return factor

"""NACLIP: in the last block, patches attend to patches with similar keys, and to their neighbours."""

from torch import Tensor

from cliploc.methods import Context, DenseReading, Positive, dense_cosine, neighbourhood, patch_cosines, self_attention


@patch_cosines(
    "naclip",
    title="NACLIP",
    paper="Hajimiri et al. 2025, Pay Attention to Your Neighbours: Training-Free Open-Vocabulary Semantic "
    "Segmentation, WACV",
    threshold=0.6,
)
def naclip(ctx: Context, sigma: Positive = 5.0) -> Tensor:  # [B, P, h, w]
    """map_t = cos(r, g_t), r = W_proj · ln_post(out_proj(softmax(kkᵀ/√d_h + ω)·v)): no residual, no MLP.

    ω_ij = exp(−‖p_i − p_j‖² / 2σ²), p a patch's row and column on a grid of any shape; ω is 0 from and to the class
    token. The paper's sliding windows over a larger picture and its mask refinement are not part of this method.

    Args:
        sigma: σ in patches. ω is at most 1; how much that changes the attention depends on the model's logits.
    """
    prior = neighbourhood(ctx.trace.grid, ctx.transformer.prefix_tokens, sigma).to(ctx.backbone.device)  # [T, T]
    return dense_cosine(ctx, DenseReading(self_attention("k", prior)))

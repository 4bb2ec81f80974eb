"""ClearCLIP: in the last block, patches attend to patches with similar queries; no residual and no MLP."""

from torch import Tensor

from cliploc.methods import Context, DenseReading, dense_cosine, patch_cosines, self_attention


@patch_cosines(
    "clearclip",
    title="ClearCLIP",
    paper="Lan et al. 2024, ClearCLIP: Decomposing CLIP Representations for Dense Vision-Language Inference, ECCV",
    threshold=0.45,
)
def clearclip(ctx: Context) -> Tensor:  # [B, P, h, w]
    """map_t = cos(r, g_t), r = W_proj · ln_post(out_proj(softmax(qqᵀ/√d_h)·v)): no residual, no MLP.

    The paper finds that the residual carries what all patches have in common and hides their differences. Its sliding
    windows over a larger picture are left out: use a larger input, or `scales`.
    """
    return dense_cosine(ctx, DenseReading(self_attention("q")))

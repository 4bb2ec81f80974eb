"""SCLIP: in the last block, patches attend to patches with similar queries and to patches with similar keys."""

from torch import Tensor

from cliploc.methods import Context, DenseReading, dense_cosine, patch_cosines, self_attention


@patch_cosines(
    "sclip",
    title="SCLIP",
    paper="Wang et al. 2024, SCLIP: Rethinking Self-Attention for Dense Vision-Language Inference, ECCV",
    threshold=0.45,
)
def sclip(ctx: Context) -> Tensor:  # [B, P, h, w]
    """map_t = cos(r, g_t), the last block's attention replaced by softmax(qqᵀ/√d_h) + softmax(kkᵀ/√d_h).

    The two attentions are added, not averaged, and the block keeps its residual and its MLP, as in the authors' code.
    The paper's sliding windows over a larger picture and its background threshold are left out: use a larger input, or
    `scales`.
    """
    return dense_cosine(ctx, DenseReading(self_attention("qk"), residual=True, mlp=True))

"""MaskCLIP: each patch is read by its own value vector; attention mixes in no other patch."""

from torch import Tensor

from cliploc.methods import Context, DenseReading, dense_cosine, patch_cosines


@patch_cosines(
    "maskclip", title="MaskCLIP", paper="Zhou et al. 2022, Extract Free Dense Labels from CLIP, ECCV", threshold=0.45
)
def maskclip(ctx: Context, residual: bool = False, mlp: bool = False) -> Tensor:  # [B, P, h, w]
    """map_t = cos(r, g_t), r = W_proj · ln_post(out_proj(v)): the last block with every patch's attention on itself.

    The paper's ViT keeps the block's residual and MLP, which bring back what earlier blocks mixed into the patch; we
    leave both out, as later work does. Its key smoothing and prompt denoising are not part of this method. On a tower
    with an attention pool a patch is read through the pool's value path. For a CNN the method is `cam`.

    Args:
        residual: whether the block's residual is added, as in the paper.
        mlp: whether the block's MLP follows, as in the paper.
    """
    return dense_cosine(ctx, DenseReading(residual=residual, mlp=mlp))

"""LeGrad: how strongly more attention to each patch would raise the score of each block's tokens."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.methods import BlockEnd, Blocks, Context, Needs, blocks_of, last_blocks, patches_of, saliency
from cliploc.methods._infra.gradients import differentiable, each_prompt, jacobian_products, leaf, prompt_scores

MAX_GRAPHS = 4  # blocks whose graph a trace may hold: on ViT-L/14@336, 25 MB each for an image


def _needs(blocks: Blocks = 2) -> Needs:
    chosen = last_blocks(blocks)
    return Needs(tokens=chosen) if chosen == "all" or len(chosen) > MAX_GRAPHS else Needs(ends=chosen)


@saliency(
    "legrad",
    title="LeGrad",
    paper="Bousselham et al. 2024, LeGrad: An Explainability Method for Vision Transformers via Feature Formation "
    "Sensitivity",
    family="gradient",
    towers=("vit",),
    needs=_needs,
    threshold=0.3,
)
def legrad(ctx: Context, blocks: Blocks = 2) -> Tensor:  # [B, P, h, w]
    """map_t = mean over blocks l of mean_{H, queries} ReLU(∂s_t^l/∂A^l)[→ patches].

    s_t^l = cos(W_proj·ln_post(z̄^l), g_t), z̄^l the mean of all tokens that leave block l, class token included, as
    in the authors' code. A tower with average pooling uses its own pooling. On a tower with an attention pool, A^l is
    that pool's attention over the tokens that leave block l.

    Gradients stay within their block, and A^l is never stored for more than one image: the heads' output is o = A^l·v,
    so ∂s_t^l/∂A^l = ∂s_t^l/∂o · vᵀ. Up to MAX_GRAPHS blocks keep their graph after o; more are run again one at a time.

    Peers: `torchcam.methods.LeGrad` and `legrad_torch` (whose `layer_index=-2` is our `blocks=2`) give the same map for
    a class-token tower. `legrad_torch` 1.1 needs open_clip up to 2.23: today's blocks get its tokens in another order,
    so that they attend to no other token; our test gives it the older blocks. On SigLIP it pools without the tower's
    last norm, and by default it removes what the text "a photo of a" highlights; we do neither.

    Args:
        blocks: how many of the last blocks, or "all".
    """
    return torch.stack([_sensitivity(ctx, block) for block in blocks_of(ctx, blocks)]).mean(dim=0)


def _sensitivity(ctx: Context, block: int) -> Tensor:
    """One block's map `[B, P, h, w]`; a function, so that its graph goes before the next one's."""
    with differentiable():
        products, values = block_gradients(ctx, ctx.end(block))
        rows = [_rows(gradient, values) for gradient in products]
    return patches_of(ctx, torch.cat(rows, dim=1))


def block_gradients(ctx: Context, end: BlockEnd, at_once: bool = True) -> tuple[Iterator[Tensor], Tensor | None]:
    """The gradients g of p prompts at a time, `[B, p, H, …]`, and vᵀ `[B, H, d/H, T]` of a block: ∂s_t/∂A = g·vᵀ.

    None instead of vᵀ where g is ∂s_t/∂A itself, `[B, p, H, 1, T]`, of an attention pool's A. Autograd must be on.
    """
    tower = ctx.transformer
    if tower.pooling == "attention":
        pooled, looked = tower.pool(leaf(end.tokens()))  # [B, D], [B, H, 1, T]
        assert looked is not None
        return _products(ctx, pooled, looked, at_once), None
    if tower.pooling == "class token":
        pooled = tower.read_tokens(end.mean_token()[:, None])[:, 0]  # [B, D]
    else:
        pooled, _ = tower.pool(end.tokens())
    return _products(ctx, pooled, end.gathered, at_once), end.values.float().transpose(-2, -1)


def _products(ctx: Context, pooled: Tensor, tap: Tensor, at_once: bool) -> Iterator[Tensor]:
    """∂s_t/∂tap of p prompts at a time, `[B, p, …]`, s_t the cosines of `[B, D]`."""
    scores = prompt_scores(ctx, F.normalize(pooled.float(), dim=-1))  # [B, P]
    products = jacobian_products(scores, (tap,), each_prompt(scores), keep=True, at_once=at_once)
    return (gradient for (gradient,) in products)


def _rows(gradient: Tensor, values: Tensor | None) -> Tensor:
    """mean_{H, queries} ReLU(g·vᵀ) of `[B, p, H, T, d/H]`: `[B, p, T]`; one `[H, T, T]` at a time, for the cache."""
    if values is None:
        return gradient.relu().mean(dim=(2, 3))
    rows = [
        [(of_prompt @ v).relu_().mean(dim=(0, 1)) for of_prompt in of_image]  # each [H, T, T] → [T]
        for of_image, v in zip(gradient, values, strict=True)
    ]
    return torch.stack([torch.stack(of_image) for of_image in rows])

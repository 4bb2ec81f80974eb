"""AttnLRP: the score's relevance, passed back layer by layer so that it is kept, also through the attention."""

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.methods import Context, Needs, NotNegative, batched_gradients, leaf, patches_of, saliency
from cliploc.methods._infra.backward import ATTN_LRP, CONSTANT_ATTENTION, Backward, Rule, gamma_rule

FIRST = Fraction(0)  # the first block


@saliency(
    "attnlrp",
    title="AttnLRP",
    paper="Achtibat et al. 2024, AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers, ICML",
    family="gradient",
    towers=("vit",),
    needs=Needs(tokens=(FIRST,)),
    relu=True,
    threshold=0.25,
    libra=False,
)
def attnlrp(ctx: Context, gamma: NotNegative = 0.0, softmax: bool = True) -> Tensor:  # [B, P, h, w]
    """map_t(i) = Σ_d R_id, the relevance of patch i's token x_i entering the first block, for the cosine s_t.

    Relevance starts as s_t and goes back by a rule for each layer: linear layers and sums by their terms' shares (the
    ε rule with ε = 0, or the γ rule); a product of two tensors, also of matrices, gives half to each; the softmax by
    its Taylor expansion, R_x = x ⊙ (R_y − y Σ R_y); layer norms with their standard deviation, and the division by the
    embedding's length, as constants; activations pass it on. As in the authors' package, R is computed as x ⊙ gradient,
    with each layer's gradient changed.

    The authors go on to the pixels and draw these; we stop at the patches' tokens, as they do for words. What position
    embeddings get is therefore a part of the patch's relevance. For ViTs they tune γ for each model (0 to 1), because
    relevance without it is noisy; their example for CLIP applies it to the MLPs, and ours to all linear layers.

    Checked against the paper's equations, and against the operations of `lxt` 2.1.

    Args:
        gamma: γ of the linear layers; 0 is the ε rule.
        softmax: whether relevance also goes back through the softmax. False, as in the authors' example for CLIP, takes
            the attention as a constant.
    """
    rules: dict[Any, Rule] = {
        **ATTN_LRP,
        **({} if softmax else CONSTANT_ATTENTION),
        **({F.linear: gamma_rule(gamma)} if gamma else {}),
    }
    block = -ctx.transformer.depth

    def run() -> tuple[Tensor, Tensor]:
        tokens = leaf(ctx.trace.entering[block])  # [B, T, d]
        return tokens, ctx.resume(tokens, block, Needs()).embedding

    with Backward(rules):
        relevance = batched_gradients(ctx, run, lambda tokens, g: torch.einsum("btd,bptd->bpt", tokens, g))
    return patches_of(ctx, relevance)

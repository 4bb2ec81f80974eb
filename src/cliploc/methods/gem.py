"""GEM: in the last blocks, patches attend to patches with similar queries, keys and values, after clustering these."""

from typing import Annotated, TypeAlias

import torch
from msgspec import Meta
from torch import Tensor
from torch.nn import functional as F

from cliploc.methods import Context, Count, DenseReading, Needs, Positive, attend, dense_cosine, patch_cosines

Iterations: TypeAlias = Annotated[int, Meta(ge=0)]
DEPTH = 6  # blocks that gem_torch edits by default


@patch_cosines(
    "gem",
    title="GEM",
    paper="Bousselham et al. 2024, Grounding Everything: Emerging Localization Properties in Vision-Language "
    "Transformers, CVPR",
    needs=lambda depth=DEPTH: Needs(dense=depth),
    threshold=0.45,
)
def gem(
    ctx: Context, depth: Count = DEPTH, iterations: Iterations = 1, temperature: Positive | None = None
) -> Tensor:  # [B, P, h, w]
    """map_t = cos(r, g_t), r the end of a path to which each of the last blocks adds its self-self attention.

    The path starts with the tokens entering the last `depth` blocks. Each block adds out_proj of the mean over
    x = v, k, q of softmax(x̂x̂ᵀ/τ)·v, from the tower's unchanged tokens, and no MLP. x̂ is x at unit length in every head,
    moved towards similar tokens `iterations` times: x̂ ← norm(softmax(x̂x̂ᵀ/τ)·x̂). The temperature adapts to each block
    and image: 1/τ = mean‖y‖/√d_h over the tokens y that enter the projections, after their layer norm.

    Definition and defaults are those of `gem_torch` 1.0.1 (tests compare the two), whose `depth` is one more and whose
    `ss_attn_temp` is our 1 / temperature. With today's open_clip it swaps tokens and batch for the blocks that it does
    not edit, so that every token attends to itself alone; the tests correct that.

    Args:
        depth: how many blocks; all when the tower has fewer.
        iterations: how often queries, keys and values are clustered before they attend; 0 for never.
        temperature: τ, the same in every block; None for the adaptive one.
    """

    def rule(q: Tensor, k: Tensor, v: Tensor, scale: Tensor | float) -> Tensor:
        scale = scale if temperature is None else 1 / temperature
        gathered = []
        for x in (v.float(), k.float(), q.float()):  # each [B, H, T, d/H]
            clustered = F.normalize(x, dim=-1)
            for _ in range(iterations):
                clustered = F.normalize(attend(clustered, clustered, clustered, scale), dim=-1)
            gathered.append(attend(clustered, clustered, v.float(), scale))
        return torch.stack(gathered).mean(dim=0)  # [B, H, T, d/H]

    blocks = min(depth, ctx.transformer.depth)
    return dense_cosine(ctx, DenseReading(rule, blocks, residual=True, parallel=True, adaptive=True))

"""CorrCLIP: places attend inside their region, as alike as a guide says; two more branches add to their reading."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.methods import Context, DenseReading, Needs, patch_cosines, patches_of
from cliploc.methods.proxyclip import on_guides_grid

LOWER = {12: 5, 24: 12, 32: 28}  # depth → how many of the lower blocks the spatial branch averages; else depth − 4


@patch_cosines(
    "corrclip",
    title="CorrCLIP",
    paper="Zhang et al. 2025, CorrCLIP: Reconstructing Patch Correlations in CLIP for Open-Vocabulary Semantic "
    "Segmentation, ICCV",
    needs=Needs(projections="all", guide=True),
    threshold=0.7,  # ProxyCLIP's
)
def corrclip(
    ctx: Context, tau: float = 4.0, merge: float = 0.2, spatial: float = 1.0, semantic: float = 0.5
) -> Tensor:  # [B, P, h, w] on the guide's grid
    """map_t = cos(r, g_t), r = W_proj (ln_post(m) + spatial · ln_post(m̄) + semantic · ln_post(c)).

    * **Scope.** S are the cosines of the guide's features. Regions whose mean features are alike, 1 − cosine ≤ merge,
      directly or through others, become one. A place attends to those of its region. Places in no region attend, and
      are attended to, where S is above its mean over the picture. A place always attends to itself.
    * **Value.** A = softmax(τ S) in that scope, the same for all heads; m = out_proj(A·v) of the last block: no
      residual, no MLP. The patches' values v are resized (bilinear) to the guide's grid, which is the map's.
    * **Spatial branch.** m̄: the same, of the mean of the tokens that leave five blocks, 6–10 of 12.
    * **Semantic branch.** c: a class token for each region passes the whole tower, and attends to the class token and
      the patches of its region only. All places of the region get it. Left out in towers without a class token.

    Regions come from `cliploc segment --regions`, whose vote is the paper's last step; without any the whole picture is
    in no region. The authors' guide is `qk:dino-b8`: queries plus keys of DINO's last block.
    Where every pixel of a window is in a region, their code takes its first region for none; here it stays a region.

    Args:
        tau: how sharp the softmax is.
        merge: the greatest distance of regions that become one.
        spatial: weight of the spatial branch.
        semantic: weight of the semantic branch.
    """
    assert ctx.guide is not None  # as `Needs.guide` says
    tower, trace = ctx.transformer, ctx.trace
    with torch.no_grad():
        features = F.normalize(ctx.guide().float(), dim=1)  # [B, C, h', w']
        grid = (features.shape[-2], features.shape[-1])
        places = features.flatten(2).transpose(1, 2)  # [B, N', C]
        pixels = ctx.regions
        if pixels is None:
            pixels = torch.full((len(places), *grid), -1, device=places.device)
        of_places = F.interpolate(pixels[:, None].float(), grid).long()[:, 0]  # [B, h', w']
        merged = torch.stack([_merged(*place, merge) for place in zip(of_places.flatten(1), places, strict=True)])
        alike = places @ places.transpose(1, 2)
        free = (merged < 0)[:, :, None] | (merged < 0)[:, None]  # where one of two places is in no region
        scope = torch.where(
            free, alike > alike.mean(dim=(1, 2), keepdim=True), merged[:, :, None] == merged[:, None]
        )  # [B, N', N'] who may attend to whom
        scope.diagonal(dim1=1, dim2=2).fill_(True)
        attention = (tau * alike).masked_fill(~scope, -torch.inf).softmax(dim=2)  # [B, N', N']
        reading = DenseReading(on_guides_grid(ctx, attention, grid), grid=grid)
        lower = range(-2 - LOWER.get(tower.depth, max(1, tower.depth - 4)), -2)  # blocks, by what leaves them
        between = torch.stack([trace.entering[max(back + 1, -tower.depth)].float() for back in lower]).mean(dim=0)
        of_lower = replace(trace, entering={-1: between.to(trace.entering[-1].dtype)}, projections={}, normed={})
        read, lower_read = (
            tower.normed_tokens(tower.path(traced, reading)[:, tower.prefix_tokens :]) for traced in (trace, of_lower)
        )  # each [B, N', d]
        read = read + spatial * lower_read
        if tower.pooling == "class token" and semantic:
            tokens = F.interpolate(merged.view(-1, 1, *grid).float(), trace.grid).long().flatten(1)  # [B, N]
            classes = torch.stack([_class_of_places(ctx, b, of, grid) for b, of in enumerate(tokens)])
            read = read + semantic * tower.last_norm(classes.to(read.dtype))
        joint = F.normalize(tower.read_normed(read).float(), dim=-1)  # [B, N', D]
        maps = torch.einsum("bnd,bpd->bpn", joint, ctx.patch_text)
        return maps.reshape(*maps.shape[:2], *grid)


def _merged(regions: Tensor, places: Tensor, distance: float) -> Tensor:
    """The regions `[N]` of places `[N, C]`, numbered anew, where those with like means are one; −1 stays."""
    names, number = torch.unique(regions, return_inverse=True)
    inside = names >= 0
    if inside.sum() < 2:
        return regions
    member = F.one_hot(number).T[inside].to(places)  # [R, N]
    means = F.normalize(member @ places / member.sum(dim=1, keepdim=True), dim=1)
    cosines = means @ means.T
    linked = (cosines.max() - cosines <= distance).to(places)
    for _ in range(len(linked).bit_length()):  # paths of twice the length
        linked = (linked @ linked > 0).to(places)
    first = linked.argmax(dim=1)  # the lowest region that each is joined with
    return torch.where(regions < 0, -1, F.pad(first, (len(names) - len(first), 0))[number])


def _class_of_places(ctx: Context, image: int, regions: Tensor, grid: tuple[int, int]) -> Tensor:
    """`[N', d]`: for each place of the guide's grid the class token of its region, of the patches' regions `[N]`."""
    tower, trace = ctx.transformer, ctx.trace
    names, number = torch.unique(regions, return_inverse=True)
    unseen = F.pad(F.one_hot(number).T == 0, (tower.prefix_tokens, 0), value=True)  # [R, T]
    unseen[:, 0] = False
    # A sequence for each region: its class token, the other prefix tokens and a patch, which no one reads.
    prefix = trace.entering[-tower.depth][image : image + 1, : tower.prefix_tokens + 1]
    tokens = prefix.repeat(len(names), 1, 1)
    for back in range(-tower.depth, 0):
        _, k, v = (part[image : image + 1] for part in trace.projections[back])  # each [1, H, T, d/H]

        def rule(q: Tensor, _: Tensor, __: Tensor, scale: Tensor | float, k: Tensor = k, v: Tensor = v) -> Tensor:
            weights = (q.float() @ k.float().transpose(2, 3) * scale).masked_fill(unseen[:, None, None], -torch.inf)
            return weights.softmax(dim=-1) @ v.float()

        tokens = tower.end(tokens, back, (1, 1), rule).tokens().detach()
    of_cells = F.interpolate(patches_of(ctx, number)[None, None].float(), grid).long().flatten()
    return tokens[of_cells, 0]

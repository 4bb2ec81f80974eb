"""Embeddings of the picture seen through each of its own channels: what the Score-CAM family weighs channels by.

They depend on no text, so they are made once per image, whatever the number of prompts and of methods.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.saliency._infra.channels import Channels, channel_maps
from cliploc.schema import Context

BASELINE_KEY = "embedding of the empty picture"


@dataclass(frozen=True)
class MaskedEmbeddings:
    """Embeddings of x ⊙ M_k for the channels that some method has asked for.

    Attributes:
        embeddings: `[B, C, D]` float32, unit norm; a dead channel has the baseline's.
        baseline: `[D]` embedding of x_b, zeros in normalised space (the picture through an empty mask).
        alive: `[B, C]` whether the channel varies over h×w, so that it makes a mask.
        done: `[B, C]` whether the embedding is there.
    """

    embeddings: Tensor
    baseline: Tensor
    alive: Tensor
    done: Tensor

    def scores(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Of `[B, P, D]`: each channel's score e_k·g_t, `[B, P, C]`, and the baseline's, `[B, P, 1]`."""
        scores = torch.einsum("bcd,bpd->bpc", self.embeddings, text)
        baseline = torch.einsum("d,bpd->bp", self.baseline, text)[..., None]
        # The two products may round differently: a dead channel's score is exactly the baseline's.
        return torch.where(self.alive[:, None], scores, baseline), baseline


def masked_embeddings(ctx: Context, channels: Channels | None = None, wanted: Tensor | None = None) -> MaskedEmbeddings:
    """Runs the tower once for each channel that is wanted, alive and not in `ctx.cache` yet.

    M_k = up(A_k), bilinear (align_corners=False) to the input's size, then min–max normalised to [0, 1]. A channel that
    is constant, up to rounding, makes no mask: it costs no forward and has the baseline's embedding. Masks are made a
    batch at a time: [C, H, W] never exists.

    Args:
        ctx: images. `ctx.progress` is called with the number of masked images of each batch.
        channels: whose maps A_k; None for the features of the last stage.
        wanted: `[B, C]` bool; None for every channel.

    Returns:
        The embeddings; of channels neither wanted nor done before, `done` is False and the embedding the baseline's.
    """
    channels = channel_maps(ctx) if channels is None else channels
    images, features = ctx.images, channels.maps  # [B, 3, H, W], [B, C, h, w]
    key = ("masked embeddings", channels.key)
    # Normal tensors even where the caller is in inference mode: another mode's method may add to them later.
    with torch.inference_mode(False), torch.no_grad():
        if key not in ctx.cache:
            ctx.cache[key] = _empty(ctx, features)
        masked: MaskedEmbeddings = ctx.cache[key]
        missing = masked.alive & ~masked.done
        pairs = (missing if wanted is None else missing & wanted).nonzero()  # [n, 2]: image, channel
        for chunk in torch.split(pairs, ctx.batch_size) if len(pairs) else ():
            image, channel = chunk.unbind(1)
            mask = features[image, channel].float()[:, None]  # [n, 1, h, w]
            mask = F.interpolate(mask, size=images.shape[-2:], mode="bilinear", align_corners=False)  # [n, 1, H, W]
            low, high = mask.amin((-2, -1), keepdim=True), mask.amax((-2, -1), keepdim=True)
            mask = (mask - low) / (high - low).clamp(min=torch.finfo(mask.dtype).tiny)
            masked.embeddings[image, channel] = ctx.embed(images.to(mask.device)[image] * mask)
            masked.done[image, channel] = True
            if ctx.progress is not None:
                ctx.progress(len(chunk))
    return masked


def _empty(ctx: Context, features: Tensor) -> MaskedEmbeddings:
    """Every channel with the baseline's embedding, which is right for the dead ones and replaced for the others."""
    if BASELINE_KEY not in ctx.cache:
        (ctx.cache[BASELINE_KEY],) = ctx.embed(torch.zeros_like(ctx.images[:1]))
    baseline: Tensor = ctx.cache[BASELINE_KEY]  # [D]
    flat = features.float().flatten(2)  # [B, C, N]
    rounding = 8 * torch.finfo(features.dtype).eps * flat.abs().amax(-1)
    alive = flat.amax(-1) - flat.amin(-1) > rounding  # [B, C]
    embeddings = baseline.expand(*alive.shape, -1).clone()  # [B, C, D]
    return MaskedEmbeddings(embeddings, baseline, alive, done=~alive)

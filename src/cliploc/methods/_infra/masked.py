"""Score-CAM's family: feature maps as masks, and embeddings of masked pictures, once an image for all prompts."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.methods import Context, Needs, saliency

BASELINE_KEY = "embedding of the empty picture"
# Multiple of the model's temperature, at which a softmax over masked pictures gives a few channels nearly all weight.
# It is the smallest at which the tuning pictures lose no box: docs/studies/performance.md, tools/score_cam_study.py.
SOFTER = 4.0

# Registers a method that masks with channels; arguments as for `saliency`.
masked_cam = partial(
    saliency, family="perturbation", needs=lambda block=-1: Needs(features=(block,)), relu=True, threshold=0.25
)


@dataclass(frozen=True)
class MaskedEmbeddings:
    """Embeddings of x ⊙ M_k for the channels that some method has used."""

    embeddings: Tensor  # [B, C, D] float32, unit norm; a constant channel has the baseline's
    baseline: Tensor  # [D] embedding of x_b, zeros in normalised space (the picture through an empty mask)
    alive: Tensor  # [B, C] bool, whether the channel varies over h×w; a constant one makes no mask
    done: Tensor  # [B, C] whether the embedding was computed

    def scores(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Each channel's score e_k·g_t, `[B, P, C]`, and the baseline's, `[B, P, 1]`, for texts `[B, P, D]`."""
        scores = torch.einsum("bcd,bpd->bpc", self.embeddings, text)
        baseline = torch.einsum("d,bpd->bp", self.baseline, text)[..., None]
        # The two products may round differently: make a constant channel's score exactly the baseline's.
        return torch.where(self.alive[:, None], scores, baseline), baseline


def masked_embeddings(ctx: Context, block: int = -1, wanted: Tensor | None = None) -> MaskedEmbeddings:
    """Runs the tower once for each `wanted` `[B, C]` channel of a stage or block: the mask is up(A_k), min–max."""
    images, features = ctx.images, ctx.trace.features[block]  # [B, 3, H, W], [B, C, h, w]
    key = ("masked embeddings", block)
    # Not in inference mode, even if the caller is: a caller in another mode may write to these tensors later.
    with torch.inference_mode(False), torch.no_grad():
        if key not in ctx.cache:
            ctx.cache[key] = _empty(ctx, features)
        masked: MaskedEmbeddings = ctx.cache[key]
        missing = masked.alive & ~masked.done
        pairs = (missing if wanted is None else missing & wanted).nonzero()  # [n, 2]: image, channel
        images = images.to(features.device).contiguous()  # a mask is multiplied with each channel
        buffer = images.new_empty(min(ctx.batch_size, len(pairs)), *images.shape[1:])  # [n, 3, H, W]
        left = len(pairs)
        for chunk in torch.split(pairs, ctx.batch_size) if len(pairs) else ():
            of, which = chunk.unbind(1)
            mask = F.interpolate(
                features[of, which].float()[:, None], size=images.shape[-2:], mode="bilinear", align_corners=False
            )  # [n, 1, H, W]
            low, high = torch.aminmax(mask.flatten(1), dim=1, keepdim=True)  # [n, 1]
            span = (high - low).clamp_(min=torch.finfo(mask.dtype).tiny)
            mask = mask.sub_(low[..., None, None]).div_(span[..., None, None]).to(images.dtype)
            pictures = images if len(images) == 1 else images[of]
            masked.embeddings[of, which] = ctx.embed(torch.mul(pictures, mask, out=buffer[: len(chunk)]))
            masked.done[of, which] = True
            if ctx.progress is not None:
                left -= len(chunk)
                ctx.progress(len(chunk), left)
    return masked


def _empty(ctx: Context, features: Tensor) -> MaskedEmbeddings:
    """Every channel with the baseline's embedding: correct for constant channels, replaced later for the others."""
    if BASELINE_KEY not in ctx.cache:
        (ctx.cache[BASELINE_KEY],) = ctx.embed(torch.zeros_like(ctx.images[:1]))
    baseline: Tensor = ctx.cache[BASELINE_KEY]  # [D]
    flat = features.float().flatten(2)  # [B, C, N]
    rounding = 8 * torch.finfo(features.dtype).eps * flat.abs().amax(-1)
    alive = flat.amax(-1) - flat.amin(-1) > rounding  # [B, C]
    embeddings = baseline.expand(*alive.shape, -1).clone()  # [B, C, D]
    return MaskedEmbeddings(embeddings, baseline, alive, done=~alive)


def perturbed_embeddings(
    ctx: Context, key: Hashable, count: int, perturb: Callable[[Tensor, int, int], Tensor]
) -> Tensor:
    """Embeddings `[B, count, D]` of altered versions `perturb(picture, first, end)`, cached by version."""
    with torch.inference_mode(False), torch.no_grad():
        made: Tensor | None = ctx.cache.get(key)
        start = 0 if made is None else made.shape[1]
        left = len(ctx.images) * (count - start)
        rows = []
        for picture in ctx.images.contiguous() if left > 0 else ():
            parts = []
            for first in range(start, count, ctx.batch_size):
                last = min(first + ctx.batch_size, count)
                parts.append(ctx.embed(perturb(picture, first, last)))
                left -= last - first
                if ctx.progress is not None:
                    ctx.progress(last - first, left)
            rows.append(torch.cat(parts))
        if rows:
            new = torch.stack(rows)  # [B, n, D]
            made = ctx.cache[key] = new if made is None else torch.cat([made, new], dim=1)
        assert made is not None
        return made[:, :count]

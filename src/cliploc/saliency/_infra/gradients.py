"""Gradients of all prompts' scores through the tower's head, a few prompts at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from cliploc.schema import Context

GRADIENT_ELEMENTS = 2**24  # of one batched vector–Jacobian product: 64 MB, however many prompts there are

HALF_PRECISION_SCALE = 2.0**10  # lifts gradients of half-precision towers above float16's underflow; exact, as 2ⁿ


def map_gradients(ctx: Context, reduce: Callable[[Tensor, Tensor], Tensor], stage: int = -1) -> Tensor:
    """`reduce(A, ∂s_t/∂A)` for every prompt: one forward through the head, then batched vector–Jacobian products.

    s_t is the cosine f·g_t, without the logit scale. Gradients of many prompts are large, so each method reduces them
    to what it needs while they come.

    Args:
        ctx: with the stage's features in its trace; text `[B, P, D]`.
        reduce: features `[B, C, h, w]` and gradients of p prompts `[B, p, C, h, w]`, both float32 → `[B, p, …]`.
        stage: which features, counted from the end.

    Returns:
        `[B, P, …]` float32, without a graph.
    """
    # A caller may be in inference mode, whose tensors autograd refuses: leave it, and clone what it made.
    with torch.inference_mode(False), torch.enable_grad():
        taps = ctx.trace.features[stage].detach().clone().requires_grad_(True)  # [B, C, h, w]
        embedding = ctx.head(taps, stage)  # [B, D]
        scores = torch.einsum("bd,bpd->bp", embedding, ctx.text.detach().clone())  # [B, P]
        # Image b's score depends on image b alone, so one vector of ones per prompt serves the whole batch.
        selectors = HALF_PRECISION_SCALE * torch.eye(scores.shape[1], device=scores.device)
        selectors = selectors[:, None].expand(-1, len(scores), -1)  # [P, B, P]
        chunks = torch.split(selectors, max(1, GRADIENT_ELEMENTS // taps.numel()))
        features = taps.detach().float()
        reduced = []
        for index, chunk in enumerate(chunks):
            retain = index < len(chunks) - 1
            if len(chunk) == 1:  # no vmap: works with operations that have no batching rule
                gradient = torch.autograd.grad(scores, taps, chunk[0], retain_graph=retain)[0][None]
            else:
                gradient = torch.autograd.grad(scores, taps, chunk, retain_graph=retain, is_grads_batched=True)[0]
            gradient = gradient.detach().float() / HALF_PRECISION_SCALE  # [p, B, C, h, w]
            reduced.append(reduce(features, gradient.transpose(0, 1)))
    return torch.cat(reduced, dim=1)

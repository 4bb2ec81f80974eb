"""Gradients of all prompts' scores through the tower's head at once."""

from __future__ import annotations

import torch
from torch import Tensor

from cliploc.schema import Context

PROMPTS_AT_ONCE = 16  # bounds the memory of the batched vector–Jacobian product


def score_gradients(ctx: Context, stage: int = -1) -> tuple[Tensor, Tensor]:
    """∂s_t/∂A for every prompt, with one forward through the head and batched vector–Jacobian products.

    Args:
        ctx: with the stage's features in its trace.
        stage: which features, counted from the end.

    Returns:
        features: A, `[B, C, h, w]` float32, detached.
        gradients: `[B, P, C, h, w]` float32, detached.
    """
    with torch.enable_grad():
        features = ctx.trace.features[stage].detach().requires_grad_(True)  # [B, C, h, w]
        embedding = ctx.head(features, stage)  # [B, D]
        scores = torch.einsum("bd,bpd->bp", embedding, ctx.text)  # [B, P]
        # Row b of the batch depends on image b alone, so one vector of ones per prompt serves the whole batch.
        selectors = torch.eye(scores.shape[1], device=scores.device)[:, None].expand(-1, len(scores), -1)  # [P, B, P]
        chunks = []
        for start in range(0, len(selectors), PROMPTS_AT_ONCE):
            chunk = selectors[start : start + PROMPTS_AT_ONCE]
            last = start + PROMPTS_AT_ONCE >= len(selectors)
            if len(chunk) == 1:
                (gradient,) = torch.autograd.grad(scores, features, chunk[0], retain_graph=not last)
                chunks.append(gradient[None].float())
            else:
                (gradient,) = torch.autograd.grad(
                    scores, features, chunk, retain_graph=not last, is_grads_batched=True
                )
                chunks.append(gradient.float())
    return features.detach().float(), torch.cat(chunks).transpose(0, 1)

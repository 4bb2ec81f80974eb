"""Gradients of all prompts' scores through the end of the tower or in pixels, a few prompts at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.methods import Context, Needs, saliency
from cliploc.methods._infra.attention import patches_of

GRADIENT_ELEMENTS = 2**24  # of one batched vector–Jacobian product: 64 MB, however many prompts there are

HALF_PRECISION_SCALE = 2.0**10  # lifts gradients of half-precision towers above float16's underflow; exact, as 2ⁿ


# Registers a method that weights a CNN's feature maps by their gradients; arguments as for `saliency`.
gradient_cam = partial(
    saliency, family="gradient", towers=("cnn",), needs=lambda block=-1: Needs(features=(block,)), relu=True
)


def map_gradients(ctx: Context, reduce: Callable[[Tensor, Tensor], Tensor], stage: int = -1) -> Tensor:
    """`reduce(A [B, C, h, w], ∂s_t/∂A [B, p, C, h, w])` → `[B, p, …]`, float32; on a CPU prompt by prompt."""

    def through_head() -> tuple[Tensor, Tensor]:
        taps = leaf(ctx.trace.features[stage])  # [B, C, h, w]
        return taps, ctx.head(taps, stage)

    on_cpu = ctx.trace.features[stage].device.type == "cpu"
    return batched_gradients(ctx, through_head, reduce, at_once=not on_cpu)


def normed_gradients(ctx: Context, reduce: Callable[[Tensor, Tensor], Tensor], block: int = -1) -> Tensor:
    """The same for a ViT's patches after the first norm of a block."""

    def run() -> tuple[Tensor, Tensor]:
        end = ctx.resume(leaf(ctx.trace.entering[block]), block, Needs(projections=(block,)))
        return end.normed[block], end.embedding  # [B, T, d], [B, D]

    def patches(x: Tensor) -> Tensor:
        return patches_of(ctx, x.transpose(-1, -2))  # […, T, d] → […, d, h, w]

    return batched_gradients(ctx, run, lambda tokens, gradients: reduce(patches(tokens), patches(gradients)))


def batched_gradients(
    ctx: Context,
    run: Callable[[], tuple[Tensor, Tensor]],
    reduce: Callable[[Tensor, Tensor], Tensor],
    at_once: bool = True,
) -> Tensor:
    """`reduce(X, ∂s_t/∂X)` of any X `[B, …]`: `run` gives X and embeddings, from clones (`leaf`)."""
    with differentiable():
        taps, embedding = run()
        scores = prompt_scores(ctx, embedding)  # [B, P]
        values = taps.detach().float()
        products = jacobian_products(scores, (taps,), each_prompt(scores), at_once=at_once)
        reduced = [reduce(values, gradient) for (gradient,) in products]
    return torch.cat(reduced, dim=1)


@contextmanager
def differentiable() -> Iterator[None]:
    """Enables gradients, also for a caller in inference mode; tensors made in that mode must be cloned (`leaf`)."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def leaf(tensor: Tensor) -> Tensor:
    """A copy of a tensor that requires a gradient."""
    return tensor.detach().clone().requires_grad_(True)


def prompt_scores(ctx: Context, embedding: Tensor) -> Tensor:
    """Cosines s_t of embeddings `[B, D]`, unit norm, with each image's prompts: `[B, P]`, differentiable."""
    return torch.einsum("bd,bpd->bp", embedding, ctx.text.detach().clone())


def each_prompt(scores: Tensor) -> Tensor:
    """Cotangents `[P, B, P]` that pick one prompt's scores at a time, of the whole batch: images do not interact."""
    selectors = torch.eye(scores.shape[1], dtype=scores.dtype, device=scores.device)
    return selectors[:, None].expand(-1, len(scores), -1)


def jacobian_products(
    outputs: Tensor, taps: tuple[Tensor, ...], cotangents: Tensor, keep: bool = False, at_once: bool = True
) -> Iterator[tuple[Tensor, ...]]:
    """Each tap's gradient `[B, p, …]` float32, p prompts at a time; the last frees the graph unless `keep`."""
    together = max(1, GRADIENT_ELEMENTS // sum(tap.numel() for tap in taps)) if at_once else 1
    chunks = torch.split(cotangents, together)
    for index, chunk in enumerate(chunks):
        retain = keep or index < len(chunks) - 1
        upstream = (HALF_PRECISION_SCALE * chunk).to(outputs.dtype)  # [p, B, …]
        if len(chunk) == 1:  # no vmap: works with operations that have no batching rule
            gradients = [g[None] for g in torch.autograd.grad(outputs, taps, upstream[0], retain_graph=retain)]
        else:
            gradients = list(torch.autograd.grad(outputs, taps, upstream, retain_graph=retain, is_grads_batched=True))
        yield tuple((g.detach().float() / HALF_PRECISION_SCALE).transpose(0, 1) for g in gradients)


MOST_GRAPHS = 8  # pictures at once: the whole tower's graph takes 150 MB for one picture on ViT-B/16


def pixel_gradients(
    ctx: Context, alter: Callable[[Tensor, int, int], Tensor], weights: Tensor
) -> Tensor:  # [B, P, 3, H, W]
    """Σ_n w_n · ∂s_t/∂x at versions `alter(picture, first, end)` `[n, 3, H, W]` of each picture; weights `[N]`."""
    together = min(ctx.batch_size, MOST_GRAPHS)
    with differentiable():
        pictures, text = ctx.images.float().clone(), ctx.text.detach().clone()
        sums = pictures.new_zeros(len(pictures), text.shape[1], *pictures.shape[1:])
        left = len(pictures) * len(weights)
        for total, picture, directions in zip(sums, pictures, text, strict=True):
            for first in range(0, len(weights), together):
                last = min(first + together, len(weights))
                versions = leaf(alter(picture, first, last))
                scores = ctx.backbone.encode_image(versions) @ directions.T  # [n, P]
                products = jacobian_products(scores, (versions,), each_prompt(scores), at_once=False)
                for of_prompt, (gradient,) in zip(total, products, strict=True):
                    of_prompt += torch.einsum("n,nchw->chw", weights[first:last], gradient[:, 0])
                if ctx.progress is not None:
                    left -= last - first
                    ctx.progress(last - first, left)
    return sums


def on_grid(ctx: Context, pixels: Tensor) -> Tensor:
    """The mean over the pixels of each cell: `[B, P, H, W]` → `[B, P, h, w]`."""
    return F.adaptive_avg_pool2d(pixels, ctx.trace.grid)

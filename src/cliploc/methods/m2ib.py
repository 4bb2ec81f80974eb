"""M2IB: how much of each patch must pass a noisy bottleneck between two blocks to keep the picture's score."""

from fractions import Fraction

import torch
from torch import Tensor

from cliploc.methods import Context, Count, Needs, Positive, block_at, patches_of, saliency
from cliploc.methods._infra.gradients import HALF_PRECISION_SCALE, differentiable

LATE = Fraction(5, 6)  # after block 10 of 12: the authors' `vlayer` 9 counts from 0
START = 5.0  # of α: at first almost everything passes
SAMPLES = 10  # noisy versions in each step
RATE = 1.0  # Adam's
SEED = 0


@saliency(
    "m2ib",
    title="M2IB",
    paper="Wang, Rudner & Wilson 2023, Visual Explanations of Image-Text Representations via Multi-Modal Information "
    "Bottleneck Attribution, NeurIPS",
    family="perturbation",
    towers=("vit",),
    needs=Needs(tokens=(LATE,)),
    threshold=0.45,
)
def m2ib(ctx: Context, beta: Positive = 0.1, steps: Count = 10) -> Tensor:  # [B, P, h, w]
    """map_t(i) = Σ_d KL(N(λ z, (1 − λ)²) ‖ N(0, 1)): how many nats of patch i's token z pass the bottleneck.

    z are the tokens that leave block 10 of 12, or that share of another depth. Every channel of every token is replaced
    by λ z + (1 − λ) ε, ε normal noise, and the tower finishes from there. λ = sigmoid(α), α from 5, is optimised for
    each picture and prompt: Adam at rate 1 on β · mean KL − mean cosine with the prompt, over ten samples of ε a step,
    the same for all pictures and prompts. The KL is that of the last step. As in the authors' code, z is compared with
    noise of mean 0 and variance 1, whatever its own.

    Args:
        beta: β, the weight of the information that passes.
        steps: number of steps of the optimisation.
    """
    block = block_at(LATE, ctx.transformer.depth)
    nats = []
    with differentiable():
        tokens = ctx.trace.tokens[block].detach().clone().float()  # [B, T, d]
        for text in ctx.text.detach().clone().unbind(dim=1):  # [B, D]
            alpha = torch.full_like(tokens, START).requires_grad_(True)
            optimiser = torch.optim.Adam([alpha], lr=RATE)
            generator = torch.Generator().manual_seed(SEED)
            passed = torch.zeros_like(tokens)
            for _ in range(steps):
                share = alpha.sigmoid()
                mean, deviation = share * tokens, (1 - share).clamp(min=torch.finfo(share.dtype).tiny)
                passed = 0.5 * (mean.square() + deviation.square() - 1) - deviation.log()  # [B, T, d]
                noise = torch.randn(SAMPLES, *tokens.shape[1:], generator=generator, dtype=torch.float32)
                noisy = mean[:, None] + deviation[:, None] * noise.to(tokens.device)  # [B, S, T, d]
                run = ctx.resume(noisy.flatten(0, 1), block + 1, Needs())
                cosines = torch.einsum("bsd,bd->bs", run.embedding.view(len(tokens), SAMPLES, -1), text)
                loss = (beta * passed.mean(dim=(1, 2)) - cosines.mean(dim=1)).sum()  # each picture has its own α
                (gradient,) = torch.autograd.grad(HALF_PRECISION_SCALE * loss, alpha)
                alpha.grad = gradient / HALF_PRECISION_SCALE
                optimiser.step()
            nats.append(passed.detach().sum(dim=-1))  # of each token [B, T]
    return patches_of(ctx, torch.stack(nats, dim=1))

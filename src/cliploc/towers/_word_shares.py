"""Which words of a sentence its match with an image used: the word side of Grad-ECLIP (Zhao et al. 2024)."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.towers._transformer import BlockAdapter
from cliploc.towers.tower import join_heads, split_heads

BLOCKS = 8  # the authors'
WORD = re.compile(r"[\w'’]+|[^\w\s'’]+")  # or a group of signs


@dataclass(frozen=True)
class TextTower:
    """CLIP's text tower, a causal transformer that is read where the text ends."""

    tokenize: Callable[[list[str]], Tensor]  # sentences → ids `[n, T]`
    ends: Callable[[Tensor], Tensor]  # ids `[n, T]` → where the texts end `[n]`
    embed: Callable[[Tensor], Tensor]  # ids `[n, T]` → the first block's tokens `[n, T, d]`
    blocks: Sequence[BlockAdapter]
    read: Callable[[Tensor], Tensor]  # a last token `[d]` → the embedding `[D]`


def word_shares(text: str, image: Tensor, tower: TextTower) -> list[tuple[str, float]]:
    """The share of each word of a sentence in its match with an image `[D]`.

    w_i = ReLU(Σ_l Σ_d g^l_d · v^l_id · n^l_i) over the last blocks l, as shares that add up to 1 (or all 0): g^l is
    the cosine's gradient with respect to what the heads gather for the end token, n^l_i = cos(q_end, k_i), min–max
    normalised over all tokens. The share of a word is the sum of its tokens' shares. The authors' code runs these
    blocks with one head over all channels; ours has theirs.
    """
    words = list(WORD.finditer(text))
    if not words:
        return []
    # Tokenizers split at spaces and signs first, so the tokens of a beginning are the first ones of the sentence.
    beginnings = tower.tokenize([text[: word.end()] for word in words])  # [W, T]
    ended_by = tower.ends(beginnings)  # [W]
    ids, end = beginnings[-1:], int(ended_by[-1])
    read: list[tuple[Tensor, ...]] = []
    with torch.inference_mode(False), torch.enable_grad():
        x = tower.embed(ids).detach()  # [1, T, d]
        for back, block in zip(range(-len(tower.blocks), 0), tower.blocks, strict=True):
            chosen = back >= -BLOCKS
            if chosen and not read:
                x = x.detach().requires_grad_()  # the graph begins here
            q, k, v = block.project(block.attention_input(x), None)  # each [1, H, T, d/H]
            joined = [join_heads(part) for part in (q, k, v)]  # each [1, T, d]
            gathered = join_heads(F.scaled_dot_product_attention(q, k, v, is_causal=True))  # [1, T, d]
            x = x + block.attention_branch(x, split_heads(gathered, 1))
            x = x + block.mlp_branch(x)
            if chosen:
                read.append((*(part.detach() for part in joined), gathered))
        last = tower.read(x[0, end])
        cosine = F.normalize(last, dim=0) @ F.normalize(image.to(last), dim=0)
        gradients = torch.autograd.grad(cosine, [parts[-1] for parts in read])
    total = torch.zeros(ids.shape[1])
    for (q, k, v, _), gradient in zip(read, gradients, strict=True):
        alike = F.cosine_similarity(q[0, end], k[0], dim=-1)  # [T]
        alike = (alike - alike.min()) / (alike.max() - alike.min())
        total += ((gradient[0, end] * v[0]).sum(dim=-1) * alike).float().cpu()
    weights = total[1:end].relu()
    weights = weights / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
    counts = (ended_by - 1).tolist()  # of the tokens up to the end of each word
    shares = [float(weights[first:last].sum()) for first, last in zip([0, *counts], counts, strict=False)]
    return [(word.group(), share) for word, share in zip(words, shares, strict=True)]

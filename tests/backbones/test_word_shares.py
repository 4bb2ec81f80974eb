"""The word side of Grad-ECLIP against its equation, one block, head and token at a time."""

from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.backbones._open_clip_parts import OpenClipText
from cliploc.errors import UsageError
from tests.backbones.seam import TEXT, perturb
from tests.tiny import seeded

IDS = torch.tensor([[98, 7, 31, 5, 60, 99, 0, 0, 0, 0, 0, 0]])  # start, four tokens, end
VISION = {"layers": 1, "width": 48, "head_width": 12, "patch_size": 8, "image_size": 40}


class Tokenizer:
    def __call__(self, texts: list[str]) -> Tensor:
        return IDS

    def decode(self, ids: list[int]) -> str:
        return f"token {ids[0]} "


@pytest.fixture(scope="module")
def text() -> Any:
    model = perturb(seeded(lambda: open_clip.CLIP(24, VISION, {**TEXT, "layers": 4}), 0))
    return OpenClipText(model.eval().requires_grad_(False), Tokenizer())


def expected(model: Any, image: Tensor, blocks: int, one_head: bool) -> Tensor:
    """Shares of the tokens between start and end."""
    layers, end = list(model.transformer.resblocks), 5
    x = model.token_embedding(IDS[0]) + model.positional_embedding  # [T, d]
    read = []
    for number, block in enumerate(layers):
        last = number >= len(layers) - blocks
        heads = 1 if one_head and last else block.attn.num_heads
        rows = block.ln_1(x) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias
        q, k, v = rows.chunk(3, dim=1)
        size = q.shape[1] // heads
        gathered = []
        for h in range(heads):
            own = slice(h * size, (h + 1) * size)
            scores = q[:, own] @ k[:, own].T / size**0.5
            seen = torch.ones_like(scores).tril() > 0
            gathered.append(scores.masked_fill(~seen, -torch.inf).softmax(dim=1) @ v[:, own])
        joined = torch.cat(gathered, dim=1)
        if last:
            joined = joined.detach().requires_grad_() if not read else joined
            read.append((q, k, v, joined))
        x = x + joined @ block.attn.out_proj.weight.T + block.attn.out_proj.bias
        x = x + block.mlp(block.ln_2(x))
    cosine = F.normalize(model.ln_final(x)[end] @ model.text_projection, dim=0) @ F.normalize(image, dim=0)
    gradients = torch.autograd.grad(cosine, [one[3] for one in read])
    total = torch.zeros(len(x))
    for (q, k, v, _), gradient in zip(read, gradients, strict=True):
        near = torch.stack([F.cosine_similarity(q[end], key, dim=0) for key in k])
        near = (near - near.min()) / (near.max() - near.min())
        total += torch.stack([(gradient[end] * value).sum() * n for value, n in zip(v, near, strict=True)]).detach()
    shares = total[1:end].relu()
    return shares / shares.sum().clamp(min=1e-30)  # all are 0 where nothing speaks for the match


@pytest.mark.parametrize("one_head", [False, True])
@pytest.mark.parametrize("blocks", [1, 3, 8])
def test_the_equation(text: Any, blocks: int, one_head: bool) -> None:
    for seed in range(4):
        image = torch.randn(24, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            found = text.word_weights("any", image, blocks=blocks, published=one_head)
        assert [name for name, _ in found] == ["token 7", "token 31", "token 5", "token 60"]
        wanted = expected(text.model, image, min(blocks, 4), one_head)
        torch.testing.assert_close(torch.tensor([one for _, one in found]), wanted, rtol=1e-4, atol=1e-5)


def test_another_text_tower_is_refused(text: Any) -> None:
    other = OpenClipText(text.model, Tokenizer())
    other.model.text_pool_type = "last"
    try:
        with pytest.raises(UsageError, match="expected CLIP's own text tower"):
            other.word_weights("any", torch.ones(24))
    finally:
        other.model.text_pool_type = "argmax"

"""LeGrad against its equation, and against legrad_torch and torchcam on a ViT of twelve blocks."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchcam.methods import LeGrad

from cliploc.methods import methods
from cliploc.towers._open_clip_timm import TimmVit
from cliploc.towers.tower import Needs
from tests.methods.peers import assert_same_maps, min_max, over_input
from tests.methods.vits import (
    AveragingVit,
    QueryingVit,
    assert_equation,
    block_calls,
    ours,
    plain_forward,
    tiny,
    twelve_blocks,
)
from tests.tiny import TinyVit
from tests.towers.seam import pictures, tokenizer
from tests.towers.test_open_clip_timm import small_vit


def sensitivity(backbone: Any, image: Tensor, direction: Tensor, blocks: int) -> Tensor:
    """The mean of the last blocks' maps `[N]`, each from the score of that block's own tokens."""
    tokens, attention, _, _ = plain_forward(backbone, image)
    maps = []
    for out, weights in list(zip(tokens, attention, strict=True))[-blocks:]:
        pooled, pool_attention = backbone.pool(out)
        if backbone.pooling == "class token":
            mean = sum(out[0].unbind()) / out.shape[1]
            pooled = (backbone.ln_post(mean) @ backbone.projection)[None]
        score = pooled[0] @ direction / pooled[0].norm()
        looked = weights if pool_attention is None else pool_attention
        (gradient,) = torch.autograd.grad(score, looked, retain_graph=True)
        positive = [row.clamp(min=0) for head in gradient[0] for row in head]  # H × queries of [T] or [N]
        maps.append((sum(positive) / len(positive))[-out.shape[1] + 1 :])
    return sum(maps) / blocks


@pytest.mark.parametrize("kind", [TinyVit, QueryingVit, AveragingVit])
@pytest.mark.parametrize(("blocks", "n"), [(1, 1), (2, 2), ("all", 2)])
def test_the_equation(kind: type[TinyVit], blocks: Any, n: int) -> None:
    assert_equation("legrad", kind, lambda *of: sensitivity(*of, n), blocks=blocks)


def test_legrad_torch_agrees() -> None:
    """It hands blocks [T, B, d], as open_clip's took them: else those before the first hook attend across the batch."""
    legrad = pytest.importorskip("legrad", reason="legrad_torch is not installed: make setup")
    model, backbone, images, text = twelve_blocks()
    theirs = copy.deepcopy(model)
    for block in theirs.visual.transformer.resblocks:
        block.attn.batch_first = False
    wrapped = legrad.LeWrapper(theirs, layer_index=-3)
    maps = torch.cat([wrapped.compute_legrad_clip(text, image[None]).detach() for image in images])  # [B, P, H, W]
    assert_same_maps(over_input(ours("legrad", backbone, images, text, blocks=3), images), maps)


class Exposed(nn.Module):
    """An open_clip block under the names that torchcam looks for."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.self_attention, self.block = block.attn, block

    def forward(self, x: Tensor) -> Tensor:
        y = self.block.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.block.mlp(self.block.ln_2(x))


class Classifier(nn.Module):
    """Images → logits of the prompts, with the last blocks exposed."""

    def __init__(self, visual: Any, text: Tensor, blocks: int) -> None:
        super().__init__()
        self.visual, self.text = visual, text
        self.early = visual.transformer.resblocks[:-blocks]
        self.late = nn.ModuleList([Exposed(block) for block in visual.transformer.resblocks[-blocks:]])

    def read(self, tokens: Tensor) -> Tensor:
        pooled = self.visual.ln_post(tokens.mean(dim=1)) @ self.visual.proj
        return F.normalize(pooled, dim=-1) @ self.text.T

    def forward(self, images: Tensor) -> Tensor:
        x = self.visual._embeds(images)
        for block in [*self.early, *self.late]:
            x = block(x)
        return self.read(x)


def test_torchcam_agrees() -> None:
    model, backbone, images, text = twelve_blocks()
    classifier = Classifier(copy.deepcopy(model.visual), text, blocks=2).eval()
    maps = []
    with LeGrad(classifier, list(classifier.late), score_projection=classifier.read) as extractor:
        scores = classifier(images)
        for prompt in range(len(text)):
            maps.append(extractor(prompt, scores, retain_graph=True)[0].detach())
    assert_same_maps(min_max(ours("legrad", backbone, images, text)), torch.stack(maps, dim=1))


def test_legrad_torch_agrees_on_siglip() -> None:
    """It pools tokens without the tower's last norm: here the norm is taken out for both, as is its text correction."""
    legrad = pytest.importorskip("legrad", reason="legrad_torch is not installed: make setup")
    model = small_vit("SigLIP")
    model.visual.trunk.norm = nn.Identity()
    backbone = TimmVit(model, tokenizer, "small SigLIP")
    images, text = pictures(64, 64), backbone.encode_text(["a photo of a cat", "dogs"])
    wrapped = legrad.LeWrapper(model, layer_index=-2)
    maps = [wrapped.compute_legrad_siglip(prompt[None], images, apply_correction=False) for prompt in text]
    expected = F.interpolate(min_max(ours("legrad", backbone, images, text)), size=(64, 64), mode="bilinear")
    assert_same_maps(expected, torch.cat(maps, dim=1).detach())


def test_no_block_is_run_again_for_a_few_blocks_and_each_once_for_many() -> None:
    """Many graphs at a time would be large; no attention is kept in either case."""
    assert methods.get("legrad").needs(blocks=2) == Needs(ends=(-1, -2))
    assert block_calls(tiny(), "legrad", blocks=2) == 0
    assert methods.get("legrad").needs(blocks=5) == Needs(tokens=(-1, -2, -3, -4, -5))
    assert block_calls(tiny(), "legrad", blocks="all") == 2

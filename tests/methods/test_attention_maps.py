"""Maps of attention, alone, times cosines of patches, and by gradients, against their equations and public packages."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchcam.methods import LeGrad

import cliploc.methods._infra.gradients as gradients_module
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
    scenes,
    tiny,
    twelve_blocks,
)
from tests.tiny import TinyVit
from tests.tolerances import assert_rounded
from tests.towers.seam import pictures, tokenizer
from tests.towers.test_open_clip_timm import small_vit


def dense_cosines(backbone: Any, entering: Tensor, direction: Tensor) -> Tensor:
    """MaskCLIP: each patch's own value through the last block's output projection and the head, · g: `[N]`."""
    block = backbone.blocks[-1]
    width = entering.shape[-1]
    values = block.ln_1(entering[0, 1:]) @ block.qkv.weight[2 * width :].T + block.qkv.bias[2 * width :]
    read = backbone.ln_post(block.out(values)) @ backbone.projection  # [N, D]
    return (read @ direction) / read.norm(dim=-1)


def ts_cam(attention: list[Tensor], pool: Tensor | None) -> Tensor:
    """What the class token, or the pool's query, looks at."""
    if pool is not None:
        return pool[0].mean(dim=0)[0]  # a pool looks once
    return sum((weights[0].mean(dim=0)[0, 1:] for weights in attention), torch.zeros(()))


def lctr(attention: list[Tensor], pool: Tensor | None) -> Tensor:
    """What it looks at through every token."""
    maps = []
    for weights in attention:
        mean = weights[0].mean(dim=0)  # [T, T]
        row = mean[0] if pool is None else torch.cat([torch.zeros(1), pool[0].mean(dim=0)[0]])
        maps.append(torch.stack([row[j] * mean[j, 1:] for j in range(len(mean))]).mean(dim=0))
    return torch.stack(maps).mean(dim=0)


@pytest.mark.parametrize("rule", [ts_cam, lctr], ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("kind", [TinyVit, QueryingVit])
@pytest.mark.parametrize(("blocks", "n"), [("all", 2), (1, 1)])
def test_attention_times_patches(rule: Any, kind: type[TinyVit], blocks: Any, n: int) -> None:
    """Zero-shot TS-CAM and LCTR."""

    def one_map(backbone: Any, image: Tensor, direction: Tensor) -> Tensor:
        tokens, attention, pool, _ = plain_forward(backbone, image)
        return rule(attention[-n:], pool) * dense_cosines(backbone, tokens[-2], direction)

    assert_equation(rule.__name__, kind, one_map, blocks=blocks)


@pytest.mark.parametrize("kind", [TinyVit, QueryingVit, AveragingVit])
@pytest.mark.parametrize(("blocks", "n"), [("all", 2), (2, 2), (1, 1)])
def test_rollout_is_a_product_of_full_matrices(kind: type[TinyVit], blocks: Any, n: int) -> None:
    """The paper's R `[T, T]`, from the first block to the last, rows normalised; read where the embedding is made."""

    def one_map(backbone: Any, image: Tensor, _: Tensor) -> Tensor:
        _, attention, pool, _ = plain_forward(backbone, image)
        rollout = torch.eye(attention[0].shape[-1])
        for weights in attention[-n:]:
            mixed = 0.5 * weights[0].mean(dim=0) + 0.5 * torch.eye(len(rollout))
            rollout = (mixed / mixed.sum(dim=-1, keepdim=True)) @ rollout
        if pool is not None:
            return pool[0].mean(dim=0)[0] @ rollout[1:, 1:]
        return rollout[0, 1:] if backbone.pooling == "class token" else rollout[1:, 1:].mean(dim=0)

    assert_equation("rollout", kind, one_map, blocks=blocks)


@pytest.mark.parametrize("kind", [TinyVit, QueryingVit])
@pytest.mark.parametrize("block", [-1, -2])
def test_raw_attention_is_the_class_tokens_row_of_the_block_named(kind: type[TinyVit], block: int) -> None:
    """Or, for any block, that of an attention pool's query."""

    def one_map(backbone: Any, image: Tensor, _: Tensor) -> Tensor:
        _, attention, pool, _ = plain_forward(backbone, image)
        heads = attention[block][0, :, 0, 1:] if pool is None else pool[0, :, 0]  # [H, N]
        return sum(heads.unbind()) / len(heads)

    assert_equation("raw_attention", kind, one_map, block=block)
    assert methods.get("raw_attention").needs(block=block) == Needs(attention=(block,)), "more attention is kept"


# --------------------------------------------------------------------------------------------------------------- Chefer
def relevance(backbone: Any, image: Tensor, direction: Tensor, blocks: int) -> Tensor:
    """R over the tokens, then the row of what is read, patches only: `[N]`."""
    _, attention, pool, embedding = plain_forward(backbone, image)
    score = embedding @ direction
    relevance = torch.eye(attention[0].shape[-1])
    for weights in attention[-blocks:]:
        gradient = torch.autograd.grad(score, weights, retain_graph=True)[0]
        mean = sum((g * a).clamp(min=0) for g, a in zip(gradient[0], weights[0], strict=True)) / weights.shape[1]
        relevance = relevance + mean @ relevance
    if pool is not None:
        gradient = torch.autograd.grad(score, pool, retain_graph=True)[0]
        row = (gradient * pool)[0].clamp(min=0).mean(dim=0)[0] @ relevance[1:]  # [T]
    else:
        row = relevance[0] if backbone.pooling == "class token" else relevance[1:].mean(dim=0)
    return row[1:].detach()


@pytest.mark.parametrize("kind", [TinyVit, QueryingVit, AveragingVit])
@pytest.mark.parametrize(("options", "n"), [({}, 1), ({"blocks": 1}, 1), ({"blocks": 2}, 2), ({"blocks": "all"}, 2)])
def test_the_equation_of_chefer(kind: type[TinyVit], options: dict[str, Any], n: int) -> None:
    assert_equation("chefer", kind, lambda *of: relevance(*of, n), **options)


def test_many_prompts_go_in_chunks_and_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny(QueryingVit)
    text = backbone.encode_text(["red", "green", "a zebra"])
    expected = ours("chefer", backbone, scenes(), text, blocks=2)
    for elements in (1, 10000):  # one prompt at a time; two at first, then one
        monkeypatch.setattr(gradients_module, "GRADIENT_ELEMENTS", elements)
        assert_rounded(ours("chefer", backbone, scenes(), text, blocks=2), expected, backbone)


def test_each_block_is_run_once_more_for_all_prompts_and_no_attention_is_traced() -> None:
    assert block_calls(tiny(), "chefer", blocks=2) == 2
    assert methods.get("chefer").needs(blocks=2) == Needs(tokens=(-1, -2))


# --------------------------------------------------------------------------------------------------------------- LeGrad
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
def test_the_equation_of_legrad(kind: type[TinyVit], blocks: Any, n: int) -> None:
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

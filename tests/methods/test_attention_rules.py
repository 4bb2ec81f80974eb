"""Rules by which the last block's patches gather, each against its equation, on three towers."""

import copy
import math
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
from tests.methods.plain_vit import TOWERS, PlainVit, assert_equal, attend, plain_vit
from tests.methods.towers import (
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


def patch_tokens(vit: PlainVit) -> Tensor:
    return vit.maps(lambda image: vit.cosines(vit.entering(image)[-1]))


def clearclip(vit: PlainVit) -> Tensor:
    return vit.last_block(lambda q, k, v: attend(q, q, v))


def sclip(vit: PlainVit) -> Tensor:
    """The sum of two attentions, and the block otherwise as it is."""
    return vit.last_block(lambda q, k, v: attend(q, q, v) + attend(k, k, v), residual=True, mlp=True)


def maskclip(vit: PlainVit, residual: bool, mlp: bool) -> Tensor:
    return vit.last_block(lambda q, k, v: v, residual, mlp)


def naclip(vit: PlainVit, sigma: float) -> Tensor:
    bias = prior(vit, sigma)
    return vit.last_block(lambda q, k, v: torch.softmax(k @ k.T / k.shape[1] ** 0.5 + bias, dim=1) @ v)


def prior(vit: PlainVit, sigma: float) -> Tensor:
    """`[T, T]`, one pair of patches at a time."""
    (height, width), prefix = vit.grid, vit.prefix
    bias = torch.zeros(prefix + height * width, prefix + height * width)
    for a in range(height * width):
        for b in range(height * width):
            rows, columns = a // width - b // width, a % width - b % width
            bias[prefix + a, prefix + b] = math.exp(-(rows**2 + columns**2) / (2 * sigma**2))
    return bias


def resclip(vit: PlainVit, residual: float, gain: float) -> Tensor:
    bias, depth = prior(vit, 5.0), len(vit.blocks)
    middle = [max(1, twelfth * depth // 12) for twelfth in (6, 7, 8, 9)]  # from 1

    def one(image: Tensor) -> Tensor:
        entering, last = vit.entering(image), vit.blocks[-1]
        heads = []
        for head, (_, k, v) in enumerate(last.project(entering[-2])):
            part = torch.softmax(k @ k.T / k.shape[1] ** 0.5 + bias, dim=1)
            earlier = torch.zeros_like(part)
            for number in middle:
                q_l, k_l, _ = vit.blocks[number - 1].project(entering[number - 1])[head]
                earlier += torch.softmax(q_l @ k_l.T / q_l.shape[1] ** 0.5, dim=1) / len(middle)
            heads.append(gain * ((1 - residual) * part + residual * earlier) @ v)
        return vit.cosines(last.out(torch.cat(heads, dim=1)))

    return vit.maps(one)


def pearl(vit: PlainVit, key_weight: float) -> Tensor:
    """Keys are turned onto queries."""

    def gather(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = [0.0] * vit.prefix + [float(row.norm()) for row in q[vit.prefix :]]
        weights = [weight / sum(weights) for weight in weights]
        q_mean = sum(weight * row for weight, row in zip(weights, q, strict=True))
        k_mean = sum(weight * row for weight, row in zip(weights, k, strict=True))
        q_centred, k_centred = q - q_mean, k - k_mean
        m = k_centred.T @ q_centred
        size = (m.T @ m).square().sum().sqrt()
        rotation = m @ inverse_root(m.T @ m / size + 1e-6 * torch.eye(len(m))) / size.sqrt()
        s = 1 / math.sqrt(q.shape[1])
        logits = s * q @ (k @ rotation).T + key_weight * s * k_centred @ k_centred.T
        return torch.softmax(logits, dim=1) @ v

    return vit.last_block(gather)


def inverse_root(gram: Tensor) -> Tensor:
    """Five Newton–Schulz steps for the inverse square root of a matrix whose norm is about 1."""
    eye = torch.eye(len(gram))
    y, z = gram.clone(), eye.clone()
    for _ in range(5):
        t = (3 * eye - z @ y) / 2
        y, z = y @ t, t @ z
    return z


CASES = [
    *((rule, {}) for rule in (patch_tokens, clearclip, sclip)),
    *((maskclip, {"residual": residual, "mlp": mlp}) for residual in (False, True) for mlp in (False, True)),
    *((naclip, {"sigma": sigma}) for sigma in (5.0, 0.7)),
    *((resclip, {"residual": residual, "gain": gain}) for residual, gain in ((0.3, 1.0), (0.8, 2.5))),
    *((pearl, {"key_weight": key_weight}) for key_weight in (0.08, 1.5)),
]
DEFAULTS = [(maskclip, {"residual": False, "mlp": False}), (naclip, {"sigma": 5.0}), (pearl, {"key_weight": 0.08})]


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize(("rule", "options"), CASES, ids=[f"{rule.__name__} {options}" for rule, options in CASES])
def test_the_equation(kind: str, rule: Any, options: dict[str, Any]) -> None:
    vit = plain_vit(kind)
    expected = rule(vit, **options)
    assert_equal(vit.ours(rule.__name__, **options), expected)
    if (rule, options) in DEFAULTS:
        assert_equal(vit.ours(rule.__name__), expected)


# --------------------------------------------------------------------------------------------------------------- RADSeg
def alike(cosines: Tensor, factor: float) -> Tensor:
    """Row by row: e^(factor · cosine) over the cosines that are not negative, as shares."""
    weights = torch.where(cosines < 0, 0.0, (factor * cosines).exp())
    return weights / weights.sum(dim=1, keepdim=True)


def cosines(x: Tensor) -> Tensor:
    return F.cosine_similarity(x[:, None], x[None], dim=2)


def expected(vit: PlainVit, scra: float, scga: float) -> Tensor:
    def one(image: Tensor) -> Tensor:
        x, block = vit.entering(image)[-2], vit.blocks[-1]
        heads = block.project(x)
        part = block.out(torch.cat([attend(q, k, v) for q, k, v in heads], dim=1)).chunk(block.heads, dim=1)
        again = [alike(cosines(o), scra) @ v for o, (_, _, v) in zip(part, heads, strict=True)]
        x = x + block.out(torch.cat(again, dim=1))
        x = x + block.mlp_branch(x)
        patches = vit.backbone.last_norm(x[vit.prefix :])  # the authors' tower gives them after its norm
        similar = cosines(patches)
        read = vit.backbone.read_normed(alike(similar - similar.mean(), scga) @ patches)
        return F.normalize(read, dim=1) @ vit.text.T

    return vit.maps(one)


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("options", [{}, {"scra": 4.0, "scga": 25.0}], ids=str)
def test_places_attend_to_those_alike_in_the_block_and_after_it(kind: str, options: dict[str, float]) -> None:
    vit = plain_vit(kind)
    assert_equal(vit.ours("radseg", **options), expected(vit, **{"scra": 10.0, "scga": 10.0, **options}))


def test_the_projection_is_before_the_layer_scale() -> None:
    """DINO's blocks scale their branches; the authors read what is not scaled yet."""
    from tests.towers.test_dinotxt import SIDE, tiny

    tower = tiny("dinov3")
    trace = tower.trace(pictures(SIDE, SIDE), Needs(dense=1))
    gathered = trace.projections[-1][2]
    block = tower.vision_head.blocks[-1]
    ours = tower.attention_output(trace, gathered) * block.ls1.gamma
    torch.testing.assert_close(ours, tower.adapters[-1].attention_branch(trace.entering[-1], gathered))


# -------------------------------------------------------------------------------------------------------------- SC-CLIP
def local_outlier_factors(patches: Tensor, count: int) -> list[float]:
    """Breunig et al. 2000, definitions 3 to 7, one patch at a time, on squared distances."""
    rows = patches.double()
    n = len(rows)
    squared = [[float((rows[i] - rows[j]).square().sum()) for j in range(n)] for i in range(n)]
    near = [sorted((j for j in range(n) if j != i), key=lambda j: squared[i][j])[:count] for i in range(n)]
    furthest = [squared[i][near[i][-1]] for i in range(n)]
    density = [count / sum(max(furthest[j], squared[i][j]) for j in near[i]) for i in range(n)]
    return [sum(density[j] for j in near[i]) / count / density[i] for i in range(n)]


def outliers(patches: Tensor, share: float) -> set[int]:
    factors = local_outlier_factors(patches, min(30, len(patches) - 1))
    stored = math.floor((1 - share) * (len(factors) - 1) + 1e-9) + 1  # those at the quantile or below
    return set(sorted(range(len(factors)), key=lambda i: factors[i])[stored:])


def repaired(patches: Tensor, odd: set[int], grid: tuple[int, int]) -> Tensor:
    fixed = patches.clone()
    for i in odd:
        y, x = divmod(i, grid[1])
        around = [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        good = [a * grid[1] + b for a, b in around if 0 <= a < grid[0] and 0 <= b < grid[1]]
        good = [j for j in good if j not in odd]
        if good:
            fixed[i] = sum(patches[j] for j in good) / len(good)
    return fixed


def mix(patches: Tensor, alike: Tensor) -> Tensor:
    rows = []
    for weights in alike:
        stored = [(float(w), patch) for w, patch in zip(weights, patches, strict=True) if w >= 0.4]
        rows.append(sum(w * patch for w, patch in stored) / sum(w for w, _ in stored))
    return torch.stack(rows)


def oracle(vit: PlainVit, share: float) -> Tensor:
    depth, last, prefix = len(vit.blocks), vit.blocks[-1], vit.prefix

    def one(image: Tensor) -> Tensor:
        tokens = vit.entering(image)  # tokens[n] leave block n

        def after(twelfth: int) -> Tensor:
            return tokens[max(1, twelfth * depth // 12)]

        x = tokens[-2]
        odd = outliers(x[prefix:], share) if share else set()
        alike = cosines(repaired(after(9)[prefix:], odd, vit.grid))
        shared = 3 * (alike - alike.mean())
        shared = torch.softmax(torch.where(shared < 0, -torch.inf, shared), dim=1)

        def output(patches: Tensor, part: Tensor) -> Tensor:
            out = last.branch(patches, lambda _, k, v: 0.5 * (shared @ v + attend(k, k, v)))
            return out + 0.3 * part[0] if prefix else out

        levels = sum(tokens[number] for number in {max(1, twelfth * depth // 12) for twelfth in range(4, 11)})
        first = output(mix(repaired(x[prefix:], odd, vit.grid), alike), x)
        second = output(levels[prefix:], levels)
        early = cosines(after(4)[prefix:])
        return F.normalize(vit.read(mix(first, early) + mix(second, early)), dim=1) @ vit.text.T

    return vit.maps(one)


@pytest.mark.parametrize("kind", TOWERS)
@pytest.mark.parametrize("share", [0.05, 0.2, 0.0])
def test_the_equations(kind: str, share: float) -> None:
    vit = plain_vit(kind)
    expected = oracle(vit, share)
    assert_equal(vit.ours("sc_clip", outliers=share), expected)
    if share == 0.05:
        assert_equal(vit.ours("sc_clip"), expected)


def test_repairing_patches_changes_the_map() -> None:
    """Otherwise the oracle above would say nothing about it."""
    vit = plain_vit("open_clip")
    with_, without = vit.ours("sc_clip", outliers=0.2), vit.ours("sc_clip", outliers=0.0)
    assert (with_ - without).abs().max() > 0.1 * (without.max() - without.min())


# Maps of attention, alone, times cosines of patches, and by gradients, against their equations and public packages
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

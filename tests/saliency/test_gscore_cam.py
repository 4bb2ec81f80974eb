"""gScoreCAM against its equation; no package on PyPI has it."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cliploc.saliency import methods
from cliploc.saliency._infra.masked import masked_embeddings
from tests.saliency.peers import CNNS, tiny_scene
from tests.saliency.test_score_cam import counted, masked_scores, ours_mask


def expected(scene: Any, top_k: int, logit_scale: float, discarded: float) -> Tensor:
    """Σ_k softmax_k(z) A_k, z = logit scale · cosine of the k largest mean gradients, `discarded` of the others."""
    features, gradients = scene.features_and_gradients()
    raw = masked_scores(scene, ours_mask, baseline=False)
    maps = torch.zeros(len(features), len(scene.text), *features.shape[-2:])
    for b in range(len(features)):
        for p in range(len(scene.text)):
            alpha = gradients[p, b].mean(dim=(-2, -1)).tolist()
            best = sorted(range(len(alpha)), key=lambda k: -alpha[k])[:top_k]
            logits = [logit_scale * float(raw[b, p, k]) if k in best else discarded for k in range(len(alpha))]
            total = sum(math.exp(z) for z in logits)
            for k, logit in enumerate(logits):
                maps[b, p] += math.exp(logit) / total * features[b, k]
    return maps


@pytest.mark.parametrize("top_k", [1, 5, 300])
@pytest.mark.parametrize("kind", CNNS)
def test_the_equation(kind: str, top_k: int) -> None:
    """The k largest mean gradients share all the weight; four times the model's own temperature."""
    scene = tiny_scene(kind)
    maps = scene.ours("gscore_cam", top_k=top_k)
    torch.testing.assert_close(maps, expected(scene, top_k, scene.scale / 4, -math.inf), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("top_k", [1, 5, 300])
@pytest.mark.parametrize("kind", CNNS)
def test_the_published_form(kind: str, top_k: int) -> None:
    """The others' logit is 0 before a softmax over all channels, at the model's own temperature."""
    scene = tiny_scene(kind)
    maps = scene.ours("gscore_cam", top_k=top_k, published=True)
    torch.testing.assert_close(maps, expected(scene, top_k, scene.scale, 0.0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("prompts", "top_k"), [(1, 3), (3, 2), (10, 4)])
def test_only_the_union_of_the_chosen_channels_is_masked(prompts: int, top_k: int) -> None:
    ctx, tower_calls = counted("attention_pool_cnn", prompts)
    methods.get("gscore_cam").function(ctx, top_k=top_k)
    assert 1 < tower_calls.images <= 2 * prompts * top_k + 1
    masked = masked_embeddings(ctx, wanted=torch.zeros(ctx.features.shape[:2], dtype=torch.bool))  # what is done
    done = {(b, int(masked.twin[b, k])) for b, k in (masked.done & masked.alive).nonzero().tolist()}
    assert tower_calls.images == len(done) + 1


def test_prompts_do_not_use_each_others_channels() -> None:
    """The union is computed; each prompt weighs its own choice."""
    scene = tiny_scene("attention_pool_cnn")
    together = scene.ours("gscore_cam", top_k=2)
    for p in range(len(scene.text)):
        alone = type(scene)(scene.backbone, scene.images, scene.text[p : p + 1]).ours("gscore_cam", top_k=2)
        torch.testing.assert_close(together[:, p], alone[:, 0], rtol=1e-4, atol=1e-6)

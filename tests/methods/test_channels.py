"""The Score-CAM family on a ViT's tokens, heads, queries, keys and values, against their definitions in plain loops."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.errors import UsageError
from cliploc.localizer import Localizer
from cliploc.methods import methods
from cliploc.methods._infra.channels import channel_gradients, channel_maps, channel_needs
from cliploc.towers.open_clip_timm import TimmVit
from cliploc.towers.tower import Needs
from tests.methods.peers import GRID, Scene, tiny_scene
from tests.methods.test_score_cam import FAMILY, counted, ours_mask
from tests.tiny import KINDS, tower
from tests.towers.seam import tokenizer
from tests.towers.test_open_clip_timm import small_vit

VIT_ONLY = ("tokens", "heads", "keys", "queries", "values")
BLOCKS = (-1, -2)
N = GRID[0] * GRID[1]


def blocks_apart(backbone: Any, images: Tensor, upto: int) -> tuple[Tensor, Any]:
    """Tokens that enter a block of the tiny tower, and that block."""
    x = backbone.embed(images)
    for block in list(backbone.blocks)[:upto]:
        x, _ = block(x)
    return x, backbone.blocks[upto]


def inside(backbone: Any, images: Tensor, channels: str, block: int) -> Tensor:
    """The maps `[B, C, h, w]`, element by element from the block's own weights."""
    x, module = blocks_apart(backbone, images, block)
    if channels == "tokens":
        left, _ = module(x)
        return torch.stack([t[1:].T.reshape(-1, *GRID) for t in left])
    d, heads = x.shape[-1], module.heads
    qkv = module.ln_1(x) @ module.qkv.weight.T + module.qkv.bias  # [B, 1+N, 3d]: q, k, v one after the other
    parts = dict(zip(("queries", "keys", "values"), qkv.split(d, dim=-1), strict=True))
    if channels != "heads":
        return torch.stack([t[1:].T.reshape(-1, *GRID) for t in parts[channels]])
    maps = torch.zeros(len(images), heads, N)
    for b in range(len(images)):
        for h in range(heads):
            own = slice(h * d // heads, (h + 1) * d // heads)
            logits = parts["keys"][b, :, own] @ parts["queries"][b, 0, own] * (d / heads) ** -0.5  # [1+N]
            maps[b, h] = (logits.exp() / logits.exp().sum())[1:]
    return maps.reshape(len(images), heads, *GRID)


@pytest.fixture(scope="module")
def scene() -> Scene:
    return tiny_scene("vit")


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("channels", VIT_ONLY)
def test_the_maps_are_what_is_inside_the_block(scene: Scene, channels: Any, block: int) -> None:
    ctx = scene.context(channel_needs(channels, block))
    expected = inside(scene.backbone, scene.images, channels, block)
    torch.testing.assert_close(channel_maps(ctx, channels, block).maps, expected, rtol=1e-4, atol=1e-5)


def by_loops(scene: Scene, maps: Tensor, name: str) -> Tensor:
    """Maps `[B, C, h, w]` weighted by a softmax of the pictures behind them; of VL-Score those above the empty one."""
    scores = torch.zeros(len(maps), len(scene.text), maps.shape[1])
    for b, image in enumerate(scene.images):
        for k, channel in enumerate(maps[b]):
            scores[b, :, k] = scene.text @ scene.backbone.encode_image((image * ours_mask(channel, image))[None])[0]
    if name == "vl_score":
        empty = scene.text @ scene.backbone.encode_image(torch.zeros_like(scene.images[:1]))[0]  # [P]
        scores = scores.masked_fill(scores <= empty[:, None], -torch.inf)
    weights = (scene.backbone.logit_scale / 4 * scores).softmax(-1).nan_to_num(0)
    return torch.einsum("bpk,bkhw->bphw", weights, maps)


@pytest.mark.parametrize(
    ("name", "channels", "block"),
    [*(("score_cam", one, -1) for one in VIT_ONLY), ("vl_score", "values", -2), ("gscore_cam", "values", -2)],
)
def test_the_family_weighs_the_chosen_maps(scene: Scene, name: str, channels: str, block: int) -> None:
    expected = by_loops(scene, inside(scene.backbone, scene.images, channels, block), name)
    maps = scene.ours(name, channels=channels, block=block)
    torch.testing.assert_close(maps, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("channels", "block"),
    [("heads", -1), ("keys", -1), ("values", -1), ("heads", -2), ("queries", -2), ("keys", -2), ("values", -2)],
)
def test_mean_gradients_are_finite_differences(channels: Any, block: int) -> None:
    """Adding a little to a channel at every patch changes the score by N·α times that."""
    backbone = tower("vit", GRID).double()
    base = tiny_scene("vit")
    scene = Scene(backbone, base.images.double(), base.text.double())
    ctx = scene.context(channel_needs(channels, block))
    alpha = channel_gradients(replace(ctx, text=ctx.text.float()), channels, block, None)  # [B, P, C]
    x, module = blocks_apart(backbone, scene.images, block)
    q, k, v = module.project(x)

    def score(step: float, c: int) -> Tensor:
        moved = {"queries": q.clone(), "keys": k.clone(), "values": v.clone()}
        if channels != "heads":
            size = q.shape[-1]
            moved[channels][:, c // size, 1:, c % size] += step
        attention = (moved["queries"] @ moved["keys"].transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        if channels == "heads":
            attention = attention.clone()
            attention[:, c, 0, 1:] += step
        y = x + module.merge(attention @ moved["values"])
        y = y + module.mlp(module.ln_2(y))
        for later in list(backbone.blocks)[len(backbone.blocks) + block + 1 :]:
            y, _ = later(y)
        return F.normalize(backbone.ln_post(y[:, 0]) @ backbone.projection, dim=-1) @ scene.text.T  # [B, P]

    step = 1e-5
    for c in range(min(4, alpha.shape[-1])):
        slope = (score(step, c) - score(-step, c)) / (2 * step) / N
        torch.testing.assert_close(alpha[:, :, c], slope.float(), rtol=1e-3, atol=1e-6)


def test_tokens_that_leave_a_block_have_the_gradient_of_those_that_enter_the_next(scene: Scene) -> None:
    ctx = scene.context(Needs(features=(-1,), tokens=(-2,)))
    left = channel_gradients(ctx, "tokens", -2, None)
    torch.testing.assert_close(left, channel_gradients(ctx, "features", -1, None), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("channels", "text"),
    [
        ("queries", "^the score of vit has no gradient in the queries of block -1: choose an earlier block"),
        ("tokens", "^expected tokens that another block reads, as they need a gradient, got block -1: choose -2"),
    ],
)
def test_channels_without_a_gradient_are_refused(scene: Scene, channels: str, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        scene.ours("gscore_cam", channels=channels)
    assert scene.ours("score_cam", channels=channels).isfinite().all()


@pytest.mark.parametrize("variant", ["SigLIP", "EVA-02", "mean"])
def test_towers_with_other_heads_and_positions(variant: str) -> None:
    """An attention pool and no class token; rotary positions and a class token; a mean and no class token."""
    backbone = TimmVit(small_vit(variant), tokenizer, variant)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 3 * backbone.stride, 4 * backbone.stride, generator=generator)
    scene = Scene(backbone, images, F.normalize(torch.randn(3, backbone.embedding_size, generator=generator), dim=1))
    for channels in VIT_ONLY:
        options = {"channels": channels, "block": -2 if channels == "tokens" else -1, "components": 1}
        if (variant, channels) == ("EVA-02", "queries"):
            options["block"] = -2
        if (variant, channels) == ("mean", "heads"):
            said = "^expected a class token in block -1 for channels=heads, got mean, which has none: choose"
            with pytest.raises(UsageError, match=said):
                scene.ours("score_cam", **options)
            continue
        maps = scene.ours("gscore_cam", **options)
        assert maps.shape == (2, 3, 3, 4)
        assert maps.isfinite().all()
        assert (maps.amax((-2, -1)) > maps.amin((-2, -1))).all()


def test_an_attention_pools_heads_share_all_of_their_attention_among_the_patches() -> None:
    backbone = TimmVit(small_vit("SigLIP"), tokenizer, "SigLIP")
    images = torch.randn(2, 3, 3 * backbone.stride, 4 * backbone.stride, generator=torch.Generator().manual_seed(0))
    scene = Scene(backbone, images, torch.eye(backbone.embedding_size)[:2])
    maps = channel_maps(scene.context(channel_needs("heads")), "heads").maps
    torch.testing.assert_close(maps.sum((-2, -1)), torch.ones(maps.shape[:2]))


@pytest.mark.parametrize(("kind", "channels"), [("vit", "keys"), ("vit", "heads"), ("gap_cnn", "features")])
def test_components_are_the_directions_of_largest_variance(kind: str, channels: Any) -> None:
    scene = tiny_scene(kind)
    ctx = scene.context(channel_needs(channels))
    plain = channel_maps(ctx, channels).maps.flatten(2).double()  # [B, F, N]
    found = channel_maps(ctx, channels, components=2)
    for b in range(2):
        covariance = torch.cov(plain[b])
        values, vectors = np.linalg.eigh(covariance.numpy())
        centred = (plain[b] - plain[b].mean(1, keepdim=True)).numpy()
        for j in range(2):
            expected = vectors[:, -1 - j] @ centred
            expected *= np.sign(expected[np.abs(expected).argmax()])
            np.testing.assert_allclose(found.maps[b, j].flatten(), expected, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(found.maps[b, j].flatten().var(correction=1), values[-1 - j], rtol=1e-3)


def test_a_components_gradient_is_that_along_its_axis(scene: Scene) -> None:
    """Σ_f axis_f α_f; and a step along an axis moves the component's map by one everywhere."""
    ctx = scene.context(channel_needs("values"))
    found = channel_maps(ctx, "values", components=3)
    assert found.axes is not None
    alpha = channel_gradients(ctx, "values", -1, None)
    along = channel_gradients(ctx, "values", -1, found.axes)
    torch.testing.assert_close(along[1, 2, 0], (found.axes[1, 0] * alpha[1, 2]).sum())
    torch.testing.assert_close(found.axes @ found.axes.transpose(1, 2), torch.eye(3).expand(2, 3, 3), atol=1e-4, rtol=0)
    plain = channel_maps(ctx, "values").maps.flatten(2)
    moved = torch.einsum("bkf,bfn->bkn", found.axes, plain - plain.mean(-1, keepdim=True))
    torch.testing.assert_close(moved, found.maps.flatten(2), rtol=1e-3, atol=1e-4)


def test_masks_are_shared_by_methods_and_kept_apart_by_choice() -> None:
    ctx, tower_calls = counted("vit")
    needs = channel_needs("heads") | channel_needs("features") | channel_needs("heads", components=1)
    ctx = replace(ctx, trace=ctx.backbone.trace(ctx.images, needs))
    methods.get("score_cam").function(ctx, channels="heads")
    assert tower_calls.images == 2 * 2 + 1  # pictures × heads, and the empty picture
    for name in FAMILY:
        methods.get(name).function(ctx, channels="heads")
    assert tower_calls.images == 2 * 2 + 1
    methods.get("score_cam").function(ctx, channels="heads", components=1)
    assert tower_calls.images == 2 * 2 + 1 + 2
    methods.get("score_cam").function(ctx)
    assert tower_calls.images == 2 * 2 + 1 + 2 + 2 * ctx.features.shape[1]


@pytest.mark.parametrize("components", [None, 2])
@pytest.mark.parametrize("channels", VIT_ONLY)
@pytest.mark.parametrize("name", FAMILY)
def test_batches_and_prompts_do_not_matter(scene: Scene, name: str, channels: str, components: int | None) -> None:
    options = {"channels": channels, "block": -2, "components": components}
    maps = scene.ours(name, **options)
    assert maps.shape == (2, 3, *GRID)
    for b in range(2):
        one = Scene(scene.backbone, scene.images[b : b + 1], scene.text[[2, 0]])
        torch.testing.assert_close(one.ours(name, **options), maps[b : b + 1, [2, 0]], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("channels", VIT_ONLY)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "vit"])
def test_a_cnn_refuses_what_only_a_vit_has(kind: str, channels: str) -> None:
    with pytest.raises(UsageError) as error:
        Localizer(tower(kind, GRID), method="vl_score", method_options={"channels": channels})
    assert str(error.value) == (
        f"vl_score with channels={channels} needs a vit tower, and {kind} is a cnn tower: leave the option "
        "out, or choose another model"
    )

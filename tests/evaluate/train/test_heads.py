"""TS-CAM's and LCTR's trained layers against loops written from the equations; saving, and refusing another tower."""

import dataclasses
import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.signal import correlate2d
from torch import Tensor
from torch.nn import functional as F

from cliploc.errors import ModelError
from cliploc.find.heads import (
    HEADS,
    SAME_TOWER,
    HeadConfig,
    LctrHead,
    Seen,
    TsCamHead,
    load_head,
    look,
    read_config,
    save_head,
    tower_fingerprint,
)
from cliploc.methods import methods
from cliploc.methods._infra.method import Context, TrainedHead
from cliploc.towers import create
from tests.methods.vits import QueryingVit, plain_forward, scenes, tiny
from tests.tiny import TinyVit, tower

GRID = (4, 5)
D, CHANNELS = 6, 3
CLASSES = (("red", "crimson"), ("green",), ("a zebra", "zebra"), ("blue",))


def config(method: str, kind: str, **changed: Any) -> HeadConfig:
    given = {"start": "random", "experts": 3, **changed}
    return HeadConfig(method, kind, CLASSES, CHANNELS, D, 7.0, "a tower", "vit", "no weights", **given)  # type: ignore[arg-type]


def head(method: str, kind: str, seed: int = 0, **changed: Any) -> Any:
    torch.manual_seed(seed)
    made = HEADS[method](config(method, kind, **changed))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made.eval().requires_grad_(False)


def seen(dense: bool = False, seed: int = 3, grid: tuple[int, int] = GRID) -> Seen:
    generator = torch.Generator().manual_seed(seed)
    attention = torch.rand(2, *grid, generator=generator)
    unit = F.normalize(torch.randn(2, D, *grid, generator=generator), dim=1) if dense else None
    return Seen(torch.randn(2, CHANNELS, *grid, generator=generator), attention, unit)


def texts() -> Tensor:
    return F.normalize(torch.randn(len(CLASSES), D, generator=torch.Generator().manual_seed(5)), dim=1)


# ---------------------------------------------------------------------------------------- the equations, place by place
def conv3x3(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """`[C, h, w]`, `[O, C, 3, 3]` → `[O, h, w]`, with zeros around x."""
    sums = [sum(map(partial(correlate2d, mode="same"), x, of_output)) for of_output in kernel]
    return np.stack(sums) + (0 if bias is None else bias[:, None, None])


def semantic_maps(trained: Any, x: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """S of one picture, `[C_out, h, w]`."""
    w = {name: tensor.numpy().astype(float) for name, tensor in trained.state_dict().items()}
    if trained.method == "ts_cam":
        return conv3x3(x, w["conv.weight"], w["conv.bias"])
    u = conv3x3(x * (1 - attention), w["dig.weight"], w["dig.bias"])
    mean, largest = u.reshape(len(u), -1).mean(axis=1), u.reshape(len(u), -1).max(axis=1)
    z = w["fc_mean.weight"] @ mean + w["fc_mean.bias"] + w["fc_max.weight"] @ largest + w["fc_max.bias"]
    mixture = [1 / (1 + math.exp(-value)) for value in z]
    kernel = sum(m * expert for m, expert in zip(mixture, w["experts"], strict=True))
    return conv3x3(x, kernel, w["bias"])


def smoothed(trained: Any, maps: np.ndarray) -> np.ndarray:
    """LCTR's avgpool3×3 before the mean."""
    if trained.method == "ts_cam":
        return maps
    ninth = np.zeros((len(maps), len(maps), 3, 3))
    for c in range(len(maps)):
        ninth[c, c] = 1 / 9
    return conv3x3(maps, ninth, None)


METHODS = pytest.mark.parametrize("method", ["ts_cam", "lctr"])


@METHODS
@pytest.mark.parametrize("grid", [GRID, (1, 1), (1, 4), (7, 5)])
def test_the_maps_and_logits_of_a_closed_head(method: str, grid: tuple[int, int]) -> None:
    trained, features = head(method, "closed"), seen(grid=grid)
    maps, logits = trained.maps(features), trained(features)
    for b in range(2):
        expected = semantic_maps(trained, features.tokens[b].numpy(), features.attention[b].numpy())
        np.testing.assert_allclose(maps[b].numpy(), expected, rtol=1e-4, atol=1e-5)
        means = smoothed(trained, expected).reshape(len(CLASSES), -1).mean(axis=1)
        np.testing.assert_allclose(logits[b].numpy(), means, rtol=1e-4, atol=1e-5)


@METHODS
@pytest.mark.parametrize("start", ["random", "zero-shot"])
def test_the_maps_and_logits_of_an_open_head(method: str, start: str) -> None:
    trained = head(method, "open", start=start)
    features, text = seen(dense=start == "zero-shot"), texts()
    maps, logits = trained.maps(features), trained(features, text)
    for b in range(2):
        expected = semantic_maps(trained, features.tokens[b].numpy(), features.attention[b].numpy())
        if features.dense is not None:
            expected = expected + 7 * features.dense[b].numpy()
        np.testing.assert_allclose(maps[b].numpy(), expected, rtol=1e-4, atol=1e-5)
        spoken = np.stack([(g[:, None, None] * expected).sum(axis=0) for g in text.numpy()])  # [classes, h, w]
        means = smoothed(trained, spoken).reshape(len(CLASSES), -1).mean(axis=1)
        np.testing.assert_allclose(logits[b].numpy(), means, rtol=1e-4, atol=1e-5)


@METHODS
@pytest.mark.parametrize("kind", ["closed", "open"])
def test_gradients(method: str, kind: str) -> None:
    trained = head(method, kind, start="zero-shot").double().requires_grad_(True)
    features, text = seen(dense=kind == "open", grid=(3, 2)), None if kind == "closed" else texts().double()
    names, values = zip(*trained.named_parameters(), strict=True)

    def logits(tokens: Tensor, *parameters: Tensor) -> Tensor:
        dense = None if features.dense is None else features.dense.double()
        arguments = (replace(features, tokens=tokens, attention=features.attention.double(), dense=dense), text)
        return torch.func.functional_call(trained, dict(zip(names, parameters, strict=True)), arguments)

    tokens = features.tokens.double().requires_grad_(True)
    assert torch.autograd.gradcheck(logits, (tokens, *values))


# -------------------------------------------------------------------------------------------------------- on the towers
def trained_on(backbone: Any, method: str, kind: str, start: str = "random") -> Any:
    channels = 16 if backbone.kind == "vit" else 24
    made = HEADS[method](
        HeadConfig(
            method, kind, CLASSES, channels, backbone.embedding_size, float(backbone.logit_scale), backbone.name,
            backbone.kind, backbone.weights_id, start,
        )  # type: ignore[arg-type]
    )  # fmt: skip
    if start == "random":
        torch.manual_seed(1)
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    return made.eval().requires_grad_(False)


def ctx_for(backbone: Any, method: str, options: dict[str, Any], words: list[tuple[str, ...]]) -> Context:
    needs, text = methods.get(method).needs(**options), backbone.encode_text([one[0] for one in words])
    trace = backbone.trace(scenes(), needs)
    return Context(scenes, text.expand(2, -1, -1), trace, backbone, words=[words, words])


@METHODS
@pytest.mark.parametrize("tower_kind", [TinyVit, QueryingVit])
def test_a_methods_map_is_attention_times_the_heads_maps(method: str, tower_kind: type[TinyVit]) -> None:
    backbone = tiny(tower_kind)
    trained = trained_on(backbone, method, "closed")
    words = [("blue",), ("crimson",), ("a lamp",)]
    maps = methods.get(method).function(ctx_for(backbone, method, {"head": trained}, words), head=trained)
    for b, image in enumerate(scenes()):
        tokens, attention, pool, _ = plain_forward(backbone, image)
        looks = [weights[0].mean(dim=0) for weights in attention]  # each [T, T]
        rows = [look_[0] for look_ in looks]
        if pool is not None:  # its query looks at patches once
            rows = [torch.cat([torch.zeros(1), pool[0].mean(dim=0)[0]])] * len(looks)
        patches = tokens[-1][0, 1:]
        x = (patches - patches.mean(1, keepdim=True)) / (patches.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        x = x.T.reshape(-1, 5, 6).detach().numpy()
        mean = (sum(rows) / len(rows))[1:].reshape(5, 6).detach()
        semantics = semantic_maps(trained, x, mean.numpy())
        if method == "ts_cam":
            where = mean * (1 if pool is not None else len(rows))
        else:
            reached = [(row[:, None] * look_)[:, 1:].mean(dim=0) for row, look_ in zip(rows, looks, strict=True)]
            where = (sum(reached) / len(reached)).reshape(5, 6).detach()
        np.testing.assert_allclose(maps[b, 0].numpy(), where.numpy() * semantics[3], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(maps[b, 1].numpy(), where.numpy() * semantics[0], rtol=1e-3, atol=1e-5)
        assert (maps[b, 2] == 0).all(), "no class of the head"


@METHODS
def test_an_open_head_begins_as_the_zero_shot_form(method: str) -> None:
    backbone = tiny()
    untrained = trained_on(backbone, method, "open", start="zero-shot")
    words = [("red",), ("a lamp",)]
    function = methods.get(method).function
    ours = function(ctx_for(backbone, method, {"head": untrained}, words), head=untrained)
    zero_shot = function(ctx_for(backbone, method, {}, words))
    torch.testing.assert_close(ours, backbone.logit_scale * zero_shot)


@METHODS
def test_a_cnn_has_no_attention_and_needs_none(method: str) -> None:
    backbone = tower("gap_cnn")
    trained = trained_on(backbone, method, "open")
    ctx = ctx_for(backbone, method, {"head": trained}, [("red",)])
    x = F.layer_norm(ctx.features.movedim(1, -1), (24,)).movedim(-1, 1)
    convolved = trained.convolve(Seen(x, torch.zeros(2, 5, 6)))  # nothing is erased
    expected = torch.einsum("bdhw,bpd->bphw", convolved, ctx.text)
    torch.testing.assert_close(methods.get(method).function(ctx, head=trained), expected)


def test_names_and_synonyms_mean_a_class() -> None:
    trained = head("ts_cam", "closed")
    assert isinstance(trained, TrainedHead)
    assert [trained.class_of(words) for words in [("Red",), ("CRIMSON",), ("x", "zebra"), ("lamp",)]] == [0, 0, 2, None]
    assert trained.unknown_reason(("x", "zebra")) is None
    assert "its 4 classes only" in trained.unknown_reason(("lamp",))
    assert head("ts_cam", "open").unknown_reason(("lamp",)) is None
    classes = (("crane", "bird"), ("bird",))
    trained = TsCamHead(dataclasses.replace(config("ts_cam", "closed"), classes=classes))
    assert trained.class_of(("bird",)) == 1, "a name wins over another class's synonym"


# ----------------------------------------------------------------------------------------------------- saved and loaded
@pytest.fixture
def saved(tmp_path: Path) -> tuple[Any, Any, Path]:
    backbone = tiny()
    trained = trained_on(backbone, "lctr", "open")
    save_head(tmp_path / "head.safetensors", trained, tower_fingerprint(backbone))
    return backbone, trained, tmp_path / "head.safetensors"


def test_a_saved_head_is_the_same_head(saved: Any) -> None:
    backbone, trained, path = saved
    loaded = load_head(path, backbone)
    assert loaded.config == trained.config == read_config(path)
    assert isinstance(loaded, LctrHead)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    told = LctrHead(dataclasses.replace(trained.config, training={"lr": 1.0}))
    told.load_state_dict(trained.state_dict())
    assert told.digest() == trained.digest(), "of what it computes, not of how it was trained"
    torch.nn.init.ones_(told.bias)
    assert told.digest() != trained.digest()
    ctx = ctx_for(backbone, "lctr", {"head": loaded}, [("red",)])
    features = look(ctx, attention=True, dense=False)
    assert torch.equal(loaded.maps(features), trained.maps(features))
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["cliploc_head"])["classes"] == [list(words) for words in CLASSES]


def test_a_head_of_another_tower_is_refused_by_name(saved: Any) -> None:
    _, _, path = saved
    other = tower("vit", (5, 6))
    other.name = "another"
    try:
        with pytest.raises(ModelError, match=r"head.safetensors was trained on vit, got another: use --model vit$"):
            load_head(path, other)
    finally:
        other.name = "vit"
    for another in (tower("vit", (5, 6), seed=9), TinyVit("vit", (5, 6), size=4)):
        with pytest.raises(ModelError, match="was trained on other weights of vit than these"):
            load_head(path, another)


def test_the_same_tower_in_another_precision_is_the_same(saved: Any) -> None:
    backbone, _, path = saved
    half = tower("vit", (5, 6)).bfloat16()
    assert half.weights_id != backbone.weights_id
    assert load_head(path, half).config.method == "lctr"
    exact, rounded = (tower_fingerprint(create("mini", precision=precision)) for precision in ("fp32", "bf16"))
    assert torch.cosine_similarity(exact, rounded, dim=0) > SAME_TOWER


def test_files_that_are_no_heads(saved: Any, tmp_path: Path) -> None:
    backbone, _, path = saved
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors, other = load_file(path), tmp_path / "other.safetensors"

    def described(**changed: Any) -> None:
        description = {**json.loads(metadata["cliploc_head"]), **changed}
        save_file(tensors, other, {"cliploc_head": json.dumps(description)})

    for make in (
        lambda: None,
        lambda: other.write_text("no head"),
        lambda: other.write_bytes(path.read_bytes()[:-100]),
        lambda: save_file({"x": torch.zeros(1)}, other),
        lambda: described(format=99),
        lambda: described(experts="many"),
    ):
        make()
        with pytest.raises(ModelError, match=r"^expected a trained head, but [^\n]*other[^\n]*cliploc train[^\n]*$"):
            load_head(other, backbone)
    for missing in ("head.experts", "tower.answer"):
        save_file({name: tensor for name, tensor in tensors.items() if name != missing}, other, metadata)
        with pytest.raises(ModelError, match="its weights do not fit its own description"):
            load_head(other, backbone)

"""What every backbone must hold, and every ViT: the reference is the host library's own forward on its own model."""

import contextlib
import copy
import functools
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import open_clip
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.errors import CliplocError, ModelError, UsageError
from cliploc.evaluate.tasks.faithfulness.measure import with_random_weights
from cliploc.methods import fitting
from cliploc.towers import create
from cliploc.towers._layers import attention_weights
from cliploc.towers.tower import Backbone, DenseReading, Needs, Pooling, TowerKind, TransformerBackbone, block_at
from cliploc.values import Interpolation, ResizePolicy
from tests.tiny import seeded
from tests.tolerances import assert_rounded

TEXT = {"width": 32, "heads": 2, "layers": 1, "context_length": 12, "vocab_size": 100}
SENTENCES = ["a photo of a cat", "dogs"]


def default_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The attention that towers are trained with, softmax(qkᵀ·scale)·v; each `[B, H, T, d/H]`."""
    return attention_weights(q, k, scale).to(v.dtype) @ v


def tokenizer(texts: list[str]) -> Tensor:
    """One number a letter, then the end-of-text token, which is the largest."""
    tokens = torch.zeros(len(texts), TEXT["context_length"], dtype=torch.long)
    for row, text in zip(tokens, texts, strict=True):
        letters = torch.tensor([1 + ord(letter) % 90 for letter in text[:10]])
        row[: len(letters)] = letters
        row[len(letters)] = TEXT["vocab_size"] - 1
    return tokens


@torch.no_grad()
def perturb(module: Any, size: float = 0.1, seed: int = 1, most: float = math.inf) -> Any:
    """Random everywhere, as biases and norms would hide mistakes; matrices of more elements than `most` stay."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.numel() > most and parameter.ndim > 1:
            continue
        parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    for name, buffer in module.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.add_(size * torch.rand(buffer.shape, generator=generator))
    return module.eval()


def real_tower(name: str, timms: dict[str, Any] | None = None, **vision: Any) -> Any:
    """The image tower of one of open_clip's models, changed by `vision` and timm's options, and a small text tower."""
    config = open_clip.get_model_config(name)
    vision = {**config["vision_cfg"], **vision}
    vision.pop("output_tokens", None)

    def build() -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(timm, "create_model", functools.partial(timm.create_model, **(timms or {})))
            return open_clip.CLIP(config["embed_dim"], vision, TEXT, quick_gelu=config.get("quick_gelu", False))

    return perturb(seeded(build, 0), 0.01, most=100_000)


def pictures(height: int, width: int, n: int = 2) -> Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def their_image_embedding(model: Any, images: Tensor) -> Tensor:
    return F.normalize(model.encode_image(images).float(), dim=-1)


@contextlib.contextmanager
def refusing(*fragments: str, kind: type[CliplocError] = ModelError) -> Iterator[None]:
    """What is done inside is refused in one line with these words."""
    with pytest.raises(kind) as error:
        yield
    text = str(error.value)
    assert "\n" not in text
    for fragment in fragments:
        assert fragment in text, text


@torch.no_grad()
def timms_attention(block: nn.Module, entering: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """timm's own softmax, made visible by its dropout of 0 in a copy whose fused path is off, and the branch."""
    block, seen = copy.deepcopy(block), []
    block.attn.fused_attn = False
    block.attn.attn_drop.register_forward_hook(lambda module, inputs, out: seen.append(out))
    block.mlp.forward = torch.zeros_like  # then what the block adds is its attention branch
    if hasattr(block.norm2, "bias") and "PostNorm" in type(block).__name__:
        nn.init.zeros_(block.norm2.bias)
    branch = block(entering, **options) - entering
    return seen[0], branch


def state_of(module: nn.Module) -> Any:
    """Everything that a forward pass must leave as it is: flags and hooks, and tensors with the random state."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    flags = [
        torch.is_grad_enabled(),
        [(p.requires_grad, p.grad) for p in module.parameters()],
        [(id(m), m.training, m.__dict__.get("forward")) for m in module.modules()],
        [len(getattr(m, hooks)) for m in module.modules() for hooks in kinds],
    ]
    return flags, [t.clone() for t in [*module.parameters(), *module.buffers(), torch.get_rng_state()]]


def assert_state(module: nn.Module, before: Any) -> None:
    flags, tensors = state_of(module)
    assert flags == before[0]
    assert all(torch.equal(now, then) for now, then in zip(tensors, before[1], strict=True))


class BackboneContract:
    """What a backbone says of itself; a subclass gives the fixture `backbone`."""

    def test_it_says_what_methods_and_caches_ask(self, backbone: Any) -> None:
        assert isinstance(backbone, Backbone)
        assert backbone.kind in get_args(TowerKind)
        assert backbone.pooling in get_args(Pooling)
        assert backbone.resize_policy in get_args(ResizePolicy)
        assert backbone.interpolation in get_args(Interpolation)
        assert backbone.weights_file is None, "nothing was read from a file"
        assert backbone.name
        assert backbone.logit_scale > 0
        assert fitting(backbone), "no method runs on it"

    def test_the_pooling_is_what_the_head_does(self, backbone: Any) -> None:
        """Only a mean takes features in any order: a pool with positions or a class token does not, or reads none."""
        trace = backbone.trace(pictures(*backbone.input_hw, n=1), Needs(features=(-1,)))
        if backbone.kind == "vit":
            tokens = trace.entering[-1]  # those that leave the last block will do as well
            pooled, attention = backbone.pool(tokens)
            last = tokens.clone()
            last[:, -1] += torch.randn(last.shape[-1], generator=torch.Generator().manual_seed(3))
            assert (attention is not None) == (backbone.pooling == "attention")
            assert torch.equal(backbone.pool(last)[0], pooled) == (backbone.pooling == "class token")
        else:
            features = trace.features[-1] + torch.randn(
                trace.features[-1].shape, generator=torch.Generator().manual_seed(3)
            )
            pooled, mirrored = (backbone.head(x, trace) for x in (features, features.flip(-1, -2)))
            assert torch.allclose(pooled, mirrored, atol=1e-5) == (backbone.pooling == "global average")

    def test_its_id_is_of_weights_precision_and_preprocessing(self, backbone: Any) -> None:
        assert len(backbone.weights_id) == 64
        assert copy.deepcopy(backbone).weights_id == backbone.weights_id
        ids = [backbone.weights_id, backbone.in_precision(torch.bfloat16).weights_id]
        for change in ("weight", "mean", "std", "interpolation", "logit_scale"):
            other = copy.deepcopy(backbone)
            if change == "weight":
                next(reversed(list(other.parameters()))).view(-1)[0] += 1
            elif change == "interpolation":
                other.interpolation = {"bicubic": "bilinear", "bilinear": "bicubic"}[backbone.interpolation]
            else:
                setattr(other, change, getattr(other, change) * 1.5 + 0.1)
            ids.append(other.weights_id)
        assert len(set(ids)) == len(ids)

    def test_random_weights_begin_at_the_output(self, backbone: Any) -> None:
        """The last tensor is behind everything that a trace keeps of the tower's stages, whatever holds it."""
        count = sum(one.numel() > 1 for name, one in backbone.named_parameters() if not name.startswith("text."))
        images, vit = pictures(*backbone.input_hw, n=1), backbone.kind == "vit"
        needs = Needs(tokens="all") if vit else Needs(features=(-2,))
        part, other = (one.trace(images, needs) for one in (backbone, with_random_weights(backbone, 1 / count, seed=0)))
        for stored in ("tokens", "features"):
            assert all(torch.equal(one, getattr(other, stored)[at]) for at, one in getattr(part, stored).items())
        assert not torch.equal(part.embedding, other.embedding)

    def test_weights_of_files_are_identified_by_what_is_in_them(self, backbone: Any) -> None:
        one, same, other = (copy.deepcopy(backbone) for _ in range(3))
        next(reversed(list(other.parameters()))).view(-1)[0] += 1
        for copied, name in ((one, "weights.pt"), (same, "weights.safetensors"), (other, "weights.pt")):
            copied.weights_file = Path(name)
        assert one.weights_id == same.weights_id
        assert len({one.weights_id, other.weights_id}) == 2
        assert one.in_precision(torch.bfloat16).weights_id != one.weights_id

    def test_a_copy_in_another_precision_leaves_the_original(self, backbone: Any) -> None:
        images = pictures(*backbone.input_hw)
        exact, half = backbone.encode_image(images), backbone.in_precision(torch.bfloat16)
        assert (half.dtype, backbone.dtype) == (torch.bfloat16, torch.float32)
        assert (half.kind, half.pooling) == (backbone.kind, backbone.pooling)
        rounded = half.encode_image(images)
        assert rounded.dtype == torch.float32
        assert not torch.equal(rounded, exact)
        assert F.cosine_similarity(rounded.flatten(), exact.flatten(), dim=0) > 0.99
        assert torch.equal(backbone.encode_image(images), exact)


class BundledContract(BackboneContract):
    """What the models in the package hold besides; a subclass says where the weights are and how large they may be."""

    weights: Path
    most: int

    def test_it_is_the_same_every_time_and_leaves_the_random_state_alone(self, backbone: Any) -> None:
        torch.manual_seed(11)
        before = torch.get_rng_state()
        again = type(backbone).bundled()
        assert torch.equal(torch.get_rng_state(), before)
        images = backbone.normalize(torch.rand(1, 3, 224, 224))
        texts = ["a photo of a cat.", "remote control", "xqzvkw"]
        assert torch.equal(backbone.encode_image(images), again.encode_image(images))
        assert torch.equal(backbone.encode_text(texts), again.encode_text(texts))

    def test_it_is_frozen(self, backbone: Any) -> None:
        assert not any(module.training for module in backbone.modules())
        assert not any(parameter.requires_grad for parameter in backbone.parameters())
        assert not any(tensor.is_meta for tensor in [*backbone.parameters(), *backbone.buffers()])

    def test_precision(self, backbone: Any) -> None:
        half, images = create(backbone.name, precision="bf16"), torch.rand(1, 3, 224, 224)
        assert half.dtype == torch.bfloat16
        assert torch.equal(half.mean, backbone.mean)
        rounded, exact = (one.encode_image(one.normalize(images)) for one in (half, backbone))
        assert rounded.dtype == torch.float32
        assert not torch.equal(rounded, exact)
        assert (rounded * exact).sum() > 0.99
        assert torch.equal(half.encode_text(["a cat"]), backbone.encode_text(["a cat"]))

    def test_names_it_cannot_know_have_a_reason(self, backbone: Any) -> None:
        assert backbone.unknown_reason("tabby cat") is None
        for word in ("happiness", "xqzvkw"):
            assert backbone.unknown_reason(word).startswith(f"{backbone.name} does not know '{word}'")

    def test_it_is_small_enough_to_ship(self) -> None:
        files = [path for path in self.weights.rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in files) <= self.most
        assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}  # nothing that runs code when read

    def test_other_weights_are_refused(self, backbone: Any) -> None:
        name = backbone.name
        assert create(name, "bundled").name == name
        with pytest.raises(UsageError, match=f"{name} has only its bundled weights, got --pretrained openai: leave"):
            create(name, "openai")


class TransformerContract(BackboneContract):
    """A subclass gives the fixtures `model` (an open_clip model) and `backbone` (made of it), and two references."""

    def resized(self, model: Any, height: int, width: int) -> Any:
        """A copy of the host's model for another input size, its positions resized apart from the product's code."""
        raise NotImplementedError

    def their_attention(self, model: Any, index: int, entering: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The host's own attention `[B, H, T, T]` and attention branch `[B, T, d]` of a block."""
        raise NotImplementedError

    def their_block(self, model: Any, entering: Tensor) -> Tensor:
        """The host's own last block: tokens `[B, T, d]` → `[B, T, d]`."""
        return self.blocks(model)[-1](entering)

    def blocks(self, model: Any) -> Any:
        """The host's list of blocks."""
        raise NotImplementedError

    @pytest.fixture
    def images(self, backbone: Any) -> Tensor:
        return pictures(*backbone.input_hw)

    def test_embeddings_are_open_clips(self, backbone: Any, model: Any, images: Tensor) -> None:
        assert isinstance(backbone, TransformerBackbone)
        assert backbone.kind == "vit"
        embedding = backbone.encode_image(images)
        assert embedding.shape == (2, backbone.embedding_size)
        assert_rounded(embedding, their_image_embedding(model, images), backbone)
        with torch.no_grad():
            assert_rounded(
                backbone.encode_text(SENTENCES), F.normalize(model.encode_text(tokenizer(SENTENCES)), dim=-1), backbone
            )

    @pytest.mark.parametrize("cells", [(6, 6), (3, 7)], ids=str)
    def test_other_sizes_are_open_clips_with_positions_resized(
        self, backbone: Any, model: Any, cells: tuple[int, int]
    ) -> None:
        height, width = cells[0] * backbone.stride, cells[1] * backbone.stride
        assert backbone.grid(height, width) == cells
        images = pictures(height, width)
        embedding = backbone.encode_image(images)
        assert_rounded(embedding, their_image_embedding(self.resized(model, height, width), images), backbone)
        native = backbone.encode_image(F.interpolate(images, size=backbone.input_hw))
        assert (embedding - native).abs().max() > 1e-3

    def test_what_does_not_fit_is_refused(self, backbone: Any, images: Tensor) -> None:
        height, width = backbone.input_hw
        with pytest.raises(UsageError, match=f"multiples of {backbone.stride} pixels .* got {height}×{width + 1}"):
            backbone.trace(pictures(height, width + 1), Needs())
        first = -backbone.depth
        with pytest.raises(UsageError, match=f"a block of .* from {first} to -1 .* got {first - 1}"):
            backbone.trace(images, Needs(attention=(first - 1,)))
        with pytest.raises(ValueError, match=r"expected the tokens entering block -2 in the trace, got none: ask for"):
            backbone.dense(backbone.trace(images, Needs(features=(-1,))), DenseReading(blocks=2))

    def test_traced_attention_is_the_hosts_and_changes_nothing(self, backbone: Any, model: Any, images: Tensor) -> None:
        trace = backbone.trace(images, Needs(tokens="all", attention="all"))
        assert_rounded(trace.embedding, their_image_embedding(model, images), backbone)
        assert sorted(trace.attention) == list(range(-backbone.depth, 0))
        for back, attention in trace.attention.items():
            assert_rounded(attention.sum(dim=-1), torch.ones(attention.shape[:-1]), backbone)
            theirs, _ = self.their_attention(model, back, trace.entering[back], trace.grid)
            assert_rounded(attention, theirs, backbone)

    def test_a_trace_has_what_needs_list(self, backbone: Any, images: Tensor) -> None:
        trace = backbone.trace(images, Needs(features=(-1,), tokens=(-2,), attention=(-1,)))
        assert (set(trace.features), set(trace.tokens), set(trace.attention)) == ({-1}, {-2}, {-1})
        assert set(trace.entering) == {-1, -2}
        assert torch.equal(trace.entering[-1], trace.tokens[-2])
        h, w = trace.grid
        patches = trace.entering[-1][:, backbone.prefix_tokens :].reshape(2, h, w, -1)
        assert torch.equal(trace.features[-1], patches.permute(0, 3, 1, 2))
        assert backbone.trace(images, Needs(tokens="all")).pool_attention is None

    def test_any_block_resumes_to_the_embedding(self, backbone: Any, images: Tensor) -> None:
        trace = backbone.trace(images, Needs(tokens="all"))
        for back, entering in trace.entering.items():
            resumed = backbone.resume(entering, back, Needs(), trace.grid)
            assert_rounded(resumed.embedding, trace.embedding, backbone)
            differentiable = backbone.resume(entering.clone().requires_grad_(), back, Needs(), trace.grid)
            assert_rounded(differentiable.embedding.detach(), trace.embedding, backbone)

    def test_stopping_early_is_a_shorter_tower(self, backbone: Any, model: Any, images: Tensor) -> None:
        shorter = copy.deepcopy(model)
        del self.blocks(shorter)[-1]
        trace = backbone.trace(images, Needs(tokens="all"))
        first = -backbone.depth
        early = backbone.resume(trace.entering[first], first, Needs(), trace.grid, last=-2)
        assert_rounded(early.embedding, their_image_embedding(shorter, images), backbone)

    def test_head_finishes_the_tower(self, backbone: Any, images: Tensor) -> None:
        trace = backbone.trace(images, Needs(features=(-1, -2)))
        for stage in (-1, -2):
            assert_rounded(backbone.head(trace.features[stage], trace, stage), trace.embedding, backbone)
        noise = torch.randn(trace.features[-1].shape, generator=torch.Generator().manual_seed(0))
        assert (backbone.head(trace.features[-1] + noise, trace) - trace.embedding).abs().max() > 1e-3

    def test_gradients_are_the_hosts_and_come_in_batches(self, backbone: Any, model: Any, images: Tensor) -> None:
        text = F.normalize(torch.randn(3, backbone.embedding_size), dim=-1)  # [P, D]
        trace = backbone.trace(images, Needs(tokens="all"))
        entering = trace.entering[-1].clone().requires_grad_()
        resumed = backbone.resume(entering, -1, Needs(attention=(-1,)), trace.grid)
        scores = (resumed.embedding @ text.T).sum(dim=0)  # [P]
        wanted = (entering, resumed.attention[-1])
        batched = torch.autograd.grad(scores, wanted, torch.eye(3), is_grads_batched=True, retain_graph=True)
        for p in range(3):
            one_by_one = torch.autograd.grad(scores[p], wanted, retain_graph=True)
            for ours, theirs in zip(batched, one_by_one, strict=True):
                assert_rounded(ours[p], theirs, backbone)
        tokens = trace.entering[-1].clone().requires_grad_()
        pooled, _ = backbone.pool(self.their_block(model, tokens))
        through_host = torch.autograd.grad((F.normalize(pooled, dim=-1) @ text[0]).sum(), tokens)[0]
        assert_rounded(batched[0][0], through_host, backbone)
        assert batched[1].abs().max() > 0

    def test_normed_is_the_input_of_the_hosts_attention(self, backbone: Any, model: Any, images: Tensor) -> None:
        trace = backbone.trace(images, Needs(projections=(-1,)))
        passed: list[Tensor] = []
        handle = self.blocks(model)[-1].attn.register_forward_pre_hook(lambda _, inputs: passed.append(inputs[0]))
        their_image_embedding(model, images)
        handle.remove()
        assert_rounded(trace.normed[-1], passed[0], backbone)
        assert backbone.trace(images, Needs(tokens=(-1,))).normed == {}

    def test_dense_with_the_default_rule_reads_the_default_tokens(self, backbone: Any, images: Tensor) -> None:
        trace = backbone.trace(images, Needs(tokens=(-1, -2)))
        tokens = trace.tokens[-1][:, backbone.prefix_tokens :]
        expected = backbone.read_tokens(tokens).transpose(1, 2).reshape(2, -1, *trace.grid)
        for blocks in (1, 2):
            dense = backbone.dense(trace, DenseReading(default_attention, blocks, residual=True, mlp=True))
            assert dense.dtype == torch.float32
            assert_rounded(dense, expected, backbone)

    def test_dense_paths_are_sums_of_the_hosts_branches(self, backbone: Any, model: Any, images: Tensor) -> None:
        trace = backbone.trace(images, Needs(tokens="all"))
        branches = {
            back: self.their_attention(model, back, trace.entering[back], trace.grid)[1] for back in (-1, -2)
        }  # each [B, T, d]

        def read(path: Tensor) -> Tensor:
            return backbone.read_tokens(path[:, backbone.prefix_tokens :]).transpose(1, 2).reshape(2, -1, *trace.grid)

        def assert_reads(ours: Tensor, path: Tensor) -> None:
            assert_rounded(ours, read(path), backbone)

        assert_reads(backbone.dense(trace, DenseReading(default_attention)), branches[-1])
        added = backbone.dense(trace, DenseReading(default_attention, residual=True))
        assert_reads(added, trace.entering[-1] + branches[-1])
        both = branches[-2] + branches[-1]
        beside = DenseReading(default_attention, 2, residual=True, parallel=True)
        parallel = backbone.dense(trace, beside)
        assert_reads(parallel, trace.entering[-2] + both)
        assert_reads(backbone.dense(trace, replace(beside, residual=False)), both)
        # The same from a trace that holds only where the path starts.
        barely = backbone.trace(images, Needs(features=(-2,)))
        assert_rounded(backbone.dense(barely, beside), parallel, backbone)

    def test_dense_without_a_rule_keeps_every_tokens_value(self, backbone: Any, images: Tensor) -> None:
        trace = backbone.trace(images, Needs(features=(-1,)))
        seen: list[tuple[Tensor, Tensor, Tensor, float]] = []

        def value(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
            seen.append((q, k, v, scale))
            return v

        assert torch.equal(backbone.dense(trace), backbone.dense(trace, DenseReading(value)))
        q, k, _, scale = seen[0]
        attention = backbone.trace(images, Needs(attention=(-1,))).attention[-1]
        assert_rounded((q @ k.transpose(-2, -1) * scale).softmax(dim=-1), attention, backbone)

    def test_dense_runs_no_projection_twice(self, backbone: Any, images: Tensor, monkeypatch: Any) -> None:
        paths = [
            DenseReading(default_attention, 2, residual=True, parallel=True, adaptive=True),
            DenseReading(default_attention, 2, parallel=True),
            DenseReading(default_attention, residual=True, mlp=True),
        ]
        trace = backbone.trace(images, Needs(tokens="all"))
        twice = [backbone.dense(trace, path) for path in paths]
        trace = backbone.trace(images, Needs(dense=backbone.depth + 1))  # all there are
        for adapter in backbone.adapters:
            monkeypatch.setattr(adapter, "project", None)
        once = [backbone.dense(trace, path) for path in paths]
        for ours, expected in zip(once, twice, strict=True):
            assert_rounded(ours, expected, backbone)

    def test_a_blocks_end_gives_the_gradients_of_its_attention(self, backbone: Any, images: Tensor) -> None:
        size = backbone.adapters[-1].attention_input(backbone.embed(images)).shape[-1]
        noise = torch.randn(size, generator=torch.Generator().manual_seed(0))
        direction = F.normalize(noise, dim=0)  # [d], short: where tanh is flat, rounding is all that a gradient has
        trace = backbone.trace(images, Needs(ends=(-1, -2), tokens=(-2,)))
        assert_rounded(trace.embedding, backbone.encode_image(images), backbone)
        complete = backbone.trace(images, Needs(tokens="all"))
        for back, end in trace.ends.items():
            assert_rounded(end.tokens(), complete.tokens[back], backbone)
            assert_rounded(end.mean_token(), complete.tokens[back].mean(dim=1), backbone)
            entering = complete.entering[back].clone().requires_grad_()
            run = backbone.resume(entering, back, Needs(tokens=(back,), attention=(back,)), trace.grid, last=back)
            (expected,) = torch.autograd.grad(
                (run.tokens[back].mean(dim=1) @ direction).tanh().sum(), run.attention[back]
            )  # [B, H, T, T]
            for same in (end, backbone.end(complete.entering[back], back, trace.grid)):
                score = (same.mean_token() @ direction).tanh().sum()
                (gradient,) = torch.autograd.grad(score, same.gathered, retain_graph=True)  # [B, H, T, d/H]
                assert_rounded(gradient @ same.values.transpose(-2, -1), expected, backbone)

    def test_a_blocks_end_may_gather_by_another_rule(self, backbone: Any, images: Tensor) -> None:
        trace = backbone.trace(images, Needs(tokens=(-1,)))
        part = backbone.end(trace.entering[-1], -1, trace.grid, default_attention)
        assert_rounded(part.tokens(), trace.tokens[-1], backbone)
        valued = backbone.end(trace.entering[-1], -1, trace.grid, lambda q, k, v, scale: v)
        assert torch.equal(valued.gathered, valued.values)
        path = backbone.path(trace, DenseReading(residual=True, mlp=True))
        assert_rounded(valued.tokens(), path, backbone)

    def test_a_path_ends_in_the_tokens_that_dense_reads(self, backbone: Any, images: Tensor) -> None:
        """Also from tokens that a method puts in the place of the tower's own."""
        trace = backbone.trace(images, Needs(dense=1))
        path = backbone.path(trace)
        assert path.shape == trace.entering[-1].shape
        read = backbone.read_tokens(path[:, backbone.prefix_tokens :])
        assert_rounded(read.transpose(1, 2).reshape(2, -1, *trace.grid), backbone.dense(trace), backbone)
        swapped = replace(trace, entering={-1: trace.entering[-1].flip(0)}, projections={}, normed={})
        assert_rounded(backbone.path(swapped), path.flip(0), backbone)

    def test_a_share_of_the_depth_stands_for_a_block(self, backbone: Any, images: Tensor) -> None:
        half = block_at(Fraction(1, 2), backbone.depth)
        assert half == backbone.depth // 2 - backbone.depth - 1
        requested, named = (
            backbone.trace(images, Needs(tokens=(one,), attention=(one,))) for one in (Fraction(1, 2), half)
        )
        assert set(requested.tokens) == set(requested.attention) == {half}
        assert torch.equal(requested.tokens[half], named.tokens[half])
        assert torch.equal(requested.attention[half], named.attention[half])

    def test_a_traces_graph_goes_with_it(self, backbone: Any, images: Tensor) -> None:
        with torch.inference_mode():
            trace = backbone.trace(images, Needs(ends=(-1,)))
        end = trace.ends[-1]
        for _ in range(2):
            assert torch.autograd.grad(end.tokens().sum(), end.gathered, retain_graph=True)[0].any()
        assert not trace.embedding.requires_grad
        inside = weakref.ref(end.gathered)
        del trace, end
        assert inside() is None

    def test_two_pictures_are_two_times_one(self, backbone: Any, images: Tensor) -> None:
        needs = Needs(features=(-1,), attention=(-1,))
        both = backbone.trace(images, needs)
        for b in range(2):
            one = backbone.trace(images[b : b + 1], needs)
            assert_rounded(one.embedding[0], both.embedding[b], backbone)
            assert_rounded(one.attention[-1][0], both.attention[-1][b], backbone)
            assert_rounded(backbone.dense(one)[0], backbone.dense(both)[b], backbone)

    def test_nothing_is_left_behind(self, backbone: Any, model: Any, images: Tensor) -> None:
        states = {id(module): (module, state_of(module)) for module in (backbone, model)}
        trace = backbone.trace(images, Needs(features=(-1,), tokens="all", attention="all"))
        entering = trace.entering[-2].clone().requires_grad_()
        resumed = backbone.resume(entering, -2, Needs(attention=(-1,)), trace.grid)
        torch.autograd.grad(resumed.embedding.sum(), resumed.attention[-1])
        backbone.dense(trace, DenseReading(default_attention, 2, parallel=True, residual=True, mlp=True))
        broken: Callable[..., Any] = lambda *_: 1 / 0  # noqa: E731
        with pytest.raises(ZeroDivisionError):
            backbone.dense(trace, DenseReading(broken))
        backbone.encode_image(pictures(4 * backbone.stride, 2 * backbone.stride))
        for module, before in states.values():
            assert_state(module, before)
        assert all(parameter.requires_grad for parameter in model.visual.parameters()), "the user's model was frozen"

    def test_half_precision_gives_float32_close_to_full(self, backbone: Any, images: Tensor) -> None:
        half = copy.deepcopy(backbone)
        for part in half.children():
            part.to(torch.bfloat16)
        assert half.dtype == torch.bfloat16
        needs = Needs(features=(-1,), tokens=(-1,), attention=(-1,))
        full_trace, trace = backbone.trace(images, needs), half.trace(images, needs)
        assert trace.tokens[-1].dtype == torch.bfloat16
        for ours, full in (
            (trace.embedding, full_trace.embedding),
            (trace.attention[-1], full_trace.attention[-1]),
            (half.dense(trace), backbone.dense(full_trace)),
            (half.encode_text(SENTENCES), backbone.encode_text(SENTENCES)),
        ):
            assert ours.dtype == torch.float32
            assert F.cosine_similarity(ours.flatten(), full.flatten(), dim=0) > 0.995

"""What a method wants of an image tower, `Needs`, and what one forward pass of it keeps, a `Trace`; without torch.

Letters of the shapes: B images, P prompts, C channels, h×w the feature grid, D the joint embedding size, d the width of
a transformer, N = h·w patches, H heads (in attention shapes) or image height, W image width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, cast, runtime_checkable

from cliploc.errors import UsageError
from cliploc.support.imports import on_first_use

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cliploc.towers._backbone import Backbone as Backbone
    from cliploc.towers._transformer import TransformerBackbone as TransformerBackbone

__getattr__ = on_first_use(  # with torch
    __name__, {"cliploc.towers._backbone": ["Backbone"], "cliploc.towers._transformer": ["TransformerBackbone"]}
)

TowerKind = Literal["cnn", "vit"]
Pooling = Literal["class token", "attention", "global average", "class token and mean"]
PositionRule = Literal["antialiased", "dino"]
All = Literal["all"]
AttentionRule: TypeAlias = "Callable[[Tensor, Tensor, Tensor, Any], Tensor]"
SPELLED = ("A photo of two cats, it's 1_2.", "Größe – 猫!")  # texts whose tokens tell tokenizers apart
UNTOLD = ("training", "name_or_path")  # settings of modules that change no result
MIXTURE = 0  # in `Needs.features` of a CNN: no stage, but the tower's own linear reading of several stages


def block_at(share: Fraction, depth: int) -> int:
    """The block at a share of a ViT's depth, counted from the end; between two blocks the earlier one.

    Example:
        >>> block_at(Fraction(3, 4), 12), block_at(Fraction(3, 4), 24)  # the ninth, the eighteenth
        (-4, -7)
    """
    return max(1, int(share * depth)) - depth - 1


@dataclass(frozen=True)
class Needs:
    """What a method wants one forward pass to keep. Indices count from the end: −1 is the last.

    A `Fraction` names a ViT's block by its share of the tower's depth; see `block_at`.
    """

    # Feature maps. CNN: the output of that stage, or `MIXTURE`. ViT: the patch tokens that enter that block.
    features: tuple[int, ...] = ()
    # ViT only: all tokens that leave these blocks; "all" for every block.
    tokens: tuple[int | Fraction, ...] | All = ()
    # ViT only: post-softmax attention of these blocks; "all" for every block.
    attention: tuple[int | Fraction, ...] | All = ()
    # ViT only: queries, keys and values of these blocks; "all" for every block.
    projections: tuple[int, ...] | All = ()
    ends: tuple[int, ...] = ()  # ViT only: the `BlockEnd` of these blocks
    dense: int = 0  # ViT only: how many of the last blocks `Backbone.dense` will run; all, where there are fewer
    guide: bool = False  # whether the features of a `Guide` are read, which no trace holds
    windows: bool = False  # whether all windows of a picture, where it is cut into some, must be in one batch

    def __or__(self, other: Needs) -> Needs:
        """The union: one forward pass that serves both."""

        def union(a: Any, b: Any) -> Any:
            if isinstance(a, int):  # a count, or whether something is needed
                return max(a, b)
            return "all" if "all" in (a, b) else tuple(sorted({*a, *b}))

        return Needs(*(union(getattr(self, part.name), getattr(other, part.name)) for part in fields(self)))

    @property
    def only_vit(self) -> bool:
        """Whether something is asked for that a CNN does not have."""
        return bool(self.tokens or self.attention or self.projections or self.ends or self.dense)


@dataclass(frozen=True)
class DenseReading:
    """How `Backbone.dense` runs a ViT's last blocks again to read every patch in the joint space.

    The path starts as the tokens that enter the first of these blocks. In every block the rule replaces the attention;
    what it gathers, through the attention's output projection, is the block's branch. The default is MaskCLIP's.
    """

    # `(q, k, v, scale) → out`, each `[B, H, 1+N, d/H]`; None: every token keeps its own value v (MaskCLIP).
    rule: AttentionRule | None = None
    blocks: int = 1  # how many of the last blocks are run
    residual: bool = False  # whether a branch is added to the path (Surgery, GEM) or replaces it (ClearCLIP)
    mlp: bool = False  # whether the block's MLP follows, with its residual
    # Whether q, k and v come from the tower's own, unchanged tokens (Surgery, GEM), while the path is the sum of the
    # branches; else they come from the path. Without `residual` the sum starts at zero.
    parallel: bool = False
    # Whether the scale that the rule takes is multiplied by the mean length of the image's tokens after the block's
    # first norm (GEM); it is then a tensor `[B, 1, 1, 1]` instead of a number.
    adaptive: bool = False
    # `(h, w)` of the patches that the rule returns, where they are not the tower's (ProxyCLIP); only for one block
    # without residual.
    grid: tuple[int, int] | None = None


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Splits tokens into heads: `[B, T, d]` → `[B, H, T, d/H]`."""
    return x.view(*x.shape[:-1], heads, -1).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """Joins heads: `[B, H, T, d/H]` → `[B, T, d]`."""
    return x.transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class BlockEnd:
    """The part of a transformer block after its attention has gathered the values, with a graph for gradients.

    The attention A itself is not part of the graph: as gathered = A·v, ∂s/∂A = ∂s/∂gathered · vᵀ. Several methods may
    share the graph, so each must keep it (`retain_graph=True`); it is freed together with the trace.
    """

    values: Tensor  # `[B, H, T, d/H]`, v
    gathered: Tensor  # `[B, H, T, d/H]`, the leaf of the graph
    middle: Tensor  # `[B, T, d]` tokens after the attention branch is added, before the MLP's
    hidden: Tensor  # `[B, T, m]` activations of the MLP before its last linear layer
    # That layer, hidden → what is added to `middle`: affine, so a mean over tokens may be taken before it.
    mlp_out: Callable[[Tensor], Tensor]

    def tokens(self) -> Tensor:
        """`[B, T, d]` leaving the block."""
        return self.middle + self.mlp_out(self.hidden)

    def mean_token(self) -> Tensor:
        """`[B, d]` the mean of all tokens leaving the block, cheaper than the mean of `tokens()`."""
        return self.middle.mean(dim=1) + self.mlp_out(self.hidden.mean(dim=1))


@dataclass(frozen=True, eq=False)
class Trace:
    """What one forward pass of the image tower kept, keyed by index from the end (−1 is the last)."""

    embedding: Tensor  # `[B, D]` float32, unit norm
    grid: tuple[int, int]  # `(h, w)` of the last stage or of the patches
    # Stage → `[B, C, h, w]`; for a ViT the patch tokens entering that block, `[B, d, h, w]`.
    features: Mapping[int, Tensor] = field(default_factory=dict)
    # Block → `[B, 1+N, d]` leaving it. The 1 stands for `TransformerBackbone.prefix_tokens`, which is 0 where the tower
    # has no class token.
    tokens: Mapping[int, Tensor] = field(default_factory=dict)
    # Block → `[B, H, 1+N, 1+N]` float32 after the softmax.
    attention: Mapping[int, Tensor] = field(default_factory=dict)
    # Block → its queries, keys and values, each `[B, H, 1+N, d/H]`.
    projections: Mapping[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    # Block → `[B, 1+N, d]` what q, k and v are projections of: the tokens entering the block, after its first norm; for
    # the blocks in `projections`.
    normed: Mapping[int, Tensor] = field(default_factory=dict)
    # ViT only: block → `[B, 1+N, d]` all tokens entering it, for every block asked for features, tokens, projections or
    # `dense`.
    entering: Mapping[int, Tensor] = field(default_factory=dict)
    ends: Mapping[int, BlockEnd] = field(default_factory=dict)  # block → its `BlockEnd`, differentiable
    # `[B, H, 1, T]` float32 of a ViT's attention pool, kept whenever attention is; its last N columns are the patches.
    # None where the head has no attention pool.
    pool_attention: Tensor | None = None

    @classmethod
    def joined(cls, parts: Sequence[Trace]) -> Trace:
        """The trace of a batch that was run in parts, which have no `ends`: those are graphs."""
        import torch  # here: protocols are read without it

        def together(values: Any) -> Any:
            first = values[0]
            if isinstance(first, torch.Tensor):
                return torch.cat(values)
            if isinstance(first, Mapping):
                return {key: together([one[key] for one in values]) for key in first}
            return tuple(map(together, zip(*values, strict=True))) if isinstance(first, tuple) else first

        return cls(*(together([getattr(part, of.name) for part in parts]) for of in fields(cls)))


@runtime_checkable
class Guide(Protocol):
    """A second, frozen image tower whose features say which places are alike; it has no text tower."""

    name: str  # its name in results and lists

    @property
    def weights_id(self) -> str:
        """SHA-256 of all that its answers depend on; tells guides apart in the identity of runs."""

    def features(self, pixels: Tensor) -> Tensor:
        """RGB `[B, 3, H, W]` in 0–1, the model's input before it is normalised → `[B, C, h, w]` float32.

        The grid is the guide's own for a picture of this size; the picture is resized to whole cells of it.
        """


def as_transformer(backbone: Backbone) -> TransformerBackbone:
    """The same backbone, known to be a ViT; a `UsageError` for a CNN."""
    if backbone.kind != "vit":
        raise UsageError(f"expected a ViT tower, got {backbone.name}, a CNN: choose another model, such as mini-vit")
    return cast("TransformerBackbone", backbone)


def tensors_digest(tensors: Mapping[str, Tensor]) -> bytes:
    """SHA-256 of named tensors: names, shapes, types and values, on any device. It tells weights apart."""
    import torch  # here: protocols are read without it

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.digest()


def fingerprint(module: nn.Module) -> bytes:
    """SHA-256 of what a module computes with, on any device: its tensors, its parts, their settings, and its tokens."""
    digest = hashlib.sha256(tensors_digest(module.state_dict()))
    for name, part in module.named_modules():
        if hasattr(part, "token_ids"):
            digest.update(repr(part.token_ids(SPELLED).tolist()).encode())
        settings = {key: value for key, value in vars(part).items() if isinstance(value, bool | int | float | str)}
        told = sorted((key, value) for key, value in settings.items() if key[0] != "_" and key not in UNTOLD)
        if name:  # what the module itself holds are its name and other things that are no weights
            digest.update(f"{name} {type(part).__qualname__} {told}".encode())
    return digest.digest()

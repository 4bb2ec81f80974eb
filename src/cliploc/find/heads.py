"""Trained heads of TS-CAM and LCTR on a frozen tower: they compute semantic maps S from the tower's last features.

Both are 3×3 convolutions over the final patch tokens, trained on image-level labels: a class's logit is a mean of its
map. *Closed* heads have an output for each class of the training set, as published. *Open* heads map every place into
the tower's joint space, so that the trained head works with any name.
"""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec
import torch
from msgspec import Meta
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.errors import ModelError, UsageError, first_line
from cliploc.methods import Context, mean_attention, patches_of
from cliploc.support.files import Width, user_path, write_output
from cliploc.towers.tower import Backbone, Needs, TowerKind, tensors_digest

FORMAT = 2  # file format of a saved head
SAME_TOWER = 0.98  # cosine: the bundled models in bf16 have 0.994 with themselves, other weights far less
HeadKind = Literal["closed", "open"]
Start = Literal["zero-shot", "random"]


@dataclass(frozen=True)
class HeadConfig:
    """The description of a head, saved beside its weights; also the schema of what is saved."""

    method: str  # "ts_cam" or "lctr"
    kind: HeadKind  # "closed" or "open"
    classes: tuple[tuple[str, ...], ...]  # the classes of the training set, each as its name followed by its synonyms
    channels: Width  # d of the tower's last features
    embedding_size: Width  # D of the tower's joint space
    logit_scale: float  # the tower's logit scale, the factor of an open head's cosines
    tower: str  # name of the tower's model
    tower_kind: TowerKind  # "cnn" or "vit"
    weights: str  # the tower's `weights_id`
    # for open heads: "zero-shot", S = the tower's dense reading + the convolution, which adds nothing before training;
    # "random", S = the convolution alone
    start: Start = "zero-shot"
    experts: Annotated[int, Meta(ge=1, le=1024)] = 4  # K of LCTR
    pretrained: str | None = None  # the tower's weights, as given by `--pretrained`
    templates: tuple[str, ...] = ()  # prompt templates that an open head was trained with
    training: dict[str, Any] | None = None  # settings and outcome of the training, for the record

    @property
    def outputs(self) -> int:
        """Channels of S."""
        return len(self.classes) if self.kind == "closed" else self.embedding_size

    @property
    def reads_dense(self) -> bool:
        """Whether S starts from the tower's dense reading."""
        return self.kind == "open" and self.start == "zero-shot"


class _HeadFile(msgspec.Struct):  # what a file has besides
    format: Literal[2]
    method: Literal["ts_cam", "lctr"]


@dataclass(frozen=True)
class Seen:
    """The features of B pictures that a head takes from a frozen tower; training needs nothing else of the pictures."""

    # [B, d, h, w] the last features (a ViT's patch tokens after its last block), each place with mean 0 and variance 1
    # over its channels: the tower's last norm without its weights, which the convolution learns
    tokens: Tensor
    attention: Tensor  # [B, h, w] mean_{l,H} A^l[class token → patches]; zeros for a CNN
    # [B, D, h, w] the tower's dense reading of every place, unit length; None if no head needs it
    dense: Tensor | None = None


def seen_needs(kind: TowerKind, attention: bool, dense: bool) -> Needs:
    """The trace entries that `look` reads."""
    if kind == "cnn":
        return Needs(features=(-1,))
    return Needs(tokens=(-1,), features=(-1,) if dense else (), attention="all" if attention else ())


@torch.no_grad()
def look(ctx: Context, *, attention: bool, dense: bool) -> Seen:
    """Takes a head's features from a trace made with `seen_needs`."""
    trace = ctx.trace
    vit = ctx.backbone.kind == "vit"
    last = patches_of(ctx, trace.tokens[-1].transpose(1, 2)) if vit else trace.features[-1]  # [B, d, h, w]
    places = last.float().movedim(1, -1)  # [B, h, w, d]
    tokens = F.layer_norm(places, places.shape[-1:]).movedim(-1, 1).contiguous()
    return Seen(
        tokens,
        mean_attention(ctx).float() if attention and vit else tokens.new_zeros(len(tokens), *tokens.shape[-2:]),
        F.normalize(ctx.dense().float(), dim=1) if dense else None,
    )


class SemanticHead(nn.Module, ABC):
    """A `method.TrainedHead`: semantic maps S by a 3×3 convolution, its kernel a subclass's; logits are their means."""

    method: str
    reads_attention: ClassVar[bool]

    def __init__(self, config: HeadConfig) -> None:
        super().__init__()
        self.config = config
        self.tower_kind, self.closed = config.tower_kind, config.kind == "closed"

    @abstractmethod
    def convolve(self, seen: Seen) -> Tensor:
        """The convolution's maps: `[B, C_out, h, w]`."""

    @abstractmethod
    def convolved_mean(self, seen: Seen) -> Tensor:
        """The mean of `convolve`'s maps, weighted by `place_weights`, without making the maps: `[B, C_out]`."""

    @abstractmethod
    def place_weights(self, grid: tuple[int, int], like: Tensor) -> Tensor:
        """The weight of each place in a class's logit: `[h, w]`."""

    def maps(self, seen: Seen) -> Tensor:
        """S, `[B, C_out, h, w]`: a map for each class (closed), or a joint-space vector for each place (open)."""
        maps = self.convolve(seen)
        if seen.dense is not None:
            # at this scale its logits have the size of the tower's own
            maps = maps + self.config.logit_scale * seen.dense.to(maps.dtype)
        return maps

    def forward(self, seen: Seen, text: Tensor | None = None) -> Tensor:
        """Logits `[B, classes]`, on which the head is trained; an open head takes its classes' texts `[classes, D]`.

        Closed: the mean of each class's map. Open: the mean of S · g_c, as if the text were the last layer of a closed
        head.
        """
        weights = self.place_weights(_grid(seen), seen.tokens)  # [h, w]
        pooled = self.convolved_mean(seen)  # [B, C_out]
        if pooled.dtype in (torch.float16, torch.bfloat16):  # too coarse for sums and norms
            pooled = pooled.float()
        if seen.dense is not None:
            pooled = pooled + self.config.logit_scale * torch.einsum("bdhw,hw->bd", seen.dense, weights)
        return pooled if text is None else pooled @ text.T

    # ------------------------------------------------------------------------------------------ for a saliency method
    def digest(self) -> str:
        """SHA-256 of the head's description and weights, without the record of its training."""
        digest = hashlib.sha256(json.dumps({**asdict(self.config), "training": None}).encode())
        digest.update(tensors_digest(self.state_dict()))
        return digest.hexdigest()

    def needs(self) -> Needs:
        """What the head reads from the trace."""
        return seen_needs(self.tower_kind, self.reads_attention, self.config.reads_dense)

    @torch.no_grad()
    def semantics(self, ctx: Context) -> Tensor:
        """S for each prompt, `[B, P, h, w]`: closed, its class's map, or zeros for an unknown name; open, S · g_t."""
        seen = look(ctx, attention=self.reads_attention, dense=self.config.reads_dense)
        maps = self.maps(seen).float()
        if not self.closed:
            return torch.einsum("bdhw,bpd->bphw", maps, ctx.text)
        if not ctx.words:
            raise UsageError("expected the prompts' words for a closed head, got embeddings alone: use an open head")
        chosen = maps.new_zeros(*ctx.text.shape[:2], *maps.shape[-2:])  # [B, P, h, w]
        for b, prompts in enumerate(ctx.words):
            for p, words in enumerate(prompts):
                index = self.class_of(words)
                if index is not None:
                    chosen[b, p] = maps[b, index]
        return chosen

    def class_of(self, words: Sequence[str]) -> int | None:
        """Index of the class with one of these words as its name or, failing that, as a synonym; None for no class."""
        names = {synonyms[0].casefold(): index for index, synonyms in enumerate(self.config.classes)}
        others = {word.casefold(): i for i, synonyms in enumerate(self.config.classes) for word in synonyms[1:]}
        for known in (names, others):
            for word in words:
                if word.casefold() in known:
                    return known[word.casefold()]
        return None

    def unknown_reason(self, words: tuple[str, ...]) -> str | None:
        """Why the head cannot know a name: a closed head knows its classes only; None where it knows the name."""
        if not self.closed or self.class_of(words) is not None:
            return None
        return f"the closed head knows its {len(self.config.classes)} classes only: train an open one for other names"


class TsCamHead(SemanticHead):
    """TS-CAM (Gao 2021): S = conv3×3(x), stride 1, padding 1, x the final patch tokens; logits = mean_hw S.

    The paper fine-tunes the whole transformer; here the tower stays frozen.
    """

    method = "ts_cam"
    reads_attention = False

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.conv = nn.Conv2d(config.channels, config.outputs, 3, padding=1)
        if config.reads_dense:
            nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def convolve(self, seen: Seen) -> Tensor:
        """`[B, C_out, h, w]`."""
        convolved: Tensor = self.conv(seen.tokens)
        return convolved

    def convolved_mean(self, seen: Seen) -> Tensor:
        """The maps' mean, `[B, C_out]`: the mean of a convolution is its kernel applied to nine shifted means."""
        means = neighbour_means(seen.tokens, self.place_weights(_grid(seen), seen.tokens))  # [B, 9d]
        return F.linear(means, self.conv.weight.flatten(1), self.conv.bias)

    def place_weights(self, grid: tuple[int, int], like: Tensor) -> Tensor:
        """Equal weights of all places."""
        return like.new_full(grid, 1 / math.prod(grid))


class LctrHead(SemanticHead):
    """LCTR's cue-digging module (Chen 2022): erases what attention already sees; the rest determines the kernel.

    E = 1 − mean_{l,H} A^l[class token → patches]; u = conv3×3(x ⊙ E); m = σ(fc₁(avgpool u) + fc₂(maxpool u)) ∈ R^K;
    S = conv(x; Σ_k m_k W_k) + b with K 3×3 kernels W_k and one bias b for each channel of S, which is not mixed;
    logits = mean_hw(avgpool3×3 S). avgpool3×3 has stride 1 and padding 1, and includes the padding in its means. u has
    as many channels as x. A CNN has no attention: nothing is erased, E = 1.

    In the authors' code W and b start smaller: there the initial range comes from a 5-dimensional tensor of kernels,
    whose fan-in includes the classes. Here each kernel starts like a convolution's, and b at 0.
    """

    method = "lctr"
    reads_attention = True

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        d, k = config.channels, config.experts
        self.dig = nn.Conv2d(d, d, 3, padding=1)
        self.fc_mean, self.fc_max = nn.Linear(d, k), nn.Linear(d, k)
        self.experts = nn.Parameter(torch.zeros(k, config.outputs, d, 3, 3))
        self.bias = nn.Parameter(torch.zeros(config.outputs))
        if not config.reads_dense:
            for kernel in self.experts:
                nn.init.kaiming_uniform_(kernel, a=math.sqrt(5))  # as Conv2d starts

    def mixture(self, seen: Seen) -> Tensor:
        """m, `[B, K]` in 0–1: the weight of each expert's kernel for each picture."""
        u = self.dig(seen.tokens * (1 - seen.attention.to(seen.tokens.dtype))[:, None])  # [B, d, h, w]
        return torch.sigmoid(self.fc_mean(u.mean(dim=(-2, -1))) + self.fc_max(u.amax(dim=(-2, -1))))

    def convolve(self, seen: Seen) -> Tensor:
        """The convolution's maps `[B, C_out, h, w]`: every picture with its own mixture of the kernels."""
        k, out = self.experts.shape[:2]
        by_expert = F.conv2d(seen.tokens, self.experts.flatten(0, 1), padding=1)  # [B, K·C_out, h, w]
        by_expert = by_expert.view(len(by_expert), k, out, *by_expert.shape[-2:])
        return torch.einsum("bk,bkchw->bchw", self.mixture(seen), by_expert) + self.bias[:, None, None]

    def convolved_mean(self, seen: Seen) -> Tensor:
        """The maps' mean `[B, C_out]`. The bias has the weight of all places together, below 1 because of padding."""
        weights = self.place_weights(_grid(seen), seen.tokens)  # [h, w]
        means = neighbour_means(seen.tokens, weights)  # [B, 9d]
        by_expert = torch.einsum("bn,kcn->bkc", means, self.experts.flatten(2))
        return torch.einsum("bk,bkc->bc", self.mixture(seen), by_expert) + weights.sum() * self.bias

    def place_weights(self, grid: tuple[int, int], like: Tensor) -> Tensor:
        """The weight of each place in the mean of avgpool3×3: proportional to its number of neighbours."""
        ones = like.new_ones(1, 1, *grid)
        return F.avg_pool2d(ones, 3, stride=1, padding=1)[0, 0] / math.prod(grid)


def neighbour_means(tokens: Tensor, weights: Tensor) -> Tensor:
    """Weighted means of each of a 3×3 kernel's nine inputs, zeros outside: `[B, d, h, w]`, `[h, w]` → `[B, 9d]`.

    A convolution's weighted mean is its kernel applied to these means. So a closed head is trained without making maps.
    """
    padded = F.pad(weights, (2, 2, 2, 2))  # an input at (y, x) is used by the output at (y + 1 − i, x + 1 − j)
    h, w = weights.shape
    shifted = [padded[2 - i + 1 : 2 - i + 1 + h, 2 - j + 1 : 2 - j + 1 + w] for i in range(3) for j in range(3)]
    return torch.einsum("bdhw,nhw->bdn", tokens, torch.stack(shifted)).flatten(1)


def _grid(seen: Seen) -> tuple[int, int]:
    return seen.tokens.shape[-2], seen.tokens.shape[-1]


HEADS: dict[str, type[SemanticHead]] = {head.method: head for head in (TsCamHead, LctrHead)}


# ----------------------------------------------------------------------------------------------- fingerprint of a tower
@torch.no_grad()
def tower_fingerprint(backbone: Backbone) -> Tensor:
    """A tower's embedding of one fixed pattern, `[D]` float32: nearly the same in any precision, on any device."""
    height, width = backbone.input_hw
    y, x = torch.meshgrid(*(torch.linspace(0, 1, n, dtype=torch.float32) for n in (height, width)), indexing="ij")
    pattern = torch.stack([x, y, 0.5 + 0.5 * torch.sin(20 * x) * torch.cos(13 * y)])  # [3, H, W]
    return backbone.encode_image(backbone.normalize(pattern[None].to(backbone.device)))[0].float().cpu()


# ----------------------------------------------------------------------------------------------------- saved and loaded
def save_head(path: Path, head: SemanticHead, fingerprint: Tensor) -> None:
    """Writes a head as safetensors, with its config as JSON in the metadata. The file is replaced atomically."""
    tensors = {f"head.{name}": t.detach().cpu().contiguous() for name, t in head.state_dict().items()}
    description = {"format": FORMAT, **asdict(head.config)}
    # One entry, as safetensors does not keep the order of several.
    metadata = {"cliploc_head": json.dumps(description, ensure_ascii=False)}
    write_output(path, save({**tensors, "tower.answer": fingerprint.contiguous()}, metadata), "--out")


def load_head(path: str | Path, backbone: Backbone) -> SemanticHead:
    """Reads a head that `cliploc train` made, frozen and in eval mode, for a tower, which must be the head's own."""
    path = user_path(path)
    config = read_config(path)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    head = HEADS[config.method](config)
    try:
        fingerprint = tensors.pop("tower.answer")
        head.load_state_dict({name.removeprefix("head."): tensor for name, tensor in tensors.items()})
    except (KeyError, RuntimeError):
        raise ModelError(f"{path} is damaged: its weights do not fit its own description: train it again") from None
    head.eval().requires_grad_(False)
    flags = f"--model {config.tower}" + (f" --pretrained {config.pretrained}" if config.pretrained else "")
    if backbone.name != config.tower:
        raise ModelError(f"{path} was trained on {config.tower}, got {backbone.name}: use {flags}")
    if config.weights != backbone.weights_id:
        # The same weights can have another id in other libraries, on other devices and in other precisions: compare
        # the embeddings of one pattern.
        got = tower_fingerprint(backbone)
        if got.shape != fingerprint.shape or not float(F.cosine_similarity(got, fingerprint, dim=0)) > SAME_TOWER:
            raise ModelError(f"{path} was trained on other weights of {config.tower} than these: use {flags}")
    return head.to(backbone.device)


def read_config(path: str | Path) -> HeadConfig:
    """Reads the description of a saved head, without its weights."""
    path = user_path(path)
    try:
        with safe_open(path, framework="pt") as file:
            content = (file.metadata() or {})["cliploc_head"]
        msgspec.json.decode(content, type=_HeadFile)
        return msgspec.json.decode(content, type=HeadConfig)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelError(
            f"expected a trained head, but {path} cannot be read as one ({first_line(error)}): give a file of `cliploc "
            "train`, of this version"
        ) from None

"""What a saliency method is (`Method`), and all that it may look at (`Context`).

The letters of the shapes are those of `cliploc.towers.tower`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, runtime_checkable

from cliploc.towers.tower import (
    BlockEnd,
    DenseReading,
    Needs,
    Pooling,
    TowerKind,
    Trace,
    as_transformer,
)

if TYPE_CHECKING:
    from torch import Tensor

    from cliploc.towers.tower import Backbone, TransformerBackbone

Family = Literal["activation", "gradient", "perturbation", "attention", "baseline", "ensemble"]


@dataclass(frozen=True, eq=False)
class Context:
    """Everything a saliency method may look at, for one batch.

    Tensors with rows and columns may lie with the channels last in memory: use `reshape` or `flatten`, as `view` fails.
    """

    # Makes `images`; called only if a method reads them, which a remembered trace can make needless.
    make_images: Callable[[], Tensor]
    text: Tensor  # `[B, P, D]` float32: the direction each prompt asks for (unit norm, unless something is subtracted)
    trace: Trace  # the forward pass with what the method's `needs` asked for
    backbone: Backbone  # the model
    batch_size: int = 32  # how many images a perturbation method sends through the tower at once
    # Called with the number of masked images just done, and about how many are left, by methods that make many.
    progress: Callable[[int, int], None] | None = None
    # What embeds masked images instead of `backbone.encode_image`, such as the tower in bfloat16.
    encode_masked: Callable[[Tensor], Tensor] | None = None
    # Called with an image's place in the batch and a remark on its maps, such as how sure they are.
    note: Callable[[int, str], None] | None = None
    # Results that depend on the images alone (masked embeddings), shared by all methods that run on this batch, and,
    # with a `cliploc.Memory`, by later runs on the same images. A refinement that reads the features of windows has one
    # of its own, for these windows.
    cache: dict[Any, Any] = field(default_factory=dict)
    # Computes `redundant` with the prompts' templates; None: the embedding of "" without a template.
    empty_name: Callable[[], Tensor] | None = None
    # For each image, the synonyms of each prompt, by which a closed head finds its class.
    words: Sequence[Sequence[tuple[str, ...]]] = ()
    # Gives the guide's features `[B, C, h, w]` float32, computed once; None: there is no guide.
    guide: Callable[[], Tensor] | None = None
    # `[B, H, W]`, the region of each pixel of the images, −1 in none; None: nothing divides the pictures.
    regions: Tensor | None = None
    windows: bool = False  # whether the images are all windows of one picture, as `Needs.windows` asks for
    # For refinements on the grid: whether the features that they read are those of a picture's windows, stitched, and
    # so finer than the tower's own of the whole picture.
    from_windows: bool = False
    threshold: float = 0.5  # for refinements on the grid: the τ that boxes of the maps before the step would have

    @property
    def images(self) -> Tensor:
        """`[B, 3, H, W]` normalised."""
        return self.make_images()

    @property
    def features(self) -> Tensor:
        """`[B, C, h, w]` of the last stage, in the tower's precision."""
        return self.trace.features[-1]

    @property
    def places(self) -> Tensor:
        """`[B, C, h, w]` by which places are compared: the guide's features, else those of the tower's middle stage."""
        return self.trace.features[self.backbone.middle_stage] if self.guide is None else self.guide()

    def head(self, features: Tensor, stage: int = -1) -> Tensor:
        """Finishes the tower from a stage's features: `[B, D]` unit norm, differentiable."""
        return self.backbone.head(features, self.trace, stage)

    def dense(self, reading: DenseReading = DenseReading()) -> Tensor:
        """The joint-space reading of every location, `[B, D, h, w]`; see `Backbone.dense`."""
        return self.backbone.dense(self.trace, reading)

    @property
    def patch_text(self) -> Tensor:
        """`[B, P, D]` what a ViT's patches are compared with; see `TransformerBackbone.patch_texts`."""
        return self.transformer.patch_texts(self.text)

    @property
    def redundant(self) -> Tensor:
        """What every text has in common, whatever it names: the empty name's embedding, computed at each call.

        `[D]`, `[P, D]` or `[B, P, D]`. Zero where a background or a contrast was subtracted from a prompt, because that
        has removed it already.
        """
        return self.backbone.encode_text([""])[0] if self.empty_name is None else self.empty_name()

    @property
    def transformer(self) -> TransformerBackbone:
        """The backbone, known to be a ViT: for `resume`, `read_tokens`, `depth` and `prefix_tokens`."""
        return as_transformer(self.backbone)

    def resume(self, tokens: Tensor, block: int, needs: Needs, last: int = -1) -> Trace:
        """Runs a ViT from the tokens entering a block to its end; see `TransformerBackbone.resume`."""
        return self.transformer.resume(tokens, block, needs, self.trace.grid, last)

    def end(self, block: int) -> BlockEnd:
        """The end of a ViT's block, differentiable: the trace's, or run again on the tokens entering the block."""
        if block in self.trace.ends:
            return self.trace.ends[block]
        return self.transformer.end(self.trace.entering[block], block, self.trace.grid)

    def embed(self, images: Tensor) -> Tensor:
        """Masked images, `[n, 3, H, W]` normalised → `[n, D]` unit norm, in batches of `batch_size`."""
        import torch

        encode = self.encode_masked or self.backbone.encode_image
        chunks = [encode(chunk) for chunk in torch.split(images, self.batch_size)]
        return torch.cat(chunks)  # [n, D]


@runtime_checkable
class TrainedHead(Protocol):
    """Layers trained on image labels, whose maps replace a method's semantic maps; see `cliploc.evaluate.train`."""

    method: str  # the saliency method it is trained for
    tower_kind: TowerKind  # of the tower it is trained on
    closed: bool  # whether it knows only the classes of its training set; an open head takes any name

    def digest(self) -> str:
        """A checksum of everything that its maps depend on, which tells heads apart."""

    def needs(self) -> Needs:
        """What it reads from the trace."""

    def semantics(self, ctx: Context) -> Tensor:
        """S, `[B, P, h, w]` float32: how much each place speaks for each prompt."""

    def unknown_reason(self, words: tuple[str, ...]) -> str | None:
        """Why the head cannot know a name by any of its synonyms, in one line; None when it can."""


@dataclass(frozen=True)
class Method:
    """A saliency method and what is known of it; made by `cliploc.methods.saliency`."""

    name: str  # as typed on the command line
    function: Callable[..., Tensor]  # `Context` and options → raw maps `[B, P, h, w]`
    title: str  # the name as papers write it
    paper: str  # authors, year, title or number
    # "activation", "gradient", "perturbation" or "attention"; "baseline" for one without a model; "ensemble" of
    # several.
    family: Family
    towers: frozenset[TowerKind]  # the tower kinds it is defined on
    needs: Callable[..., Needs]  # what it reads from the trace, given its options
    relu: bool  # whether negative evidence is cut before the map is normalised
    threshold: float  # the default τ of its boxes, a share of the map's maximum
    options: Mapping[str, Any]  # option name → default value
    prompts_interact: bool = False  # whether a prompt's map depends on the other prompts it is asked with
    reads_text: bool = True  # False for a map that is the same for every prompt (raw attention)
    # False for a map that is the same for every picture (a baseline). It may have another size than the feature grid,
    # and no refinement follows it.
    reads_picture: bool = True
    # Whether its raw map holds the cosine of each place with each prompt: one scale for all of them.
    cosines: bool = False
    members: tuple[Method, ...] = ()  # of an ensemble, the methods whose maps it averages
    # The poolings that a ViT may have; any CNN of `towers` fits.
    poolings: frozenset[Pooling] = frozenset(get_args(Pooling))

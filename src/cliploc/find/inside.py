"""The tensors of one forward pass and of a method, for those who study models and methods."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.errors import UsageError
from cliploc.find.prepare import Prepared
from cliploc.find.running import torch_modes
from cliploc.find.tasks import Task
from cliploc.find.texts import Texts
from cliploc.images.geometry import Frame
from cliploc.methods import Context, differentiable, leaf, patches_of, raw_maps
from cliploc.methods.legrad import block_gradients
from cliploc.towers.tower import Backbone, Guide, Needs, Trace, TransformerBackbone, as_transformer

V = TypeVar("V")


@dataclass(frozen=True, eq=False)
class Inside:
    """One picture's forward pass, at the first scale and not mirrored, and the method's raw map.

    Blocks and stages count from the end: −1 is the last. L is the number of a ViT's blocks, H of their heads, T of
    their tokens (class token and registers first, then the h·w patches row by row), d their width, D the joint space's
    size, P the number of names. All tensors are on the model's device.
    """

    names: tuple[str, ...]  # as asked for
    text: Tensor  # [P, D] float32, unit norm: the names' embeddings; their products with `embedding` are cosines
    raw: Tensor  # [P, h, w] float32, the method's map on the feature grid, before ReLU, scaling and refinements
    images: Tensor  # [1, 3, H, W] the normalised input
    frame: Frame  # how the picture lies in the input
    trace: Trace  # all that the forward pass kept; see `cliploc.towers.tower.Trace`
    backbone: Backbone  # the model

    @property
    def grid(self) -> tuple[int, int]:
        """`(h, w)`."""
        return self.trace.grid

    @property
    def embedding(self) -> Tensor:
        """`[D]` float32, unit norm, of the whole picture."""
        return self.trace.embedding[0]

    @property
    def tower(self) -> TransformerBackbone:
        """The model, known to be a ViT."""
        return as_transformer(self.backbone)

    def features(self, stage: int = -1) -> Tensor:
        """A stage's features `[C, h, w]`; of a ViT the patches entering a block, `[d, h, w]`."""
        return _stored(self.trace.features, stage, "stage")[0]

    def tokens(self, block: int = -1) -> Tensor:
        """The tokens leaving a ViT's block, `[T, d]`."""
        return _stored(self.trace.tokens, block, "block")[0]

    def attention(self, block: int = -1) -> Tensor:
        """A ViT's attention in a block after the softmax, `[H, T, T]` float32: rows are queries."""
        return _stored(self.trace.attention, block, "block")[0]

    def projections(self, block: int = -1) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of a ViT's block, each `[H, T, d/H]`."""
        q, k, v = _stored(self.trace.projections, block, "block")
        return q[0], k[0], v[0]

    def class_attention(self, block: int = -1) -> Tensor:
        """How much a block's class token attends to each patch, by head: `[H, h, w]`."""
        if not self.tower.prefix_tokens:
            raise UsageError(f"expected a class token, got {self.backbone.name}, which has none: use attention(block)")
        return self._on_grid(self.attention(block)[:, 0])

    def cosines(self) -> Tensor:
        """Cosine of each place's joint-space reading with each name, `[P, h, w]`; a ViT's by MaskCLIP's value path."""
        with torch_modes(self.backbone.device):
            dense = F.normalize(self.backbone.dense(self.trace)[0], dim=0)  # [D, h, w]
            text = self.tower.patch_texts(self.text) if self.backbone.kind == "vit" else self.text
            return torch.einsum("pd,dhw->phw", text, dense)

    def block_maps(self) -> Tensor:
        """Cosine of each patch leaving each block with each name, `[L, P, h, w]`, the first block first.

        Each block's tokens are read by the model's own head, as if the tower ended there ("logit lens").
        """
        with torch_modes(self.backbone.device):
            maps = []
            for block in range(-self.tower.depth, 0):
                patches = self.tokens(block)[None, self.tower.prefix_tokens :]  # [1, N, d]
                read = F.normalize(self.tower.read_tokens(patches)[0], dim=-1)  # [N, D]
                maps.append(self._on_grid(self.tower.patch_texts(self.text) @ read.T))
            return torch.stack(maps)

    def head_maps(self, block: int = -1) -> Tensor:
        """LeGrad's map of a block by head, `[P, H, h, w]`: mean over queries of ReLU(∂s/∂A).

        s is the cosine of a name with the embedding of the tokens leaving this block, A the block's attention. The mean
        over heads is this block's map in `cliploc.methods.legrad`. With an attention pool, A is the pool's.
        """
        with torch_modes(self.backbone.device):
            with torch.enable_grad():
                end = self.tower.end(_stored(self.trace.entering, block, "block"), block, self.grid)
                products, values = block_gradients(self._context, end, at_once=False)
                by_prompt = [gradient[0, 0] for gradient in products]  # each [H, T, d/H] or [H, 1, T]
            if values is not None:
                by_prompt = [gradient @ values[0] for gradient in by_prompt]  # each [H, T, T]
            return self._on_grid(torch.stack([gradient.relu().mean(dim=-2) for gradient in by_prompt]))

    @property
    def _context(self) -> Context:
        """What the helpers of the methods read; its text is the names', with nothing subtracted."""
        return Context(lambda: self.images, self.text[None], self.trace, self.backbone)

    def _on_grid(self, rows: Tensor) -> Tensor:
        """`[…, T]` or `[…, N]` → `[…, h, w]` of the patches."""
        return patches_of(self._context, rows)


def look_inside(
    backbone: Backbone,
    texts: Texts,
    guide: Guide | None,
    task: Task,
    item: Prepared,
    needs: Needs | None,
    *,
    graph: bool = False,
) -> Inside:
    """One pass of one picture that keeps `needs` (None: all of a ViT, two CNN stages), and the method's raw map."""
    everything = Needs(features=(-1, backbone.middle_stage))
    if backbone.kind == "vit":
        everything |= Needs(tokens="all", attention="all", projections="all", dense=1)
    wanted = task.needs | (everything if needs is None else needs)
    pixels = item.inputs[0][None].contiguous().to(backbone.device).float() / 255  # [1, 3, H, W]
    images = backbone.normalize(pixels)
    text = texts.embed(item.texts)  # [P, D]
    with differentiable() if graph else nullcontext():
        if graph:
            wanted = replace(wanted, ends=()) | Needs(tokens=wanted.ends)  # the ends of blocks have graphs of their own
            images, text = leaf(images), text.clone()
        trace = (backbone.run if graph else backbone.trace)(images, wanted)
    seen: Callable[[], Tensor] | None = None if guide is None else lambda: guide.features(pixels)
    names, empty_name = texts.directions(item.texts)[None], partial(texts.empty_name, item.texts)
    context = Context(
        lambda: images, names, trace, backbone, empty_name=empty_name, words=[item.texts.synonyms], guide=seen
    )
    raw = raw_maps(task.method, context, task.options)[0]
    return Inside(item.texts.names, text, raw, images, item.frames[0], trace, backbone)


def _stored(values: Mapping[int, V], index: int, what: str) -> V:
    if index not in values:
        stored = ", ".join(map(str, sorted(values))) or "none"
        raise UsageError(f"expected a {what} that the trace kept ({stored}), got {index}: ask for it with needs")
    return values[index]

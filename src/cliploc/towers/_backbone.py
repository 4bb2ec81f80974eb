"""What a model must offer, `Backbone`: an image tower of any kind beside a text tower."""

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from cliploc.towers.tower import DenseReading, Needs, Pooling, TowerKind, Trace, fingerprint, tensors_digest
from cliploc.values import Interpolation, ResizePolicy


class Backbone(nn.Module, ABC):
    """A CLIP-like dual encoder whose image tower is split where saliency methods look.

    `trace` runs the tower once without gradients; `head` finishes it, differentiably, from a stage's features. So
    gradients run through the end of the network only; through all of it, with `encode_image`, for those of pixels.
    A subclass defines the image tower (`run`, `grid`, `head`, `dense`), and sets `text` or overrides `encode_text`.
    """

    name: str  # its name in results, errors and lists
    kind: TowerKind  # of its image tower
    # How the tower's last features become one embedding. With `kind` it decides which methods run on the tower
    # (`cliploc.methods.unfit_reason`).
    pooling: Pooling
    input_hw: tuple[int, int]  # height and width of the input that it was trained with, in pixels
    stride: int  # pixels of the input along one cell of the feature grid
    # Of `Needs.features`, the stage where places of the same thing are most alike and edges are still sharp; counted
    # from the end. `MIXTURE` for a tower that has learnt from masks how to compare places by several stages.
    middle_stage: int
    embedding_size: int  # D
    logit_scale: float  # factor of the cosines before a softmax
    resize_policy: ResizePolicy = "squash"  # how a picture is fitted to the input, unless the user says otherwise
    interpolation: Interpolation = "bicubic"  # how pictures are resized: as those that it was trained on
    # The file its weights were read from; None for weights of the package, random ones, and those of a module that the
    # user built. Text embeddings are cached on disk only for weights from a file.
    weights_file: Path | None = None
    channels_last: bool = False  # whether its first layers compute with the channels last in memory
    text: nn.Module  # sentences → `[n, D]` float32, unit norm
    packs_texts: bool = False  # whether its text tower leaves out what fills the context: a thousand texts take seconds
    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        # Of weights of a file, which do not change, and of their text tower.
        self._fingerprint: bytes | None = None
        self._text_fingerprint: bytes | None = None
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1), persistent=False)

    @abstractmethod
    def run(self, images: Tensor, needs: Needs) -> Trace:
        """As `trace`, with a graph where gradients are recorded."""

    @abstractmethod
    def grid(self, height: int, width: int) -> tuple[int, int]:
        """`(h, w)` of the feature grid for an input of height × width pixels."""

    @abstractmethod
    def head(self, features: Tensor, trace: Trace, stage: int = -1) -> Tensor:
        """Finishes the tower from a stage's features `[B, C, h, w]` → embeddings `[B, D]`, unit norm, float32.

        Differentiable. `trace` supplies what the features leave out (a ViT's class token).
        """

    @abstractmethod
    def dense(self, trace: Trace, reading: DenseReading = DenseReading()) -> Tensor:
        """The joint-space reading of every location, `[B, D, h, w]` float32, not normalised.

        GAP tower: exact, its mean over h×w is the embedding before normalisation. Attention pool: the value path. A CNN
        takes no rule and ignores the rest of the reading.

        ViT: see `DenseReading`. The trace must hold the tokens entering the first of the blocks; `Needs(dense=blocks)`
        keeps those of all blocks, and their q, k and v, so that nothing is run twice. The patches at the path's end go
        through the head's normalisation and projection; with an attention pool, through its value path.
        """

    @torch.no_grad()
    def trace(self, images: Tensor, needs: Needs) -> Trace:
        """One forward pass of normalised `[B, 3, H, W]` without gradients, keeping what `needs` lists."""
        return self.run(images, needs)

    @property
    def device(self) -> torch.device:
        """Where the weights are; images are moved there."""
        return self.mean.device  # asked for all the time: to look for the first weight takes 20 times as long

    @property
    def dtype(self) -> torch.dtype:
        """The weights' precision; images are cast to it."""
        return next(self.parameters()).dtype

    def convert(self, dtype: torch.dtype) -> Self:
        """Converts all parts to a precision, but not its own buffers: pixels are normalised in float32."""
        for part in self.children():
            part.to(dtype)
        return self

    @property
    def weights_id(self) -> str:
        """SHA-256 of all that its answers depend on: weights, their precision, how pixels become its input.

        It tells models apart in the identity of runs and in trained heads.
        """
        facts: dict[str, Any] = {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}
        facts |= {"interpolation": self.interpolation, "logit scale": self.logit_scale, "precision": str(self.dtype)}
        if self.weights_file is None:
            content = tensors_digest(self.state_dict())
        else:
            content = self._fingerprint = self._fingerprint or fingerprint(self)
        return hashlib.sha256(json.dumps(facts).encode() + content).hexdigest()

    @property
    def text_id(self) -> str:
        """SHA-256 of all that embeddings of texts depend on; it tells text towers apart in caches on disk."""
        if not hasattr(self, "text"):
            return self.weights_id
        known = self._text_fingerprint if self.weights_file is not None else None
        self._text_fingerprint = known or fingerprint(self.text)
        return self._text_fingerprint.hex()

    def normalize(self, pixels: Tensor) -> Tensor:
        """`[B, 3, H, W]` values in 0–1 → what the tower takes (mean and standard deviation)."""
        pixels = pixels.to(self.device)
        images = (pixels - self.mean).div_(self.std).to(self.dtype)
        return images if self.channels_last else images.contiguous()  # decoded pictures lie with the channels last

    def in_precision(self, dtype: torch.dtype) -> Self:
        """A copy whose image tower computes in another precision; the text tower is shared."""
        text = self._modules.get("text")
        copied = copy.deepcopy(self, {} if text is None else {id(text): text})
        for name, part in copied.named_children():
            if name != "text" and next(part.parameters(), None) is not None:
                part.to(dtype)
        return copied

    def encode_image(self, images: Tensor) -> Tensor:
        """Normalised `[B, 3, H, W]` → `[B, D]` float32, unit norm; differentiable where the images need a gradient."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and images.requires_grad):
            return self.run(images, Needs()).embedding

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Sentences → `[n, D]` float32, unit norm."""
        return self.text(texts)

    def unknown_reason(self, word: str) -> str | None:  # noqa: ARG002
        """Why this model cannot know a name, in one line; None where it can: CLIP reads any text."""
        return None

    def remark(self, word: str) -> str | None:  # noqa: ARG002
        """How this model reads a name that it does not read as it stands, in one line; else None."""
        return None

"""Base class of the models: an image tower of any kind beside a text tower."""

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from cliploc.errors import ModelError, first_line
from cliploc.towers.tower import Needs, Pooling, TowerKind, Trace, tensors_digest
from cliploc.values import Interpolation, ResizePolicy


class DualEncoder(nn.Module, ABC):
    """An image tower beside a text tower: holds device, precision and the normalisation of pixels.

    A subclass defines the image tower (`run`), and sets `text` or overrides `encode_text`.
    """

    name: str
    kind: TowerKind
    pooling: Pooling
    input_hw: tuple[int, int]
    stride: int
    middle_stage: int
    embedding_size: int
    logit_scale: float
    resize_policy: ResizePolicy = "squash"
    interpolation: Interpolation = "bicubic"
    weights_file: Path | None = None
    channels_last: bool = False  # whether its first layers compute with the channels last in memory
    calibration: tuple[float, float] | None = None  # scale and bias of `presence`; None: the model is not calibrated
    text: nn.Module  # sentences → `[n, D]` float32, unit norm
    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self._weights_source = ""
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1), persistent=False)

    @abstractmethod
    def run(self, images: Tensor, needs: Needs) -> Trace:
        """One forward pass of normalised images, with a graph where gradients are recorded; else as `trace`."""

    @torch.no_grad()
    def trace(self, images: Tensor, needs: Needs) -> Trace:
        """One forward pass of normalised images; see `cliploc.towers.tower.Backbone.trace`."""
        return self.run(images, needs)

    @property
    def device(self) -> torch.device:
        return self.mean.device  # asked for all the time: to look for the first weight takes 20 times as long

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def convert(self, dtype: torch.dtype) -> Self:
        """Converts all parts to a precision, but not its own buffers: pixels are normalised in float32."""
        for part in self.children():
            part.to(dtype)
        return self

    def loaded_from(self, file: Path, source: str) -> None:
        """Records that all weights are a file's, unchanged; `source`: all that determines the model."""
        self.weights_file, self._weights_source = file, source

    @property
    def weights_id(self) -> str:
        """See `tower.Backbone`; weights of a file are identified by its checksum, others by their values."""
        facts = {
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
            "interpolation": self.interpolation,
            "logit scale": self.logit_scale,
            "precision": str(self.dtype),
        }
        digest = hashlib.sha256(json.dumps(facts).encode())
        digest.update(self._weights_source.encode() or tensors_digest(self.state_dict()))
        return digest.hexdigest()

    def normalize(self, pixels: Tensor) -> Tensor:
        there = pixels.to(self.device)
        if there.is_contiguous() or not there.is_contiguous(memory_format=torch.channels_last):
            return (there - self.mean).div_(self.std).to(self.dtype)
        # Decoded pictures lie so in memory. A whole row at once is much faster than three channels at once.
        width = there.shape[-1]
        mean, std = (channels.flatten().repeat(width) for channels in (self.mean, self.std))
        rows = there.permute(0, 2, 3, 1).flatten(2)  # [B, H, W · 3]
        images = (rows - mean).div_(std).to(self.dtype).reshape(*rows.shape[:2], width, 3).permute(0, 3, 1, 2)
        return images if self.channels_last else images.contiguous()

    def in_precision(self, dtype: torch.dtype) -> Self:
        """A copy whose image tower computes in another precision; the text tower is shared."""
        text = self._modules.get("text")
        copied = copy.deepcopy(self, {} if text is None else {id(text): text})
        for name, part in copied.named_children():
            if name != "text" and next(part.parameters(), None) is not None:
                part.to(dtype)
        return copied

    def encode_image(self, images: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and images.requires_grad):
            return self.run(images, Needs()).embedding

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        try:
            return self.text(texts)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of a library in Rust, which is no Exception
                raise
            raise ModelError(
                f"the tokenizer of {self.name} fails at {texts[0][:80]!r}, or a text beside it ({first_line(error)}): "
                "use other names"
            ) from None

    def unknown_reason(self, word: str) -> str | None:  # noqa: ARG002
        """Why this model cannot know a name; None here, as CLIP reads any text."""
        return None

    def remark(self, word: str) -> str | None:  # noqa: ARG002
        """How this model reads a name that it does not read as it stands; None here, as CLIP reads any text."""
        return None

    def word_shares(self, text: str, image: Tensor) -> list[tuple[str, float]] | None:
        """Which words of a sentence its match with an image used; None here. See `cliploc.towers.tower.Backbone`."""
        read = getattr(getattr(self, "text", None), "word_shares", None)
        return None if read is None else read(text, image)

    def presence(self, cosine: Tensor) -> Tensor | None:
        if self.calibration is None:
            return None
        scale, bias = self.calibration
        return torch.sigmoid(scale * cosine + bias)

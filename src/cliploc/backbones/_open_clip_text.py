"""The text tower of an open_clip model, apart from its image tower."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Tokenizer = Callable[[list[str]], Tensor]


class OpenClipText(nn.Module):
    """The text tower: sentences → unit-norm embeddings, by open_clip's `encode_text`.

    Args:
        model: an open_clip model. It becomes part of this module and loses its image tower: pass a copy.
        tokenizer: open_clip's tokenizer of that model; it truncates texts at its context length.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        super().__init__()
        model.visual = nn.Identity()  # the image tower would be kept in memory twice
        self.model = model
        self.tokenizer = tokenizer

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """Sentences → `[n, D]` float32, unit norm."""
        device = self.model.logit_scale.device
        tokens = self.tokenizer(list(texts)).to(device)  # [n, context length]
        return F.normalize(self.model.encode_text(tokens).float(), dim=-1)


def without_image_tower(model: Any) -> Any:
    """A copy of an open_clip model without its image tower."""
    return copy.deepcopy(model, {id(model.visual): nn.Identity()})

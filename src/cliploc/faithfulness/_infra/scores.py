"""Scores of perturbed pictures, which go through the tower in batches; only a few numbers of each are kept."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cliploc._process import in_halves
from cliploc.errors import ModelError

Make = Callable[[int, int], Tensor]  # first and last + 1 of some pictures → these pictures `[n, 3, H, W]` normalised


def _silent(*_: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Scores:
    """The model's scores of n pictures."""

    probability: Tensor  # [n] softmax over all names, of the name in question
    cosine: Tensor  # [n] with the name in question
    first: Tensor  # [n] index of the name that fits best


class Scorer:
    """Scores pictures by a name among several; `told` gets pictures done and left, `halved` a batch too large."""

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],  # [n, 3, H, W] normalised → [n, D] unit norm
        names: Tensor,  # [K, D] unit norm
        logit_scale: float,
        batch_size: int = 32,
        told: Callable[[int, int], None] = _silent,
        halved: Callable[[int], None] = _silent,
    ) -> None:
        self._encode, self._names, self._logit_scale = encode, names.float(), logit_scale
        self._batch_size, self._told, self._halved = batch_size, told, halved
        self.passes = 0  # pictures scored so far

    def __call__(self, count: int, make: Make, target: int) -> Scores:
        """Scores `count` pictures, made a batch at a time."""
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        with torch.no_grad():
            for start in range(0, count, self._batch_size):
                end = min(start + self._batch_size, count)
                parts.append(self._scores(self._embedded(make(start, end)), target))
                self.passes += end - start
                self._told(end - start, count - end)
        return Scores(*(torch.cat(series) for series in zip(*parts, strict=True)))

    def logits(self, images: Tensor) -> Tensor:
        """The logits `[n, K]` of pictures `[n, 3, H, W]` normalised, for metrics of other packages."""
        self.passes += len(images)
        return self._logit_scale * self._cosines(self._embedded(images))

    def _cosines(self, embeddings: Tensor) -> Tensor:
        cosines = embeddings.float() @ self._names.T.to(embeddings.device)  # [n, K]
        if not cosines.isfinite().all():
            raise ModelError("the tower gave a perturbed picture an embedding that is not a number: use fp32")
        return cosines

    def _scores(self, embeddings: Tensor, target: int) -> tuple[Tensor, Tensor, Tensor]:
        """The three series of `Scores`."""
        cosines = self._cosines(embeddings)  # [n, K]
        probabilities = (self._logit_scale * cosines).softmax(dim=-1)
        return probabilities[:, target].cpu(), cosines[:, target].cpu(), cosines.argmax(dim=-1).cpu()

    def _embedded(self, pictures: Tensor) -> Tensor:
        """Pictures `[n, 3, H, W]` → `[n, D]`; by halves where memory is short."""
        return torch.cat([made for _, made in in_halves(pictures, self._encode, self._halved)])

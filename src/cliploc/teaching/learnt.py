"""What was learnt of names, as a small file: a direction in the tower's features for each."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from cliploc._files import write_whole
from cliploc.errors import InputError
from cliploc.teaching.directions import Direction, Whitening

KIND = "cliploc learnt"


@dataclass(frozen=True)
class Learnt:
    """Directions of P names in features `[c]`; see `cliploc.teaching.directions`."""

    names: tuple[str, ...]
    weights: Tensor  # [P, c] float32
    bias: Tensor  # [P] float32
    share: tuple[float, ...]  # [P] the share of the map from the text in the new one; 0: the model knows no such name
    # What it holds for: model, weights, and how lessons are made; and of each name, of how many pictures it was learnt.
    about: Mapping[str, Any]

    @classmethod
    def of(
        cls, taught: Mapping[str, tuple[Direction, float]], whitening: Whitening, about: Mapping[str, Any]
    ) -> Learnt:
        """Directions in the whitened features of a folder, each with the share of the text's map."""
        w = [whitening.matrix @ direction.w for direction, _ in taught.values()]
        bias = [direction.bias - whitening.mean @ one for (direction, _), one in zip(taught.values(), w, strict=True)]
        return cls(
            tuple(taught), torch.stack(w), torch.stack(bias), tuple(share for _, share in taught.values()), about
        )

    def project(self, features: Tensor, names: Sequence[int]) -> Tensor:
        """How like some of the names each place is: features `[c, h, w]` → `[p, h, w]` in 0–1."""
        weights, bias = self.weights[list(names)].to(features), self.bias[list(names)].to(features)
        return (torch.einsum("pc,chw->phw", weights, features) + bias[:, None, None]).clamp(0, 1)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it as safetensors."""
        tensors = {
            "weights": self.weights.contiguous(),
            "bias": self.bias.contiguous(),
            "share": torch.tensor(self.share),
        }
        facts = {"kind": KIND, "version": 1, "names": list(self.names), "about": dict(self.about)}
        content = save(tensors, {"cliploc": json.dumps(facts, sort_keys=True)})
        write_whole(Path(path), lambda temporary: temporary.write_bytes(content))


def load_learnt(path: str | os.PathLike[str]) -> Learnt:
    """Reads the file of `Learnt.save`.

    Raises:
        InputError: no such file, or not one of these.
    """
    try:
        with safe_open(os.fspath(path), "pt") as file:
            facts = json.loads((file.metadata() or {})["cliploc"])
            weights, bias, share = (file.get_tensor(key).float() for key in ("weights", "bias", "share"))
        names, about = tuple(map(str, facts["names"])), facts["about"]
        if facts["kind"] != KIND or facts["version"] != 1 or not isinstance(about, dict):
            raise ValueError("another kind of file")
        if weights.ndim != 2 or not len(names) == len(weights) == len(bias) == len(share):
            raise ValueError("tensors of other sizes")
        if not all(bool(one.isfinite().all()) for one in (weights, bias, share)):
            raise ValueError("values that are not numbers")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{error}"
        raise InputError(
            f"{os.fspath(path)}: expected learnt.safetensors of `cliploc annotate`, cannot use it ({reason}): "
            "check the path"
        ) from None
    return Learnt(names, weights, bias, tuple(share.tolist()), about)

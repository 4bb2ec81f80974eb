"""The tensors of C-RADIO's files under our names; docs/towers.md has the sources."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cliploc.backbones._checkpoints import Checkpoint
from cliploc.backbones._timm_vit import count_parts
from cliploc.errors import ModelError

TOWER, UNUSED = "base_model.", ("reg_token", "fc_norm.")  # tensors that the authors' towers have and do not use
SPECTRAL = ".parametrizations.weight."  # in names of what a weight is computed from


def renamed(weights: Checkpoint, heads: Sequence[str], slot: int) -> dict[str, Tensor]:
    """The tensors of the tower and of the head with one of these prefixes, under the names of `RadioModel`."""
    path, generator = weights.path, f"{TOWER}patch_generator."
    names = {f"{generator}cls_token.token": "prefix", f"{generator}pos_embed": "positions"}
    tensors: dict[str, Tensor] = {}
    for name, tensor in weights.tensors.items():
        if name.startswith("_feature_normalizer."):
            raise ModelError(f"{path} normalises its features, which is not supported: take C-RADIOv3's own file")
        if name.startswith(TOWER) and not name.removeprefix(TOWER).startswith(UNUSED):
            ours = names.get(name, name.replace(f"{generator}embedder", f"{TOWER}patches").removeprefix(TOWER))
            tensors[ours.replace(".grandma", ".gamma")] = tensor  # so spelt, to pass Hugging Face's loader
        for head in heads:
            if name.startswith(head):
                tensors[f"head.{name.removeprefix(head)}"] = tensor
    try:
        tensors = _weights(tensors)
    except (KeyError, ValueError, RuntimeError):
        raise ModelError(f"{path} lacks what some of its weights are computed from: download it again") from None
    axes = {"prefix": 2, "positions": 3, "patches.weight": 2, "blocks.0.mlp.fc2.weight": 2}
    for name, number in (axes | {"head.fc1.weight": 2, "head.final.2.weight": 2}).items():
        if name not in tensors or tensors[name].ndim != number or not tensors[name].numel():
            raise ModelError(f"{path} has no {name} of C-RADIO, of {number} axes: check the file")
    prefix, positions, patches = tensors["prefix"], tensors["positions"][0], tensors["patches.weight"]
    patch = math.isqrt(patches.shape[1] // 3)
    if not (
        slot < len(prefix) and 3 * patch**2 == patches.shape[1] and math.isqrt(len(positions)) ** 2 == len(positions)
    ):
        raise ModelError(f"{path} has not the class token, or the squares, that its settings speak of: check the file")
    # Blocks treat all tokens alike, so that their order is free: the first is the one that the head reads.
    tensors["prefix"] = torch.cat([prefix[slot : slot + 1], prefix[:slot], prefix[slot + 1 :]])
    tensors["positions"] = positions  # [G², d]
    tensors["patches.weight"] = patches.reshape(-1, 3, patch, patch)
    return tensors


def _weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that are trained as a direction and a norm (σReparam, Zhai 2023) as the authors' loader computes them."""
    computed = {name: tensor for name, tensor in tensors.items() if SPECTRAL not in name}
    for name, direction in tensors.items():
        layer, found, rest = name.partition(SPECTRAL)
        if found and rest == "original":
            at = layer + SPECTRAL + "0."
            parts = count_parts(tensors, f"{at}parts.")  # queries, keys and values have a norm each
            names = [f"{at}parts.{i}." for i in range(parts)] or [at]
            pieces = zip(direction.float().chunk(len(names)), names, strict=True)
            computed[f"{layer}.weight"] = torch.cat([_scaled(piece, tensors, one) for piece, one in pieces])
    return computed


def _scaled(direction: Tensor, tensors: Mapping[str, Tensor], at: str) -> Tensor:
    """scale · W / σ, σ the largest singular value after one more step of the power method from the stored vector."""
    if f"{at}scale" not in tensors:
        return direction
    u = F.normalize(direction @ tensors[f"{at}_v"].float(), dim=0)
    v = F.normalize(direction.T @ u, dim=0)
    scale = tensors[f"{at}scale"].float()
    if int(tensors.get(f"{at}_sn_version", 1)) == 2:
        scale = F.softplus(scale) + 0.05
    return direction * scale / (u @ direction @ v + 1e-6)

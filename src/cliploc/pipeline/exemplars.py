"""Exemplars become embeddings: they are read before a model is loaded, and embedded by its image tower."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from cliploc.errors import InputError, UsageError
from cliploc.exemplars import Exemplar, exemplar_of
from cliploc.geometry import Frame
from cliploc.images import load
from cliploc.tower import Backbone


@dataclass(frozen=True)
class Crop:
    """An exemplar's pixels.

    Attributes:
        exemplar: what was asked for.
        image: RGB, upright, cut to the box.
        digest: SHA-256 of the pixels, which is part of a run's identity; the path is not.
    """

    exemplar: Exemplar
    image: Image.Image
    digest: str


def read_exemplars(exemplars: Sequence[str | Exemplar]) -> dict[str, list[Crop]]:
    """Name → its exemplars' pixels.

    Raises:
        InputError: a picture that cannot be read.
        UsageError: a box outside its picture, or a name with its text in one exemplar and without it in another.
    """
    found: dict[str, list[Crop]] = {}
    for given in exemplars:
        one = exemplar_of(given) if isinstance(given, str) else given
        source = f"the exemplar of {one.name!r}"
        try:
            image = load(one.image, source).image
        except InputError as error:
            raise InputError(f"{error} (an exemplar of {one.name!r})") from None
        if one.box is not None:
            x0, y0, x1, y1 = (round(edge) for edge in one.box)
            if not (0 <= x0 < x1 <= image.width and 0 <= y0 < y1 <= image.height):
                raise UsageError(
                    f"expected the box of {source} inside its {image.width}×{image.height} pixels, got "
                    f"{[x0, y0, x1, y1]}"
                )
            image = image.crop((x0, y0, x1, y1))
        digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
        beside = found.setdefault(one.name, [])
        if beside and beside[0].exemplar.with_text != one.with_text:
            raise UsageError(f"expected all exemplars of {one.name!r} with its text or without, got both: choose one")
        beside.append(Crop(one, image, digest))
    return found


def embed_crops(crops: Sequence[Crop], backbone: Backbone) -> Tensor:
    """`[n, D]` float32, unit norm: each crop is fitted to the model's input as any picture is."""
    rows = []
    for crop in crops:
        try:
            frame = Frame.fit(backbone.resize_policy, (crop.image.height, crop.image.width), backbone.input_hw)
        except InputError:  # too narrow to be cropped or padded: stretched
            frame = Frame.fit("squash", (crop.image.height, crop.image.width), backbone.input_hw)
        pixels = np.asarray(frame.apply(crop.image, backbone.interpolation)).transpose(2, 0, 1).copy()
        images = torch.from_numpy(pixels)[None].to(backbone.device).float() / 255  # [1, 3, H, W]
        rows.append(F.normalize(backbone.encode_image(backbone.normalize(images)).float(), dim=-1)[0])
    return torch.stack(rows)

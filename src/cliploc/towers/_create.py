"""Builds a model by its name, whatever family it is of."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from cliploc.errors import CliplocError, ModelError, first_line
from cliploc.support.process import out_of_memory
from cliploc.towers._catalogue import ModelEntry, Structure, check_model, models, plain_name

if TYPE_CHECKING:  # imports torch, which a model's structure does not need
    from cliploc.towers._backbone import Backbone


def structure_of(model: str) -> ModelEntry | Structure:
    """A model's structure from catalogue or configuration, no weights."""
    check_model(model)
    source, colon, rest = model.partition(":")
    if not colon:
        return models.get(plain_name(model))
    from cliploc.towers.open_clip import structure

    return structure(source, rest)


def create(
    model: str = "mini", pretrained: str | None = None, device: str = "cpu", *, precision: str = "fp32"
) -> Backbone:
    """Builds a model by name, in eval mode, with frozen weights.

    Args:
        pretrained: which weights: a tag, a file, "FILE@TAG" (a file with the GELU and preprocessing of the tag's
            weights), "random" (for tests and benchmarks); None for the model's own.
        precision: "fp32", "bf16", "fp16" or "auto". Embeddings are float32 in any case.

    Example:
        >>> create("mini").embedding_size
        1280
    """
    check_model(model)
    source, colon, rest = model.partition(":")
    try:
        if colon:
            from cliploc.towers.open_clip import build_source

            backbone = build_source(source, rest, pretrained, device, precision)
        else:
            backbone = models.get(plain_name(model)).build(pretrained, device, precision)
        if backbone.weights_file is not None:  # a trial, as files may hold nearly anything
            import torch

            backbone.encode_image(torch.zeros(1, 3, *backbone.input_hw))
            backbone.encode_text(["a"])
    except (CliplocError, ImportError):
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise ModelError(
            f"{pretrained or model} does not hold a model that can be used as {model} ({first_line(error)}): check "
            "it, or download it again"
        ) from error
    if not math.isfinite(scale := backbone.logit_scale):
        raise ModelError(f"expected a number as the logit scale of {model}, got {scale}: download its weights again")
    return backbone

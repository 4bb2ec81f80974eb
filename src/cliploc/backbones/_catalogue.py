"""Which models there are; each module of this package registers its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cliploc.registry import Registry
from cliploc.schema import Backbone, TowerKind


@dataclass(frozen=True)
class ModelEntry:
    """One line of `cliploc models`.

    Attributes:
        name: as typed after `--model`.
        build: `(pretrained, device)` → the model in eval mode.
        kind: its image tower, "cnn" or "vit".
        pooling: how the tower makes one embedding of its features.
        input_hw: the input it was made for.
        parameters: of image and text tower, in millions.
        licence: of its weights.
        about: one line.
    """

    name: str
    build: Callable[[str | None, str], Backbone]
    kind: TowerKind
    pooling: str
    input_hw: tuple[int, int]
    parameters: float
    licence: str
    about: str


models: Registry[ModelEntry] = Registry("model", "cliploc.backbones")


def create(model: str = "mini", pretrained: str | None = None, device: str = "cpu") -> Backbone:
    """Builds a model by name, in eval mode, with frozen weights.

    Args:
        model: a name of `cliploc models`.
        pretrained: which weights; None for the model's own.
        device: a torch device, such as "cpu", "cuda" or "mps".

    Raises:
        UnknownNameError: no such model; the line lists the nearest names.
        ModelError: its weights cannot be loaded.

    Example:
        >>> create("mini").embedding_size
        1280
    """
    return models.get(model).build(pretrained, device)

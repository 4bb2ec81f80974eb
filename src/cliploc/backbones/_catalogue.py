"""Which models there are; each module of this package registers its own."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cliploc.registry import Registry
from cliploc.tower import Backbone, Pooling, TowerKind
from cliploc.values import Interpolation, ResizePolicy


@dataclass(frozen=True)
class ModelEntry:
    """One line of `cliploc models`.

    Attributes:
        name: as typed after `--model`.
        build: `(pretrained, device, precision)` → the model in eval mode.
        kind: its image tower, "cnn" or "vit".
        pooling: how the tower makes one embedding of its features.
        input_hw: the input it was made for.
        parameters: of image and text tower, in millions; None where only building the model would tell.
        licence: of its weights, where it is known; of several, the most frequent first.
        about: one line.
        weights: what `--pretrained` takes, besides a file; empty where the model has only its own.
        usable: whether its image tower can be taken apart.
        count: the parameters in millions by building the model without memory for them; None where they are known.
        licences: of each of the weights.
        preprocessing: what becomes of a picture, for each of the weights, or by "" for all; in words.
    """

    name: str
    build: Callable[[str | None, str, str], Backbone]
    kind: TowerKind
    pooling: Pooling
    input_hw: tuple[int, int]
    parameters: float | None
    licence: str
    about: str
    weights: tuple[str, ...] = ()
    usable: bool = True
    count: Callable[[], float] | None = None
    licences: Mapping[str, str] = field(default_factory=dict)
    preprocessing: Mapping[str, str] = field(default_factory=dict)


def describe_preprocessing(
    policy: ResizePolicy, interpolation: Interpolation, mean: Sequence[float], std: Sequence[float]
) -> str:
    """What becomes of a picture before the tower sees it, in words.

    Example:
        >>> describe_preprocessing("squash", "bilinear", (0.5, 0.5, 0.5), (0.25, 0.25, 0.5))
        'squash, bilinear, mean 0.5, std 0.25 0.25 0.5'
    """
    return f"{policy}, {interpolation}, mean {_numbers(mean)}, std {_numbers(std)}"


def _numbers(values: Sequence[float]) -> str:
    texts = [f"{value:.3g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else " ".join(texts)


def _listed() -> list[str]:
    """The names of our own models and of open_clip's, by the files of its configurations: importing it takes seconds.

    Where it is imported already, it is asked itself: more may have been added to its list.
    """
    spec = importlib.util.find_spec("open_clip")
    folder = Path("" if spec is None or spec.origin is None else spec.origin).parent / "model_configs"
    if "open_clip" not in sys.modules and folder.is_dir():
        return ["mini", "mini-vit", *(path.stem for path in folder.glob("*.json"))]
    import open_clip

    return ["mini", "mini-vit", *open_clip.list_models()]


models: Registry[ModelEntry] = Registry(
    "model", "cliploc.backbones", "cliploc.models", home=lambda entry: entry.build.__module__, listed=_listed
)
# What a model's name may begin with, before a colon → `(the rest, pretrained, device, precision)` → the model.
model_sources: Registry[Callable[[str, str | None, str, str], Backbone]] = Registry(
    "model source", "cliploc.backbones", listed=lambda: ("hf-hub", "local-dir")
)


def create(
    model: str = "mini", pretrained: str | None = None, device: str = "cpu", *, precision: str = "fp32"
) -> Backbone:
    """Builds a model by name, in eval mode, with frozen weights.

    Args:
        model: a name of `cliploc models`, `hf-hub:ORG/NAME` or `local-dir:PATH`.
        pretrained: which weights: a tag, a file, "FILE@TAG" (a file whose GELU and preprocessing are those of the tag's
            weights), "random" (for tests and benchmarks); None for the model's own.
        device: a torch device, such as "cpu", "cuda" or "mps".
        precision: "fp32", "bf16", "fp16" or "auto". Embeddings are float32 in any case.

    Raises:
        UnknownNameError: no such model; the line lists the nearest names.
        UsageError: weights or a precision that do not exist.
        ModelError: its weights cannot be loaded.

    Example:
        >>> create("mini").embedding_size
        1280
    """
    source, colon, rest = model.partition(":")
    if colon:
        return model_sources.get(source)(rest, pretrained, device, precision)
    return models.get(_plain(model)).build(pretrained, device, precision)


def refuse_unknown(model: str) -> None:
    """Refuses a model that there is not, as `create` does, before torch is imported.

    Raises:
        UnknownNameError: no such model; the line lists the nearest names.

    Example:
        >>> refuse_unknown("ViT-B/32")
    """
    source, colon, _ = model.partition(":")
    if colon:
        model_sources.refuse_unknown(source)
    else:
        models.refuse_unknown(_plain(model))


def _plain(model: str) -> str:
    """OpenAI writes ViT-B/32."""
    return model.replace("/", "-")

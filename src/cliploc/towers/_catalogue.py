"""The catalogues of models and guides, known without importing torch; modules of this package register models here."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cliploc.errors import UnknownNameError, UsageError
from cliploc.registry import Registry
from cliploc.support.files import user_path

if TYPE_CHECKING:  # imports numpy, which takes longer than refusing a name
    from cliploc.towers.tower import Backbone, Pooling, TowerKind
    from cliploc.values import Interpolation, ResizePolicy

NOT_OPEN_CLIPS = (  # models that are not open_clip's
    *("mini", "mini-vit", "dinov2-l-dinotxt", "dinov3-l-dinotxt", "c-radio-siglip2", "c-radio-clip", "tipsv2"),
)


@dataclass(frozen=True)
class ModelEntry:
    """A model of the catalogue: one line of `cliploc models`."""

    name: str  # as typed after `--model`
    build: Callable[[str | None, str, str], Backbone]  # `(pretrained, device, precision)` → the model in eval mode
    kind: TowerKind  # its image tower, "cnn" or "vit"
    pooling: Pooling  # how the tower makes one embedding of its features
    input_hw: tuple[int, int]  # the input size it was trained with
    parameters: float | None  # of image and text tower, in millions; None if not known without building it
    licence: str  # of its weights; those of open_clip's models differ, and are on their model cards
    about: str  # a description in one line
    # tags that `--pretrained` takes, besides a file; empty where the model has only its own weights
    weights: tuple[str, ...] = ()
    usable: bool = True  # whether an adapter supports its image tower
    # tag of weights → how pictures are preprocessed, in words; the key "" stands for all
    preprocessing: Mapping[str, str] = field(default_factory=dict)


def describe_preprocessing(
    policy: ResizePolicy, interpolation: Interpolation, mean: Sequence[float], std: Sequence[float]
) -> str:
    """Describes in words how pictures are preprocessed."""
    return f"{policy}, {interpolation}, mean {_numbers(mean)}, std {_numbers(std)}"


def _numbers(values: Sequence[float]) -> str:
    texts = [f"{value:.3g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else " ".join(texts)


def _listed() -> list[str]:
    """The names of our own models and of open_clip's, from its files, or its own list if it is imported already."""
    spec = importlib.util.find_spec("open_clip")
    folder = Path("" if spec is None or spec.origin is None else spec.origin).parent / "model_configs"
    if "open_clip" not in sys.modules and folder.is_dir():
        return [*NOT_OPEN_CLIPS, *(path.stem for path in folder.glob("*.json"))]
    import open_clip

    return [*NOT_OPEN_CLIPS, *open_clip.list_models()]


models: Registry[ModelEntry] = Registry(
    "model", "cliploc.towers", "cliploc.models", home=lambda entry: entry.build.__module__, listed=_listed,
    listed_by="models",
)  # fmt: skip


def register_model(
    name: str,
    tower: Any,
    build: Callable[[str | None, str, str], Backbone],
    mean: Sequence[float],
    std: Sequence[float],
    **facts: Any,
) -> None:
    """Registers a model of this package; its class says what the tower is, `facts` the rest of `ModelEntry`."""
    words = describe_preprocessing(tower.resize_policy, tower.interpolation, mean, std)
    of_class = {"kind": tower.kind, "pooling": tower.pooling, "input_hw": tower.input_hw, "preprocessing": {"": words}}
    models.register(name, ModelEntry(name=name, build=build, **of_class, **facts))


SOURCES = ("hf-hub", "local-dir")  # before a colon in a model's name


@dataclass(frozen=True)
class Structure:
    """What decides which methods and which recipe suit an image tower, known before it is loaded."""

    kind: TowerKind  # "cnn" or "vit"
    pooling: Pooling  # how the tower makes one embedding of its features


def check_bundled(model: str, pretrained: str | None) -> None:
    """Refuses `--pretrained` for a model that comes with its weights."""
    if pretrained not in (None, "bundled"):
        advice = "leave the option out, or name another --model"
        raise UsageError(f"{model} has only its bundled weights, got --pretrained {pretrained}: {advice}")


def check_model(model: str) -> None:
    """Refuses an unknown model, as `create` does, without importing torch."""
    source, colon, _ = model.partition(":")
    if colon and source not in SOURCES:
        raise UnknownNameError("model source", source, SOURCES)
    if not colon:
        try:
            models.check_known(plain_name(model))
        except UnknownNameError as error:
            if model and os.path.isdir(user_path(model)):
                reason = f"expected a name of `cliploc models`, got the folder {model}: write local-dir:{model}"
                raise UsageError(reason) from None
            if "/" not in model:
                raise
            raise UnknownNameError(
                "model", model, error.known, f"models; one of the Hugging Face Hub is --model hf-hub:{model}"
            ) from None


def plain_name(model: str) -> str:
    """The name with hyphens for slashes, as OpenAI writes ViT-B/32 and open_clip ViT-B-32."""
    return model.replace("/", "-")


# ------------------------------------------------------------------------------------------------------------- guides
@dataclass(frozen=True)
class GuideEntry:
    """A guide with a short name: a line below `cliploc models`."""

    name: str  # as typed after `--guide`
    timm: str  # timm's name of the tower and its weights
    stride: int  # pixels along a cell of its grid
    parameters: float  # in millions
    licence: str  # of the weights


QUERIES_KEYS = "qk:"  # before the name of a guide of timm: the queries plus keys of its last block, as CorrCLIP's
guides: Registry[GuideEntry] = Registry("guide")
for _entry in (
    GuideEntry("dino-s16", "vit_small_patch16_224.dino", 16, 21.7, "Apache-2.0"),
    GuideEntry("dino-s8", "vit_small_patch8_224.dino", 8, 21.7, "Apache-2.0"),
    GuideEntry("dino-b16", "vit_base_patch16_224.dino", 16, 85.8, "Apache-2.0"),
    GuideEntry("dino-b8", "vit_base_patch8_224.dino", 8, 85.8, "Apache-2.0"),
    GuideEntry("dinov2-s", "vit_small_patch14_dinov2.lvd142m", 14, 22.1, "Apache-2.0"),
    GuideEntry("dinov2-b", "vit_base_patch14_dinov2.lvd142m", 14, 86.6, "Apache-2.0"),
    GuideEntry("dinov2-l", "vit_large_patch14_dinov2.lvd142m", 14, 304.4, "Apache-2.0"),
    GuideEntry("dinov3-s", "vit_small_patch16_dinov3.lvd1689m", 16, 21.6, "DINOv3 License"),
    GuideEntry("dinov3-b", "vit_base_patch16_dinov3.lvd1689m", 16, 85.6, "DINOv3 License"),
    GuideEntry("dinov3-l", "vit_large_patch16_dinov3.lvd1689m", 16, 303.1, "DINOv3 License"),
):
    guides.register(_entry.name, _entry)


def check_guide(spec: str) -> None:
    """Refuses an unknown guide, as `create_guide` does; short names and models are known without importing torch."""
    name = spec.removeprefix(QUERIES_KEYS).partition("@")[0]
    if name not in guides.names() and not in_catalogue(name):
        import timm

        if not timm.is_model(name):  # the line does not list the hundreds of towers of open_clip and timm
            raise UnknownNameError("guide", name, [*guides.names(), "mini", "mini-vit"])


def in_catalogue(name: str) -> bool:
    """Whether a guide is a model of `cliploc models`."""
    try:
        models.check_known(plain_name(name))
    except UnknownNameError:
        return False
    return True

"""Lists and builds the models of open_clip: OpenAI's CLIP and its successors, by open_clip's names and tags."""

import contextlib
import copy
import functools
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import constants as hub
from torch import nn

from cliploc.errors import CliplocWarning, ModelError, UnknownNameError, UsageError, first_line
from cliploc.support.files import user_path
from cliploc.support.imports import not_installed
from cliploc.towers import _weights
from cliploc.towers._catalogue import ModelEntry, Structure, models
from cliploc.towers._layers import resolve_precision
from cliploc.towers._open_clip_timm import TimmCnn, TimmVit
from cliploc.towers._open_clip_towers import OpenClipResNet, OpenClipVit, published_preprocessing
from cliploc.towers._transformers_folder import model_type, open_folder, supported_type, weights_in
from cliploc.towers.tower import Backbone, Pooling, TowerKind

ADAPTERS: tuple[Any, ...] = (OpenClipResNet, OpenClipVit, TimmVit, TimmCnn)  # the first that supports a tower
RANDOM = "random"
UNREADABLE = ("swin", "vit_relpos")  # families of timm that no adapter reads: windows, relative positions
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
CANNOT_BUILD = (OSError, RuntimeError, ImportError, ValueError, TypeError, KeyError)  # what open_clip raises
CLIPS_WORDS = 49_408  # of its tokenizer


@dataclass(frozen=True)
class Plan:
    """A model to build: architecture, tokenizer, weights and preprocessing."""

    label: str  # its name in results and errors
    config: str  # open_clip's name of the architecture
    tokenizer: str  # open_clip's name of the tokenizer
    weights: Callable[[], Path] | None  # finds or downloads the file; None for random weights
    quick_gelu: bool = False  # whether the weights need quick-GELU although the architecture's name does not say so
    # preprocessing of the weights, where it differs from OpenAI's
    preprocessing: dict[str, Any] = field(default_factory=dict)
    quick_twin: str | None = None  # name of the same architecture with quick-GELU, if the weights may need either
    # one tag of published weights for each preprocessing, if it is not known which one applies; that of the first tag
    # is used
    may_be_like: tuple[str, ...] = ()


def build(plan: Plan, device: str, precision: str) -> Backbone:
    """Builds the model, loads its weights, and wraps it in the adapter made for its image tower."""
    dtype = resolve_precision(precision, device)
    # Before the model, so that missing files are reported at once.
    checkpoint = _weights.read_checkpoint(plan.weights()) if plan.weights else None
    quick_gelu = plan.quick_gelu or (checkpoint is not None and checkpoint.from_openai)
    if checkpoint and plan.quick_twin and not quick_gelu:
        warnings.warn(
            f"{checkpoint.path} does not say which GELU it was trained with, and {plan.config} means plain GELU: for "
            f"weights of OpenAI, MetaCLIP or DFN use --model {plan.quick_twin}",
            CliplocWarning,
            stacklevel=2,
        )
    if checkpoint and plan.may_be_like and not checkpoint.from_openai:
        warnings.warn(
            f"{checkpoint.path} does not say how pictures are preprocessed, and published weights of {plan.config} "
            f"differ in that: the way of {plan.may_be_like[0]} is used; to choose, write --pretrained FILE@TAG "
            f"with the tag {' or '.join(plan.may_be_like)} (cliploc models {plan.config} tells them apart)",
            CliplocWarning,
            stacklevel=2,
        )
    tokenizer = _tokenizer(plan)
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # "random" is the same model every time
        try:
            forced = {"force_quick_gelu": quick_gelu, "force_preprocess_cfg": plan.preprocessing}
            model = open_clip.create_model(plan.config, load_weights=False, pretrained_text=False, **forced)
        except CANNOT_BUILD as error:
            reason = f"open_clip cannot build {plan.label} ({first_line(error)})"
            raise ModelError(f"{reason}: choose another model") from error
    _adapter(model, plan.label)  # before the weights: a tower without an adapter needs none
    file = None
    if checkpoint:
        _weights.load_into(model, checkpoint, plan.config)
        file = checkpoint.path
        del checkpoint  # the weights are in the model now: once in memory is enough
    backbone = wrap(model, tokenizer, plan.label, dtype)
    backbone.weights_file = file
    return backbone.to(device)


def wrap(model: Any, tokenizer: Any, label: str, dtype: torch.dtype) -> Any:
    """Wraps an open_clip model in the adapter for its image tower; the model must not be used afterwards."""
    for part in model.children():
        if part is not model.visual:
            # First, as that frees memory for the adapter's work on the image tower in float32; the table of all words
            # last, as what the rest frees makes room for its copy.
            for child in sorted(part.children(), key=lambda child: isinstance(child, nn.Embedding)):
                child.to(dtype)
            part.to(dtype)
    return _adapter(model, label)(model, tokenizer, label, copied=False).convert(dtype)


def adapt(model: Any, tokenizer: Any = None, name: str = "model in memory") -> Backbone:
    """A `Backbone` of an open_clip model in memory, which stays as it is; it may be fine-tuned.

    Args:
        tokenizer: that of `open_clip.get_tokenizer`; None: CLIP's own.
        name: its name in results and errors.

    Raises:
        UsageError: no model of open_clip, or one whose tokenizer is not CLIP's.
        ModelError: an image tower that is not supported.

    Example:
        >>> import open_clip
        >>> adapt(open_clip.create_model("ViT-S-32-alt")).kind
        'vit'
    """
    text = getattr(model, "text", model)
    if not (hasattr(model, "visual") and hasattr(text, "context_length") and hasattr(text, "vocab_size")):
        raise UsageError(f"expected a model of open_clip, got {type(model).__name__}: name one of `cliploc models`")
    if tokenizer is None and text.vocab_size != CLIPS_WORDS:
        raise UsageError(f"expected a tokenizer for {text.vocab_size:,} words: cliploc.towers.adapt(model, tokenizer)")
    tokenizer = tokenizer or open_clip.SimpleTokenizer(context_length=text.context_length)
    return wrap(copy.deepcopy(model), tokenizer, name, next(model.parameters()).dtype)


def _adapter(model: Any, label: str) -> Any:
    for adapter in ADAPTERS:
        if adapter.supports(model.visual):
            return adapter
    tower = getattr(model.visual, "trunk", model.visual)
    raise ModelError(
        f"the image tower of {label} ({type(tower).__name__}) is not supported: expected CLIP's ResNet, a "
        "ViT, EVA, ConvNeXt or FastViT; see `cliploc models`"
    )


def _tokenizer(plan: Plan) -> Any:
    """The tokenizer of open_clip; CLIP's is part of open_clip, others are files on Hugging Face."""
    config = open_clip.get_model_config(plan.config) or {}
    files = config.get("text_cfg", {}).get("hf_tokenizer_name")
    try:
        local = plan.tokenizer.startswith("local-dir:")
        if files and not local and _weights.unreachable(files, "tokenizer_config.json"):
            raise ConnectionError("HF_HUB_OFFLINE forbids the network" if hub.HF_HUB_OFFLINE else "no connection")
        with _quiet():
            # A folder's configuration may ask for trust_remote_code: what is given here counts more.
            return open_clip.get_tokenizer(plan.tokenizer, **({"trust_remote_code": False} if files else {}))
    except ImportError as error:
        advice = f"the tokenizer of {plan.label} needs another package: pip install transformers"
        raise not_installed(error, advice, ModelError) from error
    except Exception as error:  # transformers and the hub raise many kinds of errors when a file is missing
        raise ModelError(
            f"the tokenizer of {plan.label} is not on this machine and cannot be downloaded from {hub.ENDPOINT}/"
            f"{files or ''} ({first_line(error)}): run once with a network, or choose a model with CLIP's own tokenizer"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences open_clip's warning on the root logger that weights are random: they are loaded afterwards."""
    root, handler = logging.getLogger(), logging.NullHandler()

    def about_weights(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("No pretrained weights loaded")

    root.addFilter(about_weights)
    root.addHandler(handler)  # without any handler, logging would install one permanently
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.removeFilter(about_weights)


# ------------------------------------------------------------------------------------------------------------ plans
def plan_model(name: str, pretrained: str | None) -> Plan:
    """Plans a model from its name and a tag, file, FILE@TAG (the tag's GELU and preprocessing), "random" or None."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is None:
        if "openai" in tags or len(tags) == 1:
            pretrained = "openai" if "openai" in tags else tags[0]
        else:
            choice = f"one of {', '.join(tags)}, or a file" if tags else f"a file of weights, or {RANDOM!r}"
            raise UsageError(f"expected weights for {name}, got none: add --pretrained with {choice}")
    if pretrained == RANDOM:
        return Plan(f"{name}:{RANDOM}", name, name, None, preprocessing=_common_preprocessing(name, tags))
    file, tag = _file_and_tag(pretrained)
    if file and not tag:
        twin = f"{name}-quickgelu" if f"{name}-quickgelu" in open_clip.list_models() else None
        common, ways = _common_preprocessing(name, tags), _differently_preprocessed(name, tags)
        return Plan(f"{name}:{file.name}", name, name, lambda: file, False, common, twin, ways)
    published = open_clip.get_pretrained_cfg(name, tag)
    if not published:
        raise UnknownNameError(f"weights of {name}", tag, [*tags, RANDOM], listed_by=f"models {name}")
    label = f"{name}:{file.name}@{tag}" if file else f"{name}:{tag}"
    weights = (lambda: file) if file else functools.partial(_weights.tag_file, name, tag)
    return Plan(label, name, name, weights, bool(published.get("quick_gelu")), _preprocessing(name, tag))


def _file_and_tag(pretrained: str) -> tuple[Path | None, str]:
    """`--pretrained` as a file, a tag, or both: FILE@TAG."""
    if user_path(pretrained).exists():
        return user_path(pretrained), ""
    file, _, tag = pretrained.rpartition("@")
    if file and _is_path(file) and not _is_path(tag):
        return user_path(file), tag
    return (user_path(pretrained), "") if _is_path(pretrained) else (None, pretrained)


def _is_path(pretrained: str) -> bool:
    path = Path(pretrained)
    return path.suffix in _weights.SUFFIXES or len(path.parts) > 1 or user_path(path).exists()


def _preprocessing(name: str, tag: str) -> dict[str, Any]:
    published = open_clip.get_pretrained_cfg(name, tag)
    return {key: published[key] for key in PREPROCESSING if key in published}


def _common_preprocessing(name: str, tags: list[str]) -> dict[str, Any]:
    """The preprocessing that all published weights of a model agree on, for a file, which does not state its own."""
    ways = [_preprocessing(name, tag) for tag in tags]
    return ways[0] if ways and all(way == ways[0] for way in ways) else {}


def _differently_preprocessed(name: str, tags: list[str]) -> tuple[str, ...]:
    """The first tag of each preprocessing, OpenAI's before the others; empty where all tags agree."""
    first: dict[str, str] = {}
    for tag in tags:
        first.setdefault(published_preprocessing(_preprocessing(name, tag)), tag)
    openai = published_preprocessing({})
    return tuple(sorted(first.values(), key=lambda tag: tag != first.get(openai))) if len(first) > 1 else ()


def _build_named(name: str, pretrained: str | None, device: str, precision: str) -> Backbone:
    return build(plan_model(name, pretrained), device, precision)


def build_source(source: str, rest: str, pretrained: str | None, device: str, precision: str) -> Backbone:
    """The model of a repository ("hf-hub") or a folder ("local-dir"), of open_clip or of transformers."""
    label = f"{source}:{rest}"
    if pretrained is not None:
        raise UsageError(f"{label} has its own weights, got --pretrained {pretrained}: leave the option out")
    folder = _weights.hub_folder(rest) if source == "hf-hub" else user_path(rest)
    is_open_clips = (folder / _weights.CONFIG).is_file()
    if is_open_clips or (source == "local-dir" and not model_type(folder)):
        config = f"local-dir:{folder}"
        tokenizer = label if source == "hf-hub" else config
        return build(Plan(label, config, tokenizer, lambda: _weights.folder_checkpoint(folder)), device, precision)
    for path in weights_in(folder):
        _weights.check_cached(path)
    return open_folder(folder, label, device, precision)


# -------------------------------------------------------------------------------------------------------- structure
def structure(source: str, rest: str) -> Structure:
    """The image tower that a configuration describes, open_clip's before transformers'."""
    folder = _weights.hub_config(rest).parent if source == "hf-hub" else user_path(rest)
    if (folder / _weights.CONFIG).is_file():
        vision = _weights.folder_config(folder).get("vision_cfg")
        if not isinstance(vision, dict):
            raise ModelError(f"{folder / _weights.CONFIG} does not say what its image tower is: download it again")
        kind, _, pooling = _tower(vision)
        return Structure(kind, pooling)
    if source == "local-dir" and not model_type(folder):
        _weights.folder_checkpoint(folder)  # says what is missing
    return Structure("vit", "attention" if supported_type(folder).startswith("siglip") else "class token")


# -------------------------------------------------------------------------------------------------------- catalogue
def _entry(name: str) -> ModelEntry:
    """The catalogue's entry of a model, from open_clip's configuration alone: nothing is built."""
    config = open_clip.get_model_config(name)
    vision, tags = config["vision_cfg"], tuple(open_clip.list_pretrained_tags_by_model(name))
    size = vision.get("image_size", 224)
    kind, tower, pooling = _tower(vision)
    usable = not tower.startswith(UNREADABLE)
    return ModelEntry(
        name=name,
        build=functools.partial(_build_named, name),
        kind=kind,
        pooling=pooling,
        input_hw=(size, size) if isinstance(size, int) else (size[0], size[1]),
        parameters=None,
        licence="on its model card" if tags else "–",
        about=f"{tower}{', quick-GELU' if config.get('quick_gelu') else ''}{'' if usable else '; cannot be used here'}",
        weights=tags,
        usable=usable,
        preprocessing={tag: published_preprocessing(_preprocessing(name, tag)) for tag in tags}
        or {"": published_preprocessing({})},
    )


def _tower(vision: dict[str, Any]) -> tuple[TowerKind, str, Pooling]:
    """Kind, family and pooling of an image tower by its configuration."""
    pooling: Pooling
    if family := vision.get("timm_model_name"):
        kind: TowerKind = "cnn" if family.startswith(("convnext", "fastvit")) else "vit"
        pool = vision.get("timm_pool", "avg")
        pooling = "attention" if pool == "map" else "class token" if pool == "token" else "global average"
        return kind, family, pooling
    if isinstance(vision.get("layers"), list):
        return "cnn", "CLIP's ResNet", "attention"
    pooling = "global average" if vision.get("pool_type") == "avg" else "class token"
    return "vit", "CLIP's ViT", "attention" if vision.get("attentional_pool") else pooling


for _name in open_clip.list_models():
    models.register(_name, _entry(_name))

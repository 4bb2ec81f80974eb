"""Reads what transformers' `save_pretrained` writes, without transformers: CLIP, SigLIP 1 and 2, Chinese-CLIP."""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import set_model_preprocess_cfg
from open_clip.transform import PreprocessCfg
from open_clip.transformer import QuickGELU, TextTransformer
from open_clip.transformer import VisionTransformer as OpenClipVisionTransformer
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from tokenizers import BertWordPieceTokenizer, Tokenizer
from torch import Tensor, nn

from cliploc._documents import (
    MOST_TEXT,
    BertTextTower,
    ClipTextTower,
    DocumentError,
    ImageProcessor,
    NaflexTower,
    Processor,
    SiglipTextTower,
    TokenizerConfig,
    TransformersConfig,
    VisionTower,
    WeightIndex,
    checked,
    read_bytes,
    read_json,
)
from cliploc.errors import MissingWeightsError, ModelError

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")  # the preferred one first
# What the tokenizer may be stored as, the preferred one first; all files of a line belong together.
TOKENIZERS = (("tokenizer.json",), ("vocab.txt",), ("vocab.json", "merges.txt"))
EXTRAS = ("tokenizer_config.json", "preprocessor_config.json", "processor_config.json")  # not in every folder
TOKENIZER_FILES = (*(name for names in TOKENIZERS for name in names), EXTRAS[0])  # what token ids depend on
RESAMPLING = {2: "bilinear", 3: "bicubic"}  # PIL's numbers
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "quick_gelu": QuickGELU,
    "gelu": nn.GELU,
    "gelu_new": partial(nn.GELU, approximate="tanh"),
    "gelu_pytorch_tanh": partial(nn.GELU, approximate="tanh"),
}
# transformers' defaults of what a configuration leaves out; configurations on the hub leave out much.
# fmt: off
CLIP_VISION = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}
SIGLIP_VISION = {**CLIP_VISION, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
CLIP_TEXT = {
    "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
    "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    "vocab_size": 49408, "max_position_embeddings": 77, "eos_token_id": 49407, "pad_token_id": 1,
}
SIGLIP_TEXT = {
    **CLIP_TEXT,
    "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
    "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    "vocab_size": 32000, "max_position_embeddings": 64,
}
BERT_TEXT = {
    **SIGLIP_TEXT,
    "hidden_act": "gelu", "layer_norm_eps": 1e-12,
    "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2, "pad_token_id": 0,
}
# fmt: on
# Type of a model → defaults and schema of its image tower, and of its text tower.
TOWERS: dict[str, tuple[tuple[dict[str, Any], Any], tuple[dict[str, Any], Any]]] = {
    "clip": ((CLIP_VISION, VisionTower), (CLIP_TEXT, ClipTextTower)),
    "siglip": ((SIGLIP_VISION, VisionTower), (SIGLIP_TEXT, SiglipTextTower)),
    "siglip2": (({**SIGLIP_VISION, "num_patches": 256}, NaflexTower), (SIGLIP_TEXT, SiglipTextTower)),
    "chinese_clip": ((CLIP_VISION, VisionTower), (BERT_TEXT, BertTextTower)),
}
CLASSES = "CLIPModel, SiglipModel, Siglip2Model or ChineseCLIPModel"


@dataclass(frozen=True)
class TransformersLayout:
    """What a folder's configuration says."""

    folder: Path  # the folder
    kind: str  # transformers' name of the model's type
    vision: Mapping[str, Any]  # configuration of the image tower, with defaults filled in
    text: Mapping[str, Any]  # configuration of the text tower
    projection: int  # size of the joint space, where the model has projections
    side: int  # pixels of the square input
    preprocessing: Mapping[str, Any]  # as open_clip describes it

    def identity(self) -> str:
        """SHA-256 of what the outputs depend on besides the weights: configuration and tokenizer."""
        digest = hashlib.sha256(json.dumps([self.kind, self.vision, self.text, self.projection]).encode())
        for name in TOKENIZER_FILES:
            if (self.folder / name).is_file():
                digest.update(read_bytes(self.folder / name))
        return digest.hexdigest()


# --------------------------------------------------------------------------------------------------------------- read
def is_transformers_folder(folder: Path) -> bool:
    """Whether a folder has a configuration of transformers."""
    return "model_type" in _json(folder / CONFIG)


def weights_in(folder: Path) -> list[Path]:
    """The files of weights in a folder: one, or several shards."""
    for name in WEIGHTS:
        path = folder / name
        if path.is_file() and name.endswith(".index.json"):
            return [folder / shard for shard in shards(path)]
        if path.is_file():
            return [path]
    raise MissingWeightsError(f"expected weights in {folder}, found none: put {WEIGHTS[0]} there")


def has_tokenizer(folder: Path) -> bool:
    """Whether all files of a tokenizer are in a folder."""
    return any(all((folder / name).is_file() for name in names) for names in TOKENIZERS)


def shards(index: Path) -> list[str]:
    """The names of the files that an index of weights lists; they lie beside it."""
    names = sorted(set(_json(index, WeightIndex)["weight_map"].values()))
    if not names or any(Path(name).name != name for name in names):
        raise ModelError(f"{index} is damaged: expected the names of weight files beside it: download it again")
    return names


def read_layout(folder: Path) -> TransformersLayout:
    """What the configuration in a folder describes."""
    config = _json(folder / CONFIG)
    kind = str(config.get("model_type"))
    if kind not in TOWERS:
        raise ModelError(
            f"{folder} has a transformers model of the type {kind!r}, which is not supported: expected {CLASSES}"
        )
    _check_values(config, TransformersConfig, folder / CONFIG)
    towers: list[dict[str, Any]] = []
    for part, (default, schema) in zip(("vision", "text"), TOWERS[kind], strict=True):
        own = {**default, **(config.get(f"{part}_config") or {}), **(config.get(f"{part}_config_dict") or {})}
        where = f"{folder / CONFIG}: the {'image' if part == 'vision' else part} tower"
        _check_values(own, schema, where)
        act, acts = own["hidden_act"], ("gelu",) if schema is BertTextTower else tuple(ACTIVATIONS)
        if act not in acts:
            raise ModelError(
                f"{where} has the activation {act!r}, which is not supported: expected {' or '.join(acts)}"
            )
        if own["hidden_size"] % own["num_attention_heads"]:
            raise ModelError(
                f"{where} has a hidden_size that is no multiple of its num_attention_heads: download it again"
            )
        if part == "vision" and kind == "siglip" and not own.get("vision_use_head", True):
            raise ModelError(f"{where} has no attention pool, so no embedding: expected a model trained with text")
        size = own.get("projection_size") or own["hidden_size"]
        if part == "text" and kind.startswith("siglip") and size != towers[0]["hidden_size"]:
            raise ModelError(
                f"{where} gives embeddings of {size} numbers, the image tower of {towers[0]['hidden_size']}: take both "
                "of one model"
            )
        towers.append(own)
    vision, text = towers
    side = int(vision["image_size"])
    if kind == "siglip2":  # NaFlex takes any grid of up to num_patches; its positions are learnt on the square
        side = int(round(vision["num_patches"] ** 0.5) * vision["patch_size"])
    projection = config.get("projection_dim", 512)
    return TransformersLayout(folder, kind, vision, text, projection, side, _preprocessing(folder, kind, side))


def _preprocessing(folder: Path, kind: str, side: int) -> dict[str, Any]:
    """open_clip's description of what `preprocessor_config.json` says; OpenAI's or SigLIP's where there is none."""
    said = _json(folder / "preprocessor_config.json", ImageProcessor)
    said = said or _json(folder / "processor_config.json", Processor).get("image_processor") or {}
    siglip, standard, size = kind.startswith("siglip"), PreprocessCfg(), said.get("size")
    mean, std = ((0.5,) * 3, (0.5,) * 3) if siglip else (standard.mean, standard.std)
    shortest = not siglip
    if size is not None:  # a bare number is the shorter side
        shortest = isinstance(size, int) or size.get("shortest_edge") is not None
    number = said.get("resample")
    if number is None:
        number = 2 if kind == "siglip2" else 3
    if number not in RESAMPLING:
        raise ModelError(f"{folder} resizes with PIL's filter {number!r}: expected 2 (bilinear) or 3 (bicubic)")
    return {
        "size": (side, side),
        "mean": tuple(said.get("image_mean") or mean),
        "std": tuple(said.get("image_std") or std),
        "interpolation": RESAMPLING[number],
        "resize_mode": "shortest" if shortest else "squash",
    }


def _json(path: Path, schema: Any = dict[str, Any]) -> dict[str, Any]:
    """A file of the folder; empty where there is none."""
    try:
        read: dict[str, Any] = read_json(path, schema, MOST_TEXT)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except DocumentError as error:
        raise _not_transformers(path, error) from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from None
    return read


def _check_values(values: Mapping[str, Any], schema: Any, where: object) -> None:
    try:
        checked(values, schema)
    except DocumentError as error:
        raise _not_transformers(where, error) from None


def _not_transformers(where: object, error: DocumentError) -> ModelError:
    return ModelError(f"{where} is not as transformers writes it: {error}: download it again")


# -------------------------------------------------------------------------------------------------------------- build
class TransformersModel(nn.Module):
    """An image and a text tower as `OpenClipText` and the adapters expect them of open_clip."""

    def __init__(self, visual: nn.Module, text: nn.Module, preprocessing: Mapping[str, Any]) -> None:
        super().__init__()
        self.visual, self.text = visual, text
        self.logit_scale = nn.Parameter(torch.zeros(()))
        set_model_preprocess_cfg(self, dict(preprocessing))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Token ids `[n, T]` → `[n, D]`, not normalised."""
        return self.text(tokens)


class _TimmTower(nn.Module):
    """A ViT of timm whose pool gives the embedding, in the form that open_clip gives it."""

    def __init__(self, trunk: TimmVisionTransformer, side: int) -> None:
        super().__init__()
        self.trunk, self.head, self.image_size = trunk, nn.Identity(), (side, side)

    def forward(self, images: Tensor) -> Tensor:
        """`[B, 3, H, W]` → `[B, D]`."""
        return self.trunk(images)


class BertText(nn.Module):
    """BERT (Devlin 2018) as Chinese-CLIP's text tower (Yang 2022): its first token, projected."""

    def __init__(self, text: Mapping[str, Any], projection: int) -> None:
        super().__init__()
        width, eps = text["hidden_size"], text["layer_norm_eps"]
        self.pad = text["pad_token_id"]
        self.words = nn.Embedding(text["vocab_size"], width)
        self.positions = nn.Embedding(text["max_position_embeddings"], width)
        self.types = nn.Embedding(text["type_vocab_size"], width)
        self.norm = nn.LayerNorm(width, eps=eps)
        layer = nn.TransformerEncoderLayer(
            width, text["num_attention_heads"], text["intermediate_size"], 0.0, "gelu", eps, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, text["num_hidden_layers"], enable_nested_tensor=False)
        self.projection = nn.Linear(width, projection, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids `[n, T]` → `[n, D]`."""
        x = self.words(tokens) + self.positions.weight[: tokens.shape[1]] + self.types.weight[0]  # [n, T, d]
        x = self.encoder(self.norm(x), src_key_padding_mask=tokens == self.pad)
        return self.projection(x[:, 0])


def build_model(layout: TransformersLayout) -> TransformersModel:
    """The model that a configuration describes, its weights random."""
    vision, text, siglip = layout.vision, layout.text, layout.kind.startswith("siglip")
    norm = partial(nn.LayerNorm, eps=vision["layer_norm_eps"])
    ratio = (vision["intermediate_size"] + 0.5) / vision["hidden_size"]  # both libraries round the product down
    act: Any = ACTIVATIONS[vision["hidden_act"]]
    visual: nn.Module
    if siglip:
        trunk = TimmVisionTransformer(
            layout.side,
            vision["patch_size"],
            num_classes=0,
            global_pool="map",
            embed_dim=vision["hidden_size"],
            depth=vision["num_hidden_layers"],
            num_heads=vision["num_attention_heads"],
            mlp_ratio=ratio,
            class_token=False,
            norm_layer=norm,
            act_layer=act,
        )
        visual = _TimmTower(trunk, layout.side)
    else:
        visual = OpenClipVisionTransformer(
            image_size=layout.side,
            patch_size=vision["patch_size"],
            width=vision["hidden_size"],
            layers=vision["num_hidden_layers"],
            heads=vision["num_attention_heads"],
            mlp_ratio=ratio,
            output_dim=layout.projection,
            act_layer=act,
            norm_layer=norm,
        )
    if layout.kind == "chinese_clip":
        return TransformersModel(visual, BertText(text, layout.projection), layout.preprocessing)
    # Before 2023 configurations said 2 for the end of a text, and transformers then takes the highest id, as OpenAI.
    highest = layout.kind == "clip" and text["eos_token_id"] == 2
    text_tower = TextTransformer(
        context_length=text["max_position_embeddings"],
        vocab_size=text["vocab_size"],
        width=text["hidden_size"],
        heads=text["num_attention_heads"],
        layers=text["num_hidden_layers"],
        mlp_ratio=(text["intermediate_size"] + 0.5) / text["hidden_size"],
        output_dim=text.get("projection_size") or text["hidden_size"] if siglip else layout.projection,
        no_causal_mask=siglip,
        eos_id=text["eos_token_id"],
        pool_type="last" if siglip else "argmax" if highest else "eos",
        proj_bias=siglip,
        act_layer=ACTIVATIONS[text["hidden_act"]],
        norm_layer=partial(nn.LayerNorm, eps=text["layer_norm_eps"]),
    )
    return TransformersModel(visual, text_tower, layout.preprocessing)


# ------------------------------------------------------------------------------------------------------------- rename
# Ours → theirs; {end} stands for weight and bias. Several of theirs are joined; `_made` says what else is changed.
CLIP_IMAGE = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.{end}": "vision_model.pre_layrnorm.{end}",  # so spelt
    "visual.ln_post.{end}": "vision_model.post_layernorm.{end}",
    "visual.proj": "visual_projection.weight",
}
SIGLIP_IMAGE = {
    "visual.trunk.patch_embed.proj.{end}": "vision_model.embeddings.patch_embedding.{end}",
    "visual.trunk.pos_embed": "vision_model.embeddings.position_embedding.weight",
    "visual.trunk.norm.{end}": "vision_model.post_layernorm.{end}",
    "visual.trunk.attn_pool.latent": "vision_model.head.probe",
    "visual.trunk.attn_pool.q.{end}": "vision_model.head.attention.in_proj_{end}",
    "visual.trunk.attn_pool.kv.{end}": "vision_model.head.attention.in_proj_{end}",
    "visual.trunk.attn_pool.proj.{end}": "vision_model.head.attention.out_proj.{end}",
    "visual.trunk.attn_pool.norm.{end}": "vision_model.head.layernorm.{end}",
    "visual.trunk.attn_pool.mlp.fc1.{end}": "vision_model.head.mlp.fc1.{end}",
    "visual.trunk.attn_pool.mlp.fc2.{end}": "vision_model.head.mlp.fc2.{end}",
}
SIGLIP_WORDS = {
    "text.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "text.positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text.ln_final.{end}": "text_model.final_layer_norm.{end}",
    "text.text_projection.{end}": "text_model.head.{end}",
}
CLIP_WORDS = {
    "text.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "text.positional_embedding": "text_model.embeddings.position_embedding.weight",
    "text.ln_final.{end}": "text_model.final_layer_norm.{end}",
    "text.text_projection": "text_projection.weight",
}
BERT_WORDS = {
    "text.words.weight": "text_model.embeddings.word_embeddings.weight",
    "text.positions.weight": "text_model.embeddings.position_embeddings.weight",
    "text.types.weight": "text_model.embeddings.token_type_embeddings.weight",
    "text.norm.{end}": "text_model.embeddings.LayerNorm.{end}",
    "text.projection.weight": "text_projection.weight",
}
CLIP_BLOCK = {
    "ln_1.{end}": "layer_norm1.{end}",
    "attn.in_proj_{end}": "self_attn.q_proj.{end} self_attn.k_proj.{end} self_attn.v_proj.{end}",
    "attn.out_proj.{end}": "self_attn.out_proj.{end}",
    "ln_2.{end}": "layer_norm2.{end}",
    "mlp.c_fc.{end}": "mlp.fc1.{end}",
    "mlp.c_proj.{end}": "mlp.fc2.{end}",
}
TIMM_BLOCK = {
    "norm1.{end}": "layer_norm1.{end}",
    "attn.qkv.{end}": "self_attn.q_proj.{end} self_attn.k_proj.{end} self_attn.v_proj.{end}",
    "attn.proj.{end}": "self_attn.out_proj.{end}",
    "norm2.{end}": "layer_norm2.{end}",
    "mlp.fc1.{end}": "mlp.fc1.{end}",
    "mlp.fc2.{end}": "mlp.fc2.{end}",
}
BERT_BLOCK = {
    "self_attn.in_proj_{end}": "attention.self.query.{end} attention.self.key.{end} attention.self.value.{end}",
    "self_attn.out_proj.{end}": "attention.output.dense.{end}",
    "norm1.{end}": "attention.output.LayerNorm.{end}",
    "linear1.{end}": "intermediate.dense.{end}",
    "linear2.{end}": "output.dense.{end}",
    "norm2.{end}": "output.LayerNorm.{end}",
}
UNUSED = ("position_ids", "text_model.pooler.dense.weight", "text_model.pooler.dense.bias", "logit_bias")


def rename(layout: TransformersLayout, tensors: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    """The tensors under the names of `build_model`."""
    for part, settings in (("vision", layout.vision), ("text", layout.text)):
        layer = re.compile(rf"{part}_model\.encoder\.layers?\.(\d+)\.")
        layers = len({match[1] for name in tensors if (match := layer.match(name))})
        if layers != settings["num_hidden_layers"]:  # first of all: a wrong number may be huge
            raise ModelError(
                f"{where} has {layers} layers of {part}_model, {layout.folder / CONFIG} describes "
                f"{settings['num_hidden_layers']}: take both of one model"
            )
    renamed: dict[str, Tensor] = {}
    missing: list[str] = []
    used: set[str] = set()
    for ours, theirs in _sources(layout).items():
        missing += [name for name in theirs if name not in tensors]
        used.update(theirs)
        if not missing:
            try:
                renamed[ours] = _made(ours, [tensors[name] for name in theirs], layout.vision["patch_size"])
            except (RuntimeError, IndexError, TypeError):
                shapes = ", ".join(str(list(tensors[name].shape)) for name in theirs)
                raise ModelError(f"{where} has {theirs[0]} of another shape ({shapes}): download it again") from None
    extra = [name for name in tensors if name not in used and not name.endswith(UNUSED)]
    if missing or extra:
        lists = (("missing", missing), ("that it does not describe", extra))
        what = ", ".join(f"{len(names)} tensors {how} ({names[0]}, …)" for how, names in lists if names)
        raise ModelError(
            f"{where} does not have the weights that {layout.folder / CONFIG} describes: {what}: take both of one model"
        )
    return renamed


def _sources(layout: TransformersLayout) -> dict[str, list[str]]:
    """The name of each of our tensors → the names of those that it is made of."""
    # Of each tower: the names outside its blocks, in a block, and those of all blocks.
    image = (CLIP_IMAGE, CLIP_BLOCK, "visual.transformer.resblocks", "vision_model.encoder.layers")
    text = (CLIP_WORDS, CLIP_BLOCK, "text.transformer.resblocks", "text_model.encoder.layers")
    if layout.kind.startswith("siglip"):
        image = (SIGLIP_IMAGE, TIMM_BLOCK, "visual.trunk.blocks", "vision_model.encoder.layers")
        text = (SIGLIP_WORDS, CLIP_BLOCK, "text.transformer.resblocks", "text_model.encoder.layers")
    elif layout.kind == "chinese_clip":
        text = (BERT_WORDS, BERT_BLOCK, "text.encoder.layers", "text_model.encoder.layer")
    names = {"logit_scale": "logit_scale"}
    for (outside, block, ours, theirs), settings in ((image, layout.vision), (text, layout.text)):
        names |= outside
        for i, (name, parts) in itertools.product(range(settings["num_hidden_layers"]), block.items()):
            names[f"{ours}.{i}.{name}"] = " ".join(f"{theirs}.{i}.{part}" for part in parts.split())
    ends = ("weight", "bias")
    return {ours.format(end=end): theirs.format(end=end).split() for ours, theirs in names.items() for end in ends}


def _made(ours: str, parts: list[Tensor], patch: int) -> Tensor:
    """One of our tensors, of theirs."""
    if len(parts) > 1:
        return torch.cat(parts)
    (tensor,) = parts
    if ours == "logit_scale":
        return tensor.reshape(())
    if ours in ("visual.proj", "text.text_projection"):
        return tensor.t()
    if ours == "visual.trunk.pos_embed":
        return tensor[None]
    if ours.startswith("visual.trunk.attn_pool.q."):
        return tensor[: len(tensor) // 3]
    if ours.startswith("visual.trunk.attn_pool.kv."):
        return tensor[len(tensor) // 3 :]
    if ours == "visual.trunk.patch_embed.proj.weight" and tensor.ndim == 2 and tensor.shape[1] == 3 * patch * patch:
        # NaFlex's linear layer over a patch's p×p×3 numbers, as a convolution `[d, 3, p, p]`
        return tensor.reshape(-1, patch, patch, 3).permute(0, 3, 1, 2)
    return tensor


# ----------------------------------------------------------------------------------------------------------- tokenize
def folder_tokenizer(layout: TransformersLayout) -> Callable[[list[str]], Tensor]:
    """The tokenizer in a folder: sentences → ids `[n, T]`, padded to the context; Chinese-CLIP's to the longest."""
    folder, text = layout.folder, layout.text
    settings = _json(folder / EXTRAS[0], TokenizerConfig)
    length = int(min(text["max_position_embeddings"], settings.get("model_max_length") or math.inf))
    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        elif (folder / "vocab.txt").is_file() and layout.kind == "chinese_clip":
            lower = settings.get("do_lower_case", True)
            tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=lower)
        elif layout.kind == "clip" and _json(folder / "vocab.json") == (openai := open_clip.SimpleTokenizer()).encoder:
            _refuse_other_ids(layout, openai.encoder.values())
            return open_clip.SimpleTokenizer(context_length=length)
        else:
            raise ModelError(
                f"expected tokenizer.json in {folder}, found none: save the model's tokenizer there (transformers: "
                "AutoTokenizer.from_pretrained(…).save_pretrained(FOLDER))"
            )
        named = settings.get("pad_token")
        pad = tokenizer.token_to_id(named["content"] if isinstance(named, dict) else named) if named else None
        if pad is None:
            pad = tokenizer.padding["pad_id"] if tokenizer.padding else text["pad_token_id"]
        if pad is None:
            raise ValueError("it has no pad_token")
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(pad_id=int(pad), length=None if layout.kind == "chinese_clip" else length)

        def tokenize(texts: list[str]) -> Tensor:
            return torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(texts)])

        # The ids around a text need not be in the vocabulary.
        ids = {int(pad), *tokenizer.get_vocab().values(), *tokenize(["", "a"]).long().flatten().tolist()}
    except ModelError:
        raise
    except Exception as error:  # tokenizers raises bare exceptions
        raise ModelError(f"the tokenizer in {folder} cannot be read ({str(error)[:100]}): download it again") from None
    _refuse_other_ids(layout, ids)
    return tokenize


def _refuse_other_ids(layout: TransformersLayout, ids: Iterable[int]) -> None:
    if (largest := max(ids)) >= layout.text["vocab_size"]:
        raise ModelError(
            f"the tokenizer in {layout.folder} has a token of the number {largest}, the model {CONFIG} describes has "
            f"{layout.text['vocab_size']} tokens: take both of one model"
        )

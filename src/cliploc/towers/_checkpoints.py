"""Reads files of weights without running code in them, checks them, and loads them into a model."""

import contextlib
import hashlib
import pickle
import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from cliploc.errors import MissingWeightsError, ModelError, first_line
from cliploc.support.process import out_of_memory

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
WRAPPERS = ("state_dict", "model")  # keys under which files have the state dict, the preferred one first
MAX_WRAPPERS = 3  # "state_dict" in "model" in …
OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights on this machine."""

    path: Path  # the file
    sha256: str  # checksum of the file, compared with the published one if there is one
    tensors: dict[str, Tensor]  # by open_clip's names, in their stored precision
    from_openai: bool = False  # whether it is OpenAI's file, which needs quick-GELU
    settings: Mapping[str, Any] = field(default_factory=dict)  # those of its training, where they were asked for


# --------------------------------------------------------------------------------------------------------------- read
def read_checkpoint(path: Path, wrappers: Sequence[str] = WRAPPERS, *, with_settings: bool = False) -> Checkpoint:
    """Reads `.safetensors`, OpenAI's archive, or torch's state dict, also under one of `wrappers`.

    With settings, the file may hold argparse's namespaces too, plain objects that run nothing: "args" is one.
    """
    if path.is_dir():
        raise ModelError(
            f"expected a file of weights, got the folder {path}: give the file in it, or local-dir:{path} as --model"
        )
    if not path.is_file():
        raise MissingWeightsError(f"expected a file of weights, found none at {path}: check the path")
    try:
        tensors, settings = _read(path, wrappers, with_settings)
        sha256 = verify(path, blob_sha256(path))
    except ModelError:
        raise
    except pickle.UnpicklingError as error:
        what = re.search(r"GLOBAL (\S+)|Unsupported (?:global|operand|class) (\S+)", str(error))
        code = f" ({what.group(1) or what.group(2)})" if what else ""
        raise ModelError(
            f"{path} is refused: it is damaged or a pickle that could run code{code}: save it again as safetensors"
        ) from None
    except Exception as error:  # the libraries raise nearly anything for a damaged file
        if out_of_memory(error):
            raise
        raise ModelError(
            f"{path} ({path.stat().st_size:,} bytes) is cut short or damaged, or not a file of weights: download it "
            f"again ({first_line(error)})"
        ) from None
    from_openai = not tensors.keys().isdisjoint(OPENAI_EXTRAS)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in OPENAI_EXTRAS}
    return Checkpoint(path, sha256, tensors, from_openai, settings)


def _read(path: Path, wrappers: Sequence[str], with_settings: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with path.open("rb") as file:
        start = file.read(9)
    if path.suffix == ".safetensors" or start[8:] == b"{":
        return _state_dict(load_file(path), path, wrappers), {}
    if _is_torchscript(path):
        return _read_torchscript(path), {}
    with torch.serialization.safe_globals([Namespace]) if with_settings else contextlib.nullcontext():
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    settings = loaded.get("args") if isinstance(loaded, dict) else None
    return _state_dict(loaded, path, wrappers), vars(settings) if isinstance(settings, Namespace) else {}


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.partition("/")[2] == "constants.pkl" for name in archive.namelist())


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    """The tensors of OpenAI's archive. Such a file is a program, so it must be one that OpenAI published."""
    if sha256_of(path) not in published_by_openai():
        raise ModelError(
            f"{path} is refused: it is a TorchScript program, which could run code, and none of OpenAI's files: "
            "expected weights, save its state_dict() as safetensors"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to drop TorchScript
        module: nn.Module = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
    return module.state_dict()


def published_by_openai() -> set[str]:
    """The checksums of OpenAI's files, which their URLs state."""
    urls = (open_clip.get_pretrained_url(name, "openai") for name in open_clip.list_openai_models())
    return {url.split("/")[-2] for url in urls}


def _state_dict(loaded: Any, path: Path, wrappers: Sequence[str]) -> dict[str, Tensor]:
    """The tensors by name in what was loaded, without the dicts around them."""
    for _ in range(MAX_WRAPPERS):
        if isinstance(loaded, dict):
            loaded = next((loaded[key] for key in wrappers if isinstance(loaded.get(key), dict)), loaded)
    if not isinstance(loaded, dict):
        raise ModelError(f"{path} holds {type(loaded).__name__}, not a state dict: save model.state_dict()")
    tensors = {name: value for name, value in loaded.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise ModelError(f"{path} holds no tensors: expected the state dict of a CLIP model")
    for prefix in ("module.", "_orig_mod."):  # added by DistributedDataParallel and torch.compile
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


# ---------------------------------------------------------------------------------------------------------- checksums
def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def blob_sha256(path: Path) -> str:
    """The checksum of a file in Hugging Face's cache, which names files by it."""
    name = path.resolve().name
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else ""


def verify(path: Path, published: str) -> str:
    """Returns the file's SHA-256, compared with the published one."""
    sha256 = sha256_of(path)
    if not sha256.startswith(published):
        raise ModelError(
            f"{path} is damaged: its SHA-256 is {sha256[:12]}… instead of the published {published[:12]}…: delete "
            f"{'it' if path.resolve() == path.absolute() else path.resolve()} and run again"
        )
    return sha256


# --------------------------------------------------------------------------------------------------------------- load
def load_into(model: nn.Module, checkpoint: Checkpoint, name: str) -> None:
    """Loads a checkpoint's tensors into an open_clip model, cast to its precision."""
    tensors = convert_state_dict(model, dict(checkpoint.tensors))
    if "positional_embedding" in tensors and not hasattr(model, "positional_embedding"):
        tensors = convert_to_custom_text_state_dict(tensors)
    expected = model.state_dict()
    for scalar in ("logit_scale", "logit_bias"):  # saved as a number or as a list of one
        if scalar in tensors and scalar in expected and tensors[scalar].numel() == 1:
            tensors[scalar] = tensors[scalar].reshape(expected[scalar].shape)
    if "logit_bias" in expected:
        tensors.setdefault("logit_bias", torch.zeros_like(expected["logit_bias"]))
    load_exactly(model, tensors, checkpoint.path, f"weights of {name}")


def load_exactly(model: nn.Module, tensors: dict[str, Tensor], path: Path, what: str) -> None:
    """Loads tensors into a model whose tensors they must be, all of them and in these shapes."""
    expected = model.state_dict()
    # Tensors that are derived, not used in eval mode, or dropped by newer versions of the libraries.
    ignored = re.compile(r"(.*\.)?(num_batches_tracked|position_ids|attn_mask)$")
    names = [name for name in {**expected, **tensors} if not ignored.match(name)]
    faults = {
        "missing": [name for name in names if name not in tensors],
        "unexpected": [name for name in names if name not in expected],
        "of another shape": [n for n in tensors if n in expected and tensors[n].shape != expected[n].shape],
    }
    if any(faults.values()):
        found = ", ".join(f"{len(some)} {how} ({some[0]} …)" for how, some in faults.items() if some)
        advice = "check model and file"
        if any(name.startswith(("vision_model.", "text_model.encoder.")) for name in tensors):
            advice = f"transformers names them so: use --model local-dir:{path.parent} without --pretrained"
        raise ModelError(f"{path} does not hold {what}: of its tensors {found}; {advice}")
    model.load_state_dict(tensors, strict=False)

"""Weights: found by tag, repository or folder, in a cache or on the hub; read without running code; loaded."""

import contextlib
import hashlib
import pickle
import re
import ssl
import urllib.request
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import huggingface_hub
import open_clip
import torch
from huggingface_hub import constants as hub
from huggingface_hub import errors as hub_errors
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from cliploc.errors import MissingWeightsError, ModelError, first_line
from cliploc.support.files import OpenClipConfig, read_json, user_path
from cliploc.support.process import out_of_memory
from cliploc.towers import _transformers_folder as transformers_folder

CONFIG = "open_clip_config.json"
# Names of open_clip's checkpoint in a repository or folder, the preferred one first.
CHECKPOINTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
ORIGINALS = "~/.cache/clip"  # folder of what OpenAI's package and open_clip download by URL
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
WRAPPERS = ("state_dict", "model")  # keys under which files have the state dict, the preferred one first
MAX_WRAPPERS = 3  # "state_dict" in "model" in …
FILE_BY_HAND = "or give a file of weights with --pretrained FILE"
OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")


# ------------------------------------------------------------------------------------------------------ find or fetch
def tag_file(model: str, tag: str) -> Path:
    """The file of a tag of open_clip: in a cache (also OpenAI's, `~/.cache/clip`), or downloaded into the hub's."""
    published: dict[str, str] = open_clip.get_pretrained_cfg(model, tag)
    repository, _, name = published["hf_hub"].rpartition("/")
    names: tuple[str, ...] = (name,) if name else CHECKPOINTS
    stem, _, suffix = name.rpartition(".")
    if suffix in ("bin", "pth"):
        names = (f"{stem}.safetensors", name)
    url = published.get("url", "")
    original = user_path(ORIGINALS) / url.rpartition("/")[2] if url else None
    if cached := _in_hub_cache(repository, names):
        return cached
    if original and original.is_file():
        verify(original, published_sha256(url))
        return original
    by_hand = f"or save {url} as {original}, " if original and "openaipublic" in url else ""
    return _from_hub(repository, names, f"the weights {tag!r} of {model}", f"{by_hand}{FILE_BY_HAND}")


def published_sha256(url: str) -> str:
    """The checksum, or its beginning, in a URL; empty if there is none."""
    if "openaipublic" in url:
        return url.split("/")[-2]
    match = re.search(r"-([0-9a-f]{8,64})\.\w+$", url)
    return match.group(1) if match and "mlfoundations" in url else ""


def hub_folder(repository: str) -> Path:
    """The cache folder with configuration and weights of a repository of open_clip or transformers on Hugging Face."""
    config = hub_config(repository)
    folder, wanted = config.parent, f"the files of hf-hub:{repository}"
    if config.name == CONFIG:
        if not any((folder / name).is_file() for name in CHECKPOINTS):
            _from_hub(repository, CHECKPOINTS, wanted)
    elif folder != _cached_transformers_folder(repository):
        transformers_folder.supported_type(folder)  # refuses others before gigabytes are fetched
        weights = _from_hub(repository, transformers_folder.WEIGHTS, wanted)
        others = transformers_folder.shards(weights) if weights.suffix == ".json" else []
        for name in (*others, *transformers_folder.TOKENIZERS, *transformers_folder.PROCESSORS):
            _fetch(repository, name, wanted)
    return folder


def hub_config(repository: str) -> Path:
    """The configuration of a repository of open_clip or transformers on Hugging Face, from the cache or downloaded."""
    config = _in_hub_cache(repository, (CONFIG,))
    if config is None and (folder := _cached_transformers_folder(repository)):
        return folder / transformers_folder.CONFIG
    return config or _from_hub(repository, (CONFIG, transformers_folder.CONFIG), f"the files of hf-hub:{repository}")


def _cached_transformers_folder(repository: str) -> Path | None:
    """The cache folder of a repository in transformers' layout, if all its files are in the cache."""
    config = _in_hub_cache(repository, (transformers_folder.CONFIG,))
    if config is None or not any((config.parent / name).is_file() for name in transformers_folder.VOCABULARIES):
        return None
    try:
        complete = all(path.is_file() for path in transformers_folder.weights_in(config.parent))
    except ModelError:
        return None
    return config.parent if complete else None


def timm_file(guide: str, repository: str) -> Path:
    """The file of a timm tower's weights: from the Hugging Face cache, or downloaded into it."""
    if not repository:
        raise MissingWeightsError(f"the guide {guide} has no published weights: give a file of them as {guide}@FILE")
    names = ("model.safetensors", "pytorch_model.bin")
    wanted, by_hand = f"the weights of the guide {guide}", f"or give a file of weights with --guide {guide}@FILE"
    return _in_hub_cache(repository, names) or _from_hub(repository, names, wanted, by_hand)


def folder_checkpoint(folder: Path) -> Path:
    """The checkpoint in a folder that also holds open_clip's configuration."""
    if not folder.is_dir():
        raise ModelError(
            f"expected a folder with {CONFIG} and weights, got {folder}, which is not a folder: check the path"
        )
    if not (folder / CONFIG).is_file():
        raise ModelError(
            f"expected {CONFIG} or transformers' config.json in {folder}, found none: give a folder saved by open_clip "
            "or transformers, or a file of weights as --model NAME --pretrained FILE"
        )
    folder_config(folder)
    named = [folder / name for name in CHECKPOINTS if (folder / name).is_file()]
    files = named or sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if not files:
        raise MissingWeightsError(f"expected weights in {folder}, found none: put {CHECKPOINTS[0]} there")
    return files[0]


def folder_config(folder: Path) -> dict[str, Any]:
    """open_clip's "model_cfg" in a folder."""
    try:
        config: dict[str, Any] = read_json(folder / CONFIG, OpenClipConfig)["model_cfg"]
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{folder / CONFIG} is damaged, or not open_clip's ({first_line(error)}): download it again"
        ) from None
    return config


# ---------------------------------------------------------------------------------------------------- from the hub
def _in_hub_cache(repository: str, names: tuple[str, ...]) -> Path | None:
    for name in names:
        try:
            path = huggingface_hub.try_to_load_from_cache(repository, name)
        except hub_errors.HFValidationError:
            raise ModelError(f"expected a repository as ORG/NAME after hf-hub:, got {repository!r}") from None
        if isinstance(path, str):
            return Path(path)
    return None


def _from_hub(repository: str, names: tuple[str, ...], wanted: str, by_hand: str = FILE_BY_HAND) -> Path:
    """Downloads the first of these files that the repository has."""
    for name in names:
        if path := _fetch(repository, name, wanted, by_hand):
            return path
    raise MissingWeightsError(f"{wanted}: the repository {repository} has none of {', '.join(names)}: {by_hand}")


def _fetch(repository: str, name: str, wanted: str, by_hand: str = FILE_BY_HAND) -> Path | None:
    """Downloads a file of a repository; None if the repository does not have it."""
    advice = f"get them from {hub.ENDPOINT}/{repository}, {by_hand}"
    missing, host = f"{wanted} are not on this machine and", hub.ENDPOINT.partition("://")[2]
    if hub.HF_HUB_OFFLINE:
        raise MissingWeightsError(f"{missing} HF_HUB_OFFLINE forbids the network: {advice}")
    if not hub_reachable():
        raise MissingWeightsError(f"{missing} {host} cannot be reached: {advice}")
    try:
        return Path(huggingface_hub.hf_hub_download(repository, name))
    except hub_errors.EntryNotFoundError as error:
        if not isinstance(error, hub_errors.LocalEntryNotFoundError):
            return None
        reason = f"{wanted} could not be downloaded ({first_line(error.__cause__ or error)}): {advice}"
    except hub_errors.GatedRepoError:
        reason = (
            f"{wanted}: the repository {repository} asks for consent: accept its terms on {host}, then run `hf auth "
            "login`"
        )
    except hub_errors.RepositoryNotFoundError:
        reason = (
            f"{wanted}: {host} has no public repository {repository}: check its name, or run `hf auth login` if it is "
            "private"
        )
    except Exception as error:  # of several HTTP libraries
        reason = f"{wanted} could not be downloaded ({first_line(error)}): {advice}"
    raise MissingWeightsError(reason)


def hub_reachable() -> bool:
    """Whether the hub answers. Asked first, because the hub's library tries for half a minute before it gives up."""
    try:
        urllib.request.urlopen(urllib.request.Request(hub.ENDPOINT, method="HEAD"), timeout=5).close()
    except HTTPError:
        return True  # an answer, though an error
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # the library may have certificates that we do not have
    except OSError:
        return False
    return True


def unreachable(repository: str, name: str) -> bool:
    """Whether a file is not in the hub's cache and cannot be downloaded either."""
    return _in_hub_cache(repository, (name,)) is None and (hub.HF_HUB_OFFLINE or not hub_reachable())


# --------------------------------------------------------------------------------------------------------------- read
@dataclass(frozen=True)
class Checkpoint:
    """A file of weights on this machine."""

    path: Path  # the file
    tensors: dict[str, Tensor]  # by open_clip's names, in their stored precision
    from_openai: bool = False  # whether it is OpenAI's file, which needs quick-GELU
    settings: Mapping[str, Any] = field(default_factory=dict)  # those of its training, where they were asked for


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
        check_cached(path)
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
    return Checkpoint(path, tensors, from_openai, settings)


def _read(path: Path, wrappers: Sequence[str], with_settings: bool) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with path.open("rb") as file:
        start = file.read(9)
    if path.suffix == ".safetensors" or start[8:] == b"{":
        return _state_dict(load_file(path), path, wrappers), {}
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.partition("/")[2] == "constants.pkl" for name in archive.namelist()):
                return _read_torchscript(path), {}
    with torch.serialization.safe_globals([Namespace]) if with_settings else contextlib.nullcontext():
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    settings = loaded.get("args") if isinstance(loaded, dict) else None
    return _state_dict(loaded, path, wrappers), vars(settings) if isinstance(settings, Namespace) else {}


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


def check_cached(path: Path) -> None:
    """Refuses a damaged file in Hugging Face's cache, which names files by their checksum."""
    name = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", name):
        verify(path, name)


def verify(path: Path, published: str) -> None:
    """Compares the file's SHA-256 with the published one, or its beginning."""
    sha256 = sha256_of(path)
    if not sha256.startswith(published):
        raise ModelError(
            f"{path} is damaged: its SHA-256 is {sha256[:12]}… instead of the published {published[:12]}…: delete "
            f"{'it' if path.resolve() == path.absolute() else path.resolve()} and run again"
        )


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

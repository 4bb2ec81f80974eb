"""Finds, downloads, checks and reads weights: tags, Hugging Face repositories, folders and files.

No code in a file is run: files are read by safetensors, `torch.load(weights_only=True)`, or our own reader for OpenAI's
TorchScript archives. An error is one line that says what to download and where to put it.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import pickle
import re
import ssl
import urllib.request
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

import huggingface_hub
import open_clip
import torch
from huggingface_hub import constants as hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # public, but lazily exported
from open_clip.convert import convert_state_dict
from open_clip.model import convert_to_custom_text_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from cliploc._documents import read_json
from cliploc._files import user_path
from cliploc.backbones import _transformers_folder as transformers_folder
from cliploc.backbones._downloads import download, fetch_blob
from cliploc.backbones._pickles import refuse_endless
from cliploc.backbones._torchscript import RefusedError, read_torchscript
from cliploc.errors import MissingWeightsError, ModelError

CONFIG = "open_clip_config.json"
# Names of open_clip's checkpoint in a repository or folder, the preferred one first.
CHECKPOINTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
ORIGINALS = "~/.cache/clip"  # folder of what OpenAI's package and open_clip download by URL
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # the disk is full, or the user's quota is
MAX_WRAPPERS = 8  # "state_dict" in "model" in …
OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights on this machine."""

    path: Path  # the file
    sha256: str  # checksum of the file, compared with the published one if there is one
    tensors: dict[str, Tensor]  # by open_clip's names, in their stored precision
    from_openai: bool  # whether it is OpenAI's file, which needs quick-GELU


# ------------------------------------------------------------------------------------------------------ find or fetch
def tag_file(model: str, tag: str) -> Path:
    """The file of the weights with a tag of open_clip: from a cache, or downloaded into the Hugging Face cache.

    OpenAI's file in `~/.cache/clip`, the folder of OpenAI's package, is used too.
    """
    published: dict[str, str] = open_clip.get_pretrained_cfg(model, tag)
    repository, _, name = published.get("hf_hub", "").rpartition("/")
    names = (*_safe_alternative(name), name) if name else CHECKPOINTS
    url = published.get("url", "")
    original = user_path(ORIGINALS) / url.rpartition("/")[2] if url else None
    if repository and (cached := _in_hub_cache(repository, names)):
        return cached
    if original and original.is_file():
        _verify(original, published_sha256(url))
        return original
    wanted = f"the weights {tag!r} of {model}"
    where = f"{hub.ENDPOINT}/{repository}" if repository else url
    if original and "openaipublic" in url:
        where += f", or save {url} as {original}"
    if not repository:
        return _download_url(url, original or Path(), wanted)
    return _from_hub(repository, names, wanted, f"download them from {where}")


def hub_folder(repository: str) -> Path:
    """The cache folder with configuration and weights of a repository of open_clip or transformers on Hugging Face."""
    wanted, advice = f"the files of hf-hub:{repository}", f"fetch it from {hub.ENDPOINT}/{repository}"
    config = hub_config(repository)
    if config.name != CONFIG and config.parent == _cached_transformers_folder(repository):
        return config.parent
    if config.name != CONFIG:
        _fetch_transformers_folder(repository, config.parent, wanted, advice)
    elif not any((config.parent / name).is_file() for name in CHECKPOINTS):
        _from_hub(repository, CHECKPOINTS, wanted, advice)
    return config.parent


def hub_config(repository: str) -> Path:
    """The configuration of a repository of open_clip or transformers on Hugging Face, from the cache or downloaded."""
    config = _in_hub_cache(repository, (CONFIG,))
    if config is None and (folder := _cached_transformers_folder(repository)):
        return folder / transformers_folder.CONFIG
    wanted, advice = f"the files of hf-hub:{repository}", f"fetch it from {hub.ENDPOINT}/{repository}"
    return config or _from_hub(repository, (CONFIG, transformers_folder.CONFIG), wanted, advice)


def _cached_transformers_folder(repository: str) -> Path | None:
    """The cache folder of a repository in transformers' layout, if all its files are in the cache."""
    config = _in_hub_cache(repository, (transformers_folder.CONFIG,))
    if config is None or not transformers_folder.has_tokenizer(config.parent):
        return None
    try:
        complete = all(path.is_file() for path in transformers_folder.weights_in(config.parent))
    except ModelError:
        return None
    return config.parent if complete else None


def _fetch_transformers_folder(repository: str, folder: Path, wanted: str, advice: str) -> None:
    """Downloads the weights, the tokenizer and the other files of a repository in transformers' layout."""
    transformers_folder.read_layout(folder)  # refuses a model without a tower before gigabytes are fetched
    weights = _from_hub(repository, transformers_folder.WEIGHTS, wanted, advice)
    for shard in transformers_folder.shards(weights) if weights.suffix == ".json" else ():
        _from_hub(repository, (shard,), wanted, advice)
    for names in (*((name,) for name in transformers_folder.EXTRAS), *transformers_folder.TOKENIZERS):
        if names in transformers_folder.TOKENIZERS and transformers_folder.has_tokenizer(folder):
            break
        for name in names:
            _fetch(repository, name, wanted, advice)


def timm_file(guide: str, repository: str) -> Path:
    """The file of a timm tower's weights: from the Hugging Face cache, or downloaded into it."""
    if not repository:
        raise MissingWeightsError(f"the guide {guide} has no published weights: give a file of them as {guide}@FILE")
    wanted, advice = f"the weights of the guide {guide}", f"download them from {hub.ENDPOINT}/{repository}"
    names = ("model.safetensors", "pytorch_model.bin")
    by_hand = f"--guide {guide}@FILE"
    return _in_hub_cache(repository, names) or _from_hub(repository, names, wanted, advice, by_hand)


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
    found = named or sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    if not found:
        raise MissingWeightsError(f"expected weights in {folder}, found none: put {CHECKPOINTS[0]} there")
    return found[0]


def folder_config(folder: Path) -> dict[str, Any]:
    """open_clip's "model_cfg" in a folder."""
    try:
        config = read_json(folder / CONFIG, dict[str, Any]).get("model_cfg")
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise ModelError(f"{folder / CONFIG} is damaged, or not open_clip's: download it again")
    return config


def _safe_alternative(name: str) -> tuple[str, ...]:
    stem, _, suffix = name.rpartition(".")
    return (f"{stem}.safetensors",) if suffix in ("bin", "pth") else ()


def _in_hub_cache(repository: str, names: tuple[str, ...]) -> Path | None:
    for name in names:
        try:
            found = huggingface_hub.try_to_load_from_cache(repository, name)
        except HFValidationError:
            raise ModelError(f"expected a repository as ORG/NAME after hf-hub:, got {repository!r}") from None
        if isinstance(found, str):
            return Path(found)
    return None


def _from_hub(
    repository: str, names: tuple[str, ...], wanted: str, advice: str, by_hand: str = "--pretrained FILE"
) -> Path:
    """Downloads the first of these files that the repository has; the hub's cache never shows incomplete files."""
    advice = f"{advice}, or give a file of weights with {by_hand}"
    for name in names:
        if path := _fetch(repository, name, wanted, advice):
            return path
    raise MissingWeightsError(f"{wanted}: the repository {repository} has none of {', '.join(names)}: {advice}")


def _fetch(repository: str, name: str, wanted: str, advice: str) -> Path | None:
    """Downloads a file of a repository; None if the repository does not have it."""
    if hub.HF_HUB_OFFLINE:
        raise MissingWeightsError(f"{wanted} are not on this machine and HF_HUB_OFFLINE forbids the network: {advice}")
    host = hub.ENDPOINT.partition("://")[2]
    no_network = f"{wanted} are not on this machine and {host} cannot be reached{_by_proxy()}: {advice}"
    if not hub_reachable():
        raise MissingWeightsError(no_network)
    try:
        fetch_blob(repository, name)
        path = Path(huggingface_hub.hf_hub_download(repository, name))
    except EntryNotFoundError as error:
        if not isinstance(error, LocalEntryNotFoundError):
            return None
        raise MissingWeightsError(_answer(error, host, wanted, advice) or no_network) from None
    except GatedRepoError:
        raise MissingWeightsError(
            f"{wanted}: the repository {repository} asks for consent: accept its terms on {host}, then run `hf auth "
            "login`"
        ) from None
    except RepositoryNotFoundError:
        raise MissingWeightsError(
            f"{wanted}: {host} has no public repository {repository}: check its name, or run `hf auth login` if it is "
            "private"
        ) from None
    except Exception as error:
        _raise_if_full(error, Path(hub.HF_HUB_CACHE), wanted, "HF_HOME")
        answer = _answer(error, host, wanted, advice)
        reason = _first_line(error).rstrip(".")
        raise MissingWeightsError(answer or f"{wanted} could not be downloaded ({reason}): {advice}") from error
    _refuse_damaged(path, wanted)
    return path


def _answer(error: BaseException | None, host: str, wanted: str, advice: str) -> str:
    """An error text for the hub's status code; "" where the hub gave none."""
    while error is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__
    code = 0 if error is None else error.response.status_code
    if code < 400:
        return ""
    name = http.client.responses.get(code, "an error")
    what = {
        401: "run `hf auth login` with a valid token",
        403: "ask its owner for access, then run `hf auth login`",
        429: "wait some minutes, or run `hf auth login`, which allows more requests",
    }.get(code, f"try again later; or {advice}" if code >= 500 else advice)
    return f"{wanted} could not be downloaded: {host} answers {code} ({name}): {what}"


def _refuse_damaged(path: Path, wanted: str) -> None:
    """Removes a file from the hub's cache and raises, if its checksum is not the one that its name there states."""
    if not (published := _blob_sha256(path)):
        return
    if (sha256 := _sha256(path)) != published:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise _damaged(wanted, path.name, sha256, published, hub.ENDPOINT)


def _damaged(wanted: str, name: str, sha256: str, published: str, host: str) -> MissingWeightsError:
    return MissingWeightsError(
        f"{wanted} came damaged: the SHA-256 of {name} is {sha256[:12]}… instead of the published {published[:12]}…: "
        f"run again, or ask who runs the network or {host}"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _by_proxy() -> str:
    """Words that name the proxy between this machine and the hub, without the password that its address may hold."""
    address = urlsplit(hub.ENDPOINT)
    proxy = urllib.request.getproxies().get(address.scheme)
    if not proxy or urllib.request.proxy_bypass(address.hostname or ""):
        return ""
    parts = urlsplit(proxy if "://" in proxy else f"//{proxy}")
    return f" through the proxy {parts.netloc.rpartition('@')[2]} ({address.scheme.upper()}_PROXY names it)"


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


def _download_url(url: str, target: Path, wanted: str) -> Path:
    """Downloads a file by URL; it gets its name only after its checksum is found correct.

    Two processes at once: the second waits for the first.
    """
    advice = f"fetch {url} and save it as {target}"
    if hub.HF_HUB_OFFLINE:
        raise MissingWeightsError(f"{wanted} are not on this machine and HF_HUB_OFFLINE forbids the network: {advice}")
    published = published_sha256(url)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(target.with_name(f".{target.name}.lock")):
            if target.is_file():
                return target
            part = download(url, target, target.name)
            sha256 = _sha256(part)
            if not sha256.startswith(published):
                part.unlink()
                raise _damaged(wanted, target.name, sha256, published, urlsplit(url).netloc)
            part.replace(target)
    except MissingWeightsError:
        raise
    except Exception as error:  # of the HTTP library
        _raise_if_full(error, target.parent, wanted, "HOME")
        raise MissingWeightsError(f"{wanted} could not be downloaded ({_first_line(error)}): {advice}") from error
    return target


def _raise_if_full(error: BaseException, folder: Path, wanted: str, variable: str) -> None:
    reasons = [error, error.__cause__, error.__context__]
    if any(isinstance(reason, OSError) and reason.errno in FULL for reason in reasons):
        raise ModelError(
            f"{wanted} do not fit on the disk of {folder}: free space, or set {variable} to a folder with more"
        ) from None


def published_sha256(url: str) -> str:
    """The checksum, or its beginning, in a URL; empty if there is none."""
    if "openaipublic" in url:
        return url.split("/")[-2]
    match = re.search(r"-([0-9a-f]{8,64})\.\w+$", url)
    return match.group(1) if match and "mlfoundations" in url else ""


# --------------------------------------------------------------------------------------------------------- read
def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a file of weights: `.safetensors`, a state dict saved by torch, or OpenAI's TorchScript archive.

    A state dict may be under "state_dict" or "model", and its names may begin with "module.".
    """
    if path.is_dir():
        raise ModelError(f"expected a file of weights, got the folder {path}: give the file in it")
    if not path.is_file():
        raise MissingWeightsError(f"expected a file of weights, found none at {path}: check the path")
    try:
        if path.stat().st_size == 0:
            raise ModelError(f"{path} is empty: download it again")
        tensors = _read(path)
        sha256 = _verify(path, _blob_sha256(path))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except MemoryError:
        raise ModelError(f"{path} does not fit into memory: close other programs or take a smaller model") from None
    from_openai = any(tensors.pop(name, None) is not None for name in OPENAI_EXTRAS) | _is_torchscript(path)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in OPENAI_EXTRAS}
    return Checkpoint(path, sha256, tensors, from_openai)


def read_shards(paths: list[Path]) -> Checkpoint:
    """Reads weights that lie in one file or several, as one checkpoint with the first file's path."""
    parts = [read_checkpoint(path) for path in paths]
    if len(parts) == 1:
        return parts[0]
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    sha256 = hashlib.sha256(" ".join(part.sha256 for part in parts).encode()).hexdigest()
    return Checkpoint(paths[0], sha256, tensors, any(part.from_openai for part in parts))


def _read(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"version https://git-lfs"):
        raise ModelError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` where it comes from")
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ModelError(f"{path} is a web page, not weights: download the file itself")
    try:
        if path.suffix == ".safetensors" or start[8:9] == b"{":
            return _state_dict(load_file(path), path)
        if _is_torchscript(path):
            return _state_dict(read_torchscript(path), path)
        _refuse_compressed(path)
        refuse_endless(path)
        return _state_dict(torch.load(path, map_location="cpu", weights_only=True), path)
    except (ModelError, OSError, MemoryError):
        raise
    except RefusedError as error:
        raise ModelError(
            f"{path} is refused: it is damaged or not an archive of CLIP weights, as it holds {error}: "
            "save it again as safetensors"
        ) from None
    except pickle.UnpicklingError as error:
        what = re.search(r"GLOBAL (\S+)|Unsupported (?:global|operand|class) (\S+)", str(error))
        held = f" ({what.group(1) or what.group(2)})" if what else ""
        raise ModelError(
            f"{path} is refused: it is damaged or a pickle that could run code{held}: save it again as safetensors"
        ) from None
    except Exception as error:  # a damaged pickle makes torch raise nearly anything
        size = path.stat().st_size
        raise ModelError(
            f"{path} ({size:,} bytes) is cut short or damaged, or not a file of weights: download it again "
            f"({_first_line(error)})"
        ) from None


def _entries(path: Path) -> list[zipfile.ZipInfo]:
    """The entries of a zip archive; none if the file is damaged or not a zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except Exception:  # damaged archives make zipfile raise many kinds of errors
        return []


def _is_torchscript(path: Path) -> bool:
    return any(entry.filename.partition("/")[2] == "constants.pkl" for entry in _entries(path))


def _refuse_compressed(path: Path) -> None:
    """Refuses a compressed archive, which could be huge in memory; torch never compresses what it saves."""
    if sum(entry.file_size for entry in _entries(path)) > path.stat().st_size:
        raise ModelError(f"{path} is refused: it is compressed, which torch.save never does: save it again")


def _state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The tensors by name in what was loaded, without the dicts around them."""
    for _ in range(MAX_WRAPPERS):  # limited, as a dict may hold itself
        inner = None
        if isinstance(loaded, dict):
            inner = next((loaded[key] for key in ("state_dict", "model") if isinstance(loaded.get(key), dict)), None)
        if inner is None:
            break
        loaded = inner
    else:
        raise ModelError(
            f"{path} is refused: its state dict is wrapped more than {MAX_WRAPPERS} times or holds "
            "itself: save model.state_dict()"
        )
    if not isinstance(loaded, dict):
        raise ModelError(f"{path} holds {type(loaded).__name__}, not a state dict: save model.state_dict()")
    tensors = {name: value for name, value in loaded.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not tensors:
        raise ModelError(f"{path} holds no tensors: expected the state dict of a CLIP model")
    for name, tensor in tensors.items():
        if not _is_plain(tensor):
            raise ModelError(
                f"{path} holds {name[:60]}, which is sparse, quantised, complex or without data: expected plain "
                "numbers, save model.state_dict()"
            )
    for prefix in ("module.", "_orig_mod."):  # added by DistributedDataParallel and torch.compile
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is dense, holds real numbers and has no more elements than its storage."""
    try:
        stored = tensor.untyped_storage().nbytes()
    except (RuntimeError, NotImplementedError):  # sparse: it has no storage
        return False
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    plain = plain and not (tensor.is_quantized or tensor.is_complex() or tensor.is_nested)
    return plain and tensor.numel() * tensor.element_size() <= stored


def _blob_sha256(path: Path) -> str:
    """The checksum of a file in Hugging Face's cache, which names files by it."""
    name = path.resolve().name
    return name if re.fullmatch(r"[0-9a-f]{64}", name) else ""


def _verify(path: Path, published: str) -> str:
    """Returns the file's SHA-256, compared with the published one."""
    sha256 = _sha256(path)
    if not sha256.startswith(published):
        raise ModelError(
            f"{path} is damaged: its SHA-256 is {sha256[:12]}… instead of the published {published[:12]}…: delete "
            f"{'it' if path.resolve() == path.absolute() else path.resolve()} and run again"
        )
    return sha256


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


# --------------------------------------------------------------------------------------------------------- load
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
    load_exactly(model, tensors, checkpoint.path, f"weights of {name}", name)


def load_exactly(model: nn.Module, tensors: dict[str, Tensor], path: Path, what: str, name: str = "") -> None:
    """Loads tensors into a model whose tensors they must be, all of them and in these shapes.

    Args:
        name: open_clip's name of the model, for advice; empty where advice would not help.
    """
    refuse_others(model.state_dict(), tensors, path, what, name)
    model.load_state_dict(tensors, strict=False)


def refuse_others(
    expected: Mapping[str, Tensor], tensors: dict[str, Tensor], path: Path, what: str, name: str = ""
) -> None:
    """Refuses tensors that are not those of a model's state dict; arguments and errors as in `load_exactly`."""
    # Tensors that are derived, not used in eval mode, or dropped by newer versions of the libraries.
    ignored = re.compile(r"(.*\.)?(num_batches_tracked|position_ids|attn_mask)$")
    missing = [key for key in expected if key not in tensors and not ignored.match(key)]
    unexpected = [key for key in tensors if key not in expected and not ignored.match(key)]
    other_shape = [key for key in tensors if key in expected and tensors[key].shape != expected[key].shape]
    if missing or unexpected or other_shape:
        problems = []
        for how, keys in (("tensors missing", missing), ("unexpected", unexpected)):
            if keys:
                problems.append(f"{len(keys)} {how} ({keys[0]}{', …' if len(keys) > 1 else ''})")
        if other_shape:
            key = other_shape[0]
            problems.append(
                f"{len(other_shape)} of another shape ({key}: {list(tensors[key].shape)}, expected "
                f"{list(expected[key].shape)})"
            )
        raise ModelError(f"{path} does not hold {what}: {', '.join(problems)}; {_advice(tensors, path, name)}")


def _advice(tensors: dict[str, Tensor], path: Path, name: str) -> str:
    """What to do about weights that do not fit the model of this name."""
    if name and any(key.startswith(("visual_model.", "text_model.backbone.")) for key in tensors):
        return "they are named as dino.txt's: use --model dinov3-l-dinotxt or dinov2-l-dinotxt"
    if any(key.startswith(("vision_model.", "text_model.encoder.")) for key in tensors):
        return f"they are named as transformers names them: use --model local-dir:{path.parent} without --pretrained"
    near = looks_like(tensors) if name else []
    if near and name not in near:
        return f"they look like {' or '.join(near[:2])}: use --model {near[0]}"
    return "check model and file"


def looks_like(tensors: dict[str, Tensor]) -> list[str]:
    """open_clip's names of OpenAI-style models with tensors of these shapes, plain names first."""
    found = _shape_of_tensors(tensors)
    same = [name for name in open_clip.list_models() if found and _shape_of_config(name) == found]
    return sorted(same, key=len)


def _shape_of_tensors(tensors: dict[str, Tensor]) -> tuple[Any, ...] | None:
    blocks = {match.groups() for key in tensors if (match := re.match(r"visual\.(layer[1-4])\.(\d+)\.conv1", key))}
    if blocks and "visual.attnpool.positional_embedding" in tensors:
        places = len(tensors["visual.attnpool.positional_embedding"])
        layers = [sum(stage == f"layer{i}" for stage, _ in blocks) for i in (1, 2, 3, 4)]
        return (layers, tensors["visual.conv3.weight"].shape[0] if "visual.conv3.weight" in tensors else 0, places)
    if "visual.conv1.weight" in tensors and "visual.positional_embedding" in tensors:
        width, _, patch, _ = tensors["visual.conv1.weight"].shape
        return (width, patch, len(tensors["visual.positional_embedding"]))
    return None


def _shape_of_config(name: str) -> tuple[Any, ...] | None:
    vision = open_clip.get_model_config(name)["vision_cfg"]
    if "timm_model_name" in vision or not isinstance(vision.get("image_size"), int):
        return None
    if isinstance(vision.get("layers"), list):
        return (vision["layers"], vision["width"], (vision["image_size"] // 32) ** 2 + 1)
    patch = vision.get("patch_size", 16)
    return (vision.get("width", 768), patch, (vision["image_size"] // patch) ** 2 + 1)

"""Finds weights by tag, repository or folder: in a cache, or downloaded by `huggingface_hub` into its own."""

import re
import ssl
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError

import huggingface_hub
import open_clip
from huggingface_hub import constants as hub
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from cliploc.errors import MissingWeightsError, ModelError, first_line
from cliploc.support.documents import OpenClipConfig, read_json
from cliploc.support.files import user_path
from cliploc.towers import _transformers_folder as transformers_folder
from cliploc.towers._checkpoints import SUFFIXES, verify

CONFIG = "open_clip_config.json"
# Names of open_clip's checkpoint in a repository or folder, the preferred one first.
CHECKPOINTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
ORIGINALS = "~/.cache/clip"  # folder of what OpenAI's package and open_clip download by URL


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
    where = f"{hub.ENDPOINT}/{repository}"
    if original and "openaipublic" in url:
        where += f", or save {url} as {original}"
    return _from_hub(repository, names, f"the weights {tag!r} of {model}", f"download them from {where}")


def published_sha256(url: str) -> str:
    """The checksum, or its beginning, in a URL; empty if there is none."""
    if "openaipublic" in url:
        return url.split("/")[-2]
    match = re.search(r"-([0-9a-f]{8,64})\.\w+$", url)
    return match.group(1) if match and "mlfoundations" in url else ""


def hub_folder(repository: str) -> Path:
    """The cache folder with configuration and weights of a repository of open_clip or transformers on Hugging Face."""
    config = hub_config(repository)
    folder = config.parent
    wanted, advice = f"the files of hf-hub:{repository}", f"fetch it from {hub.ENDPOINT}/{repository}"
    if config.name == CONFIG:
        if not any((folder / name).is_file() for name in CHECKPOINTS):
            _from_hub(repository, CHECKPOINTS, wanted, advice)
    elif folder != _cached_transformers_folder(repository):
        transformers_folder.supported_type(folder)  # refuses others before gigabytes are fetched
        weights = _from_hub(repository, transformers_folder.WEIGHTS, wanted, advice)
        others = transformers_folder.shards(weights) if weights.suffix == ".json" else []
        for name in (*others, *transformers_folder.TOKENIZERS, *transformers_folder.PROCESSORS):
            _fetch(repository, name, wanted, advice)
    return folder


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
        except HFValidationError:
            raise ModelError(f"expected a repository as ORG/NAME after hf-hub:, got {repository!r}") from None
        if isinstance(path, str):
            return Path(path)
    return None


def _from_hub(
    repository: str, names: tuple[str, ...], wanted: str, advice: str, by_hand: str = "--pretrained FILE"
) -> Path:
    """Downloads the first of these files that the repository has."""
    advice = f"{advice}, or give a file of weights with {by_hand}"
    for name in names:
        if path := _fetch(repository, name, wanted, advice):
            return path
    raise MissingWeightsError(f"{wanted}: the repository {repository} has none of {', '.join(names)}: {advice}")


def _fetch(repository: str, name: str, wanted: str, advice: str) -> Path | None:
    """Downloads a file of a repository; None if the repository does not have it."""
    missing, host = f"{wanted} are not on this machine and", hub.ENDPOINT.partition("://")[2]
    if hub.HF_HUB_OFFLINE:
        raise MissingWeightsError(f"{missing} HF_HUB_OFFLINE forbids the network: {advice}")
    if not hub_reachable():
        raise MissingWeightsError(f"{missing} {host} cannot be reached: {advice}")
    try:
        return Path(huggingface_hub.hf_hub_download(repository, name))
    except EntryNotFoundError as error:
        if not isinstance(error, LocalEntryNotFoundError):
            return None
        reason = f"{wanted} could not be downloaded ({first_line(error.__cause__ or error)}): {advice}"
    except GatedRepoError:
        reason = (
            f"{wanted}: the repository {repository} asks for consent: accept its terms on {host}, then run `hf auth "
            "login`"
        )
    except RepositoryNotFoundError:
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

"""Finds weights by tag, repository or folder, downloads the rest of a part under a fixed name, checks checksums."""

import errno
import http.client
import os
import re
import shutil
import ssl
import urllib.request
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

import huggingface_hub
import open_clip
from huggingface_hub import constants as hub
from huggingface_hub import file_download, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]  # public, but lazily exported

from cliploc._documents import OpenClipConfig, read_json
from cliploc._files import user_path
from cliploc.backbones import _transformers_folder as transformers_folder
from cliploc.backbones._checkpoints import SUFFIXES, blob_sha256, first_line, sha256_of, verify
from cliploc.errors import MissingWeightsError, ModelError

CONFIG = "open_clip_config.json"
# Names of open_clip's checkpoint in a repository or folder, the preferred one first.
CHECKPOINTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
ORIGINALS = "~/.cache/clip"  # folder of what OpenAI's package and open_clip download by URL
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # the disk is full, or the user's quota is
SHA256 = re.compile(r"[0-9a-f]{64}")
PART = ".incomplete"  # huggingface_hub's ending: `hf cache prune` removes such files
NO_SUCH_RANGE = 416


# ------------------------------------------------------------------------------------------------------ find or fetch
def tag_file(model: str, tag: str) -> Path:
    """The file of a tag of open_clip: in a cache (also OpenAI's, `~/.cache/clip`), or downloaded into the hub's."""
    published: dict[str, str] = open_clip.get_pretrained_cfg(model, tag)
    repository, _, name = published.get("hf_hub", "").rpartition("/")
    names: tuple[str, ...] = (name,) if name else CHECKPOINTS
    stem, _, suffix = name.rpartition(".")
    if suffix in ("bin", "pth"):
        names = (f"{stem}.safetensors", name)
    url = published.get("url", "")
    original = user_path(ORIGINALS) / url.rpartition("/")[2] if url else None
    if repository and (cached := _in_hub_cache(repository, names)):
        return cached
    if original and original.is_file():
        verify(original, published_sha256(url))
        return original
    wanted = f"the weights {tag!r} of {model}"
    where = f"{hub.ENDPOINT}/{repository}" if repository else url
    if original and "openaipublic" in url:
        where += f", or save {url} as {original}"
    if not repository:
        return _download_url(url, original or Path(), wanted)
    return _from_hub(repository, names, wanted, f"download them from {where}")


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
        transformers_folder.read_layout(folder)  # refuses a model without a tower before gigabytes are fetched
        weights = _from_hub(repository, transformers_folder.WEIGHTS, wanted, advice)
        for shard in transformers_folder.shards(weights) if weights.suffix == ".json" else ():
            _from_hub(repository, (shard,), wanted, advice)
        for name in transformers_folder.EXTRAS:
            _fetch(repository, name, wanted, advice)
        for names in transformers_folder.TOKENIZERS:
            if transformers_folder.has_tokenizer(folder):
                break
            for name in names:
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
        reason = first_line(error).rstrip(".")
        raise MissingWeightsError(answer or f"{wanted} could not be downloaded ({reason}): {advice}") from error
    # The name of a file in the hub's cache states its checksum.
    if (published := blob_sha256(path)) and (sha256 := sha256_of(path)) != published:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise _damaged(wanted, path.name, sha256, published, hub.ENDPOINT)
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


def _damaged(wanted: str, name: str, sha256: str, published: str, host: str) -> MissingWeightsError:
    return MissingWeightsError(
        f"{wanted} came damaged: the SHA-256 of {name} is {sha256[:12]}… instead of the published {published[:12]}…: "
        f"run again, or ask who runs the network or {host}"
    )


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


# --------------------------------------------------------------------------------------------------------- in parts
def fetch_blob(repository: str, name: str) -> None:
    """Downloads a large file into the hub's cache, unchecked here; small ones are left to `hf_hub_download`."""
    url = hf_hub_url(repository, name)
    try:
        facts = get_hf_file_metadata(url)
    except Exception:  # of several HTTP libraries: `hf_hub_download` asks again and names the reason
        return
    if not facts.etag or not SHA256.fullmatch(facts.etag) or facts.size is None:
        return
    folder = f"models--{repository.replace('/', '--')}"  # the documented layout of the cache
    blob = Path(hub.HF_HUB_CACHE, folder, "blobs", facts.etag)
    lock = Path(hub.HF_HUB_CACHE, ".locks", folder, f"{facts.etag}.lock")  # huggingface_hub's, so that it waits too
    for path in (blob, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if not blob.exists():
            os.replace(download(url, blob, name, build_hf_headers(), facts.size), blob)


def _download_url(url: str, target: Path, wanted: str) -> Path:
    """Downloads a URL; it gets its name once its checksum is right. Of two processes the second waits."""
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
            sha256 = sha256_of(part)
            if not sha256.startswith(published):
                part.unlink()
                raise _damaged(wanted, target.name, sha256, published, urlsplit(url).netloc)
            part.replace(target)
    except MissingWeightsError:
        raise
    except Exception as error:  # of the HTTP library
        _raise_if_full(error, target.parent, wanted, "HOME")
        raise MissingWeightsError(f"{wanted} could not be downloaded ({first_line(error)}): {advice}") from error
    return target


def download(url: str, target: Path, name: str, headers: dict[str, str] | None = None, size: int | None = None) -> Path:
    """Continues a download beside `target`; the part stays after an interruption, not if the disk is full."""
    part = target.with_name(target.name + PART)
    there = part.stat().st_size if part.exists() else 0
    if size is not None and there > size:
        part.unlink()
        there = 0
    if size is not None and shutil.disk_usage(target.parent).free < size - there:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    plain = {**(headers or {}), "Accept-Encoding": "identity"}  # a compressed file has other positions
    try:
        with part.open("ab") as file:
            file_download.http_get(
                url, file, resume_size=there, headers=plain, expected_size=size, displayed_filename=name
            )
    except HfHubHTTPError as error:
        if not there or error.response.status_code != NO_SUCH_RANGE:
            raise
        part.unlink()
        return download(url, target, name, headers, size)
    except OSError as error:
        if type(error) is OSError:  # the HTTP library's errors of the connection are subclasses
            part.unlink()
        raise
    return part


def _raise_if_full(error: BaseException, folder: Path, wanted: str, variable: str) -> None:
    reasons = [error, error.__cause__, error.__context__]
    if any(isinstance(reason, OSError) and reason.errno in FULL for reason in reasons):
        raise ModelError(
            f"{wanted} do not fit on the disk of {folder}: free space, or set {variable} to a folder with more"
        ) from None

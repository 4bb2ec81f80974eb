"""Downloads of large files; if the process is killed, the next one continues the download.

In huggingface_hub 2 each process writes its part of a file under a name of its own, which no other process reads. Here
the part always has the name that older versions of huggingface_hub use, and the next process asks the server for the
rest of the file. On a file system without locks two processes may write into one part: the caller's checksum then
refuses the file.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

from huggingface_hub import constants as hub
from huggingface_hub import file_download, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import WeakFileLock, build_hf_headers  # type: ignore[attr-defined]  # public, but lazily exported

SHA256 = re.compile(r"[0-9a-f]{64}")
PART = ".incomplete"  # huggingface_hub's ending: `hf cache prune` removes such files
NO_SUCH_RANGE = 416


def fetch_blob(repository: str, name: str) -> None:
    """Downloads a large file of a repository into the hub's cache, where `hf_hub_download` then finds it.

    Small files, which the hub keeps in git, are left to `hf_hub_download`; so are all files if the hub does not answer,
    because that function then says what is wrong. The content is not compared with its checksum here.
    """
    url = hf_hub_url(repository, name)
    try:
        found = get_hf_file_metadata(url)
    except Exception:  # of several HTTP libraries: `hf_hub_download` asks again and names the reason
        return
    if not found.etag or not SHA256.fullmatch(found.etag) or found.size is None:
        return
    folder = f"models--{repository.replace('/', '--')}"  # the documented layout of the cache
    blob = Path(hub.HF_HUB_CACHE, folder, "blobs", found.etag)
    lock = Path(hub.HF_HUB_CACHE, ".locks", folder, f"{found.etag}.lock")  # huggingface_hub's, so that it waits too
    for path in (blob, lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if not blob.exists():
            os.replace(download(url, blob, name, build_hf_headers(), found.size), blob)


def download(url: str, target: Path, name: str, headers: dict[str, str] | None = None, size: int | None = None) -> Path:
    """Downloads a file under a temporary name beside `target`, continuing a download that was stopped.

    The part that arrived stays if the connection is lost or the process ends. It is removed if the disk is full or the
    size is wrong.

    Args:
        size: in bytes; None: what the server says.
    """
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

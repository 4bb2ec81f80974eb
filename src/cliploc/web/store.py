"""Pictures that were uploaded and files to download, in the folder whose old files `Uploads` removes."""

from __future__ import annotations

import contextlib
import hashlib
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import BinaryIO

from cliploc.web.refusals import RefusedError

UNKNOWN_ID = "There is no picture with this id, or no longer: upload it."
UNKNOWN_FILE = "There is no such file, or no longer: create the files again."


class Store:
    """Pictures by id, downloads by folder and name, which nobody can guess or compute from a picture."""

    def __init__(self, folder: Path, examples: Mapping[str, Path] | None = None) -> None:
        self._folder = folder
        self._examples = examples or {}
        self._key = secrets.token_bytes(32)

    def keep(self, file: BinaryIO, name: str) -> str:
        """Stores a picture and returns its id, which is the same for the same picture and name."""
        name = _plain(name)
        file.seek(0)
        digest = hashlib.blake2b(name.encode(), key=self._key, digest_size=20)
        with NamedTemporaryFile(dir=self._folder, delete=False) as stored:
            while part := file.read(2**20):
                digest.update(part)
                stored.write(part)
        found = digest.hexdigest()
        (self._folder / found).mkdir(exist_ok=True)
        Path(stored.name).replace(self._folder / found / name)
        return found

    def picture(self, number: str) -> Path:
        """The file of a picture."""
        if number in self._examples:
            return self._examples[number]
        if re.fullmatch("[0-9a-f]{40}", number):
            with contextlib.suppress(OSError, StopIteration):
                return next((self._folder / number).iterdir())
        raise RefusedError(404, UNKNOWN_ID)

    def new_folder(self) -> Path:
        """A new folder for downloads."""
        folder = self._folder / secrets.token_hex(16)
        folder.mkdir()
        return folder

    def download(self, folder: str, name: str) -> Path:
        """A file of `new_folder`."""
        if re.fullmatch("[0-9a-f]{32}", folder):
            with contextlib.suppress(OSError):
                for path in (self._folder / folder).iterdir():
                    if path.name == name and path.is_file():
                        return path
        raise RefusedError(404, UNKNOWN_FILE)


def _plain(name: str) -> str:
    """The name of a file without folders and without what a file system may not take, short enough for all of them."""
    kept = re.sub(r"[^\w. -]+", "_", re.split(r"[/\\]", name)[-1]).strip(". ")[-60:]
    return kept or "picture"

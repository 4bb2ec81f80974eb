"""Detects replaced pictures: rows have digests of contents, parts stamps, and only changed stamps are read again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

from cliploc.datasets import AskedPicture, LabelledPicture
from cliploc.jobs.engine import Shard
from cliploc.jobs.picture_files import PictureFile
from cliploc.values import Sample

READERS = 4  # files read at the same time


SampleLike: TypeAlias = Sample | LabelledPicture | AskedPicture | PictureFile


def files_of(sample: SampleLike) -> list[Path]:
    """The files that a sample's row depends on: its picture and masks."""
    if isinstance(sample, LabelledPicture):
        return list(sample.files)
    if isinstance(sample, PictureFile | AskedPicture):
        return [sample.path]
    return [sample.path, *sample.masks, *([] if sample.ignore is None else [sample.ignore])]


def stamp(sample: SampleLike) -> str:
    """A stamp of a sample's files by size and times, also the inode's, which cannot be set back; nothing is read."""
    facts: list[tuple[int, int, int] | None] = []
    for path in files_of(sample):
        try:
            status = path.stat()
            facts.append((status.st_size, status.st_mtime_ns, status.st_ctime_ns))
        except (OSError, ValueError):
            facts.append(None)
    return hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()


def content_digest(sample: SampleLike) -> str:
    """blake2b digest of the files' content; a file that cannot be read gives a fixed value."""
    digest = hashlib.blake2b(digest_size=16)
    for path in files_of(sample):
        try:
            if not path.is_file():  # reading a pipe could wait forever
                raise FileNotFoundError(path)
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest())
        except (OSError, ValueError):
            digest.update(b"cannot be read")
    return digest.hexdigest()


class Digests:
    """Passes shards on to a worker, and computes the digests of their samples before these are decoded."""

    def __init__(self, shards: Iterable[Shard]) -> None:
        self._shards = shards
        self._of: dict[int, list[str]] = {}

    def __iter__(self) -> Iterator[Shard]:
        """The shards."""
        with ThreadPoolExecutor(READERS, "cliploc-digest") as pool:
            for shard in self._shards:
                self._of[shard.index] = list(pool.map(content_digest, shard.samples))
                yield shard

    def pop(self, shard: Shard) -> list[str]:
        """Returns the digests of a shard's samples, in order, and forgets them."""
        return self._of.pop(shard.index)

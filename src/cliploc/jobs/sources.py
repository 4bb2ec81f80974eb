"""The picture files behind rows: whether one was replaced under its name since its row was computed.

A row keeps a digest of its files' bytes. A part's check file keeps a stamp of each (size and times), so that going on
with a run reads only the files whose stamp has changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cliploc.jobs.engine import Shard
from cliploc.jobs.pictures import PictureFile
from cliploc.values import Sample

READERS = 4  # files read at the same time


def files_of(sample: Sample | PictureFile) -> list[Path]:
    """The files that a sample's row is made of: its picture and masks."""
    if isinstance(sample, PictureFile):
        return [sample.path]
    return [sample.path, *sample.masks, *([] if sample.ignore is None else [sample.ignore])]


def stamp(sample: Sample | PictureFile) -> str:
    """Changes whenever a file is written, replaced or touched; made without reading it.

    The time of the last change of the inode is part of it, as the time of modification can be set back.
    """
    facts: list[tuple[int, int, int] | None] = []
    for path in files_of(sample):
        try:
            status = path.stat()
            facts.append((status.st_size, status.st_mtime_ns, status.st_ctime_ns))
        except (OSError, ValueError):
            facts.append(None)
    return hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()


def content_digest(sample: Sample | PictureFile) -> str:
    """blake2b of the files' bytes; a file that cannot be read has one of its own."""
    digest = hashlib.blake2b(digest_size=16)
    for path in files_of(sample):
        try:
            if not path.is_file():  # a pipe could keep us waiting for ever
                raise FileNotFoundError(path)
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest())
        except (OSError, ValueError):
            digest.update(b"cannot be read")
    return digest.hexdigest()


class Digests:
    """The digests of the samples of shards on their way to a worker, taken before any of them is decoded.

    Args:
        shards: what is to be done.
    """

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
        """Of a shard's samples, in order."""
        return self._of.pop(shard.index)

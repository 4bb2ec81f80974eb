"""Text embeddings on disk, so that a name is embedded only once: keyed by the model's weights and the sentences.

A name with OpenAI's 80 templates is 80 runs of the text tower, ImageNet's classes are 80,000. The cache holds one small
safetensors file a name under `CLIPLOC_CACHE`, else `XDG_CACHE_HOME/cliploc`, else `~/.cache/cliploc`;
deleting it is always safe, and `CLIPLOC_CACHE=off` does without.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cliploc.support.documents import read_bytes
from cliploc.support.files import user_path, write_atomic
from cliploc.towers.tower import Backbone

FORMAT = 2  # part of every key: raise it when what is stored changes
MOST = 2**12  # bytes of a file besides its numbers


def cache_folder() -> Path | None:
    """Where text embeddings are kept; None when the user turned that off, or has no home."""
    chosen = os.environ.get("CLIPLOC_CACHE")
    if chosen is not None and chosen.strip().lower() in ("", "off", "0", "none"):
        return None
    base = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "cliploc"
    folder = user_path(base)
    return None if str(folder).startswith("~") else folder / "text"  # this user has no home, as in many containers


class TextCache:
    """Embeddings of names for one model; damaged files and folders that cannot be written stop nothing."""

    def __init__(self, folder: Path, weights_id: str) -> None:
        self.folder = folder / _digest([FORMAT, weights_id])[:32]

    def _path(self, words: Sequence[str], templates: Sequence[str]) -> Path:
        return self.folder / f"{_digest([list(words), list(templates)])}.safetensors"

    def get(self, words: Sequence[str], templates: Sequence[str], size: int) -> Tensor | None:
        """The embedding `[size]` float32 on the CPU of a name's words, or None."""
        try:
            embedding = load(read_bytes(self._path(words, templates), 4 * size + MOST))["embedding"]
        except (OSError, ValueError, SafetensorError, KeyError):
            return None
        return embedding if embedding.shape == (size,) and embedding.dtype == torch.float32 else None

    def put(self, words: Sequence[str], templates: Sequence[str], embedding: Tensor) -> None:
        """Keeps a name's embedding `[size]`; a reader never sees half of it."""
        path = self._path(words, templates)
        content = save({"embedding": embedding.detach().float().cpu().contiguous().clone()})
        with contextlib.suppress(OSError):  # read-only or full: then it is computed again
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path, lambda temporary: temporary.write_bytes(content), durable=False)


def cache_of(backbone: Backbone) -> TextCache | None:
    """The cache of a model; None for the quick models of the package, and weights in memory."""
    folder = None if backbone.weights_file is None else cache_folder()
    return None if folder is None else TextCache(folder, backbone.weights_id)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()

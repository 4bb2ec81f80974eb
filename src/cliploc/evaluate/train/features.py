"""A frozen tower's features on disk, by a digest of all that they depend on, so that heads share them."""

import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from cliploc.errors import InputError, UsageError
from cliploc.evaluate.train.training_set import LabelledPictures, view
from cliploc.find.heads import Seen, look, seen_needs
from cliploc.methods import Context
from cliploc.support.files import write_output
from cliploc.support.reporter import SILENT, Reporter
from cliploc.towers.tower import Backbone

FORMAT = 2  # raise it when the stored values change
PART_BYTES = 16 << 20  # size of a file
DECODERS = 2  # threads that read the next pictures while the tower computes
Pixels = npt.NDArray[np.uint8]


class FeatureCache:
    """The features of a training set, in its folder of a folder of features: a file for each view and part."""

    def __init__(
        self,
        folder: Path,
        backbone: Backbone,
        pictures: LabelledPictures,
        *,
        dense: bool,  # whether to store the tower's dense reading too (for open heads that start from it)
        augmentations: int,  # number of views besides the plain one
        input_hw: tuple[int, int],  # height and width of the tower's input
        batch_size: int = 16,  # pictures sent through the tower at once; not part of the digest
    ) -> None:
        self.backbone, self.pictures = backbone, pictures
        self.dense, self.augmentations, self.input_hw, self.batch_size = dense, augmentations, input_hw, batch_size
        features = self._look(np.zeros((1, 3, *input_hw), np.uint8))
        self.channels = features.tokens.shape[1]
        size = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(features).values())
        self.part_size = max(1, min(256, PART_BYTES // size))
        self.folder = folder / self._digest()[:24]
        self._load = cache(_load)

    def _digest(self) -> str:
        files = []
        for path in self.pictures.paths:
            status = path.stat() if path.exists() else None
            files.append((str(path), -1, -1) if status is None else (str(path), status.st_size, status.st_mtime_ns))
        tower = self.backbone
        of = [FORMAT, tower.weights_id, tower.resize_policy, files, tower.interpolation, self.input_hw, self.part_size]
        return hashlib.sha256(json.dumps([*of, self.dense]).encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def parts(self) -> list[tuple[int, int]]:
        """All `(view, part)`."""
        count = math.ceil(len(self.pictures) / self.part_size)
        return [(which, part) for which in range(self.augmentations + 1) for part in range(count)]

    def fill(self, reporter: Reporter = SILENT) -> None:
        """Computes missing features."""
        missing = [key for key in self.parts if not self._path(*key).exists()]
        if missing:
            count = sum(len(self._rows(part)) for _, part in missing)
            reporter.phase("features of the frozen tower")
            reporter.start(count, count)
        with ThreadPoolExecutor(DECODERS, "cliploc-decode") as pool:
            for key in missing:
                self._make(*key, pool, reporter)

    def _make(self, which: int, part: int, pool: ThreadPoolExecutor, reporter: Reporter) -> None:
        def decoded(number: int) -> Pixels | None:
            path, tower = self.pictures.paths[number], self.backbone
            try:
                return view(path, number, which, tower.resize_policy, self.input_hw, tower.interpolation)
            except InputError:
                return None

        made: list[dict[str, Tensor]] = []
        readable: list[bool] = []
        blank = np.zeros((3, *self.input_hw), np.uint8)
        decoding = pool.map(decoded, self._rows(part))
        while chunk := list(itertools.islice(decoding, self.batch_size)):
            readable += [pixels is not None for pixels in chunk]
            made.append(_tensors(self._look(np.stack([blank if pixels is None else pixels for pixels in chunk]))))
            reporter.images(len(chunk))
        tensors = {name: torch.cat([chunk[name] for chunk in made]) for name in made[0]}
        tensors["readable"] = torch.tensor(readable, dtype=torch.uint8)
        write_output(self._path(which, part), save(tensors), "--features")

    @torch.no_grad()
    def _look(self, pixels: Pixels) -> Seen:
        backbone = self.backbone
        images = backbone.normalize(torch.from_numpy(pixels).to(backbone.device).float().div_(255))
        trace = backbone.trace(images, seen_needs(backbone.kind, attention=True, dense=self.dense))
        text = torch.zeros(len(images), 1, backbone.embedding_size, dtype=torch.float32, device=backbone.device)
        return look(Context(lambda: images, text, trace, backbone), attention=True, dense=self.dense)

    def _rows(self, part: int) -> range:
        return range(part * self.part_size, min(len(self.pictures), (part + 1) * self.part_size))

    def _path(self, which: int, part: int) -> Path:
        return self.folder / f"view-{which:02d}" / f"part-{part:05d}.safetensors"

    def usable(self) -> tuple[int, ...]:
        """The pictures that could be read, in all views."""
        usable = set(range(len(self.pictures)))
        for which, part in self.parts:
            readable = self._load(self._path(which, part))["readable"].tolist()
            usable -= {number for number, good in zip(self._rows(part), readable, strict=True) if not good}
        if not usable:
            raise UsageError(f"expected pictures that can be read, got none of {len(self.pictures)}: check --root")
        return tuple(sorted(usable))

    def rows(self, numbers: Sequence[int], which: int, device: torch.device) -> Seen:
        """The features of some pictures in one view, float32."""
        places = [divmod(number, self.part_size) for number in numbers]
        rows = [(self._load(self._path(which, part)), row) for part, row in places]
        names = rows[0][0].keys() - {"readable"}
        stacked = {name: torch.stack([tensors[name][row] for tensors, row in rows]) for name in names}
        return Seen(**{name: tensor.to(device).float() for name, tensor in stacked.items()})


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)  # memory-mapped: nothing is read before it is used
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(f"cannot read features in {path}: {error}: delete it and start again") from None


def _tensors(seen: Seen) -> dict[str, Tensor]:
    """The tensors to store. Half precision is enough for values of variance or length 1, and takes half the space."""
    tensors = {"tokens": seen.tokens.half(), "attention": seen.attention.float()}
    if seen.dense is not None:
        tensors["dense"] = seen.dense.half()
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}

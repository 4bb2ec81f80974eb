"""A frozen tower's features on disk, by a digest of all that they depend on, so that heads share them."""

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
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

FORMAT = 1  # raise it when the stored values change
PART_BYTES = 16 << 20  # size of a file
DECODERS = 2  # threads that read the next pictures while the tower computes


class FeatureCache:
    """The features of a training set, in its own folder of a folder of features."""

    def __init__(
        self,
        folder: Path,
        backbone: Backbone,
        pictures: LabelledPictures,
        *,
        # Whether to store the tower's dense reading too, in separate files (for open heads that start from it).
        dense: bool,
        augmentations: int,  # number of views besides the plain one
        input_hw: tuple[int, int],  # height and width of the tower's input
        batch_size: int = 16,  # pictures sent through the tower at once; not part of the digest
    ) -> None:
        self.backbone, self.pictures = backbone, pictures
        self.dense, self.augmentations, self.input_hw, self.batch_size = dense, augmentations, input_hw, batch_size
        features = self._look(np.zeros((1, 3, *input_hw), np.uint8))
        sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in _tensors(features).items()}
        self.bytes_each = sum(sizes.values())
        self.part_size = max(1, min(1024, PART_BYTES // (sizes["tokens"] + sizes["attention"])))
        self.folder = folder / self._digest()[:24]
        self.channels = features.tokens.shape[1]
        self._open: dict[Path, dict[str, Tensor]] = {}

    def _digest(self) -> str:
        files = []
        for path in self.pictures.paths:
            try:
                status = path.stat()
                files.append((str(path), status.st_size, status.st_mtime_ns))
            except OSError:
                files.append((str(path), -1, -1))
        says = [FORMAT, self.backbone.weights_id, self.backbone.resize_policy, files]
        says += [self.backbone.interpolation, self.input_hw, self.part_size]
        return hashlib.sha256(json.dumps(says).encode("utf-8", "surrogatepass")).hexdigest()

    # ----------------------------------------------------------------------------------------------------------- make
    @property
    def parts(self) -> list[tuple[int, int]]:
        """All `(view, part)`."""
        count = math.ceil(len(self.pictures) / self.part_size)
        return [(which, part) for which in range(self.augmentations + 1) for part in range(count)]

    def fill(self, reporter: Reporter = SILENT, rank: int = 0, processes: int = 1) -> None:
        """Computes missing features; each of several processes does its share."""
        missing = [key for key in self.parts if self._lacks(key)]
        needed = sum(len(self._rows(part)) for _, part in missing) * self.bytes_each
        place = self.folder
        while not place.exists() and place != place.parent:
            place = place.parent
        free = shutil.disk_usage(place).free
        if needed > free:
            raise UsageError(
                f"expected {needed / 1e6:,.0f} MB of room for features in {self.folder.parent}, got "
                f"{free / 1e6:,.0f} MB: choose another --features, or fewer --augmentations"
            )
        mine = [key for key in self.parts[rank::processes] if key in missing or self._outdated(key, reporter)]
        if mine:
            count = sum(len(self._rows(part)) for _, part in mine)
            reporter.phase("features of the frozen tower")
            reporter.start(count, count)
        with ThreadPoolExecutor(DECODERS, "cliploc-decode") as pool:
            for which, part in mine:
                self._make(which, part, pool, reporter)

    def _make(self, which: int, part: int, pool: ThreadPoolExecutor, reporter: Reporter) -> None:
        rows, size = self._rows(part), self.batch_size
        chunks = [rows[start : start + size] for start in range(0, len(rows), size)]
        waiting = [pool.submit(self._pixels, number, which) for number in chunks[0]]
        made: list[dict[str, Tensor]] = []
        readable: list[bool] = []
        for chunk, after in pairwise([*chunks, range(0)]):
            decoding, waiting = waiting, [pool.submit(self._pixels, number, which) for number in after]
            pixels = []
            for number, future in zip(chunk, decoding, strict=True):
                try:
                    pixels.append(future.result())
                    readable.append(True)
                except InputError as error:
                    pixels.append(np.zeros((3, *self.input_hw), np.uint8))
                    readable.append(False)
                    if which == 0:
                        reporter.failed(str(self.pictures.paths[number]), error)
                reporter.images(1)
            made.append(_tensors(self._look(np.stack(pixels))))  # while the next chunk is decoded
        tensors = {name: torch.cat([chunk[name] for chunk in made]) for name in made[0]}
        if self.dense:
            write_output(self._path(which, part, dense=True), save({"dense": tensors.pop("dense")}), "--features")
        tensors["readable"] = torch.tensor(readable, dtype=torch.uint8)
        write_output(self._path(which, part), save(tensors), "--features")

    def _pixels(self, number: int, which: int) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
        path, tower = self.pictures.paths[number], self.backbone
        return view(path, number, which, tower.resize_policy, self.input_hw, tower.interpolation)

    @torch.no_grad()
    def _look(self, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> Seen:
        backbone = self.backbone
        images = backbone.normalize(torch.from_numpy(pixels).to(backbone.device).float().div_(255))
        trace = backbone.trace(images, seen_needs(backbone.kind, attention=True, dense=self.dense))
        text = torch.zeros(len(images), 1, backbone.embedding_size, dtype=torch.float32, device=backbone.device)
        return look(Context(lambda: images, text, trace, backbone), attention=True, dense=self.dense)

    def _rows(self, part: int) -> range:
        return range(part * self.part_size, min(len(self.pictures), (part + 1) * self.part_size))

    def _path(self, which: int, part: int, *, dense: bool = False) -> Path:
        return self.folder / f"view-{which:02d}" / f"{'dense' if dense else 'part'}-{part:05d}.safetensors"

    def _lacks(self, key: tuple[int, int]) -> bool:
        """Whether a file of a part is missing."""
        dense = self.dense and not self._path(*key, dense=True).exists()
        return dense or not self._path(*key).exists()

    def _outdated(self, key: tuple[int, int], reporter: Reporter) -> bool:
        """Whether a picture can be read that a part lacks; if not, tells of those that still cannot be read."""
        failed = {}
        for number in self._unread(key):
            try:
                self._pixels(number, key[0])
            except InputError as error:
                failed[str(self.pictures.paths[number])] = error
            else:
                self._open.clear()
                return True
        for picture, reason in failed.items() if key[0] == 0 else ():
            reporter.failed(picture, reason)
        return False

    # ----------------------------------------------------------------------------------------------------------- read
    def usable(self) -> tuple[int, ...]:
        """The pictures that could be read, in all views."""
        unread = {number for key in self.parts for number in self._unread(key)}
        numbers = tuple(number for number in range(len(self.pictures)) if number not in unread)
        if not numbers:
            raise UsageError(f"expected pictures that can be read, got none of {len(self.pictures)}: check --root")
        return numbers

    def _unread(self, key: tuple[int, int]) -> list[int]:
        """The pictures of a part that could not be read when it was made."""
        flags = self._load(self._path(*key))["readable"].tolist()
        return [number for number, good in zip(self._rows(key[1]), flags, strict=True) if not good]

    def rows(self, numbers: Sequence[int], which: int, device: torch.device) -> Seen:
        """The features of some pictures in one view, float32."""
        by_name: dict[str, list[Tensor]] = {}
        for number in numbers:
            part, row = divmod(number, self.part_size)
            kept = [self._load(self._path(which, part))]
            if self.dense:
                kept.append(self._load(self._path(which, part, dense=True)))
            for tensors in kept:
                for name, tensor in tensors.items():
                    if name != "readable":
                        by_name.setdefault(name, []).append(tensor[row])
        stacked = {name: torch.stack(rows).to(device).float() for name, rows in by_name.items()}
        return Seen(**stacked)

    def _load(self, path: Path) -> dict[str, Tensor]:
        if path not in self._open:
            try:
                self._open[path] = load_file(path)  # memory-mapped: nothing is read before it is used
            except (OSError, ValueError, SafetensorError) as error:
                raise UsageError(f"cannot read features in {path}: {error}: delete it and start again") from None
        return self._open[path]


def _tensors(seen: Seen) -> dict[str, Tensor]:
    """The tensors to store. Half precision is enough for values of variance or length 1, and takes half the space."""
    kept = {"tokens": seen.tokens.half(), "attention": seen.attention.float()}
    if seen.dense is not None:
        kept["dense"] = seen.dense.half()
    return {name: tensor.cpu().contiguous() for name, tensor in kept.items()}

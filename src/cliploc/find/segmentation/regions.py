"""Regions of colours, of files or of Segment Anything (`SamRegions`), and their vote on a label map."""

import hashlib
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from cliploc.errors import InputError, UsageError
from cliploc.images.reading import read_labels
from cliploc.options import FILES, SAM
from cliploc.support.files import user_path
from cliploc.support.imports import install, not_installed

Regions = npt.NDArray[np.int32]


class RegionSource(Protocol):
    """What divides a picture into regions."""

    @property
    def id(self) -> str:
        """What tells its regions from those of others."""

    def __call__(self, picture: Image.Image, name: str) -> Regions:
        """The region `[H, W]` of each pixel of an RGB picture with this name, from 0; −1: in none."""


def region_source(name: str | None, device: str = "cpu") -> RegionSource | None:
    """What makes the regions, by its name in the options; None for none."""
    if name is None or name == "none":
        return None
    if name.startswith(FILES):
        return FileRegions(user_path(name.removeprefix(FILES)))
    if not name.startswith(SAM):
        return ColourRegions()
    from cliploc.towers.sam import SamRegions

    return SamRegions(name.removeprefix(SAM), device=device)


class FileRegions:
    """Regions in label maps `NAME.png`: a number for each region, 0 in none."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        files = sorted(folder.rglob("*.png"))
        if not files:
            raise UsageError(f"expected label maps (*.png) of regions in {folder}, found none: check the path")
        digest = hashlib.sha256()
        for file in files:
            digest.update(file.relative_to(folder).as_posix().encode() + b"\0")
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        self.id = f"files {digest.hexdigest()}"

    def __call__(self, picture: Image.Image, name: str) -> Regions:
        """See `RegionSource`."""
        path = self._folder / f"{name}.png"
        if not path.is_file():
            raise InputError(f"{name}: expected its regions at {path}, found none: add the file, or leave it out")
        regions = read_labels(path)
        if regions.shape != (picture.height, picture.width):
            raise InputError(
                f"{path}: expected {picture.width}×{picture.height} pixels as its picture has, got "
                f"{regions.shape[1]}×{regions.shape[0]}: correct it"
            )
        return regions - 1


class ColourRegions:
    """Regions of similar colour on a small copy, merged by Ward's criterion (1963); tools/region_study.py."""

    def __init__(self, count: int = 24, side: int = 64, place: float = 0.5) -> None:
        try:
            from sklearn.cluster import AgglomerativeClustering
            from sklearn.feature_extraction.image import grid_to_graph
        except ImportError as error:
            raise not_installed(error, install("regions", "regions of colour")) from error
        self._merge, self._neighbours = AgglomerativeClustering, grid_to_graph
        self._count, self._side, self._place = count, side, place
        self.id = f"colour {count} {side} {place:g}"

    def __call__(self, picture: Image.Image, name: str = "") -> Regions:  # noqa: ARG002
        """See `RegionSource`."""
        shrink = min(1.0, self._side / max(picture.size))
        width, height = (max(1, round(side * shrink)) for side in picture.size)
        small = cv2.resize(np.asarray(picture.convert("RGB")), (width, height), interpolation=cv2.INTER_AREA)
        lab = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) / 40  # [h, w, 3]
        y, x = np.mgrid[:height, :width].astype(np.float32) * (self._place / max(height, width))
        pixels: Any = np.concatenate([lab, y[..., None], x[..., None]], axis=-1).reshape(-1, 5)
        if len(pixels) <= self._count:
            merged = np.arange(len(pixels))
        else:
            tree = self._merge(self._count, connectivity=self._neighbours(height, width))
            merged = tree.fit(pixels).labels_
        regions = merged.reshape(height, width).astype(np.int16)
        return np.asarray(cv2.resize(regions, picture.size, interpolation=cv2.INTER_NEAREST_EXACT), np.int32)


def voted(labels: npt.NDArray[Any], regions: Regions) -> npt.NDArray[Any]:
    """A label map `[H, W]` after its regions' vote, the lowest of equal labels; pixels in none (−1) keep theirs."""
    inside = regions >= 0
    if not inside.any():
        return labels
    values, number = np.unique(labels[inside], return_inverse=True)
    pairs = regions[inside].astype(np.int64) * len(values) + number
    counts = np.bincount(pairs, minlength=(int(regions.max()) + 1) * len(values)).reshape(-1, len(values))
    after = labels.copy()
    after[inside] = values[counts.argmax(axis=1)[regions[inside]]]
    return after

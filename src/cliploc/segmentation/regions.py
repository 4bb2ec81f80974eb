"""Votes of regions, of colours or of Segment Anything (`cliploc.sam.SamRegions`), on a label map's pixels."""

from __future__ import annotations

from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from cliploc._imports import install, not_installed
from cliploc.config import SAM

Regions = npt.NDArray[np.int32]


class RegionSource(Protocol):
    """What divides a picture into regions."""

    @property
    def id(self) -> str:
        """What tells its regions from those of others."""

    def __call__(self, picture: Image.Image) -> Regions:
        """The region `[H, W]` of each pixel of an RGB picture, from 0; −1: in none."""


def region_source(name: str | None, device: str = "cpu") -> RegionSource | None:
    """What makes the regions, by its name in the options; None for none."""
    if name is None or name == "none":
        return None
    if not name.startswith(SAM):
        return ColourRegions()
    from cliploc.sam import SamRegions

    return SamRegions(name.removeprefix(SAM), device=device)


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

    def __call__(self, picture: Image.Image) -> Regions:
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
        return np.asarray(cv2.resize(regions, picture.size, interpolation=cv2.INTER_NEAREST), np.int32)


def voted(labels: npt.NDArray[Any], regions: Regions) -> npt.NDArray[Any]:
    """A label map `[H, W]` after its regions' vote, the lowest of equal labels; pixels in none (−1) keep theirs."""
    inside = regions >= 0
    if not inside.any():
        return labels
    there, number = np.unique(labels[inside], return_inverse=True)
    pairs = regions[inside].astype(np.int64) * len(there) + number
    counts = np.bincount(pairs, minlength=(int(regions.max()) + 1) * len(there)).reshape(-1, len(there))
    after = labels.copy()
    after[inside] = there[counts.argmax(axis=1)[regions[inside]]]
    return after

"""Sums over the neighbours of every pixel, in strips of rows that stay in the processor's cache."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

VALUES = 2**18  # in a strip: 1 MB
BAGS_FROM = 4  # from this number of maps on, `Bags` are faster than a sum for each offset; bench.refinements
Offset = tuple[int, int]  # rows down and columns to the right
RADIUS = 6  # of a window of 13×13 pixels
# One of each pair of opposite offsets in it.
HALF = tuple((y, x) for y in range(RADIUS + 1) for x in range(-RADIUS, RADIUS + 1) if y or x > 0)


def strips(maps: Tensor, count: int | None = None) -> Iterator[slice]:
    """Strips of rows of maps `[P, H, W]` with `count` (None: P) values of a pixel in memory; off the CPU one strip."""
    planes, height, width = maps.shape
    rows = max(1, VALUES // ((count or planes) * width)) if maps.device.type == "cpu" else height
    for start in range(0, height, rows):
        yield slice(start, min(height, start + rows))


def moved(padded: Tensor, rows: slice, by: Offset, margin: int) -> Tensor:
    """The neighbours of the pixels in some rows, at one offset: `[P, H + 2·margin, W + 2·margin]` → `[P, rows, W]`."""
    down, right = by[0] + margin, by[1] + margin
    return padded[:, rows.start + down : rows.stop + down, right : right + padded.shape[2] - 2 * margin]


def in_bags(maps: Tensor) -> bool:
    """Whether these maps `[P, H, W]` are summed in `Bags`."""
    return maps.device.type == "cpu" and len(maps) >= BAGS_FROM


def pixel_by_pixel(maps: Tensor) -> Tensor:
    """The same maps `[P, H, W]` in the memory layout that `Bags` need: the values of a pixel side by side."""
    return maps.permute(1, 2, 0).contiguous().permute(2, 0, 1)


class Bags:
    """Σ_n a_in map_n over the neighbours n of each pixel i, for many maps at once.

    All maps of a neighbour are read together, by `torch.nn.functional.embedding_bag`: a pixel is a bag, its neighbours
    are the words. Each strip of rows has its own weights `[K, rows, W]`, and all strips but the last the same height.
    """

    def __init__(self, weights: Iterable[Tensor], offsets: Sequence[Offset], margin: int, width: int) -> None:
        self._width, self._margin, self._count = width, margin, len(offsets)
        self._weights = [strip.flatten(1).T.contiguous().view(-1) for strip in weights]
        rows = len(self._weights[0]) // (self._count * width)
        pitch = width + 2 * margin
        pixels = (torch.arange(rows)[:, None] * pitch + torch.arange(width)).view(-1, 1)  # in the padded strip
        by = torch.tensor([(down + margin) * pitch + right + margin for down, right in offsets])
        self._places = (pixels + by).to(torch.int32).view(-1)  # [rows · W · K]
        self._starts = torch.arange(0, len(self._places), self._count, dtype=torch.int32)

    def sums(self, around: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """The rows of each strip and their sums `[rows, W, P]`, while they are in the processor's cache.

        `around` are the maps pixel by pixel with a margin on each side, `[H + 2·margin, W + 2·margin, P]`, contiguous.
        """
        pitch, names = around.shape[1:]
        flat = around.flatten(0, 1)
        row = 0
        for weights in self._weights:
            pixels = len(weights) // self._count
            rows = pixels // self._width
            total = F.embedding_bag(
                self._places[: len(weights)],
                flat[row * pitch : (row + rows + 2 * self._margin) * pitch],
                self._starts[:pixels],
                mode="sum",
                per_sample_weights=weights,
            )
            yield slice(row, row + rows), total.view(rows, self._width, names)
            row += rows

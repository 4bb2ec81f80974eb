"""Sums over the neighbours of every pixel, in strips of rows that stay in the processor's cache."""

from collections.abc import Iterator

from torch import Tensor

VALUES = 2**18  # in a strip: 1 MB
Offset = tuple[int, int]  # rows down and columns to the right


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

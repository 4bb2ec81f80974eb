"""Sums over the neighbours of every pixel, in strips of rows that stay in the processor's cache."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

VALUES = 2**18  # in a strip: 1 MB


def strips(maps: Tensor, count: int | None = None) -> Iterator[slice]:
    """Strips of rows of maps `[P, H, W]`; on another device than the processor the whole height at once.

    Args:
        maps: whose rows.
        count: values of a pixel that are in memory at once; None: P.
    """
    planes, height, width = maps.shape
    rows = max(1, VALUES // ((count or planes) * width)) if maps.device.type == "cpu" else height
    for start in range(0, height, rows):
        yield slice(start, min(height, start + rows))


def moved(padded: Tensor, rows: slice, by: tuple[int, int], margin: int) -> Tensor:
    """The neighbours of the pixels in some rows, at one offset.

    Args:
        padded: `[P, H + 2·margin, W + 2·margin]`.
        rows: of the maps without the margin.
        by: rows down and columns to the right.
        margin: pixels on each side, no fewer than the offset has.

    Returns:
        `[P, rows, W]`, a view.
    """
    down, right = by[0] + margin, by[1] + margin
    return padded[:, rows.start + down : rows.stop + down, right : right + padded.shape[2] - 2 * margin]

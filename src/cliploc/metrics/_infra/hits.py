"""Hits: for each image, at which thresholds its box is right. MaxBoxAcc and localisation accuracies count them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from cliploc.errors import UsageError
from cliploc.metrics._infra.curve import BoxCurve, Floats, level
from cliploc.metrics._infra.metric import refuse_twice

Bools = npt.NDArray[np.bool_]
LEVELS = 256


class Hits:
    """For each image, at which of its map's levels the box is right: 32 bytes for an image, enough for any τ.

    Args:
        contours: the box of the "largest" contour, or the best of "every" contour's.
    """

    def __init__(self, iou: float, contours: Literal["largest", "every"]) -> None:
        if not 0 < iou <= 1:
            raise UsageError(f"expected an IoU above 0 and at most 1, got {iou}: 0.5 is usual")
        self.iou, self.contours = iou, contours
        self._rows: dict[str, tuple[int, int | None, npt.NDArray[np.uint8]]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, image_id: str, highest: int, packed: bytes, label: int | None) -> None:
        """Adds one image by its `packed_hits` and its map's highest level; a second time is an error."""
        refuse_twice(image_id, self._rows)
        bits = np.frombuffer(packed, np.uint8)
        if len(bits) != LEVELS // 8 or not 0 <= highest < LEVELS:
            raise UsageError(
                f"{image_id}: expected {LEVELS // 8} bytes and a level below {LEVELS}, got {len(bits)} bytes and level "
                f"{highest}: compute it again"
            )
        self._rows[image_id] = (highest, label, bits)

    @property
    def ids(self) -> list[str]:
        """All image ids, sorted, so that no result depends on the order of adding."""
        return sorted(self._rows)

    @property
    def labels(self) -> list[int | None]:
        """The class of each image, in the order of `ids`."""
        return [self._rows[image_id][1] for image_id in self.ids]

    def at(self, taus: Sequence[float] | Floats) -> Bools:
        """Whether each image is right at each τ, `[n, T]`."""
        right, column = self.distinct(taus)
        return right[:, column]

    def distinct(self, taus: Sequence[float] | Floats) -> tuple[Bools, npt.NDArray[np.intp]]:
        """As `at`, but with equal columns merged: `[n, U]`, and for each τ its column, `[T]`.

        Two τ have equal columns if no map has a level between them.
        """
        highest = sorted({row[0] for row in self._rows.values()})
        cuts = np.array([[level(tau, high) for tau in taus] for high in highest], np.intp).reshape(len(highest), -1)
        levels, column = np.unique(cuts, axis=1, return_inverse=True)  # [H, U], [T]
        at = dict(zip(highest, levels, strict=True))
        right = np.zeros((len(self), levels.shape[1]), np.bool_)
        for i, image_id in enumerate(self.ids):
            high, _, bits = self._rows[image_id]
            right[i] = np.unpackbits(bits)[at[high]]
        return right, column.reshape(-1)


def packed_hits(curve: BoxCurve, iou: float, contours: Literal["largest", "every"]) -> bytes:
    """At which of its map's levels the box is right, as the bits of 32 bytes; level 0 is the first byte's highest bit.

    Example:
        >>> packed_hits(BoxCurve("a", np.array([0.4, 0.6]), np.array([0.4, 0.6])), 0.5, "largest")[0]
        64
    """
    values = curve.largest if contours == "largest" else curve.best
    right = np.zeros(LEVELS, np.bool_)
    right[: len(values)] = values >= iou
    return np.packbits(right).tobytes()


def hit_at(packed: bytes, highest: int, tau: float) -> bool:
    """Whether the box at a threshold τ is right, from what `packed_hits` gave for a map of this highest level.

    Example:
        >>> curve = BoxCurve("a", np.array([0.4, 0.6]), np.array([0.4, 0.6]))
        >>> hit_at(packed_hits(curve, 0.5, "largest"), 1, 1.0)
        True
    """
    place = level(tau, int(highest))
    return bool(packed[place // 8] >> (7 - place % 8) & 1)

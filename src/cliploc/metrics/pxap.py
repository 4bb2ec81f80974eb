"""PxAP: pixel average precision against true masks."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from cliploc.errors import InputError, UsageError
from cliploc.metrics._infra.bootstrap import DEFAULT, Bootstrap, Interval
from cliploc.metrics._infra.curve import TAUS, checked_map
from cliploc.metrics._infra.metric import (
    ColumnType,
    JudgedMap,
    Metric,
    MetricSummary,
    Number,
    Row,
    Score,
    metric,
    refuse_empty,
    refuse_twice,
)

EDGES = np.append(TAUS, [1.0, 2.0])  # of the score bins; the last bin holds scores of 1
REPLICATES = 200  # of the bootstrap
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PxAPResult:
    """The area under the precision–recall curve of all pixels."""

    n: int  # number of images
    pxap: float  # from 0 to 1
    interval: Interval  # its confidence interval (Poisson bootstrap over images)


@metric
class PxAP(Metric):
    """Pixel average precision over thresholds 0, 0.001 … 1, over the pixels of all images together.

    Choe et al. 2020. Pixels in ignore regions (of OpenImages30k) do not count, unless they are of the object. Only sums
    are stored: each image's weights in the bootstrap replicates are Poisson(1) draws seeded by its name, so merged
    parts give the same result in any order.

    Example:
        >>> metric = PxAP()
        >>> metric.update("a", np.array([[0.0, 1.0]]), np.array([[False, True]]))
        >>> metric.compute().pxap
        1.0
    """

    name: ClassVar[str] = "pxap"
    position: ClassVar[int] = 80
    truth: ClassVar[Literal["boxes", "masks"]] = "masks"
    columns: ClassVar[Mapping[str, ColumnType]] = {"pxap": "bytes"}
    numbers: ClassVar[Mapping[str, Number]] = {
        "pxap": Number("PxAP", "area under the precision–recall curve of all pixels, against true masks", "PxAP")
    }

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self._true = np.zeros((1 + REPLICATES, len(EDGES) - 1), np.int64)  # row 0: every image once
        self._false = np.zeros_like(self._true)

    def __len__(self) -> int:
        return len(self._ids)

    def update(
        self,
        image_id: str,
        score_map: npt.ArrayLike,
        mask: npt.NDArray[np.bool_],
        ignore: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Counts one image.

        Args:
            score_map: `[H, W]` in 0–1.
            mask: `[H, W]`, where the object is.
            ignore: `[H, W]`, pixels that do not count, unless the object is there.
        """
        self.restore(image_id, *pixel_counts(image_id, score_map, mask, ignore))

    def restore(self, image_id: str, true: Counts, false: Counts) -> None:
        """Counts one image by its `pixel_counts`; a second time is a `UsageError`."""
        refuse_twice(image_id, self._ids)
        self._ids.add(image_id)
        draws = np.random.default_rng(zlib.crc32(image_id.encode())).poisson(1, REPLICATES)
        weights = np.append(1, draws)[:, None]
        self._true += weights * true
        self._false += weights * false

    def merge(self, other: PxAP) -> PxAP:
        """A metric over the images of both, which must not share any."""
        if twice := self._ids & other._ids:
            refuse_twice(min(twice), self._ids)
        both = PxAP()
        both._ids = self._ids | other._ids
        both._true, both._false = self._true + other._true, self._false + other._false
        return both

    def compute(self, bootstrap: Bootstrap = DEFAULT) -> PxAPResult:
        """The result so far. The interval has 200 replicates for any `bootstrap` that has replicates."""
        n = refuse_empty(len(self._ids))
        if not self._true[0].any():
            raise UsageError("expected masks with an object, got only empty ones: check the mask files")
        interval = None
        if bootstrap.replicates:
            # With few images, a replicate may draw none with an object: it has no precision and recall.
            pairs = zip(self._true[1:], self._false[1:], strict=True)
            drawn = [_area(true, false) for true, false in pairs if true.any()]
            interval = bootstrap.quantiles(np.array(drawn)) if drawn else None
        return PxAPResult(n, _area(self._true[0], self._false[0]), interval)

    def judge(self, judged: JudgedMap) -> dict[str, Any]:
        """The counts of one sample's pixels, compressed."""
        assert judged.mask is not None
        return {"pxap": pack_counts(*pixel_counts(judged.sample_id, judged.heat, judged.mask, judged.ignore))}

    def add(self, sample_id: str, columns: Row, label: int | None, predictions: Sequence[int] | None) -> None:  # noqa: ARG002
        """Counts one sample by its column."""
        self.restore(sample_id, *unpack_counts(columns["pxap"]))

    def summarise(self, may_tune: bool, bootstrap: Bootstrap = DEFAULT) -> MetricSummary:  # noqa: ARG002
        """PxAP."""
        result = self.compute(bootstrap)
        return MetricSummary({"pxap": Score(result.pxap, result.interval)})


def pixel_counts(
    image_id: str,
    score_map: npt.ArrayLike,
    mask: npt.NDArray[np.bool_],
    ignore: npt.NDArray[np.bool_] | None = None,
) -> tuple[Counts, Counts]:
    """Histograms of one image's scores: pixels of the object, and pixels outside it, each `[1001]`.

    Arguments and errors are those of `PxAP.update`.
    """
    heat = checked_map(score_map, "exact")
    for name, given in (("mask", mask), ("ignore", ignore)):
        if given is not None and (given.shape != heat.shape or given.dtype != np.bool_):
            raise InputError(
                f"{image_id}: expected {name} as booleans {list(heat.shape)}, got {given.dtype} {list(given.shape)}: "
                "resize it to the map"
            )
    outside = ~mask if ignore is None else ~mask & ~ignore
    return np.histogram(heat[mask], EDGES)[0], np.histogram(heat[outside], EDGES)[0]


def _area(true: Counts, false: Counts) -> float:
    """Area under the precision–recall curve: Σ precision · Δrecall from the highest threshold down."""
    tp, fp = (np.append(0, one[::-1].cumsum()) for one in (true, false))
    precision = tp[1:] / np.maximum(tp[1:] + fp[1:], 1)
    return float((precision * np.diff(tp)).sum() / tp[-1])


def pack_counts(true: Counts, false: Counts) -> bytes:
    """One image's counts for `PxAP`, compressed; `unpack_counts` reads them."""
    return zlib.compress(np.concatenate([true, false]).astype("<u4").tobytes())


def unpack_counts(packed: bytes) -> tuple[Counts, Counts]:
    """Reads what `pack_counts` made: the counts of pixels inside and outside the object, for each score.

    Example:
        >>> true, false = unpack_counts(pack_counts(np.array([1, 2]), np.array([3, 4])))
        >>> false.tolist()
        [3, 4]
    """
    both = np.frombuffer(zlib.decompress(packed), "<u4").astype(np.int64)
    true, false = np.split(both, 2)
    return true, false

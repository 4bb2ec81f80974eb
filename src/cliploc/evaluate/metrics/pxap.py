"""PxAP: pixel average precision against true masks."""

import zlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from cliploc.errors import UsageError
from cliploc.evaluate.metrics import _base as base
from cliploc.evaluate.metrics import _boxes

EDGES = np.append(base.TAUS, [1.0, 2.0])  # of the score bins; the last bin holds scores of 1
Counts = npt.NDArray[np.int64]


@base.metric
class PxAP(base.Metric):
    """Pixel average precision over thresholds 0, 0.001 … 1, over the pixels of all images together.

    Choe et al. 2020. Pixels in ignore regions (of OpenImages30k) do not count, unless they are of the object. Only sums
    are stored: each image's weights in the bootstrap replicates are Poisson(1) draws seeded by its name.

    Example:
        >>> heat, box, mask = np.array([[0.0, 1.0]]), np.zeros((0, 4)), np.array([[False, True]])
        >>> metric = PxAP()
        >>> metric.add("a", metric.measure(base.JudgedMap("a", heat, box, (2, 1), mask)), None, None)
        >>> metric.summarise(False).scores["pxap"].value
        1.0
    """

    name = "pxap"
    position = 80
    truth = "masks"
    columns: ClassVar = {"pxap": "bytes"}
    numbers: ClassVar = {
        "pxap": base.Number("PxAP", "area under the precision–recall curve of all pixels, against true masks", "PxAP")
    }

    def __init__(self) -> None:
        super().__init__()
        self._true = np.zeros((1 + base.POISSON_REPLICATES, len(EDGES) - 1), np.int64)  # row 0: every image once
        self._false = np.zeros_like(self._true)

    def measure(self, judged: base.JudgedMap) -> dict[str, Any]:
        heat = _boxes.checked_map(judged.heat, "exact")
        # Histograms of the scores [2, 1001]: pixels of the object, and pixels outside it.
        counts = [np.histogram(heat[place], EDGES)[0] for place in base.checked_masks(judged)]
        return {"pxap": zlib.compress(np.concatenate(counts).astype("<u4").tobytes())}

    def count(self, sample_id: str, columns: base.Row, label: int | None, predictions: Sequence[int] | None) -> None:  # noqa: ARG002
        counts = np.frombuffer(zlib.decompress(columns["pxap"]), "<u4").astype(np.int64)
        true, false = np.split(counts, 2)
        weights = np.append(1, base.poisson_draws(sample_id))[:, None]
        self._true += weights * true
        self._false += weights * false

    def summarise(self, may_tune: bool, bootstrap: base.Bootstrap = base.DEFAULT) -> base.MetricSummary:  # noqa: ARG002
        """PxAP. Its interval has 200 replicates for any `bootstrap` that has replicates."""
        base.check_any(len(self))
        if not self._true[0].any():
            raise UsageError("expected masks with an object, got only empty ones: check the mask files")
        interval = None
        if bootstrap.replicates:
            # With few images, a replicate may draw none with an object: it has no precision and recall.
            pairs = zip(self._true[1:], self._false[1:], strict=True)
            drawn = [_area(true, false) for true, false in pairs if true.any()]
            interval = bootstrap.quantiles(np.array(drawn))
        return base.MetricSummary({"pxap": base.Score(_area(self._true[0], self._false[0]), interval)})


def _area(true: Counts, false: Counts) -> float:
    """Area under the precision–recall curve: Σ precision · Δrecall from the highest threshold down."""
    tp, fp = (np.append(0, counts[::-1].cumsum()) for counts in (true, false))
    precision = tp[1:] / np.maximum(tp[1:] + fp[1:], 1)
    return float((precision * np.diff(tp)).sum() / tp[-1])

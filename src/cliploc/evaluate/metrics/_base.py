"""What a metric is, and the registry: it measures one sample, which gives columns, and summarises the columns of many.

The benchmark, `cliploc evaluate`, `summary.json`, the report and the tables read the registry. So a new metric is one
file here and its test.
"""

import functools
import math
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Real
from statistics import NormalDist
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt

from cliploc.errors import InputError, UsageError
from cliploc.evaluate.metrics._boxes import BoxCurve, Convention, box_curve, boxes_on_map, level
from cliploc.options import short
from cliploc.registry import Registry
from cliploc.values import FloatArray, Floats

TAUS: Floats = np.arange(0, 1, 0.001)  # the thresholds τ that are tried
Numbers = npt.NDArray[np.floating]
Counts = npt.NDArray[np.uint16]
Interval = tuple[float, float] | None
BLOCK = 100  # replicates and columns computed at once: bounds memory at 50,000 images
POISSON_REPLICATES = 200  # of metrics that keep sums over all pixels of all images
MAX_CACHED_COUNTS = 10**8  # draws of at most this many counts are cached for all statistics of the same images


# ------------------------------------------------------------------------------------------------------------ intervals
@dataclass(frozen=True)
class Bootstrap:
    """Settings of the confidence intervals."""

    confidence: float = 0.95  # the share of replicates between an interval's ends
    replicates: int = 1000  # how many times the images are drawn, with replacement; 0 for no intervals
    seed: int = 0  # seed of the draws
    image_of: Mapping[str, str] = field(default_factory=dict)  # sample → its image, where several samples share one

    def of_mean(self, values: npt.NDArray[np.generic], samples: Sequence[str] | None = None) -> Interval:
        """The interval of the mean of values `[n]`, of these samples; None without replicates or values."""
        replicates = self.replicated(values[:, None], lambda means: means[:, 0], samples)
        return None if replicates is None else self.quantiles(replicates)

    def replicated(
        self,
        values: npt.NDArray[np.generic],
        statistic: Callable[[Numbers], Numbers],
        samples: Sequence[str] | None = None,
    ) -> Numbers | None:
        """The statistic of column means of values `[n, C]`, in each replicate, `[replicates]`.

        The samples of one image are drawn together; without `samples`, each row is an image. Equal numbers of images
        have the same draws.
        """
        n, columns = values.shape
        if not self.replicates or not n:
            return None
        owners = range(n) if samples is None else [self.image_of.get(sample, sample) for sample in samples]
        place = {image: i for i, image in enumerate(dict.fromkeys(owners))}
        owner = np.array([place[image] for image in owners])  # [n]
        drawn: list[Numbers] = []
        for counts in self.draws(len(place)):  # [r, images]
            weights = counts.astype(np.float32)[:, owner]  # [r, n]
            parts = [weights @ values[:, i : i + BLOCK].astype(np.float32) for i in range(0, columns, BLOCK)]
            drawn.append(statistic(np.concatenate(parts, axis=1) / weights.sum(axis=1, keepdims=True)))
        return np.concatenate(drawn)

    def draws(self, n: int) -> Iterable[Counts]:
        """How often each of n images is drawn in each replicate, `[r, n]` for r replicates at a time."""
        drawn = _cached_draws if n * self.replicates <= MAX_CACHED_COUNTS else _drawn
        return drawn(n, self.replicates, self.seed)

    def quantiles(self, replicates: Numbers) -> tuple[float, float]:
        """The ends of the interval that holds the middle of these replicates."""
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(replicates, [tail, 1 - tail])
        return float(low), float(high)

    def around(self, value: float, replicates: Numbers, samples: Sequence[str]) -> tuple[float, float]:
        """The interval of a share of samples that is a maximum over thresholds, chosen anew in each replicate.

        A maximum is too high in a sample, and higher still in draws of it. So the interval is Wilson's (1927) around
        the value without this bias, with as many images as the variance of the replicates stands for. How often it
        holds the true value: docs/studies/statistics.md.
        """
        share = min(max(2 * value - float(np.mean(replicates)), 0.0), 1.0)
        spread = share * (1 - share)
        variance, images = float(np.var(replicates)), {self.image_of.get(sample, sample) for sample in samples}
        count = spread / variance if variance and spread else len(images)
        z = NormalDist().inv_cdf((1 + self.confidence) / 2)
        middle, half = share + z**2 / (2 * count), z * math.sqrt(spread / count + (z / (2 * count)) ** 2)
        return max((middle - half) / (1 + z**2 / count), 0.0), min((middle + half) / (1 + z**2 / count), 1.0)


def _drawn(n: int, replicates: int, seed: int) -> Iterator[Counts]:
    """Yields how often each of n images is drawn in each replicate, `[r, n]` for r replicates at a time."""
    random = np.random.default_rng(seed)
    for start in range(0, replicates, BLOCK):
        size = min(BLOCK, replicates - start)
        yield random.multinomial(n, np.full(n, 1 / n), size=size).astype(np.uint16)


@functools.lru_cache(maxsize=2)  # all images of a run, and those with predictions
def _cached_draws(n: int, replicates: int, seed: int) -> tuple[Counts, ...]:
    return tuple(_drawn(n, replicates, seed))


def poisson_draws(image_id: str) -> npt.NDArray[np.int64]:
    """An image's weight in each replicate, `[200]`, drawn by its name: so only sums must be kept, in any order."""
    return np.random.default_rng(zlib.crc32(image_id.encode())).poisson(1, POISSON_REPLICATES)


DEFAULT = Bootstrap()


# -------------------------------------------------------------------------------------------------------------- metrics
ColumnType = Literal["float", "bool", "level", "hits", "bytes"]  # "level": 0–255; "hits": 256 bits
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Number:
    """One number that a metric reports."""

    title: str  # heading of its column in tables
    about: str  # one line that explains it
    column: str = ""  # heading in the benchmark's table on the terminal, which is narrow; "" leaves it out there
    threshold: str = ""  # name of the fact with its threshold, shown beside it on the terminal; "" for none


@dataclass(frozen=True)
class Score:
    """The value of a `Number`."""

    value: float | None  # from 0 to 1; None if it cannot be computed
    interval: Interval = None  # its confidence interval
    note: str = ""  # the threshold, or the number of images it is a share of


@dataclass(frozen=True)
class MetricSummary:
    """What a metric reports for all samples together."""

    scores: Mapping[str, Score]  # name of a number → its value
    facts: Mapping[str, Any] = field(default_factory=dict)  # further entries of `summary.json`: the best threshold …
    # label → name of a number → its value from 0 to 1
    per_class: Mapping[int, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class JudgedMap:
    """One sample's score map and its ground truth."""

    sample_id: str  # which sample
    heat: FloatArray  # [H, W] floats in 0–1 over the whole picture
    true_xyxy: npt.NDArray[np.floating[Any]]  # [m, 4] true boxes in original pixels; may be empty
    size_wh: tuple[int, int]  # width and height of the original
    mask: npt.NDArray[np.bool_] | None = None  # [H, W], where the object is; None where masks are not known
    ignore: npt.NDArray[np.bool_] | None = None  # [H, W], pixels that do not count; None for none
    convention: Convention = "wsoleval"  # how `curve` compares boxes; see `box_curve`

    @cached_property
    def boxes(self) -> Floats:
        """`[m, 4]` true boxes in map pixels, not rounded."""
        return boxes_on_map(self.true_xyxy, self.size_wh, self.heat.shape, "exact")

    @cached_property
    def inside(self) -> npt.NDArray[np.bool_]:
        """`[H, W]`, the pixels whose centre is in a true box."""
        y, x = (np.arange(size) + 0.5 for size in self.heat.shape)
        inside = np.zeros(self.heat.shape, np.bool_)
        for x0, y0, x1, y1 in self.boxes:
            inside |= ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))
        return inside

    @cached_property
    def curve(self) -> BoxCurve:
        """How well the map's boxes fit at every threshold."""
        boxes = boxes_on_map(self.true_xyxy, self.size_wh, self.heat.shape, self.convention)
        return box_curve(self.sample_id, self.heat, boxes, self.convention)


class Metric(ABC):
    """A metric: measures one sample's map, stores the result as columns of a row, computes numbers from many rows."""

    name: ClassVar[str]  # as the registry has it
    position: ClassVar[int] = 100  # its place among the metrics wherever they are listed
    truth: ClassVar[Literal["boxes", "masks"]] = "boxes"  # what it compares with; samples without it are left out
    columns: ClassVar[Mapping[str, ColumnType]]  # what it stores for a sample; metrics may share columns
    numbers: ClassVar[Mapping[str, Number]]  # what it reports: key in `summary.json` → its description
    needs_threshold: ClassVar[bool] = False  # whether its columns depend on the threshold τ
    chooses_threshold: ClassVar[bool] = False  # whether it can choose τ itself, on the images

    def __init__(self, threshold: float | None = None) -> None:
        if threshold is not None:
            level(threshold, 0)  # refuses what is no threshold
        self.threshold = threshold
        self._ids: set[str] = set()

    @classmethod
    def at(cls, threshold: float | None) -> Self:
        """The metric at a threshold τ; None: chosen on the images themselves, where the metric can do that."""
        return cls(threshold) if cls.needs_threshold else cls()

    def __len__(self) -> int:
        """The number of samples counted."""
        return len(self._ids)

    @abstractmethod
    def measure(self, judged: JudgedMap) -> dict[str, Any]:
        """The columns of one sample; an `InputError` for a map that cannot be used."""

    def add(self, sample_id: str, columns: Row, label: int | None, predictions: Sequence[int] | None) -> None:
        """Counts one sample by its columns; a second time is a `UsageError`."""
        check_new(sample_id, self._ids)
        self._ids.add(sample_id)
        self.count(sample_id, columns, label, predictions)

    @abstractmethod
    def count(self, sample_id: str, columns: Row, label: int | None, predictions: Sequence[int] | None) -> None:
        """Counts one sample by its columns."""

    @abstractmethod
    def summarise(self, may_tune: bool, bootstrap: Bootstrap = DEFAULT) -> MetricSummary:
        """The numbers so far; `may_tune` says whether these images may choose a threshold."""


class MeanMetric(Metric):
    """A metric that is the mean of one number for each image; a subclass computes the number."""

    column: ClassVar[str]  # that stores an image's number
    column_type: ClassVar[ColumnType] = "float"  # "bool" if the mean is a share of images

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.columns = {cls.column: cls.column_type}

    def __init__(self, threshold: float | None = None) -> None:
        super().__init__(threshold)
        self._values: dict[str, tuple[float, int | None]] = {}

    @abstractmethod
    def value_of(self, judged: JudgedMap) -> float:
        """The score of one image, from 0 to 1."""

    def measure(self, judged: JudgedMap) -> dict[str, Any]:
        value = self.value_of(judged)
        if not isinstance(value, Real | np.bool_) or not math.isfinite(value):
            raise UsageError(
                f"expected a number of each map from the metric {self.name}, got {short(value)}: correct it"
            )
        return {self.column: bool(value) if self.column_type == "bool" else value}

    def count(self, sample_id: str, columns: Row, label: int | None, predictions: Sequence[int] | None) -> None:  # noqa: ARG002
        self._values[sample_id] = (float(columns[self.column]), label)

    def summarise(self, may_tune: bool, bootstrap: Bootstrap = DEFAULT) -> MetricSummary:  # noqa: ARG002
        n = check_any(len(self))
        ids = sorted(self._values)
        rows = [self._values[sample_id] for sample_id in ids]
        values = np.array([value for value, _ in rows])
        note = "" if self.threshold is None else threshold_note(self.threshold, chosen=False)
        labels = [label for _, label in rows]
        images, per_class = Counter(labels), by_class(labels, values)
        # fsum: exactly the same sum for any order.
        scores = {self.name: Score(math.fsum(values) / n, bootstrap.of_mean(values, ids), note)}
        of_classes = {label: {"images": images[label], self.name: share} for label, share in per_class.items()}
        return MetricSummary(scores, {}, of_classes)


metrics: Registry[type[Metric]] = Registry(
    "metric", "cliploc.evaluate.metrics", "cliploc.metrics", home=lambda cls: cls.__module__
)
M = TypeVar("M", bound=type[Metric])


def metric(cls: M) -> M:
    """Registers a class as a metric."""
    metrics.register(cls.name, cls)
    return cls


def all_metrics(truth: Literal["boxes", "masks"] | None = None) -> tuple[type[Metric], ...]:
    """The registered metrics in the order of their positions; with `truth`, only those of that kind."""
    chosen = [cls for cls in metrics if truth is None or cls.truth == truth]
    return tuple(sorted(chosen, key=lambda cls: (cls.position, cls.name)))


def all_numbers() -> dict[str, Number]:
    """Every number of every metric: key in `summary.json` → its description."""
    # Tables know columns by their titles, so a title that several numbers share is followed by the key.
    numbers = {key: number for cls in all_metrics() for key, number in cls.numbers.items()}
    uses = Counter(number.title for number in numbers.values())
    return {
        key: number if uses[number.title] == 1 else replace(number, title=f"{number.title} ({key})")
        for key, number in numbers.items()
    }


def measure_map(judged: JudgedMap, thresholds: Sequence[float]) -> Iterator[dict[str, Any]]:
    """The columns of all metrics for one map, once for each threshold τ."""
    truths = {"boxes": len(judged.true_xyxy) > 0, "masks": judged.mask is not None}
    fitting = [cls for cls in all_metrics() if truths[cls.truth]]
    common = _columns((cls.at(None) for cls in fitting if not cls.needs_threshold), judged)
    for tau in thresholds:
        yield common | _columns((cls.at(tau) for cls in fitting if cls.needs_threshold), judged)


def _columns(metrics: Iterable[Metric], judged: JudgedMap) -> dict[str, Any]:
    return {key: value for metric in metrics for key, value in metric.measure(judged).items()}


def joined(summaries: Iterable[MetricSummary]) -> tuple[dict[str, Any], dict[str, Any], dict[str, dict[str, float]]]:
    """The numbers of several metrics, with `confidence_95`; further facts; the numbers of each class. In percent."""
    numbers: dict[str, float | None] = {}
    intervals: dict[str, Interval] = {}
    facts: dict[str, Any] = {}
    per_class: dict[str, dict[str, float]] = {}
    for summary in summaries:
        numbers |= {key: None if score.value is None else 100 * score.value for key, score in summary.scores.items()}
        intervals |= {key: score.interval for key, score in summary.scores.items()}
        facts |= summary.facts
        for label, values in summary.per_class.items():
            of_class = per_class.setdefault(str(label), {})
            of_class |= {key: value if key == "images" else 100 * value for key, value in values.items()}
    ends = {key: [100 * end for end in interval] for key, interval in intervals.items() if interval}
    return {**numbers, "confidence_95": ends}, facts, per_class


def checked_masks(judged: JudgedMap) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Where the object is, and where pixels count that are not of it: `[H, W]` each."""
    mask, ignore = judged.mask, judged.ignore
    if mask is None:
        raise InputError(f"{judged.sample_id}: expected a mask of the object, got none: leave the picture out")
    for name, part in (("mask", mask), ("ignore", ignore)):
        if part is not None and (part.shape != judged.heat.shape or part.dtype != np.bool_):
            raise InputError(
                f"{judged.sample_id}: expected {name} as booleans {list(judged.heat.shape)}, got {part.dtype} "
                f"{list(part.shape)}: resize it to the map"
            )
    return mask, ~mask if ignore is None else ~mask & ~ignore


def ratio(part: Any, total: Any) -> Floats:
    """part / total; NaN where the total is 0."""
    shares: Floats = np.divide(part, total, out=np.full(np.shape(total), np.nan), where=np.asarray(total) > 0)
    return shares


def known_mean(values: Floats) -> Floats:
    """The mean over the first axis, `[n, …]` → `[…]`, of those that are numbers; NaN where none is."""
    return ratio(np.nansum(values, axis=0), np.isfinite(values).sum(axis=0))


def by_class(labels: Sequence[int | None], right: npt.NDArray[np.generic]) -> dict[int, float]:
    """The mean of each class; images without a label are left out."""
    rows: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        if label is not None:
            rows.setdefault(label, []).append(i)
    return {label: float(right[rows[label]].astype(np.float64).mean()) for label in sorted(rows)}


def threshold_note(threshold: float, chosen: bool) -> str:
    """A note that names a number's threshold and who chose it."""
    return f"τ {threshold:g}, {'the best on these pictures (an oracle)' if chosen else 'as given'}"


def check_any(count: int) -> int:
    """The count of samples, which must not be 0."""
    if not count:
        raise UsageError("expected at least one picture before the metric is computed, got none: add some")
    return count


def check_new(sample_id: str, known: Mapping[str, object] | set[str]) -> None:
    """Checks that a sample was not counted before."""
    if sample_id in known:
        raise UsageError(f"{sample_id} occurs twice: evaluate each picture once")

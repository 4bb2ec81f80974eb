"""Faithfulness: whether a heatmap shows what the model uses. Each metric is one file that registers itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from cliploc.errors import UsageError
from cliploc.registry import Registry, module_names

if TYPE_CHECKING:  # it imports torch, which takes longer than refusing a name
    from cliploc.evaluate.tasks.faithfulness.measure import FaithfulnessMetric

faithfulness_metrics: Registry[type[FaithfulnessMetric]] = Registry(
    "faithfulness metric",
    __name__,
    "cliploc.faithfulness",
    home=lambda cls: cls.__module__,
    listed=lambda: module_names(__name__),  # each file has its metric's name
)
M = TypeVar("M", bound="type[FaithfulnessMetric]")


def faithfulness_metric(cls: M) -> M:
    """Registers a class as a faithfulness metric."""
    faithfulness_metrics.register(cls.name, cls)
    return cls


def chosen_metrics(names: Sequence[str], with_method: bool = True) -> tuple[FaithfulnessMetric, ...]:
    """The metrics of these names, in the order of their positions."""
    metrics = [faithfulness_metrics.get(name) for name in dict.fromkeys(names)]
    if not metrics:
        known = ", ".join(faithfulness_metrics.names())
        raise UsageError(f"expected at least one metric, got none: name some of {known}")
    for metric in metrics:
        if metric.needs_method and not with_method:
            raise UsageError(f"{metric.name} needs the method that made the maps: leave it out for maps of other tools")
    return tuple(metric() for metric in sorted(metrics, key=lambda metric: (metric.position, metric.name)))

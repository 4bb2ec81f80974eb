"""What the tasks' commands check of their flags."""

from collections.abc import Sequence

from cliploc.options import FAITHFULNESS_METRICS, parse_list


def metric_names(texts: Sequence[str] | None) -> list[str]:
    """Faithfulness metrics of one or several `--metric NAME,NAME`; the default ones where there is none."""
    from cliploc.evaluate.tasks.faithfulness.metrics import faithfulness_metrics

    names = [name for text in texts or () for name in parse_list(text)]
    for name in names:
        faithfulness_metrics.refuse_unknown(name)
    return names or list(FAITHFULNESS_METRICS)


def refuse_unknown_dataset(name: str, *, labelled: bool = False) -> None:
    """Refuses an unknown dataset (`labelled`: of label maps) before torch is imported."""
    from cliploc.evaluate.data import labelled_readers, readers

    (labelled_readers if labelled else readers).refuse_unknown(name)

"""docs/faithfulness.md names every metric and number; every metric says what it is and where it comes from."""

import re
from pathlib import Path

import pytest

from cliploc.config import BASELINES
from cliploc.faithfulness import faithfulness_metrics

DOCUMENT = Path(__file__).parents[2] / "docs/faithfulness.md"


@pytest.mark.parametrize("name", faithfulness_metrics.names())
def test_the_table_has_every_metric_with_its_numbers(name: str) -> None:
    metric = faithfulness_metrics.get(name)
    [row] = re.findall(rf"^\| `{name}` \| (.*)$", DOCUMENT.read_text(), re.MULTILINE)
    for key, number in metric.numbers.items():
        assert f"`{key}`" in row
        assert number.best in row.partition(" | ")[0] or not number.best
    assert metric.paper.partition(" ")[0] in row
    assert metric.__doc__ is not None


def test_the_baselines_are_named() -> None:
    assert f"`--baseline {'|'.join(BASELINES)}`" in DOCUMENT.read_text()

"""Settings compared picture by picture, and the interval of a maximum over thresholds."""

import numpy as np
import pytest

from cliploc.evaluate.metrics import Bootstrap
from cliploc.evaluate.tasks.paired import PerPicture, compared, holm
from cliploc.evaluate.tasks.tables import Cell, seven_digits, to_latex


def mean(means):
    return means[:, 0]


def of(values):
    return PerPicture("key", [f"{i}" for i in range(len(values))], np.array(values, float)[:, None], mean, 100)


def test_p_values_are_holms():
    # By hand: 3 · 0.01, 2 · 0.03, and 0.04, which is raised to the one before.
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1, "b": 1}


def test_settings_are_compared_in_pairs_on_the_pictures_of_both():
    """The best is right where the second is, and in five pictures more: unpaired, their intervals overlap widely."""
    second = np.random.default_rng(0).random(200) < 0.6
    best = second.copy()
    best[np.flatnonzero(~second)[:5]] = True
    found = compared({"best": of(best), "second": of(second), "part": of(second[:100]), "none": of([])}, Bootstrap())
    assert list(found) == ["second", "part"]
    assert (found["second"].best, found["second"].pictures, found["part"].pictures) == ("best", 200, 100)
    assert found["second"].difference == pytest.approx(-2.5)
    low, high = found["second"].confidence_95
    assert -6 < low < -2.5 < high < 0  # the standard error of 5 of 200 is 1.1
    assert found["second"].p < 0.1
    assert compared({"one": of(best)}, Bootstrap()) == {}
    same = compared({"a": of(best), "b": of(best)}, Bootstrap())["b"]
    assert (same.difference, same.confidence_95, same.p) == (0, (0, 0), 1)


def test_the_best_may_be_the_lowest():
    low, high = (PerPicture("key", ["a", "b"], np.array([[x], [x]]), mean, low_is_best=True) for x in (0.1, 0.9))
    assert list(compared({"high": high, "low": low}, Bootstrap())) == ["high"]


def test_an_interval_around_a_maximum_is_without_its_bias():
    """Twenty thresholds at which every box is right by the same chance: the best of them looks better than it is."""
    bootstrap, random, holds = Bootstrap(replicates=300), np.random.default_rng(0), {"middle": 0, "around": 0}
    samples = [f"{i}" for i in range(100)]
    for _ in range(60):
        right = (random.random((100, 20)) < 0.5).astype(float)
        replicates = bootstrap.replicated(right, lambda means: means.max(axis=1), samples)
        intervals = {
            "middle": bootstrap.quantiles(replicates),
            "around": bootstrap.around(float(right.mean(axis=0).max()), replicates, samples),
        }
        for name, (low, high) in intervals.items():
            holds[name] += low <= 0.5 <= high
    assert holds["middle"] < 20
    assert holds["around"] > 30
    low, high = bootstrap.around(1.0, np.ones(300), samples)
    assert (round(low, 3), high) == (0.963, 1)  # Wilson's of 100 of 100


def test_latex_has_the_texts_escaped_and_the_best_of_several_bold():
    rows = [
        [Cell("mini_grad_cam"), Cell("69.13", 69.131), Cell("0.3 %", 0.3), Cell("0.02", 0.02)],
        [Cell("cam"), Cell("69.13", 69.128), Cell("0.4 %", 0.4), Cell("0.01", 0.01)],
        [Cell("random"), Cell("–"), Cell("0.5 %", 0.5), Cell("0.03", 0.03)],
    ]
    titles, best = ["setting", "MaxBoxAcc", "at τ", "ECE"], ["high", "", "low"]
    lines = to_latex(titles, rows, best).splitlines()
    assert lines[0] == r"\begin{tabular}{lrrr}"
    assert lines[2] == r"setting & MaxBoxAcc & at $\tau$ & ECE \\"
    assert lines[4] == r"mini\_grad\_cam & \textbf{69.13} & 0.3 \% & 0.02 \\"
    assert lines[5] == r"cam & \textbf{69.13} & 0.4 \% & \textbf{0.01} \\"
    assert lines[6] == r"random & -- & 0.5 \% & 0.03 \\"
    assert "textbf" not in to_latex(titles, rows[:1], best)


def test_what_is_written_has_no_noise_of_floats():
    values = {
        "a": [57.99999999999999, 56.00000023841858],
        "b": (0.41600000000000004, 1.23456789e-9),
        "c": [True, 12345678],
    }
    assert seven_digits(values) == {"a": [58, 56], "b": [0.416, 1.234568e-9], "c": [True, 12345678]}

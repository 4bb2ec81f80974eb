"""Runs: they count, stop at the next step, and end when nobody waits for them any more."""

import gc
import threading

import pytest

from cliploc.web.runs import Run, Runs, StoppedError


class Work:
    """Steps until it is stopped; a test waits for its first."""

    def __init__(self):
        self.started = threading.Event()
        self.ended = threading.Event()

    def __call__(self, reporter):
        try:
            while True:
                reporter.masked(2, 5)
                self.started.set()
        finally:
            self.ended.set()


def test_a_run_counts_and_gives_what_the_work_gave():
    run = Run(lambda reporter: (reporter.masked(16, 7), reporter.masked(7, 0), "maps")[-1])
    assert (run.wait(60), run.steps, run.bank, run.result()) == (True, (23, 0), (0, 0), "maps")
    run = Run(lambda reporter: (reporter.bank(0, 128), reporter.bank(64, 64), 1 / 0))
    assert (run.wait(60), run.steps, run.bank) == (True, (0, 0), (64, 64))
    with pytest.raises(ZeroDivisionError):
        run.result()


@pytest.mark.parametrize("part", ["phase", "images", "masked", "bank"])
def test_a_stopped_run_ends_at_whatever_its_work_reports(part):
    stopped, news = threading.Event(), {"phase": ("writing",), "images": (1,), "masked": (1, 0), "bank": (1, 0)}[part]

    def work(reporter):
        stopped.wait(10)
        getattr(reporter, part)(*news)

    run = Run(work)
    run.stop()
    stopped.set()
    with pytest.raises(StoppedError, match="as you asked"):
        run.result()


def test_a_visitor_stops_only_his_own_runs():
    runs, first, second, other = Runs(), Work(), Work(), Work()
    of_another = runs.begin("b", other)
    of_first = runs.begin("a", first)
    mine = runs.begin("a", second)
    assert second.started.wait(10)
    assert not first.ended.is_set()
    third = runs.begin("a", lambda reporter: "maps", alone=True)
    assert first.ended.wait(10)
    assert second.ended.wait(10)
    again = runs.begin("a", second)
    runs.stop("a")
    with pytest.raises(StoppedError):
        again.result()
    assert third.result() == "maps"
    assert not other.ended.is_set()
    runs.stop("nobody")
    assert not other.ended.wait(0.1)
    del of_another, of_first, mine  # whoever has a run keeps it


def test_what_a_run_found_is_not_kept_when_nobody_has_it():
    runs = Runs()
    assert runs.begin("a", lambda reporter: "maps").result() == "maps"
    gc.collect()
    assert not list(runs._runs)

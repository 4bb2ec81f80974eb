"""Runs: they count, wait for their turn, stop at the next step, and end with the server. Old uploads go."""

import io
import os
import threading

import pytest

from cliploc.web.guard import RefusedError
from cliploc.web.runs import AT_ONCE, Runs, StoppedError
from cliploc.web.uploads import Store


class Work:
    """Steps until it is stopped; a test waits for its first."""

    def __init__(self):
        self.started = threading.Event()

    def __call__(self, reporter):
        while True:
            reporter.masked(2, 5)
            self.started.set()


@pytest.fixture
def runs():
    made = Runs(queue=1)
    yield made
    made.end()


def test_a_run_counts_and_gives_what_the_work_gave(runs):
    run = runs.begin("a", lambda reporter: (reporter.masked(16, 7), reporter.masked(7, 0), "maps")[-1])
    assert (run.future.result(60), run.steps, run.bank) == ("maps", (23, 0), (0, 0))
    run = runs.begin("a", lambda reporter: (reporter.bank(0, 128), reporter.bank(64, 64), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        run.future.result(60)
    assert (run.steps, run.bank) == ((0, 0), (64, 64))


@pytest.mark.parametrize("part", ["phase", "images", "masked", "bank"])
def test_a_stopped_run_ends_at_whatever_its_work_reports(runs, part):
    stopped, news = threading.Event(), {"phase": ("writing",), "images": (1,), "masked": (1, 0), "bank": (1, 0)}[part]
    run = runs.begin("a", lambda reporter: (stopped.wait(10), getattr(reporter, part)(*news)))
    run.stop()
    stopped.set()
    with pytest.raises(StoppedError, match="as you asked"):
        run.future.result(60)


def test_a_new_run_ends_the_visitors_last_one_and_no_others(runs):
    work = Work()
    other, mine = runs.begin("b", work), runs.begin("a", Work())
    assert work.started.wait(10)
    assert runs.begin("a", lambda _: "maps").future.result(60) == "maps"
    assert (mine.future.done(), other.future.done()) == (True, False)


def test_a_few_run_some_wait_the_others_are_refused_and_all_end_with_the_server(runs):
    all_of_them = [runs.begin("", Work()) for _ in range(AT_ONCE + 1)]
    with pytest.raises(RefusedError, match="Too many requests are waiting"):
        runs.begin("", Work())
    assert all_of_them[-1].began is None
    runs.end()
    for run in all_of_them:
        with pytest.raises(StoppedError):
            run.future.result(60)
    with pytest.raises(StoppedError, match="shutting down"):
        runs.begin("", Work())


# -------------------------------------------------------------------------------------------------------------- uploads
def test_what_is_old_goes(tmp_path):
    store = Store(tmp_path, {}, seconds=250)
    numbers = [store.keep(io.BytesIO(b"abc"), f"{ago}.jpg") for ago in (300, 200)]
    for number, ago in zip(numbers, (300, 200), strict=True):
        folder = store.picture(number).parent
        os.utime(folder, (0, folder.stat().st_mtime - ago))
    store.sweep()
    assert store.picture(numbers[1]).read_bytes() == b"abc"
    with pytest.raises(RefusedError, match="no longer: upload it"):
        store.picture(numbers[0])

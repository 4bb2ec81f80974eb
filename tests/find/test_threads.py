"""Work done ahead of who takes the results: order, threads, errors and giving up."""

import threading
from contextlib import closing

import pytest

from cliploc.errors import ModelError
from cliploc.find.running import computed_ahead


def threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("cliploc-tower")]


def silent(*_):
    return None


def ahead_of(items, work, told=silent, halved=silent):
    """`computed_ahead`, of batches of one item; all is made in `work`."""

    def worked(batch, tell):
        made = work(batch[0], tell)
        return lambda: made

    return closing(computed_ahead(([item] for item in items), worked, told, halved))


@pytest.mark.parametrize("count", [0, 1, 5])
def test_items_keep_their_order_and_the_next_ones_job_runs_in_a_thread_of_its_own(count):
    where = []

    def work(item, _):
        where.append(threading.current_thread().name.startswith("cliploc-tower"))
        return item**2

    with ahead_of(range(count), work) as ahead:
        assert list(ahead) == [([n], n * n) for n in range(count)]
    assert where == [n > 0 for n in range(count)]  # so a single item starts none
    assert threads() == []


@pytest.mark.parametrize("of", ["items", "a job"])
def test_an_error_comes_after_the_results_before_it(of):
    def items():
        yield from (0, 1)
        if of == "items":
            raise OSError("broken")
        yield 2

    def work(item, _):
        if item == 2:
            raise OSError("broken")
        return item

    got = []
    with pytest.raises(OSError, match="broken"), ahead_of(items(), work) as ahead:
        got += (result for _, result in ahead)
    assert got == [0, 1]


def test_an_item_that_the_model_fails_on_is_lost_alone_but_not_all_of_them_one_by_one():
    def work(batch, _):
        if bad & {*batch}:
            raise ModelError(f"no number for {min(bad & {*batch})}")
        return lambda: sum(batch)

    bad = {1, 3}
    with closing(computed_ahead(iter([[0, 1, 2], [3]]), work, silent, silent, apart=True)) as ahead:
        assert [(items, str(made)) for items, made in ahead] == [
            ([0], "0"),
            ([1], "no number for 1"),
            ([2], "2"),
            ([3], "no number for 3"),
        ]
    bad, got = {*range(20)}, []
    with pytest.raises(ModelError):
        got += computed_ahead(iter([[*range(20)]]), work, silent, silent, apart=True)
    assert len(got) == 8, "then the model itself seems to be broken"


def test_leaving_early_ends_a_job_when_it_next_tells_something():
    begun, ended = threading.Event(), threading.Event()

    def work(item, tell):
        if item == 1:
            begun.set()
            try:
                while True:
                    tell(0, 0)
            finally:
                ended.set()
        return item

    with ahead_of([0, 1], work) as ahead:
        next(iter(ahead))
        assert begun.wait(10)
    assert ended.is_set()
    assert threads() == []

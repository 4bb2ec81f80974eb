"""Work done ahead of who takes the results, and names some at a time: order, threads, errors, and the same results."""

import pickle
import threading
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cliploc.boxes import BoxRule
from cliploc.errors import ModelError, UsageError
from cliploc.find.running import computed_ahead
from cliploc.localizer import Localizer
from tests.test_localizer import WIDE, build, photo, same
from tests.tiny import KINDS, tower


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


# --------------------------------------------------------------------------------------------------- thousands of names
NAMES = ["red", "green", "blue", "nothing|grey", "a wall", "dusk", "red thing"]
NARROW = photo((20, 60), red=(4, 4, 12, 12))


def with_lots(localizer: Any, values: int | None) -> Any:
    """The localizer, with maps of so many values in memory together."""
    localizer.flow.steps.values_at_once = values
    return localizer


@settings(max_examples=4, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=7, unique=True),
    lot=st.integers(1, 8),
    options=st.fixed_dictionaries(
        {
            "windows": st.sampled_from([(), (2,), (1.5, 2)]),
            "scales": st.sampled_from([(1,), (1, 1.5)]),
            "flip": st.booleans(),
            "resize": st.sampled_from(["squash", "pad"]),
            "refine": st.sampled_from([[], ["affinity"], ["pamr"], ["lposs", "pamr"]]),
            "min_presence": st.sampled_from([0, 0.5]),
        }
    ),
    absent=st.booleans(),
)
def test_no_result_depends_on_which_names_are_worked_on_together(backbones, kind, names, lot, options, absent):
    localizer = build(backbones[kind], method="grad_cam", **options)
    pictures = [WIDE, NARROW]
    together = list(with_lots(localizer, 10**9).stream(pictures, names, absent_maps=absent))
    apart = list(with_lots(localizer, lot * 32 * 32).stream(pictures, names, absent_maps=absent))
    light = list(localizer.stream(pictures, names, absent_maps=absent, keep_maps=False))
    for one, other, without in zip(apart, together, light, strict=True):
        same(one, other)
        same(replace(without, maps=other.maps, has_maps=True), other)
        assert without.maps.shape == other.maps.shape
        assert without.maps.strides == (0, 0, 0)  # a single zero


@pytest.mark.filterwarnings("error")
def test_maps_that_were_not_kept_are_zeros_without_a_warning():
    localizer = Localizer(tower("gap_cnn", (8, 8)), method="cam", min_presence=0)
    [found] = localizer.stream(
        [np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)], ["thing"], keep_maps=False
    )
    assert found.found.all()
    assert not found.heatmaps.any()
    of_picture = found.maps_over_picture((8, 9))
    assert (of_picture.shape, of_picture.any()) == ((1, 8, 9), False)
    assert len(found.to_supervision(masks=False)) == len(found.boxes)
    again = pickle.loads(pickle.dumps(found))
    assert again.maps.base.size == 1  # else ten thousand names are gigabytes again
    assert again.heatmaps.shape == found.heatmaps.shape
    for of_maps in (lambda: found.masks, found.label_map, found.to_supervision, lambda: found.boxes_by(BoxRule(0.3))):
        with pytest.raises(UsageError, match="leave keep_maps=False out"):
            of_maps()

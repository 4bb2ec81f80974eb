"""A short run of every target; `make fuzz MINUTES=10` is a longer one."""

import functools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import CORPUS, TARGETS, damaged


@functools.cache
def seeds_of(name: str) -> list[bytes]:
    return TARGETS[name].seeds()


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_read(name):
    assert seeds_of(name)
    for seed in seeds_of(name):
        TARGETS[name].read(seed)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_files_are_read_or_refused(name, data):
    target = TARGETS[name]
    seed = data.draw(st.sampled_from(seeds_of(name)))
    target.read(data.draw(damaged(seed, target.text)))


def test_every_folder_of_the_corpus_has_a_target():
    assert {one.name for one in CORPUS.iterdir()} <= TARGETS.keys()

"""Times calls that take turns, so that a busy machine slows all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

Times = list[tuple[float, float]]  # seconds by the clock, and of the processor


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """By the clock, and of the processor."""
    start, busy = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - busy


def in_turns(calls: Mapping[str, Callable[[], object]], rounds: int, limit: float = math.inf) -> dict[str, Times]:
    """The seconds of each call in each round; every second round goes through them backwards.

    Args:
        calls: name → call; each has been warmed up.
        rounds: how many, at least one.
        limit: processor seconds after which no further round begins.
    """
    times: dict[str, Times] = {name: [] for name in calls}
    start, order = time.process_time(), list(calls.items())
    for index in range(rounds):
        if index and time.process_time() - start > limit:
            break
        for name, call in order if index % 2 == 0 else order[::-1]:
            times[name].append(seconds(call))
    return times

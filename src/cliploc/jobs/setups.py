"""Loads what the workers of all benchmarks hold for each setup; setups of one model share its tower."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from cliploc.jobs.plan import ModelSetup, Setting
from cliploc.localizer import Localizer

T = TypeVar("T")


def load_setups(
    setups: Sequence[ModelSetup],
    settings: Sequence[Setting],
    load: Callable[[ModelSetup, list[Setting], Localizer | None], T],
    localizer_of: Callable[[T], Localizer],
) -> list[T]:
    """What is loaded for each setup that a setting uses.

    Args:
        setups: the run's setups.
        settings: the run's settings.
        load: takes a setup, its settings, and a localizer whose tower it may use; None where it has to load its own.
        localizer_of: the localizer of what was loaded.
    """
    loaded: list[T] = []
    built: dict[tuple[object, ...], Localizer] = {}
    for index, setup in enumerate(setups):
        chosen = [one for one in settings if one.setup == index]
        if chosen:
            of = setup.options
            key = (of.model, of.pretrained, of.device, of.precision)
            loaded.append(load(setup, chosen, built.get(key)))
            built.setdefault(key, localizer_of(loaded[-1]))
    return loaded

"""Loads what the workers of all benchmarks hold for each setup; setups of one model share its tower."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from cliploc.errors import UsageError
from cliploc.jobs.folder import plain
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
        load: takes a setup, its settings, and a localizer whose tower it may use, or None if it has to load its own.
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


class SetupWithoutBoxes(ABC):
    """A setup of a task that has no boxes: its localizer, with the settings and methods that it serves.

    Attributes:
        note: a remark on the names that its model does not know; "" for none.
    """

    note: str = ""

    @abstractmethod
    def describe(self) -> Iterable[dict[str, Any]]:
        """Everything that the numbers of each of its settings depend on, besides the protocol; see `described`."""

    def __init__(self, setup: ModelSetup, chosen: Sequence[Setting], built: Localizer | None, task: str) -> None:
        self.setup, self.settings = setup, tuple(chosen)
        self.methods = {one.method: one.options for one in chosen}
        if len(self.methods) < len(chosen):
            raise UsageError(
                f"expected each method once in a setup, got one twice: leave thresholds of boxes out of {task}"
            )
        options = setup.options.but(
            model=setup.options.model if built is None else built.backbone,
            method=chosen[0].method,
            method_options=chosen[0].options,
            text_cache=False,  # cached embeddings were computed in other batches, and can differ in the last bit
        )
        self.localizer = Localizer(**options.given())

    def described(self, setting: Setting, identity: Iterable[str], **more: Any) -> dict[str, Any]:
        """Everything that a setting's numbers depend on, as plain values for JSON.

        Args:
            identity: the keys of the localizer's description that the numbers depend on.
        """
        said = self.localizer.describe(setting.method, setting.options)
        exemplars = {"exemplars": said["exemplars"]} if said["exemplars"] else {}  # they change the names' embeddings
        return plain(
            {
                "id": setting.id,
                "model": self.setup.model,  # as typed
                **{key: said[key] for key in identity},
                **exemplars,
                "pretrained": self.setup.options.pretrained,
                "head": self.setup.head,
                "prompts": self.setup.prompts,
                **more,
            }
        )


L = TypeVar("L", bound=SetupWithoutBoxes)


class WorkerWithoutBoxes(Generic[L]):
    """What the workers of tasks without boxes share: they hold something for each setup, and end with the process."""

    def __init__(
        self,
        setups: Sequence[ModelSetup],
        settings: Sequence[Setting],
        load: Callable[[ModelSetup, list[Setting], Localizer | None], L],
    ) -> None:
        self._order = tuple(one.id for one in settings)
        self._setups = load_setups(setups, settings, load, lambda loaded: loaded.localizer)

    def describe(self) -> list[dict[str, Any]]:
        """For each setting everything that its numbers depend on, besides the protocol, as plain values for JSON."""
        by_id = {one["id"]: one for setup in self._setups for one in setup.describe()}
        return [by_id[one] for one in self._order]

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the names that models do not know."""
        return tuple(dict.fromkeys(setup.note for setup in self._setups if setup.note))

    def close(self) -> None:
        """Nothing to end: threads end with each stream."""

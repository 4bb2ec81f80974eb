"""A method with its options, trained heads and box rule, checked against the tower it is to run on."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from cliploc.boxes import BoxRule
from cliploc.errors import UsageError
from cliploc.methods import EnsembleRule, Method, TrainedHead, find, fitting, resolve_options, unfit_reason
from cliploc.refine import Refinement
from cliploc.towers.tower import Backbone, Guide, Needs


@dataclass(frozen=True)
class Task:
    """A method as it runs on batches."""

    method: Method  # the method, or an ensemble of several
    options: Mapping[str, Any]  # of its function, with trained heads instead of their files
    box_rule: BoxRule  # how its maps become boxes

    @property
    def needs(self) -> Needs:
        """What it reads from the trace."""
        return self.method.needs(**self.options)

    @property
    def refined(self) -> bool:
        """Whether refinements follow it; not so for a map that is the same for every picture, which must stay so."""
        return self.method.reads_picture

    @property
    def heads(self) -> dict[str, TrainedHead]:
        """The trained heads among its options."""
        return {key: value for key, value in self.options.items() if isinstance(value, TrainedHead)}

    def reason(self, words: tuple[str, ...], absent: str | None) -> str | None:
        """Why a name is not found: `absent`, or, with a closed head, why the head does not know the name."""
        return absent if self._closed_head is None else self._closed_head.unknown_reason(words)

    def reasons(
        self, synonyms: Sequence[tuple[str, ...]], absent: Sequence[str | None], not_flat: Sequence[bool]
    ) -> tuple[str | None, ...]:
        """Why each name of a picture is not found; None where it is. Boxes are not considered here."""
        flat = f"{self.method.name} finds no evidence for it: its map is flat"
        said = map(self.reason, synonyms, absent)
        return tuple(flat if why is None and not some else why for why, some in zip(said, not_flat, strict=True))

    @cached_property
    def _closed_head(self) -> TrainedHead | None:
        """The first of them; kept, because each name of each picture asks for it."""
        return next((head for head in self.heads.values() if head.closed), None)


def members(method: Method) -> tuple[Method, ...]:
    """The methods that an ensemble joins; a method by itself."""
    return method.members or (method,)


class TaskMaker:
    """Makes tasks for one tower; `own_threshold`: each method's own, as none was given; `head`: for its method."""

    def __init__(
        self,
        backbone: Backbone,
        ensemble: EnsembleRule,
        head: tuple[str, TrainedHead] | None,
        box_rule: BoxRule,
        own_threshold: bool,
        steps: tuple[Refinement, ...],
        guide: Guide | None = None,
    ) -> None:
        self._backbone, self._ensemble, self._head = backbone, ensemble, head
        self._box_rule, self._own_threshold, self._steps = box_rule, own_threshold, steps
        self._guided = guide is not None

    def make(self, spec: str, given: Mapping[str, Any]) -> Task:
        """The task of a method, or of several joined by "+", with these options."""
        method = find(spec, self._ensemble)
        options = self._with_heads(method, resolve_options(method, given))
        self._refuse_unfit(method, options)
        task = Task(method, options, self._rule_of(method))
        _ = task.needs  # refuses options outside their range before a picture is read
        return task

    def _refuse_unfit(self, method: Method, options: Mapping[str, Any]) -> None:
        with_head = {m.name for m in members(method) if options.get(f"{m.name}.head" if method.members else "head")}
        reason = unfit_reason(method, self._backbone, options, with_head, self._guided)
        if reason is None:
            return
        if unfit_reason(method, self._backbone, trained=with_head, guided=self._guided) is None:
            raise UsageError(f"{reason}: leave the option out, or choose another model")
        trainable = {member.name for member in members(method) if "head" in member.options}
        would_do = unfit_reason(method, self._backbone, trained=trainable, guided=self._guided) is None
        more = ", or give it a head trained on this tower" if would_do else ""
        raise UsageError(f"{reason}: use one of {', '.join(fitting(self._backbone, guided=self._guided))}{more}")

    def named_options(self, task: Task, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options of a task, with the defaults of those not given; a trained head is named by its file."""
        files = {key: value for key, value in resolve_options(task.method, given).items() if value is not None}
        named = {**task.method.options, **task.options, **files}
        return {key: self._name_of(value) if isinstance(value, TrainedHead) else value for key, value in named.items()}

    def _name_of(self, head: TrainedHead) -> str:
        return self._head[0] if self._head is not None and head is self._head[1] else "a head in memory"

    def _rule_of(self, method: Method) -> BoxRule:
        """The box rule; if no threshold was given, with the method's own, adapted to the refinements."""
        if not self._own_threshold:
            return self._box_rule
        threshold = method.threshold
        for step in self._steps if method.reads_picture else ():
            threshold = step.threshold(self._backbone, threshold)
        return replace(self._box_rule, threshold=threshold)

    def _with_heads(self, method: Method, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with trained heads instead of their files, and the localizer's own head where it fits."""
        loaded = dict(options)
        for member in members(method):
            if "head" not in member.options:
                continue
            key = f"{member.name}.head" if method.members else "head"
            if isinstance(loaded.get(key), str | os.PathLike):
                from cliploc.find.heads import load_head

                loaded[key] = load_head(loaded[key], self._backbone)
            elif loaded.get(key) is None and self._head is not None and self._head[1].method == member.name:
                loaded[key] = self._head[1]
            trained = loaded.get(key)
            if trained is not None and trained.method != member.name:
                raise UsageError(
                    f"{member.name} takes a head trained for it, got one trained for {trained.method}: choose another "
                    "head or method"
                )
        return loaded

"""A method with its options, trained heads and box rule, checked against the tower it is to run on."""

import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from cliploc.boxes import BoxRule
from cliploc.errors import UsageError
from cliploc.find.heads import load_head, read_config
from cliploc.find.recipes import Recipe, recipe_of
from cliploc.methods import Method, TrainedHead, find, fitting, resolve_options, unfit_reason
from cliploc.options import Options, short
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
        reasons = zip(map(self.reason, synonyms, absent), not_flat, strict=True)
        return tuple(flat if why is None and not varied else why for why, varied in reasons)

    @cached_property
    def _closed_head(self) -> TrainedHead | None:
        """The first of them; kept, because each name of each picture asks for it."""
        return next((head for head in self.heads.values() if head.closed), None)


def members(method: Method) -> tuple[Method, ...]:
    """The methods that an ensemble joins; a method by itself."""
    return method.members or (method,)


class TaskMaker:
    """Makes tasks for one tower; without a threshold among the options, each method has its default."""

    def __init__(
        self,
        backbone: Backbone,
        options: Options,
        head: tuple[str, TrainedHead] | None,  # a trained head and its file, for its method
        steps: tuple[Refinement, ...],
        guide: Guide | None = None,
    ) -> None:
        self._backbone, self._options, self._head, self._steps = backbone, options, head, steps
        self._guided = guide is not None

    def of(self, methods: Sequence[str] | Mapping[str, Mapping[str, Any]]) -> dict[str, Task]:
        """The task of each method; the keys are the entries of `methods`."""
        if isinstance(methods, str) or not isinstance(methods, Sequence | Set | Mapping) or not methods:
            raise UsageError(f"expected a list of methods, got {short(methods)}: write ['cam']")
        options = methods if isinstance(methods, Mapping) else {spec: {} for spec in methods}
        return {spec: self.make(spec, of_method) for spec, of_method in options.items()}

    def make(self, spec: str, method_options: Mapping[str, Any]) -> Task:
        """The task of a method, or of several joined by "+", with these options."""
        method = find(spec)
        options = self._with_heads(method, resolve_options(method, method_options))
        self._check_fit(method, options)
        task = Task(method, options, self._rule_of(method))
        _ = task.needs  # refuses options outside their range before a picture is read
        return task

    def _check_fit(self, method: Method, options: Mapping[str, Any]) -> None:
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

    def named_options(self, task: Task, method_options: Mapping[str, Any]) -> dict[str, Any]:
        """All options of a task, defaults too; a trained head is named by its file."""
        options = resolve_options(task.method, method_options)
        files = {key: value for key, value in options.items() if value is not None}
        named = {**task.method.options, **task.options, **files}
        return {key: self._name_of(value) if isinstance(value, TrainedHead) else value for key, value in named.items()}

    def _name_of(self, head: TrainedHead) -> str:
        return self._head[0] if self._head is not None and head is self._head[1] else "a head in memory"

    def _rule_of(self, method: Method) -> BoxRule:
        """The box rule; by default with the method's threshold, adapted to the refinements."""
        threshold = method.threshold
        if method.threshold_preset:
            return replace(BoxRule.of(self._options, threshold), threshold=threshold)
        for step in self._steps if method.reads_picture else ():
            threshold = step.threshold(self._backbone, threshold)
        return BoxRule.of(self._options, threshold)

    def _with_heads(self, method: Method, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with trained heads instead of their files, and the localizer's head where it fits."""
        loaded = dict(options)
        for member in members(method):
            if "head" not in member.options:
                continue
            key = f"{member.name}.head" if method.members else "head"
            if isinstance(loaded.get(key), str | os.PathLike):
                loaded[key] = load_head(loaded[key], self._backbone)
            elif loaded.get(key) is None and self._head is not None and self._head[1].method == member.name:
                loaded[key] = self._head[1]
            trained = loaded.get(key)
            if trained is not None and trained.method != member.name:
                got = f"one trained for {trained.method}: choose another head or method"
                raise UsageError(f"{member.name} takes a head trained for it, got {got}")
        return loaded


def what_runs(options: Options) -> tuple[Recipe | None, Method, str | None]:
    """The recipe, unless a method is named, the method, and the file of its trained head."""
    file = None if options.head is None else os.fspath(options.head)
    trained_for = None if file is None else read_config(file).method
    named = options.method or trained_for
    if named is not None and options.recipe is not None:
        both = f"{named} and {options.recipe}"
        raise UsageError(f"expected a method or a recipe, got {both}: a named method runs as published")
    recipe = None if named is not None else recipe_of(options.model, options.recipe or "default")
    method = find(recipe.method if recipe else str(named))
    if trained_for is not None and trained_for not in [member.name for member in members(method)]:
        raise UsageError(f"{file} is trained for {trained_for}, got method {method.name}: use {trained_for}")
    return recipe, method, file

"""The plan of a benchmark: a grid of models, prompts, methods and box rules, expanded to a list of settings."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cliploc.errors import UsageError
from cliploc.find.recipes import Recipe
from cliploc.options import BENCHMARK, Options
from cliploc.runs.engine import Shard

SHARD = 32  # samples that are computed and written together; rounded up to whole batches


@dataclass(frozen=True)
class ModelSetup:
    """A model with its options, everything except the method. One forward pass serves all methods of a setup."""

    options: Options = BENCHMARK  # a `Setting` adds the method and its options; a head's method is its own
    prompts: str = "default"  # name of the templates

    @property
    def model(self) -> str:
        """The model's name."""
        return self.options.model if isinstance(self.options.model, str) else self.options.model.name

    @property
    def head(self) -> str | None:
        """The file of a trained head."""
        return None if self.options.head is None else os.fspath(self.options.head)


@dataclass(frozen=True)
class Setting:
    """One setting of a benchmark: a setup and a method."""

    id: str  # short, unique in the run, usable as a file name
    setup: int  # index of the setup in the run
    method: str  # as `cliploc.methods.find` takes it: "cam+layer_cam", "grad_cam(block=-3)"
    options: Mapping[str, Any] = field(default_factory=dict)  # options of the method


def expand_grid(
    setups: Sequence[ModelSetup],  # models × prompts
    methods: Sequence[str],
    # why a method does not run on a setup; None if it runs, "" to leave it out without a line
    unfit_reason: Callable[[ModelSetup, str], str | None],
    # function method → its options; raises a `UsageError` for an option that the method does not have
    options: Callable[[str], Mapping[str, Any]] = lambda _: {},
    # methods without a model, evaluated once for each model. Baselines in `methods` are not added again.
    baselines: Sequence[str] = (),
    # for each setup, what runs there where no method is asked for; the setup has the recipe's options already
    recipes: Sequence[Recipe | None] = (),
    prompts: str = "default",  # those that ids do not name
) -> tuple[tuple[Setting, ...], tuple[str, ...]]:
    """The settings of a grid of setups and methods, all combined, and a line for each one that was left out."""
    for what, values in (("method", methods), ("model", setups)):
        if twice := [value for place, value in enumerate(values) if value in values[:place]]:
            name = twice[0].model if isinstance(twice[0], ModelSetup) else twice[0]
            raise UsageError(f"expected each {what} once, got {name} twice: remove the duplicate")
    chosen: list[Setting] = []
    left_out: list[str] = []
    for index, setup in enumerate(setups):
        recipe = recipes[index] if recipes and not methods else None
        for method in methods if recipe is None else (recipe.method,):
            if (reason := unfit_reason(setup, method)) is not None:
                left_out += [reason] if reason else []
                continue
            name = _id(setup, method if recipe is None else f"{recipe.name}-recipe", prompts)
            chosen.append(Setting(name, index, method, dict(options(method))))
    if not chosen:
        raise UsageError((left_out or ["expected the method that the head is trained for"])[0])
    # Baselines are for the first setup of each model, as prompts and heads do not change them.
    used, seen = {setting.setup for setting in chosen}, set[tuple[str, str | None]]()
    for index, setup in enumerate(setups):
        model = (setup.model, setup.options.pretrained)
        if index in used and model not in seen and setup.head is None:
            seen.add(model)
            extra = [baseline for baseline in baselines if baseline not in methods]
            chosen += [Setting(_id(setup, baseline, prompts), index, baseline) for baseline in extra]
    ids = Counter(setting.id for setting in chosen)
    taken: Counter[str] = Counter()
    unique = []
    for setting in chosen:
        taken[setting.id] += 1
        unique.append(setting if ids[setting.id] == 1 else replace(setting, id=f"{setting.id}-{taken[setting.id]}"))
    return tuple(unique), tuple(dict.fromkeys(left_out))


def _id(setup: ModelSetup, method: str, usual: str) -> str:
    """A setting's id: model, method, and what is not the default, so that it stays when settings are added."""
    weights, prompts = setup.options.pretrained, setup.prompts
    words = [setup.model, weights and weights.rsplit("/", 1)[-1], method]
    words += [prompts if prompts != usual else None, setup.head and Path(setup.head).stem]
    shortened = (re.sub(r"[^\w.+=-]+", "-", word, flags=re.ASCII).strip("-.")[:40] for word in words if word)
    return "_".join(word or "x" for word in shortened)


def shard_size(batch_size: int, about: int = SHARD) -> int:
    """The number of samples in a shard: about `about`, but whole batches, so that no batch is in two shards."""
    return -(-about // batch_size) * batch_size


def shards_of(samples: Sequence[Any], size: int) -> Iterator[Shard]:
    """Splits a dataset's samples into shards, in their order."""
    for index, start in enumerate(range(0, len(samples), size)):
        yield Shard(index, tuple(samples[start : start + size]))

"""The plan of a benchmark: a grid of models, prompts, methods and box rules, expanded to a list of settings."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cliploc.errors import UsageError
from cliploc.find.recipes import Recipe
from cliploc.options import BENCHMARK, Options
from cliploc.runs.engine import Shard

if TYPE_CHECKING:
    from cliploc.localizer import Localizer

SHARD = 32  # samples that are computed and written together; rounded up to whole batches


@dataclass(frozen=True)
class ModelSetup:
    """A model with its options, everything except the method. One forward pass serves all methods of a setup."""

    options: Options = BENCHMARK  # a `Setting` adds method, method options and threshold; a head's method is its own
    prompts: str = "default"  # name of the templates

    def described(self) -> dict[str, Any]:
        """How it was asked for, as the manifest has it."""
        return {
            "model": self.model,  # as typed
            "pretrained": self.options.pretrained,
            "head": self.head,
            "prompts": self.prompts,
        }

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
    """One setting of a benchmark: a setup, a method and a threshold for boxes."""

    id: str  # short, unique in the run, usable as a file name
    setup: int  # index of the setup in the run
    method: str  # a name of `cliploc methods`, or several: "cam+layer_cam"
    options: Mapping[str, Any] = field(default_factory=dict)  # options of the method
    threshold: float | Literal["auto"] | None = None  # τ; None for the method's own


@dataclass(frozen=True)
class Grid:
    """A grid of setups, methods and thresholds, all of which are combined."""

    setups: Sequence[ModelSetup]  # models × prompts
    methods: Sequence[str]  # names, or several joined by "+"
    # function method → its options; raises a `UsageError` for an option that the method does not have
    options: Callable[[str], Mapping[str, Any]] = lambda _: {}
    thresholds: Sequence[float | None] = (None,)  # τ of the boxes; None for each method's own
    # methods without a model, evaluated once for each model at their own fixed τ. Baselines in `methods` are not added
    # again.
    baselines: Sequence[str] = ()
    # for each setup, what runs there where no method is asked for; the setup has the recipe's options already
    recipes: Sequence[Recipe | None] = ()

    def settings(
        self,
        # why a method does not run on a setup; None if it runs, "" to leave it out without a line
        unfit_reason: Callable[[ModelSetup, str], str | None],
    ) -> tuple[tuple[Setting, ...], tuple[str, ...]]:
        """The settings of the grid, and a line for each combination that was left out."""
        for what, values in (("method", self.methods), ("threshold", self.thresholds), ("model", self.setups)):
            if twice := [value for place, value in enumerate(values) if value in values[:place]]:
                raise UsageError(f"expected each {what} once, got {_in_words(twice[0])} twice: remove the duplicate")
        chosen: list[Setting] = []
        left_out: list[str] = []
        for index, setup in enumerate(self.setups):
            recipe = self.recipes[index] if self.recipes and not self.methods else None
            for method in self.methods if recipe is None else (recipe.method,):
                if (reason := unfit_reason(setup, method)) is not None:
                    left_out += [reason] if reason else []
                    continue
                options = dict(self.options(method))
                chosen += [
                    Setting(self._id(setup, method, tau, recipe), index, method, options, tau)
                    for tau in self.thresholds
                ]
        if not chosen:
            raise UsageError((left_out or ["expected the method that the head is trained for"])[0])
        # Baselines are for the first setup of each model, as prompts and heads do not change them.
        used, seen = {setting.setup for setting in chosen}, set[tuple[str, str | None]]()
        for index, setup in enumerate(self.setups):
            model = (setup.model, setup.options.pretrained)
            if index in used and model not in seen and setup.head is None:
                seen.add(model)
                extra = [baseline for baseline in self.baselines if baseline not in self.methods]
                chosen += [Setting(self._id(setup, baseline, None), index, baseline) for baseline in extra]
        ids = Counter(setting.id for setting in chosen)
        taken: Counter[str] = Counter()
        unique = []
        for setting in chosen:
            taken[setting.id] += 1
            unique.append(setting if ids[setting.id] == 1 else replace(setting, id=f"{setting.id}-{taken[setting.id]}"))
        return tuple(unique), tuple(dict.fromkeys(left_out))

    def _id(self, setup: ModelSetup, method: str, threshold: float | None, recipe: Recipe | None = None) -> str:
        """A setting's id: model, method, and everything else that differs between settings of this grid."""
        words = [setup.model]
        if len({other.options.pretrained for other in self.setups if other.model == setup.model}) > 1:
            words.append(setup.options.pretrained or "own")
        words += [method] if recipe is None else [f"{recipe.name}-recipe"]
        if len({setup.prompts for setup in self.setups}) > 1:
            words.append(setup.prompts)
        if setup.head is not None:
            words.append(Path(setup.head).stem)
        if len(self.thresholds) > 1:
            words.append("own" if threshold is None else f"{threshold:g}")
        return "_".join(re.sub(r"[^A-Za-z0-9.+-]+", "-", word).strip("-.")[:40] or "x" for word in words)


def _in_words(value: object) -> str:
    return value.model if isinstance(value, ModelSetup) else "the method's own" if value is None else f"{value}"


def as_setting(localizer: "Localizer") -> tuple[ModelSetup, Setting]:
    """A localizer's own method with all its options, as one setting on its tower, which is not loaded again."""
    options = localizer.options
    taken: dict[str, Any] = {"recipe": None, "method": None, "method_options": {}, "threshold": None}
    setup = ModelSetup(options.but(model=localizer.backbone, **taken))
    return setup, Setting("own", 0, localizer.method.name, options.method_options, options.threshold)


def shard_size(batch_size: int, about: int = SHARD) -> int:
    """The number of samples in a shard: about `about`, but whole batches, so that no batch is in two shards."""
    return -(-about // batch_size) * batch_size


def shards_of(samples: Sequence[Any], size: int) -> Iterator[Shard]:
    """Splits a dataset's samples into shards, in their order."""
    for index, start in enumerate(range(0, len(samples), size)):
        yield Shard(index, tuple(samples[start : start + size]))

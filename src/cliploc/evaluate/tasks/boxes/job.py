"""`run_benchmark`: a grid of settings on true boxes or masks, resumable; see docs/benchmark.md."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, tee
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch

from cliploc.boxes import BoxRule
from cliploc.evaluate.metrics import (
    Bootstrap,
    Metric,
    all_metrics,
    all_numbers,
    joined,
)
from cliploc.evaluate.tasks.judges import JudgedMaps, Judges, MapsToJudge
from cliploc.evaluate.tasks.report import FILES
from cliploc.evaluate.tasks.rows import row_schema
from cliploc.evaluate.tasks.tables import percent
from cliploc.evaluate.tasks.task import (
    BenchmarkResult,
    BenchmarkTask,
    How,
    Manifest,
    Summary,
    Tally,
    class_entries,
    run_task,
)
from cliploc.evaluate.tasks.worker import FAILURES, Judge, JudgedShard, Outcome, thumb
from cliploc.find import prompts
from cliploc.find.heads import read_config
from cliploc.find.prepare import Request, Result
from cliploc.methods import find, fitting, unfit_reason
from cliploc.runs.engine import Shard, failure_reason
from cliploc.runs.evaluation import Row
from cliploc.runs.plan import SHARD, ModelSetup, Setting, shard_size
from cliploc.support.reporter import Reporter, halved_note
from cliploc.towers import models
from cliploc.values import WSOL_SIDE, Dataset, FloatArray, Sample

TOP = 5  # predictions stored for each picture
BYTES = 2**21  # of maps that are sent to a judge at once


def _table(summary: Mapping[str, Summary], _: Manifest) -> list[tuple[str, ...]]:
    """The table of settings, at most 80 columns wide if ids are short."""
    shown = {
        key: number
        for key, number in all_numbers().items()
        if number.column and any(key in numbers for numbers in summary.values())
    }
    titles = ["setting"]
    for number in shown.values():
        titles += [number.column, "at τ"] if number.threshold else [number.column]
    rows = [tuple(titles)]
    for name, numbers in summary.items():
        cells = [name]
        for key, number in shown.items():
            cells.append(percent(numbers.get(key)).text)
            if number.threshold:
                cells.append(f"{numbers[number.threshold]:g}" if number.threshold in numbers else "–")
        rows.append(tuple(cells))
    return rows


def _legend(summary: Mapping[str, Summary], _: Manifest) -> list[str]:
    lines = []
    if any("gt_known" in numbers for numbers in summary.values()):
        tune = not any(numbers.get("best_threshold_is_an_oracle") for numbers in summary.values())
        kind = "a split that may tune" if tune else "the pictures it is reported on: an oracle"
        lines = [
            "percent; GT-known, Top-1 and Top-5 Loc at the setting's own τ;",
            f"MaxBoxAcc at the best τ of {kind}",
        ]
    classified: dict[tuple[str, str], str] = {}
    for name, numbers in summary.items():
        classified.setdefault((percent(numbers.get("top1_cls")).text, percent(numbers.get("top5_cls")).text), name)
    lines += [f"{name}: classification Top-1 {a} Top-5 {b}" for (a, b), name in classified.items() if a != "–"]
    return lines


def summary_columns() -> tuple[str, ...]:
    """All columns that a summary needs; neither thumbnails nor boxes."""
    own = ("sample", "setting", "path", "label", "status", "reason", "predictions")
    return tuple(dict.fromkeys([*own, *(column for metric in all_metrics() for column in metric.columns)]))


TASK = BenchmarkTask(
    "benchmark",
    2,
    FILES,
    row_schema,
    summary_columns,
    lambda setting, run: BoxTally(setting["threshold"], run["dataset"]["role"] == "tune"),
    _table,
    _legend,
)


def run_benchmark(
    dataset: Dataset,
    setups: Sequence[ModelSetup],
    settings: Sequence[Setting],
    out: Path,  # an empty folder, or the folder of a run with the same settings, which is resumed
    *,
    save_maps: bool = False,  # 200 kB for each sample and setting
    # processes that compare maps with boxes; None: one fewer than cores, at least one; 0: a thread of this process
    judges: int | None = None,
    shard: int = SHARD,  # samples that are computed and written together; rounded to whole batches
    **how: Unpack[How],
) -> BenchmarkResult:
    """Benchmarks every setting on a dataset; the reporter gets two phases, "benchmark" and "summary"."""
    pool = Judges(max(1, (os.cpu_count() or 2) - 1) if judges is None else judges)
    judge_of = partial(BoxJudge, class_entries(dataset), pool, out / "maps" if save_maps else None)
    size = shard_size(setups[0].options.batch_size, shard)  # all have the same batch size
    return run_task(
        TASK, judge_of, dataset, setups, settings, out,
        entries={"save_maps": save_maps}, folders=["maps"] if save_maps else [], shard_size=size, **how,
    )  # fmt: skip


def unfit_for_setup(setup: ModelSetup, method: str) -> str | None:
    """Why a method does not run on a setup, as far as that is known without loading the model; for `Grid.settings`."""
    chosen = find(method)
    trained = set() if setup.head is None else {read_config(setup.head).method}
    if trained and chosen.name not in trained:
        return ""
    if ":" in setup.model:  # from a hub or folder: its tower is known only when it is loaded
        return None
    model = models.get(setup.model.replace("/", "-"))
    guided = setup.options.guide is not None
    reason = unfit_reason(chosen, model, trained=trained, guided=guided)
    return None if reason is None else f"{reason}: use one of {', '.join(fitting(model, trained, guided))}"


# ------------------------------------------------------------------------------------------------------------ the judge
@dataclass(frozen=True)
class _Method:
    """A method of a setup, and the settings that make boxes from its maps."""

    name: str
    options: Mapping[str, Any]
    settings: tuple[Setting, ...]
    rules: tuple[BoxRule, ...]
    own: BoxRule  # the localizer's


class BoxJudge(Judge):
    """Makes boxes and predictions, batch by batch, while processes judge the maps of the batches before."""

    def __init__(
        self,
        classes: Sequence[str],  # each as `cliploc.find.prompts.parse` takes it, such as "cat|kitten"
        pool: Judges,
        maps: Path | None,  # folder to save score maps in; None to save none
        *of_setup: Any,  # see `Judge`
    ) -> None:
        super().__init__(*of_setup)
        self._pool, self._saved = pool, maps
        methods: list[_Method] = []
        for name in self.methods:
            settings = tuple(setting for setting in self.settings if setting.method == name)
            options = settings[0].options  # the same for all settings of a method in a setup
            own = self.localizer.box_rule_of(name, options)
            rules = [
                own if setting.threshold is None else replace(own, threshold=setting.threshold) for setting in settings
            ]
            methods.append(_Method(name, options, settings, tuple(rules), own))
        self._methods = tuple(methods)
        self._classes = classes  # by label
        self._embeddings = self.localizer.embed_names(classes).float().cpu()  # [K, D]
        unknown = self.localizer.unknown_names(classes)
        self._unknown = torch.tensor([label in unknown for label in prompts.parse(classes).names])
        self.say_unknown([*unknown], f"{len(classes)} classes", "it never predicts them")

    def describe(self, setting: Setting) -> dict[str, Any]:
        method = next(method for method in self._methods if method.name == setting.method)
        rule = method.rules[method.settings.index(setting)]
        said = self.localizer.describe(method.name, method.options)
        return self.described(
            setting,
            {**said, "baseline": find(method.name).family == "baseline"},
            threshold=_tau(rule),
            threshold_given=setting.threshold is not None,
        )

    def close(self) -> None:
        self._pool.close()

    def stream(self, shards: Iterable[Shard], reporter: Reporter) -> Generator[JudgedShard, None, None]:
        own, fed = tee(shards)
        said: list[str] = []
        results = self._results(fed, self._methods, reporter, said)
        try:
            for shard in own:
                judged, whole = self._judged(shard, results, said, reporter)
                if not whole:
                    results = self._results(copy(own), self._methods, reporter, said)
                yield judged
        finally:
            results.close()

    def _results(
        self, shards: Iterable[Shard], methods: Sequence[_Method], reporter: Reporter, notes: list[str]
    ) -> Generator[Result, None, None]:
        """What the localizer finds in the samples of shards, one after the other; its remarks go to the notes."""
        model = self.setup.model
        return self.localizer.run(
            (
                Request((shard.index, place), sample.path, [self._classes[sample.label]])
                for shard in shards
                for place, sample in enumerate(shard.samples)
            ),
            {method.name: method.options for method in methods},
            reporter=Reporter(
                masked=reporter.masked,
                bank=reporter.bank,
                halved=lambda count: notes.append(f"{model}: {halved_note(count)}"),
            ),
        )

    def _judged(
        self, shard: Shard, results: Generator[Result, None, None], said: list[str], reporter: Reporter
    ) -> tuple[JudgedShard, bool]:
        """Takes a shard's results and sends their maps to the judges; False where a method failed, which ends these."""
        told = 0

        def take(results: Iterator[Result], methods: Sequence[_Method]) -> list[_SampleOutcome]:
            nonlocal told
            outcomes: list[_SampleOutcome] = []
            jobs: list[tuple[_SampleOutcome, MapsToJudge]] = []
            for place, sample in enumerate(shard.samples):
                result = next(results)
                assert result.id == (shard.index, place), f"expected {shard.index}, {place}, got {result.id}"
                outcomes.append(self._outcome(sample, result, methods, jobs))
                if jobs and (sum(job.maps.nbytes for _, job in jobs) >= BYTES or place == len(shard.samples) - 1):
                    future = self._pool.submit([job for _, job in jobs])
                    for at, (outcome, _) in enumerate(jobs):
                        outcome.future, outcome.place = future, at
                    jobs.clear()
                if place >= told:
                    told = place + 1
                    reporter.images(1)
            self._predict(outcomes)
            return outcomes

        notes: list[str] = []
        taken: list[list[_SampleOutcome]] = []  # of all methods, or of each where one failed
        try:
            taken.append(take(results, self._methods))
            notes += said
            whole = True
        except FAILURES as error:
            reason, whole = failure_reason(error), False
            # A method failed, and so did all others in its forward pass: run each alone, so that only one is lost.
            results.close()
            for method in self._methods:
                if len(self._methods) > 1:
                    of_method: list[str] = []
                    alone = self._results([shard], (method,), reporter, of_method)
                    try:
                        taken.append(take(alone, (method,)))
                        notes += of_method
                        continue
                    except FAILURES as error:
                        reason = failure_reason(error)
                    finally:
                        alone.close()
                ids = ", ".join(setting.id for setting in method.settings)
                notes.append(
                    f"{ids} failed on the {len(shard.samples)} samples from {shard.samples[0].id} on: {reason}"
                )
                taken.append([_SampleOutcome((method,), failure=reason) for _ in shard.samples])
        said.clear()

        def outcomes() -> list[Outcome]:
            of_samples = zip(*taken, strict=True)
            return [dict(chain.from_iterable(outcome.of_settings().items() for outcome in of)) for of in of_samples]

        futures = [outcome.future for part in taken for outcome in part if outcome.future is not None]
        return JudgedShard(outcomes, notes, futures), whole

    def _outcome(
        self,
        sample: Sample,
        result: Result,
        methods: Sequence[_Method],
        jobs: list[tuple[_SampleOutcome, MapsToJudge]],
    ) -> _SampleOutcome:
        """The outcome of a sample except the judging of its maps, which is added to the jobs."""
        if result.error is not None:
            return _SampleOutcome(tuple(methods), failure=str(result.error))
        outcome = _SampleOutcome(tuple(methods), embedding=next(iter(result.found.values())).embedding)
        maps = []
        for method in methods:
            localization = result.found[method.name]
            maps.append(localization.maps_over_picture((WSOL_SIDE, WSOL_SIDE))[0])
            small = thumb(localization.maps[0])
            original, of_file = (np.array([*wh] * 2) for wh in (sample.size_wh, localization.image.size))
            for rule in method.rules:
                boxes = localization.boxes if rule == method.own else localization.boxes_by(rule)
                outcome.known.append(
                    {
                        "score": float(localization.scores[0]),
                        "presence": localization.presence_of(0),
                        "found": len(boxes) > 0,
                        "boxes": (boxes.xyxy * original / of_file).astype(np.float32).tolist(),
                        "box_scores": boxes.score.tolist(),
                        "thumb": small,
                    }
                )
        saved = self._saved  # `cliploc evaluate boxes --maps MAPS/SETTING` reads them
        files = [
            [] if saved is None else [saved / setting.id / f"{sample.id}.npy" for setting in method.settings]
            for method in methods
        ]
        thresholds = [[_tau(rule) for rule in method.rules] for method in methods]
        jobs.append((outcome, MapsToJudge(sample, np.stack(maps), thresholds, files)))
        return outcome

    def _predict(self, outcomes: Sequence[_SampleOutcome]) -> None:
        """Adds each picture's best labels that the model knows and their cosines; the first of equal ones."""
        done = [outcome for outcome in outcomes if outcome.embedding is not None]
        if not done:
            return
        # The whole shard at once: the matrix product has the same shape also in a resumed run, so the same last bits.
        embeddings = torch.from_numpy(
            np.stack([outcome.embedding for outcome in done if outcome.embedding is not None])
        )  # [n, D]
        cosines = (embeddings @ self._embeddings.T).masked_fill(self._unknown, -2.0)  # [n, K]
        best = cosines.argsort(descending=True, stable=True)[:, : min(TOP, int((~self._unknown).sum()))]
        for outcome, labels, values in zip(done, best.tolist(), cosines.gather(1, best).tolist(), strict=True):
            outcome.embedding = None
            for known in outcome.known:
                known |= {"predictions": labels or None, "prediction_scores": values}


@dataclass
class _SampleOutcome:
    """The results of one sample by some methods; the judging of its maps may be unfinished."""

    methods: tuple[_Method, ...]
    known: list[Row] = field(default_factory=list)  # for each setting of each method, the columns known so far
    embedding: FloatArray | None = None  # None once predictions were computed from it
    future: Future[list[JudgedMaps]] | None = None
    place: int = 0  # index in the future's results
    failure: str | None = None

    def of_settings(self) -> Outcome:
        """Setting → columns, or why it failed; waits for the judges."""
        ids = [setting.id for method in self.methods for setting in method.settings]
        judged = self.failure or "" if self.future is None else self.future.result()[self.place]
        if isinstance(judged, str):
            return dict.fromkeys(ids, judged)
        columns = chain.from_iterable(judged)
        return {setting: {**known, **of_tau} for setting, known, of_tau in zip(ids, self.known, columns, strict=True)}


def _tau(rule: BoxRule) -> float:
    assert not isinstance(rule.threshold, str)
    return float(rule.threshold)


# ---------------------------------------------------------------------------------------------------------- the numbers
class BoxTally(Tally):
    """Counts the rows of one setting with all metrics, which `cliploc evaluate` uses too."""

    def __init__(self, threshold: float, may_tune: bool) -> None:
        self.threshold, self.may_tune = threshold, may_tune  # whether the pictures may choose a threshold
        self.metrics: list[Metric] = [
            metric.at(threshold if metric.needs_threshold else None) for metric in all_metrics()
        ]

    def add(self, row: Row) -> None:
        # A plugin's metric that was added during the run would have counted only a part of the samples.
        self.metrics = [metric for metric in self.metrics if metric.columns.keys() <= row.keys()]
        for metric in self.metrics:
            if all(row[column] is not None for column in metric.columns):
                metric.add(row["sample"], row, row["label"], row["predictions"])

    def summary(self, counts: Mapping[str, int], bootstrap: Bootstrap) -> Summary:
        """Shares in percent; docs/benchmark.md explains the keys."""
        numbers, facts, per_class = joined(
            metric.summarise(self.may_tune, bootstrap) for metric in self.metrics if len(metric)
        )
        return {
            "threshold": self.threshold,
            "threshold_chosen_on_these_images": False,
            **numbers,
            **facts,
            **counts,
            "per_class": per_class,
        }

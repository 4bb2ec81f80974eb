"""`run_benchmark`: a grid of settings on true boxes or masks, resumable; see docs/benchmark.md."""

import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import tee
from pathlib import Path
from typing import Any, Unpack

import msgspec
import numpy as np
import torch

from cliploc.boxes import BoxRule
from cliploc.evaluate.metrics import TAUS, Bootstrap, MaxBoxAcc, Metric, all_metrics, all_numbers, joined
from cliploc.evaluate.tasks import paired, report, tables, task, worker
from cliploc.evaluate.tasks.measuring import MapsToMeasure, MeasuredMaps, MeasuringPool
from cliploc.evaluate.tasks.rows import PictureRow, box_columns
from cliploc.find import heads, prepare, prompts
from cliploc.methods import find, fitting, unfit_reason
from cliploc.runs import engine, plan, store
from cliploc.support.reporter import Reporter, halved_note
from cliploc.towers import models
from cliploc.values import WSOL_SIDE, Dataset, FloatArray, Sample

TOP = 5  # predictions stored for each picture
BYTES = 2**21  # of maps that are sent to a process at once


def _shown(summary: Mapping[str, task.Summary], _: task.Manifest) -> dict[str, str]:
    """Numbers and their τ, at most 80 columns wide if ids are short."""
    titles: dict[str, str] = {}
    for key, number in all_numbers().items():
        if number.column and any(key in numbers for numbers in summary.values()):
            titles |= {key: number.column, **({number.threshold: "at τ"} if number.threshold else {})}
    return titles


def _legend(summary: Mapping[str, task.Summary], _: task.Manifest) -> list[str]:
    lines = []
    if any("gt_known" in numbers for numbers in summary.values()):
        tune = not any(numbers.get("best_threshold_is_an_oracle") for numbers in summary.values())
        kind = "a split that may tune" if tune else "the pictures it is reported on: an oracle"
        lines = ["percent; GT-known, Top-1 and Top-5 Loc at the setting's own τ;", f"MaxBoxAcc at the best τ of {kind}"]
    return lines


class CountedRow(PictureRow, frozen=True, kw_only=True):
    """What the numbers need of a map, besides the columns of metrics: neither thumbnails nor boxes."""

    label: int = -1
    predictions: list[int] | None = None

    @staticmethod
    def of_metrics() -> Any:
        """With the columns of all metrics."""
        columns = sorted({(column, Any, None) for metric in all_metrics() for column in metric.columns})
        return msgspec.defstruct("MeasuredRow", columns, bases=(CountedRow,), frozen=True, kw_only=True)


TASK = task.BenchmarkTask(
    "benchmark",
    2,
    report.FILES,
    box_columns,
    CountedRow.of_metrics,
    lambda setting, data, _: BoxTally(setting.threshold, data.role == "tune"),
    _legend,
    lambda _: {key: (number.title, number.about) for key, number in all_numbers().items()},
    _shown,
    lambda key, value: tables.percent(value) if key in all_numbers() else tables.decimal(value, 3),
    lambda key, _: "high" if key in all_numbers() else "",
)


def run_benchmark(
    dataset: Dataset,
    setups: Sequence[plan.ModelSetup],
    settings: Sequence[plan.Setting],
    out: Path,  # an empty folder, or the folder of a run with the same settings, which is resumed
    *,
    save_maps: bool = False,  # 200 kB for each sample and setting
    # processes that compare maps with boxes; None: one fewer than cores, at least one; 0: a thread of this process
    workers: int | None = None,
    shard: int = plan.SHARD,  # samples that are computed and written together; rounded to whole batches
    **how: Unpack[task.How],
) -> task.BenchmarkResult:
    """Benchmarks every setting on a dataset; the reporter gets two phases, "benchmark" and "summary"."""
    pool = MeasuringPool(max(1, (os.cpu_count() or 2) - 1) if workers is None else workers)
    evaluator_of = partial(BoxEvaluator, task.class_entries(dataset), pool, out / "maps" if save_maps else None)
    size = plan.shard_size(setups[0].options.batch_size, shard)  # all have the same batch size
    return task.run_task(
        TASK, evaluator_of, dataset, setups, settings, out,
        entries={"save_maps": save_maps}, folders=["maps"] if save_maps else [], shard_size=size, **how,
    )  # fmt: skip


def unfit_for_setup(setup: plan.ModelSetup, method: str) -> str | None:
    """Why a method does not run on a setup, as far as that is known without loading the model; for `expand_grid`."""
    chosen = find(method)
    trained = set() if setup.head is None else {heads.read_config(setup.head).method}
    if trained and chosen.name not in trained:
        return ""
    if ":" in setup.model:  # from a hub or folder: its tower is known only when it is loaded
        return None
    model = models.get(setup.model.replace("/", "-"))
    guided = setup.options.guide is not None
    reason = unfit_reason(chosen, model, chosen.preset, trained, guided)
    return None if reason is None else f"{reason}: use one of {', '.join(fitting(model, trained, guided))}"


# -------------------------------------------------------------------------------------------------------- the evaluator
@dataclass
class _Measuring:
    """One sample by some methods; the measuring of its maps may be unfinished."""

    sample: Sample
    ids: list[str]  # of the settings
    failure: str = ""
    rows: list[store.Row] = field(default_factory=list)  # for each setting, the columns known so far
    embedding: FloatArray | None = None  # [D]
    future: Future[list[MeasuredMaps]] | None = None
    place: int = 0  # index in the future's results

    def outcome(self) -> worker.Outcome:
        """Setting → columns, or why it failed; waits for other processes."""
        judged = self.failure if self.future is None else self.future.result()[self.place]
        if isinstance(judged, str):
            return dict.fromkeys(self.ids, judged)
        return {name: {**row, **of_map} for name, row, of_map in zip(self.ids, self.rows, judged, strict=True)}


class BoxEvaluator(worker.Evaluator):
    """Makes boxes and predictions, batch by batch, while processes measure the maps of the batches before."""

    def __init__(
        self,
        classes: Sequence[str],  # each as `cliploc.find.prompts.parse` takes it, such as "cat|kitten"
        pool: MeasuringPool,
        maps: Path | None,  # folder to save score maps in; None to save none
        *of_setup: Any,  # see `Evaluator`
    ) -> None:
        super().__init__(*of_setup)
        self._pool, self._folder = pool, maps
        self._of = {setting.method: setting for setting in self.settings}
        self._rules = {name: self._rule(setting) for name, setting in self._of.items()}
        self._classes = classes  # by label
        self._embeddings = self.localizer.embed_names(classes).float().cpu()  # [K, D]
        unknown = self.localizer.unknown_names(classes)
        self._unknown = torch.tensor([label in unknown for label in prompts.parse(classes).names])
        self.note_unknown([*unknown], f"{len(classes)} classes", "it never predicts them")

    def _rule(self, setting: plan.Setting) -> BoxRule:
        """How a method's maps become boxes; a baseline's always at its own threshold."""
        rule, method = self.localizer.box_rule_of(setting.method, setting.options), find(setting.method)
        return replace(rule, threshold=method.threshold) if method.family == "baseline" else rule

    def describe(self, setting: plan.Setting) -> dict[str, Any]:
        baseline = find(setting.method).family == "baseline"
        return self.described(setting, baseline=baseline, threshold=self._rules[setting.method].threshold)

    def close(self) -> None:
        self._pool.close()

    def stream(
        self, shards: Iterable[engine.Shard], reporter: Reporter
    ) -> Generator[worker.EvaluatedShard, None, None]:
        every, fed = tee(shards)
        notes: list[str] = []
        results = self._results(fed, [*self.methods], reporter, notes)
        try:
            for shard in every:
                measuring: list[_Measuring] = []
                try:
                    for one in self._measuring(shard, results, [*self.methods]):
                        measuring.append(one)
                        reporter.images(1)
                    self._predict(measuring)
                except worker.FAILURES as error:
                    engine.failure_reason(error)  # raises the error if it is a bug
                    results.close()
                    reporter.images(len(shard.samples) - len(measuring))
                    # A method failed, and so did all others in its forward pass: run each alone; only one is lost.
                    notes.clear()
                    measuring = [one for method in self.methods for one in self._alone(shard, method, reporter, notes)]
                    results = self._results(copy(every), [*self.methods], reporter, notes)
                futures = [one.future for one in measuring if one.future is not None]
                yield worker.EvaluatedShard(partial(_outcomes, shard, measuring), tuple(notes), futures)
                notes.clear()
        finally:
            results.close()

    def _results(
        self, shards: Iterable[engine.Shard], methods: Sequence[str], reporter: Reporter, notes: list[str]
    ) -> Generator[prepare.Result, None, None]:
        """What the localizer finds in the samples of shards, one after the other; its remarks go to the notes."""
        samples = (sample for shard in shards for sample in shard.samples)
        return self.localizer.run(
            (prepare.Request(sample.id, sample.path, [self._classes[sample.label]]) for sample in samples),
            {method: self.methods[method] for method in methods},
            reporter=Reporter(
                masked=reporter.masked,
                bank=reporter.bank,
                halved=lambda count: notes.append(f"{self.setup.model}: {halved_note(count)}"),
            ),
        )

    def _measuring(
        self, shard: engine.Shard, results: Iterator[prepare.Result], methods: Sequence[str]
    ) -> Generator[_Measuring, None, None]:
        """Takes a shard's results and sends their maps to the processes."""
        jobs: list[tuple[_Measuring, MapsToMeasure]] = []
        for sample, result in zip(shard.samples, results, strict=False):  # those of the shards after it follow
            assert result.id == sample.id, f"expected {sample.id}, got {result.id}"
            one = _Measuring(sample, [self._of[method].id for method in methods])
            if result.error is not None:
                one.failure = str(result.error)
            else:
                jobs.append((one, self._job(one, result, methods)))
            if jobs and (sum(job.maps.nbytes for _, job in jobs) >= BYTES or sample is shard.samples[-1]):
                future = self._pool.submit([job for _, job in jobs])
                for place, (sent, _) in enumerate(jobs):
                    sent.future, sent.place = future, place
                jobs.clear()
            yield one

    def _alone(self, shard: engine.Shard, method: str, reporter: Reporter, notes: list[str]) -> list[_Measuring]:
        """A shard by one method, which may be the one that failed."""
        of_method: list[str] = []
        results = self._results([shard], [method], reporter, of_method)
        try:
            measuring = list(self._measuring(shard, results, [method]))
            self._predict(measuring)
            notes += of_method
            return measuring
        except worker.FAILURES as error:
            reason, name = engine.failure_reason(error), self._of[method].id
            notes.append(f"{name} failed on the {len(shard.samples)} samples from {shard.samples[0].id} on: {reason}")
            return [_Measuring(sample, [name], reason) for sample in shard.samples]
        finally:
            results.close()

    def _job(self, one: _Measuring, result: prepare.Result, methods: Sequence[str]) -> MapsToMeasure:
        """The maps to measure of a sample; adds the columns that are known before."""
        sample, maps = one.sample, []
        one.embedding = next(iter(result.found.values())).embedding
        for method in methods:
            localization, rule = result.found[method], self._rules[method]
            maps.append(localization.maps_over_picture((WSOL_SIDE, WSOL_SIDE))[0])
            original, of_file = (np.array([*wh] * 2) for wh in (sample.size_wh, localization.image.size))
            boxes = localization.boxes if find(method).family != "baseline" else localization.boxes_by(rule)
            one.rows.append(
                {
                    "score": float(localization.scores[0]),
                    "presence": localization.presence_of(0),
                    "found": len(boxes) > 0,
                    "boxes": (boxes.xyxy * original / of_file).astype(np.float32).tolist(),
                    "box_scores": boxes.score.tolist(),
                    "thumb": worker.thumb(maps[-1]),
                }
            )
        taus, folder = [float(self._rules[method].threshold) for method in methods], self._folder
        # `cliploc evaluate boxes --maps MAPS/SETTING` reads them.
        files = [] if folder is None else [folder / self._of[method].id / f"{sample.id}.npy" for method in methods]
        return MapsToMeasure(sample, np.stack(maps), taus, files)

    def _predict(self, measuring: Sequence[_Measuring]) -> None:
        """Adds each picture's best labels that the model knows and their cosines; the first of equal ones."""
        done = [(one, one.embedding) for one in measuring if one.embedding is not None]
        if not done:
            return
        # The shard at once: the matrix product has the same shape also in a resumed run, so the same last bits.
        cosines = torch.from_numpy(np.stack([embedding for _, embedding in done])) @ self._embeddings.T  # [n, K]
        cosines = cosines.masked_fill(self._unknown, -2.0)
        best = cosines.argsort(descending=True, stable=True)[:, : min(TOP, int((~self._unknown).sum()))]
        for (one, _), labels, values in zip(done, best.tolist(), cosines.gather(1, best).tolist(), strict=True):
            for row in one.rows:
                row |= {"predictions": labels or None, "prediction_scores": values}


def _outcomes(shard: engine.Shard, measuring: Sequence[_Measuring]) -> list[worker.Outcome]:
    """The outcome of each sample of a shard, which may stand several times among those that are measured."""
    merged: dict[str, worker.Outcome] = {sample.id: {} for sample in shard.samples}
    for one in measuring:
        merged[one.sample.id] |= one.outcome()
    return list(merged.values())


# ---------------------------------------------------------------------------------------------------------- the numbers
class BoxTally(task.Tally):
    """Counts the rows of one setting with all metrics, which `cliploc evaluate` uses too."""

    def __init__(self, threshold: float, may_tune: bool) -> None:
        self.threshold, self.may_tune = threshold, may_tune  # whether the pictures may choose a threshold
        self.metrics: list[Metric] = [
            metric.at(threshold if metric.needs_threshold else None) for metric in all_metrics()
        ]

    def add(self, row: CountedRow) -> None:
        columns = msgspec.structs.asdict(row)
        for metric in self.metrics:
            if all(columns[column] is not None for column in metric.columns):
                metric.add(row.sample, columns, row.label, row.predictions)

    def per_picture(self) -> paired.PerPicture | None:
        for metric in self.metrics:
            if isinstance(metric, MaxBoxAcc) and len(metric):
                right = metric.distinct(TAUS)[0].astype(np.float64)
                return paired.PerPicture(metric.name, metric.ids, right, lambda means: means.max(axis=1), 100)
        return None

    def summary(self, counts: Mapping[str, int], bootstrap: Bootstrap) -> task.Summary:
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

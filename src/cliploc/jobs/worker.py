"""The worker of a benchmark: it turns shards into rows. Decoding, model and judging overlap, also across shards."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, tee
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cliploc import prompts
from cliploc._files import temporaries_of
from cliploc._process import give_way
from cliploc.boxes import BoxRule
from cliploc.errors import CliplocWarning, InputError, ModelError, UsageError
from cliploc.jobs import rows as row
from cliploc.jobs.engine import Part, Shard
from cliploc.jobs.failures import failure_reason
from cliploc.jobs.folder import plain
from cliploc.jobs.plan import ModelSetup, Setting, WorkerSettings
from cliploc.jobs.setups import load_setups
from cliploc.jobs.sources import Digests
from cliploc.jobs.thumbs import thumb
from cliploc.localization import Localization
from cliploc.localizer import Localizer
from cliploc.metrics import SIDE, one_thread
from cliploc.pipeline.prepare import Request
from cliploc.registry import import_modules, named_modules
from cliploc.reporter import SILENT, Reporter, halved_note
from cliploc.saliency import find
from cliploc.values import FloatArray, Sample

TOP = 5  # predictions stored for each picture
BYTES = 2**21  # of maps that are sent to a judge at once
AHEAD = 2  # shards whose maps are judged while the tower computes the next
Found = Mapping[str, Localization]


@dataclass(frozen=True)
class _Method:
    """A method of a setup, and the settings that make boxes from its maps."""

    name: str
    options: Mapping[str, Any]
    settings: tuple[Setting, ...]
    rules: tuple[BoxRule, ...]
    own: BoxRule  # the localizer's


class BenchmarkWorker:
    """Holds a `Localizer` for each setup and turns shards into parts."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self.setups = load_setups(
            settings.setups,
            settings.settings,
            lambda setup, chosen, built: _LoadedSetup(setup, chosen, settings.classes, built),
            lambda loaded: loaded.localizer,
        )
        self._processes: Executor | None = None

    def describe(self) -> list[dict[str, Any]]:
        """For each setting everything that its numbers depend on, including defaults, as plain values for JSON."""
        by_id = {one["id"]: one for setup in self.setups for one in setup.describe()}
        return [by_id[one.id] for one in self._settings.settings]

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the models and this dataset's names."""
        return tuple(note for setup in self.setups for note in setup.notes)

    def stream(self, shards: Iterable[Shard], reporter: Reporter = SILENT) -> Generator[Part, None, None]:
        """See `cliploc.jobs.engine.Worker.stream`."""
        digests = Digests(shards)
        own, *copies = tee(digests, 1 + len(self.setups))
        feeds = [_Feed(setup, copy, reporter) for setup, copy in zip(self.setups, copies, strict=True)]
        waiting: deque[_Pending] = deque()
        try:
            for shard in own:
                facts = [
                    row.sample_facts(one, self._settings.root, digest)
                    for one, digest in zip(shard.samples, digests.pop(shard), strict=True)
                ]
                pending = _Pending(shard, facts)
                for setup, feed in zip(self.setups, feeds, strict=True):
                    self._localize(setup, feed, pending, reporter)
                waiting.append(pending)
                while len(waiting) > AHEAD or (waiting and waiting[0].done):
                    yield self._part(waiting.popleft())
            while waiting:
                yield self._part(waiting.popleft())
        finally:
            for feed in feeds:
                feed.close()
            for pending in waiting:
                pending.cancel()

    def close(self) -> None:
        """Ends the processes that judge maps."""
        if self._processes is not None:
            self._processes.shutdown(cancel_futures=True)
            self._processes = None

    # --------------------------------------------------------------------------------------------------- one shard
    def _localize(self, setup: _LoadedSetup, feed: _Feed, pending: _Pending, reporter: Reporter) -> None:
        """Computes one setup's results of a shard and sends them to the judges."""
        told = 0

        def take(
            localized: Iterator[tuple[Sample, Found | InputError]], methods: Sequence[_Method]
        ) -> list[_SampleOutcome]:
            nonlocal told
            outcomes: list[_SampleOutcome] = []
            jobs: list[_MapsToJudge] = []
            for number, (sample, found) in enumerate(localized, start=1):
                outcomes.append(self._outcome(sample, found, methods, jobs))
                if sum(job.maps.nbytes for job in jobs) >= BYTES or number == len(pending.shard.samples):
                    self._submit(outcomes, jobs)
                if number > told:
                    told = number
                    reporter.images(1)
            setup.predict(outcomes)
            return outcomes

        try:
            pending.add(take(feed.take(pending.shard, pending.notes), setup.methods))
            return
        except (ModelError, RuntimeError, MemoryError) as error:
            reason = failure_reason(error)
        # A method failed, and so did all others in its forward pass: run each alone, so that only one is lost.
        feed.restart(pending.shard)
        for method in setup.methods:
            if len(setup.methods) > 1:
                alone = _Feed(setup, [pending.shard], reporter, (method,))
                try:
                    pending.add(take(alone.take(pending.shard, pending.notes), (method,)))
                    continue
                except (ModelError, RuntimeError, MemoryError) as error:
                    reason = failure_reason(error)
                finally:
                    alone.close()
            ids = ", ".join(one.id for one in method.settings)
            pending.notes.append(
                f"{ids} failed on the {len(pending.shard.samples)} samples of part {pending.shard.index:05d}: {reason}"
            )
            pending.add([_SampleOutcome(one, (method,), failure=reason) for one in pending.shard.samples])

    def _submit(self, outcomes: list[_SampleOutcome], jobs: list[_MapsToJudge]) -> None:
        """Sends jobs to a judge, several at once, as each sending makes the tower's thread wait."""
        if jobs:
            future = self._pool().submit(_judge_maps, jobs.copy())
            asked = [one for one in outcomes if one.failure is None][-len(jobs) :]
            for place, one in enumerate(asked):
                one.future, one.place = future, place
            jobs.clear()

    def _outcome(
        self, sample: Sample, found: Found | InputError, methods: Sequence[_Method], jobs: list[_MapsToJudge]
    ) -> _SampleOutcome:
        """The outcome of a sample except the judging of its maps, which is added to the jobs."""
        if isinstance(found, InputError):
            return _SampleOutcome(sample, tuple(methods), failure=str(found))
        outcome = _SampleOutcome(sample, tuple(methods))
        maps = []
        for method in methods:
            result = found[method.name]
            maps.append(result.maps_over_picture((SIDE, SIDE))[0])
            small = thumb(result.maps[0])
            for rule in method.rules:
                boxes = result.boxes if rule == method.own else result.boxes_by(rule)
                outcome.known.append(
                    {
                        "score": float(result.scores[0]),
                        "presence": None if result.presence is None else float(result.presence[0]),
                        "found": len(boxes) > 0,
                        "boxes": _in_original(boxes.xyxy, result.image.size, sample.size_wh).tolist(),
                        "box_scores": boxes.score.tolist(),
                        "thumb": small,
                    }
                )
        outcome.embedding = next(iter(found.values())).embedding
        saved = self._settings.maps
        files = [
            [] if saved is None else [map_path(saved, one.id, sample.id) for one in method.settings]
            for method in methods
        ]
        thresholds = [[_tau(rule) for rule in method.rules] for method in methods]
        jobs.append(_MapsToJudge(sample, np.stack(maps), thresholds, files, self._settings.token))
        return outcome

    def _part(self, pending: _Pending) -> Part:
        rows = pending.rows([one.id for one in self._settings.settings])
        return Part(pending.shard.index, row.to_table(rows, row.row_schema()), tuple(pending.notes))

    def _pool(self) -> Executor:
        if self._processes is None:
            # Spawned, not forked: a fork of a process with threads can hang.
            context = multiprocessing.get_context("spawn")
            count = self._settings.judges
            self._processes = (
                ProcessPoolExecutor(count, context, _start_process, (named_modules(),))
                if count
                else ThreadPoolExecutor(1)
            )
        return self._processes


class _LoadedSetup:
    """One `Localizer` with its methods, and the embedded names of all classes."""

    def __init__(
        self, setup: ModelSetup, chosen: Sequence[Setting], classes: Sequence[str], built: Localizer | None
    ) -> None:
        self.setup = setup
        options = setup.options.but(
            model=setup.options.model if built is None else built.backbone,
            method=chosen[0].method,
            method_options=chosen[0].options,
            # Cached embeddings were computed in other batches, and can differ in the last bit.
            text_cache=False,
        )
        self.localizer = Localizer(**options.given())
        methods: dict[str, list[Setting]] = {}
        for one in chosen:
            methods.setdefault(one.method, []).append(one)
        self.methods = tuple(self._method(name, settings) for name, settings in methods.items())
        self.names_of = [[one] for one in classes]  # of each label
        self._embeddings = self.localizer.embed_names(classes).float().cpu()  # [K, D]
        unknown = self.localizer.unknown_names(classes)
        self.labels = prompts.parse(classes).names
        self._unknown = torch.tensor([label in unknown for label in self.labels])
        self.notes = (
            (
                f"{self.localizer.backbone.name} does not know {len(unknown)} of {len(classes)} classes, such as "
                f"{next(iter(unknown))!r}: it never predicts them",
            )
            if unknown
            else ()
        )

    def _method(self, name: str, settings: Sequence[Setting]) -> _Method:
        options = settings[0].options
        if other := next((one for one in settings if one.options != options), None):
            raise UsageError(
                f"expected the same options for each setting of {name} in a setup, got others for {settings[0].id} and "
                f"{other.id}: give each a setup of its own"
            )
        own = self.localizer.box_rule_of(name, options)
        rules = [own if one.threshold is None else replace(own, threshold=one.threshold) for one in settings]
        return _Method(name, options, tuple(settings), tuple(rules), own)

    def predict(self, outcomes: Sequence[_SampleOutcome]) -> None:
        """Adds each picture's best labels and their cosines; the first of equal ones."""
        done = [one for one in outcomes if one.embedding is not None]
        if not done:
            return
        # The whole shard at once: the matrix product has the same shape also in a resumed run, so the same last bits.
        embeddings = torch.from_numpy(np.stack([one.embedding for one in done if one.embedding is not None]))  # [n, D]
        cosines = (embeddings @ self._embeddings.T).masked_fill(self._unknown, -2.0)  # [n, K]
        best = cosines.argsort(descending=True, stable=True)[:, :TOP]
        for one, labels, values in zip(done, best.tolist(), cosines.gather(1, best).tolist(), strict=True):
            one.embedding = None
            for known in one.known:
                known |= {"predictions": labels, "prediction_scores": values}

    def describe(self) -> list[dict[str, Any]]:
        setup = self.setup
        return [
            plain(
                {
                    "id": setting.id,
                    **self.localizer.describe(method.name, method.options),
                    "model": setup.model,  # as typed
                    "baseline": find(method.name).family == "baseline",
                    "pretrained": setup.options.pretrained,
                    "head": setup.head,
                    "prompts": setup.prompts,
                    "threshold": _tau(rule),
                    "threshold_given": setting.threshold is not None,
                }
            )
            for method in self.methods
            for setting, rule in zip(method.settings, method.rules, strict=True)
        ]


class _Feed:
    """The stream of one setup's results over all shards, with the samples that they belong to."""

    def __init__(
        self, setup: _LoadedSetup, shards: Iterable[Shard], reporter: Reporter, methods: Sequence[_Method] | None = None
    ) -> None:
        self._setup, self._reporter, self._methods = setup, reporter, methods or setup.methods
        self._shards = iter(shards)
        self._start()

    def _start(self) -> None:
        self._handed: deque[Shard] = deque()  # shards given to the localizer and not done yet
        self._notes: list[str] = []
        model = self._setup.setup.model
        self._results = self._setup.localizer.run(
            self._requests(),
            {method.name: method.options for method in self._methods},
            reporter=Reporter(
                masked=self._reporter.masked,
                bank=self._reporter.bank,
                halved=lambda count: self._notes.append(f"{model}: {halved_note(count)}"),
            ),
        )

    def _requests(self) -> Iterator[Request]:
        for shard in self._shards:
            self._handed.append(shard)
            for place, sample in enumerate(shard.samples):
                yield Request((shard.index, place), sample.path, self._setup.names_of[sample.label])

    def take(self, shard: Shard, notes: list[str]) -> Iterator[tuple[Sample, Found | InputError]]:
        """Yields the results of a shard's samples, which must be the next in the stream."""
        for place, sample in enumerate(shard.samples):
            result = next(self._results)
            assert result.id == (shard.index, place), f"expected {shard.index}, {place}, got {result.id}"
            yield sample, result.found if result.error is None else result.error
        self._handed.popleft()
        notes += self._notes
        self._notes.clear()

    def restart(self, shard: Shard) -> None:
        """Restarts the stream after this shard, on which it failed."""
        self.close()
        self._shards = chain([one for one in self._handed if one.index != shard.index], self._shards)
        self._start()

    def close(self) -> None:
        """Ends the threads that read pictures."""
        self._results.close()


@dataclass
class _SampleOutcome:
    """The results of one sample by some methods of a setup; the judging of its maps may be unfinished."""

    sample: Sample
    methods: tuple[_Method, ...]
    known: list[row.Row] = field(default_factory=list)  # for each setting of each method, the columns known so far
    embedding: FloatArray | None = None  # None once predictions were computed from it
    future: Future[list[list[list[row.Row]] | str]] | None = None
    place: int = 0  # index in the future's results
    failure: str | None = None

    def rows(self, facts: row.Row) -> dict[str, row.Row]:
        """Setting → row; waits for the judges."""
        ids = [one.id for method in self.methods for one in method.settings]
        if self.future is not None:
            result = self.future.result()[self.place]
            if isinstance(result, str):
                self.failure = result
            else:
                found = [of_tau for of_map in result for of_tau in of_map]
        if self.failure is not None:
            return {one: row.failed_row(facts, one, self.failure) for one in ids}
        return {
            one: {**facts, "setting": one, "status": "ok", "reason": None, **known, **judged}
            for one, known, judged in zip(ids, self.known, found, strict=True)
        }


@dataclass
class _Pending:
    """A shard whose maps are being judged."""

    shard: Shard
    facts: list[row.Row]
    notes: list[str] = field(default_factory=list)
    # By setup, or by method where one failed.
    outcomes: list[list[_SampleOutcome]] = field(default_factory=list)

    def add(self, outcomes: list[_SampleOutcome]) -> None:
        self.outcomes.append(outcomes)

    @property
    def done(self) -> bool:
        return all(one.future is None or one.future.done() for part in self.outcomes for one in part)

    def cancel(self) -> None:
        for part in self.outcomes:
            for one in part:
                if one.future is not None:
                    one.future.cancel()

    def rows(self, settings: Sequence[str]) -> list[row.Row]:
        """The rows, sample by sample, with the settings in their order."""
        made: list[row.Row] = []
        for i, facts in enumerate(self.facts):
            of_sample: dict[str, row.Row] = {}
            for part in self.outcomes:
                of_sample |= part[i].rows(facts)
            made += [of_sample[one] for one in settings]
        return made


# ------------------------------------------------------------------------------------------------------------- judges
def _start_process(modules: Sequence[str]) -> None:
    """Starts a judging process: with one thread, which gives way to the tower's; it ignores Ctrl-C and ends when its
    parent process does.
    """
    one_thread()
    give_way()
    warnings.simplefilter("ignore", CliplocWarning)  # the parent process has shown it
    import_modules(modules)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@dataclass(frozen=True)
class _MapsToJudge:
    """A job for a judge: one sample's maps `[S, 224, 224]`, with the thresholds and files of each map."""

    sample: Sample
    maps: FloatArray
    thresholds: list[list[float]]
    files: list[list[Path]]
    token: str  # the run's token for names of temporary files


def _judge_maps(jobs: Sequence[_MapsToJudge]) -> list[list[list[row.Row]] | str]:
    """Judges jobs: for each the rows of each map and threshold, or why it failed."""
    results: list[list[list[row.Row]] | str] = []
    for job in jobs:
        with temporaries_of(job.token):
            for heat, paths in zip(job.maps, job.files, strict=True):
                for path in paths:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    row.save_map(path, heat)
        try:
            results.append(row.judge_sample(job.sample, job.maps, job.thresholds))
        except InputError as error:
            results.append(str(error))
    return results


def map_path(maps: Path, setting: str, sample: str) -> Path:
    """The path where `--save-maps` saves a map; `cliploc evaluate --maps MAPS/SETTING` reads it."""
    return maps / setting / f"{sample}.npy"


# ------------------------------------------------------------------------------------------------------------- values
def _in_original(xyxy: FloatArray, file_wh: tuple[int, int], original_wh: tuple[int, int]) -> FloatArray:
    """Scales boxes from a file, which may be resized, to pixels of the original."""
    scaled: FloatArray = (xyxy * np.array([*original_wh] * 2) / np.array([*file_wh] * 2)).astype(np.float32)
    return scaled


def _tau(rule: BoxRule) -> float:
    assert not isinstance(rule.threshold, str)
    return float(rule.threshold)

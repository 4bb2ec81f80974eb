"""The worker of every benchmark: it turns shards into rows, by what the benchmark's task judges of each picture."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import tee
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from cliploc.errors import InputError, ModelError, UsageError
from cliploc.evaluate.tasks.rows import as_parquet, sample_facts, to_table
from cliploc.evaluate.tasks.task_folder import THUMB
from cliploc.find import prompts
from cliploc.find.prepare import Request
from cliploc.images.geometry import iou_matrix
from cliploc.localization import Localization
from cliploc.localizer import Localizer
from cliploc.runs.engine import (
    Part,
    Shard,
    Spending,
    collect_halved,
    failure_reason,
    spent_together,
)
from cliploc.runs.evaluation import Row
from cliploc.runs.picture_files import digested
from cliploc.runs.plan import ModelSetup, Setting
from cliploc.runs.samples import AskedPicture
from cliploc.support.reporter import SILENT, Reporter
from cliploc.values import GOOD_IOU, Boxes, FloatArray

AHEAD = 2  # shards whose maps are judged while the model computes the next
FAILURES = (ModelError, RuntimeError, MemoryError)
Outcome: TypeAlias = dict[str, Row | str]  # of one picture: setting → the columns of its map, or why it failed


@dataclass
class JudgedShard:
    """A shard's outcomes by one setup, some of which other processes may still compute."""

    outcomes: Callable[[], list[Outcome]]  # waits for them; one for each sample
    notes: list[str]
    futures: list[Future[Any]] = field(default_factory=list)
    spent: Spending = field(default_factory=dict)

    def done(self) -> bool:
        """Whether nothing need be waited for."""
        return all(future.done() for future in self.futures)


class Judge(ABC):
    """A setup's localizer, with the settings that it serves."""

    note: str = ""  # a remark on the names that its model does not know

    def __init__(self, setup: ModelSetup, settings: Sequence[Setting], built: Localizer | None) -> None:
        self.setup, self.settings = setup, tuple(settings)
        self.methods = {setting.method: setting.options for setting in settings}
        options = setup.options.but(
            model=setup.options.model if built is None else built.backbone,
            method=settings[0].method,
            method_options=settings[0].options,
            text_cache=False,  # cached embeddings were computed in other batches, and can differ in the last bit
        )
        self.localizer = Localizer(**options.changed())

    def say_unknown(self, unknown: Sequence[str], of: str, so: str) -> None:
        """Notes the names that the model does not know, if there are any, and what follows from that."""
        if unknown:
            name = self.localizer.backbone.name
            self.note = f"{name} does not know {len(unknown)} of {of}, such as {unknown[0]!r}: {so}"

    @abstractmethod
    def stream(self, shards: Iterable[Shard], reporter: Reporter) -> Generator[JudgedShard, None, None]:
        """Judges any number of shards, in order."""

    @abstractmethod
    def describe(self, setting: Setting) -> dict[str, Any]:
        """Everything that a setting's numbers depend on, besides the task's own entries of the manifest."""

    def spent(self) -> Spending:
        """What was spent since this was asked last; nothing where it is not counted."""
        return {}

    def close(self) -> None:
        """Ends what the judge has started; most start nothing that outlives a stream."""
        return

    def described(self, setting: Setting, said: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        """A setting's entry in the manifest: these parts of its localizer's description, and how it was asked for."""
        return {"id": setting.id, **said, **self.setup.described(), **more}

    def described_by(self, setting: Setting, identity: Iterable[str], **more: Any) -> dict[str, Any]:
        """The same for a task whose numbers depend on some keys of the localizer's description only."""
        said = self.localizer.describe(setting.method, setting.options)
        exemplars = ("exemplars",) if said["exemplars"] else ()  # they change the names' embeddings
        learnt = ("learnt",) if "learnt" in said else ()
        return self.described(setting, {key: said[key] for key in ("model", *identity, *exemplars, *learnt)}, **more)


# Makes the judge of a setup with some settings; takes a localizer whose tower may be used, or None if there is none.
JudgeOf = Callable[[ModelSetup, Sequence[Setting], Localizer | None], Judge]


class PictureJudge(Judge):
    """A judge of one picture after the other; the next one is decoded ahead of the model."""

    def read(self, sample: Any) -> Any:  # noqa: ARG002
        """Reads a sample's files, in another thread."""
        return None

    def refuse_thresholds(self, task: str) -> None:
        """Refuses settings that differ only in the threshold of their boxes."""
        if len(self.methods) < len(self.settings):
            raise UsageError(
                f"expected each method once in a setup, got one twice: leave thresholds of boxes out of {task}"
            )

    @abstractmethod
    def look(self, sample: Any, read: Any) -> Any:
        """What is the same for all maps of a picture."""

    @abstractmethod
    def maps(self, seen: Any, methods: Sequence[str], reporter: Reporter) -> Mapping[str, Any]:
        """Method → its map."""

    @abstractmethod
    def judge(self, seen: Any, setting: Setting, heat: Any, reporter: Reporter) -> Row:
        """The columns of one map."""

    def stream(self, shards: Iterable[Shard], reporter: Reporter) -> Generator[JudgedShard, None, None]:
        with ThreadPoolExecutor(1, "cliploc-read") as reading:
            for shard in shards:
                notes: list[str] = []
                told = Reporter(masked=reporter.masked, halved=collect_halved(notes))
                outcomes = []
                for sample, read in zip(shard.samples, self._ahead(reading, shard.samples), strict=True):
                    outcomes.append(self._outcome(sample, read, notes, told))
                    reporter.images(1)
                yield JudgedShard(lambda outcomes=outcomes: outcomes, notes, spent=self.spent())  # type: ignore[misc]

    def _ahead(self, pool: ThreadPoolExecutor, samples: Sequence[Any]) -> Iterator[Future[Any]]:
        """The samples being read, each one before the one ahead of it is asked for."""
        waiting: Future[Any] | None = None
        for following in (*samples, None):
            started = None if following is None else pool.submit(self.read, following)
            if waiting is not None:
                yield waiting
            waiting = started

    def _outcome(self, sample: Any, read: Future[Any], notes: list[str], reporter: Reporter) -> Outcome:
        """The outcome of one picture."""
        try:
            seen = self.look(sample, read.result())
            maps = self._maps(seen, reporter)
        except InputError as error:
            return dict.fromkeys((setting.id for setting in self.settings), str(error))
        except FAILURES as error:
            reason = failure_reason(error)
            notes.append(f"{self.setup.model} failed on {sample.id}: {reason}")
            return dict.fromkeys((setting.id for setting in self.settings), reason)
        outcome: Outcome = {}
        for setting in self.settings:
            try:
                if isinstance(heat := maps[setting.method], ModelError):
                    raise heat
                outcome[setting.id] = self.judge(seen, setting, heat, reporter)
            except InputError as error:
                outcome[setting.id] = str(error)
            except FAILURES as error:
                outcome[setting.id] = reason = failure_reason(error)
                notes.append(f"{setting.id} failed on {sample.id}: {reason}")
        return outcome

    def _maps(self, seen: Any, reporter: Reporter) -> dict[str, Any]:
        """Method → its map, or the error of a method that failed."""
        try:
            return dict(self.maps(seen, list(self.methods), reporter))
        except FAILURES as error:
            failure_reason(error)  # raises the error if it is a bug
        # One failed, and with it all in its forward pass: run each alone.
        maps: dict[str, Any] = {}
        for method in self.methods:
            try:
                maps |= self.maps(seen, [method], reporter)
            except FAILURES as error:
                maps[method] = ModelError(failure_reason(error))
        return maps


class EvaluationWorker:
    """Holds a judge for each setup and turns shards into parts; setups of one model share its tower."""

    def __init__(
        self,
        judge_of: JudgeOf,
        schema: Callable[[], Any],
        root: Path,
        setups: Sequence[ModelSetup],
        settings: Sequence[Setting],
    ) -> None:
        self._schema, self._root, self._settings = schema, root, tuple(settings)
        self.judges: list[Judge] = []
        built: dict[tuple[object, ...], Localizer] = {}
        for index, setup in enumerate(setups):
            if chosen := [setting for setting in settings if setting.setup == index]:
                of = setup.options
                key = (of.model, of.pretrained, of.device, of.precision)
                self.judges.append(judge_of(setup, chosen, built.get(key)))
                built.setdefault(key, self.judges[-1].localizer)

    def describe(self) -> list[dict[str, Any]]:
        """For each setting everything that its numbers depend on, as values for JSON."""
        by_id = {setting.id: judge.describe(setting) for judge in self.judges for setting in judge.settings}
        return [by_id[setting.id] for setting in self._settings]

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the names that models do not know."""
        return tuple(dict.fromkeys(judge.note for judge in self.judges if judge.note))

    def stream(self, shards: Iterable[Shard], reporter: Reporter = SILENT) -> Generator[Part, None, None]:
        own, *copies = tee(digested(shards), 1 + len(self.judges))
        fed = [(shard for shard, _ in copy) for copy in copies]
        streams = [judge.stream(of_judge, reporter) for judge, of_judge in zip(self.judges, fed, strict=True)]
        waiting: deque[tuple[int, list[Row], list[JudgedShard]]] = deque()
        try:
            for shard, digests in own:
                of_shard = zip(shard.samples, digests, strict=True)
                facts = [sample_facts(sample, self._root, digest) for sample, digest in of_shard]
                waiting.append((shard.index, facts, [next(stream) for stream in streams]))
                while len(waiting) > AHEAD or (waiting and all(future.done() for future in waiting[0][2])):
                    yield self._part(*waiting.popleft())
            while waiting:
                yield self._part(*waiting.popleft())
        finally:
            for stream in streams:
                stream.close()
            for _, _, judged in waiting:
                for future in (future for of_judge in judged for future in of_judge.futures):
                    future.cancel()

    def _part(self, index: int, facts: list[Row], judged: list[JudgedShard]) -> Part:
        """The part of a shard: sample by sample, with the settings in their order; waits for the judges."""
        rows: list[Row] = []
        for of_sample, outcomes in zip(
            facts, zip(*(of_judge.outcomes() for of_judge in judged), strict=True), strict=True
        ):
            by_id = {name: columns for outcome in outcomes for name, columns in outcome.items()}
            for setting in self._settings:
                columns, row = by_id[setting.id], {**of_sample, "setting": setting.id}
                failed = isinstance(columns, str)
                rows.append(row | ({"status": "failed", "reason": columns} if failed else {"status": "ok", **columns}))
        notes = dict.fromkeys(note for of_judge in judged for note in of_judge.notes)
        spent = spent_together(of_judge.spent for of_judge in judged)
        return Part(index, as_parquet(to_table(rows, self._schema())), tuple(notes), spent=spent)

    def close(self) -> None:
        """Ends the processes of the judges."""
        for judge in self.judges:
            judge.close()


def thumb(heat: FloatArray) -> bytes:
    """A small copy of a map `[H, W]` in 0–1: the mean in 28×28 cells, as levels 0–255; `heat_of` reads it."""
    small = F.adaptive_avg_pool2d(torch.from_numpy(np.ascontiguousarray(heat, np.float32))[None], THUMB)[0]
    return bytes((small.clamp(0, 1) * 255).round().to(torch.uint8).numpy().tobytes())


Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Asked:
    """A picture, and what it is asked for."""

    sample: AskedPicture
    labels: list[int]  # asked, of names that the model knows

    def truth(self, size_wh: tuple[int, int]) -> dict[int, FloatArray]:
        """Place among `labels` → its true boxes `[m, 4]`, in pixels of the picture of this size; of those there."""
        scale = np.array([*size_wh] * 2) / np.array([*self.sample.size_wh] * 2)
        there = self.sample.truth
        return {p: there[label] * scale for p, label in enumerate(self.labels) if label in there}


class AskingJudge(PictureJudge):
    """A judge of what a localizer finds of the names that pictures are asked for."""

    keep_maps: ClassVar[bool] = False

    def __init__(self, classes: Sequence[str], *of_setup: Any) -> None:
        super().__init__(*of_setup)
        self.refuse_thresholds("presence")
        if (tau := self.settings[0].threshold) is not None:
            self.localizer = Localizer(**self.localizer.options.but(threshold=tau).changed())
        self._classes = classes
        reasons = self.localizer.unknown_names(classes)
        self.unknown = {label for label, name in enumerate(prompts.parse(classes).names) if name in reasons}
        self.say_unknown([*reasons], f"{len(classes)} names", "they are counted, but not in the numbers")

    def describe(self, setting: Setting) -> dict[str, Any]:
        said = self.localizer.describe(setting.method, setting.options)
        return self.described(setting, said, threshold_given=setting.threshold is not None)

    def look(self, sample: AskedPicture, read: None) -> Asked:  # noqa: ARG002
        return Asked(sample, [label for label in sample.labels if label not in self.unknown])

    def maps(self, seen: Asked, methods: Sequence[str], reporter: Reporter) -> Mapping[str, Localization | None]:
        """See `PictureJudge.maps`; the result of each method, None where no name is known."""
        if not seen.labels:
            return dict.fromkeys(methods)
        request = Request(seen.sample.id, seen.sample.path, [self._classes[label] for label in seen.labels])
        asked = {name: self.methods[name] for name in methods}
        [result] = self.localizer.run([request], asked, reporter=reporter, absent_maps=False, keep_maps=self.keep_maps)
        if result.error is not None:
            raise result.error
        return result.found


def right_boxes(boxes: Boxes, truth: Mapping[int, npt.NDArray[Any]]) -> Bools:
    """`[n]`, whether each box has IoU ≥ 0.5 with a true box `[m, 4]` of its label."""
    ious = [
        iou_matrix(box[None], truth[label]).max(initial=0) if label in truth else 0.0
        for box, label in zip(boxes.xyxy, boxes.label.tolist(), strict=True)
    ]
    return np.array(ious, np.float64) >= GOOD_IOU

"""The worker of every benchmark: it turns shards into rows, by what the benchmark's task measures of each picture."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import tee
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from cliploc.errors import InputError, ModelError
from cliploc.evaluate.tasks.rows import THUMB, Columns, sample_facts, to_table
from cliploc.find import prepare, prompts
from cliploc.images.geometry import iou_matrix
from cliploc.localization import Localization
from cliploc.localizer import Localizer
from cliploc.runs import engine, picture_files, plan, store
from cliploc.support.reporter import SILENT, Reporter
from cliploc.values import GOOD_IOU, Boxes, FloatArray

AHEAD = 2  # shards whose maps are measured while the model computes the next
FAILURES = (ModelError, RuntimeError, MemoryError)
Outcome: TypeAlias = dict[str, store.Row | str]  # of one picture: setting → the columns of its map, or why it failed
Bools = npt.NDArray[np.bool_]


@dataclass
class EvaluatedShard:
    """A shard's outcomes by one setup, some of which other processes may still compute."""

    outcomes: Callable[[], list[Outcome]]  # waits for them; one for each sample
    notes: Sequence[str]
    futures: Sequence[Future[Any]] = ()


class Evaluator(ABC):
    """A setup's localizer, with the settings that it serves."""

    note: str = ""  # a remark on the names that its model does not know

    def __init__(self, setup: plan.ModelSetup, settings: Sequence[plan.Setting], built: Localizer | None) -> None:
        self.setup, self.settings = setup, tuple(settings)
        self.methods = {setting.method: setting.options for setting in settings}
        options = setup.options.but(
            model=setup.options.model if built is None else built.backbone,
            method=settings[0].method,
            method_options=settings[0].options,
        )
        self.localizer = Localizer(**options.changed())

    def note_unknown(self, unknown: Sequence[str], of: str, so: str) -> None:
        """Notes the names that the model does not know, if there are any, and what follows from that."""
        if unknown:
            name = self.localizer.backbone.name
            self.note = f"{name} does not know {len(unknown)} of {of}, such as {unknown[0]!r}: {so}"

    @abstractmethod
    def stream(self, shards: Iterable[engine.Shard], reporter: Reporter) -> Generator[EvaluatedShard, None, None]:
        """Evaluates any number of shards, in order."""

    @abstractmethod
    def describe(self, setting: plan.Setting) -> dict[str, Any]:
        """Everything that a setting's numbers depend on, besides the task's entries of the manifest."""

    def close(self) -> None:
        """Ends what the evaluator has started; most start nothing that outlives a stream."""
        return

    def described(self, setting: plan.Setting, only: Iterable[str] | None = None, **more: Any) -> dict[str, Any]:
        """A setting's entry in the manifest: its localizer's description, or these keys of it, and how it was made."""
        facts = self.localizer.describe(setting.method, setting.options)
        if only is not None:
            further = [key for key in ("exemplars", "learnt") if facts.get(key)]  # they change the names' embeddings
            facts = {key: facts[key] for key in ("model", *only, *further)}
        typed = {"model": self.setup.model, "pretrained": self.setup.options.pretrained, "head": self.setup.head}
        return {"id": setting.id, **facts, **typed, "prompts": self.setup.prompts, **more}


# Makes the evaluator of a setup with some settings; takes a localizer whose tower may be used, or None without one.
EvaluatorOf = Callable[[plan.ModelSetup, Sequence[plan.Setting], Localizer | None], Evaluator]


class PictureEvaluator(Evaluator):
    """An evaluator of one picture after the other."""

    @abstractmethod
    def look(self, sample: Any) -> Any:
        """What is the same for all maps of a picture."""

    @abstractmethod
    def maps(self, seen: Any, methods: Sequence[str], reporter: Reporter) -> Mapping[str, Any]:
        """Method → its map."""

    @abstractmethod
    def evaluate(self, seen: Any, heat: Any, setting: plan.Setting, reporter: Reporter, /) -> store.Row:
        """The columns of one map."""

    def stream(self, shards: Iterable[engine.Shard], reporter: Reporter) -> Generator[EvaluatedShard, None, None]:
        for shard in shards:
            notes: list[str] = []
            quiet = Reporter(masked=reporter.masked, halved=engine.collect_halved(notes))
            outcomes = []
            for sample in shard.samples:
                outcomes.append(self._outcome(sample, notes, quiet))
                reporter.images(1)
            yield EvaluatedShard(partial(list, outcomes), notes)

    def _outcome(self, sample: Any, notes: list[str], reporter: Reporter) -> Outcome:
        """The outcome of one picture."""

        def reason(error: Exception, what: str) -> str:
            if isinstance(error, InputError):
                return str(error)
            text = engine.failure_reason(error)  # type: ignore[arg-type]
            notes.append(f"{what} failed on {sample.id}: {text}")
            return text

        try:
            seen = self.look(sample)
            maps = self._maps(seen, reporter)
        except (InputError, *FAILURES) as error:
            return dict.fromkeys((setting.id for setting in self.settings), reason(error, self.setup.model))
        outcome: Outcome = {}
        for setting in self.settings:
            try:
                if isinstance(heat := maps[setting.method], ModelError):
                    raise heat
                outcome[setting.id] = self.evaluate(seen, heat, setting, reporter)
            except (InputError, *FAILURES) as error:
                outcome[setting.id] = reason(error, setting.id)
        return outcome

    def _maps(self, seen: Any, reporter: Reporter) -> dict[str, Any]:
        """Method → its map, or the error of a method that failed."""
        try:
            return dict(self.maps(seen, list(self.methods), reporter))
        except FAILURES as error:
            engine.failure_reason(error)  # raises the error if it is a bug
        # One failed, and with it all in its forward pass: run each alone.
        maps: dict[str, Any] = {}
        for method in self.methods:
            try:
                maps |= self.maps(seen, [method], reporter)
            except FAILURES as error:
                maps[method] = ModelError(engine.failure_reason(error))
        return maps


class EvaluationWorker:
    """Has an evaluator for each setup and turns shards into parts; setups of one model share its tower."""

    def __init__(
        self,
        evaluator_of: EvaluatorOf,
        columns: Columns,
        root: Path,
        setups: Sequence[plan.ModelSetup],
        settings: Sequence[plan.Setting],
    ) -> None:
        self._columns, self._root, self._settings = columns, root, tuple(settings)
        self.evaluators: list[Evaluator] = []
        built: dict[tuple[object, ...], Localizer] = {}
        for index, setup in enumerate(setups):
            if chosen := [setting for setting in settings if setting.setup == index]:
                of = setup.options
                key = (of.model, of.pretrained, of.device, of.precision)
                self.evaluators.append(evaluator_of(setup, chosen, built.get(key)))
                built.setdefault(key, self.evaluators[-1].localizer)

    def describe(self) -> list[dict[str, Any]]:
        """For each setting everything that its numbers depend on, as values for JSON."""
        by_id = {setting.id: one.describe(setting) for one in self.evaluators for setting in one.settings}
        return [by_id[setting.id] for setting in self._settings]

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the names that models do not know."""
        return tuple(dict.fromkeys(one.note for one in self.evaluators if one.note))

    def stream(self, shards: Iterable[engine.Shard], reporter: Reporter = SILENT) -> Generator[engine.Part, None, None]:
        first, *copies = tee(picture_files.digested(shards), 1 + len(self.evaluators))
        fed = [(shard for shard, _ in copy) for copy in copies]
        streams = [one.stream(of_one, reporter) for one, of_one in zip(self.evaluators, fed, strict=True)]
        waiting: deque[tuple[int, list[store.Row], list[EvaluatedShard]]] = deque()
        try:
            for shard, digests in first:
                of_shard = zip(shard.samples, digests, strict=True)
                facts = [sample_facts(sample, self._root, digest) for sample, digest in of_shard]
                waiting.append((shard.index, facts, [next(stream) for stream in streams]))
                while len(waiting) > AHEAD or (
                    waiting and all(future.done() for each in waiting[0][2] for future in each.futures)
                ):
                    yield self._part(*waiting.popleft())
            while waiting:
                yield self._part(*waiting.popleft())
        finally:
            for stream in streams:
                stream.close()
            for future in (future for _, _, evaluated in waiting for each in evaluated for future in each.futures):
                future.cancel()

    def _part(self, index: int, facts: list[store.Row], evaluated: list[EvaluatedShard]) -> engine.Part:
        """The part of a shard: sample by sample, with the settings in their order; waits for other processes."""
        rows: list[store.Row] = []
        for of_sample, *outcomes in zip(facts, *(each.outcomes() for each in evaluated), strict=True):
            by_id = {name: columns for outcome in outcomes for name, columns in outcome.items()}
            for setting in self._settings:
                columns = by_id[setting.id]
                found = {"status": "failed", "reason": columns} if isinstance(columns, str) else columns
                rows.append({**of_sample, "setting": setting.id, "status": "ok", **found})
        notes = dict.fromkeys(note for each in evaluated for note in each.notes)
        # With the columns' types: floats as these have them, null where a row has no value.
        content = to_table(rows, self._columns).to_pylist(maps_as_pydicts="strict")
        return engine.Part(index, content, tuple(notes))

    def close(self) -> None:
        """Ends the processes of the evaluators."""
        for evaluator in self.evaluators:
            evaluator.close()


def thumb(heat: FloatArray) -> bytes:
    """A small copy of a map `[H, W]` in 0–1: the mean in 28×28 cells, as levels 0–255."""
    small = F.adaptive_avg_pool2d(torch.from_numpy(np.ascontiguousarray(heat, np.float32))[None], THUMB)[0]
    return bytes((small.clamp(0, 1) * 255).round().to(torch.uint8).numpy().tobytes())


# ------------------------------------------------------------------------------------------- names that may be present
@dataclass(frozen=True)
class Query:
    """A picture, and the names to look for in it."""

    sample: picture_files.PromptedPicture
    labels: list[int]  # of names that the model knows

    def truth(self, size_wh: tuple[int, int]) -> dict[int, FloatArray]:
        """Place among `labels` → its true boxes `[m, 4]`, if any, in pixels of the picture at this size."""
        scale = np.array([*size_wh] * 2) / np.array([*self.sample.size_wh] * 2)
        truth = self.sample.truth
        return {p: truth[label] * scale for p, label in enumerate(self.labels) if label in truth}


class NameEvaluator(PictureEvaluator):
    """An evaluator of what a localizer finds of the names that are looked for in pictures."""

    keep_maps: ClassVar[bool] = False

    def __init__(self, classes: Sequence[str], *of_setup: Any) -> None:
        super().__init__(*of_setup)
        self._classes = classes
        reasons = self.localizer.unknown_names(classes)
        self.unknown = {label for label, name in enumerate(prompts.parse(classes).names) if name in reasons}
        self.note_unknown([*reasons], f"{len(classes)} names", "they are counted, but not in the numbers")

    def describe(self, setting: plan.Setting) -> dict[str, Any]:
        return self.described(setting)

    def look(self, sample: picture_files.PromptedPicture) -> Query:
        return Query(sample, [label for label in sample.labels if label not in self.unknown])

    def maps(self, seen: Query, methods: Sequence[str], reporter: Reporter) -> Mapping[str, Localization | None]:
        """See `PictureEvaluator.maps`; the result of each method, None where no name is known."""
        if not seen.labels:
            return dict.fromkeys(methods)
        request = prepare.Request(seen.sample.id, seen.sample.path, [self._classes[label] for label in seen.labels])
        chosen = {name: self.methods[name] for name in methods}
        [result] = self.localizer.run([request], chosen, reporter=reporter, absent_maps=False, keep_maps=self.keep_maps)
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

"""`Pipeline`: the stages in order, from requests to results, for one set of options."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cliploc._memory_errors import out_of_memory
from cliploc.boxes import BoxRule
from cliploc.config import Options
from cliploc.errors import UsageError
from cliploc.geometry import Frame
from cliploc.localization import Localization, boxes_and_reasons
from cliploc.method import TrainedHead
from cliploc.pipeline.ahead import Ahead, Tell
from cliploc.pipeline.bank import Bank
from cliploc.pipeline.decide import Evidence, Reasons, reasons_of, weigh
from cliploc.pipeline.looks import Wanted
from cliploc.pipeline.modes import undisturbed
from cliploc.pipeline.prepare import DECODERS, OnError, Preparation, Prepared, Unreadable
from cliploc.pipeline.prepare import batches as gather
from cliploc.pipeline.requests import Request, Result
from cliploc.pipeline.tasks import Task, TaskMaker
from cliploc.pipeline.texts import Texts
from cliploc.pipeline.views import Computed, Maps, MaskedEncoder, Views
from cliploc.refine import resolve_refinements
from cliploc.reporter import Reporter
from cliploc.tower import Backbone, Guide
from cliploc.values import Boxes, FloatArray


class Pipeline:
    """From requests to results, with one model and one set of options.

    Args:
        backbone: the model.
        texts: embeds names.
        options: with every value that a recipe may set filled in; see `Options.filled`.
        head: the file of a trained head, and the head; None for none.
        masked_encoder: embeds masked pictures.
        guide: a second tower; None for none.

    Raises:
        UsageError: a refinement or an input size that the model does not take.
    """

    def __init__(
        self,
        backbone: Backbone,
        texts: Texts,
        options: Options,
        head: tuple[str, TrainedHead] | None,
        masked_encoder: MaskedEncoder,
        guide: Guide | None = None,
    ) -> None:
        self.backbone, self._texts, self.options = backbone, texts, options
        steps = resolve_refinements(options.refine or (), backbone)
        self.refine = tuple(step.name for step in steps)
        rule = BoxRule(
            0.5 if options.threshold is None else options.threshold,  # each task replaces 0.5 by its method's own τ
            options.components,
            options.min_area,
            options.max_boxes,
            options.nms_iou,
            split_peaks=1.0 if options.split_peaks is None else options.split_peaks,
            min_score=0.0 if options.min_score is None else options.min_score,
        )
        self.tasks = TaskMaker(backbone, options.ensemble, head, rule, options.threshold is None, steps, guide)
        self.preparation = Preparation(
            backbone,
            texts.templates,
            options.resize,
            options.image_size,
            tuple(options.scales or ()),
            tuple(options.windows or ()),
            resize_ahead=options.memory is None,  # which may know a picture, so that its pixels are not needed
        )
        self.views = Views(
            backbone,
            texts,
            bool(options.flip),
            tuple(options.windows or ()),
            self.preparation.input_hw,
            tuple(step for step in steps if step.on == "grid"),
            tuple(step for step in steps if step.on == "picture"),
            options.batch_size,
            masked_encoder,
            options.memory,
            guide,
        )

    def tasks_of(self, methods: Sequence[str] | Mapping[str, Mapping[str, Any]]) -> dict[str, Task]:
        """The task of each method; the keys are the entries of `methods`.

        Raises:
            UsageError: a method or option that does not work on the tower.
        """
        if isinstance(methods, str) or not methods:
            raise UsageError(f"expected a list of methods, got {methods!r}: write ['cam']")
        asked = methods if isinstance(methods, Mapping) else {spec: {} for spec in methods}
        return {spec: self.tasks.make(spec, options) for spec, options in asked.items()}

    def batches(
        self, requests: Iterable[Request], on_error: OnError, ahead: int | None = None
    ) -> closing[Generator[list[Prepared | Unreadable], None, None]]:
        """Batches of prepared pictures, as a context manager: leaving it ends the threads, also after an error.

        Args:
            requests: what is asked for.
            on_error: see `Localizer.stream`.
            ahead: how many pictures are read ahead; None: a batch.
        """
        size = self.options.batch_size
        ahead = size + DECODERS if ahead is None else ahead
        return closing(gather(self.preparation.stream(requests, ahead, on_error), size))

    def run(
        self,
        requests: Iterable[Request],
        tasks: Mapping[str, Task],
        absent_maps: bool,
        bank: Bank | None,
        reporter: Reporter,
        on_error: OnError,
        keep_maps: bool = True,
    ) -> Generator[Result, None, None]:
        """Works through requests; see `Localizer.run`."""

        def work(batch: list[Prepared | Unreadable], told: Tell) -> tuple[Computed, Evidence] | None:
            readable = _readable(batch)
            return self._compute(readable, tasks, absent_maps, bank, told) if readable else None

        # Few pictures are read ahead, as a whole batch of them is with the tower already.
        with self.batches(requests, on_error, DECODERS) as gathered, Ahead(gathered, work) as ahead:
            for batch, job in ahead:
                if bank is not None:
                    bank.embed(reporter.bank)
                readable = _readable(batch)
                try:
                    computed = job.result(reporter.masked)
                except (RuntimeError, MemoryError) as error:
                    if not _can_be_halved(readable, error):
                        raise
                    found = None
                else:
                    found = iter(()) if computed is None else self._results(readable, tasks, *computed, keep_maps)
                if found is None:  # the error is forgotten, and with it whatever its frames kept in memory
                    ahead.stop()
                    found = self._by_halves(readable, tasks, absent_maps, keep_maps, bank, reporter)
                else:
                    ahead.go_on()
                for item in batch:
                    if isinstance(item, Prepared):
                        yield Result(item.id, next(found))
                    else:
                        reporter.failed(item.source, item.error)
                        yield Result(item.id, error=item.error)

    def _by_halves(
        self,
        batch: Sequence[Prepared],
        tasks: Mapping[str, Task],
        absent_maps: bool,
        keep_maps: bool,
        bank: Bank | None,
        reporter: Reporter,
    ) -> Iterator[dict[str, Localization]]:
        """For each picture, its results by every task, from halves of a batch that was too large for the memory."""
        reporter.halved(len(batch))
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        half = (len(batch) + 1) // 2
        for part in (batch[:half], batch[half:]):
            try:
                computed = self._compute(part, tasks, absent_maps, bank, reporter.masked)
            except (RuntimeError, MemoryError) as error:
                if not _can_be_halved(part, error):
                    raise
            else:
                yield from self._results(part, tasks, *computed, keep_maps)
                continue
            yield from self._by_halves(part, tasks, absent_maps, keep_maps, bank, reporter)

    def _compute(
        self,
        batch: Sequence[Prepared],
        tasks: Mapping[str, Task],
        absent_maps: bool,
        bank: Bank | None,
        masked: Tell,
    ) -> tuple[Computed, Evidence]:
        """What the tower and the methods make of a batch, and which names are in it."""
        evidence: list[Evidence] = []

        def wanted(embedding: Tensor, names: Tensor, windows: Sequence[Tensor]) -> Wanted | None:
            least = self.options.min_presence
            evidence.append(weigh(batch, embedding, names, windows, self._texts, self.backbone, least, bank))
            return None if absent_maps else _wanted(batch, tasks, evidence[0])

        computed = self.views.compute(batch, list(tasks.values()), masked, wanted)
        return computed, evidence[0]

    def _results(
        self,
        batch: Sequence[Prepared],
        tasks: Mapping[str, Task],
        computed: Computed,
        evidence: Evidence,
        keep_maps: bool,
    ) -> Iterator[dict[str, Localization]]:
        for b in range(len(batch)):
            yield {
                spec: self._result(batch[b], b, task, made, computed, evidence, keep_maps)
                for (spec, task), made in zip(tasks.items(), computed.by_task, strict=True)
            }

    @undisturbed
    def _result(
        self,
        item: Prepared,
        b: int,
        task: Task,
        made: Maps,
        computed: Computed,
        evidence: Evidence,
        keep_maps: bool,
    ) -> Localization:
        """The result of a task for picture number `b` of the batch."""
        presence = None if evidence.presence is None else evidence.presence[b].cpu().numpy()
        reasons = reasons_of(task, item, evidence.absences[b], made.not_flat[b].tolist())
        frame, finished = self.views.finish(b, made, task, computed.wanted_of(b))
        maps, boxes, reasons = _with_boxes(frame, finished, reasons, item.texts.names, task.box_rule, keep_maps)
        return Localization(
            source=item.picture.source,
            image=item.picture.image,
            names=item.texts.names,
            scores=evidence.scores[b].cpu().numpy(),
            presence=presence,
            found=np.array([reason is None for reason in reasons]),
            reasons=reasons,
            maps=maps,
            frame=frame,
            boxes=boxes,
            notes=item.picture.notes
            + item.notes
            + self._texts.remarks(item.texts)
            + tuple(dict.fromkeys(made.notes[b])),
            embedding=computed.embedding[b].clone().cpu().numpy(),
            method=task.method.title,
            model=self.backbone.name,
            threshold=task.box_rule.threshold,
            rule=task.box_rule,
            presence_rule=evidence.rule,
            ranks=None if evidence.ranks is None else evidence.ranks[b].cpu().numpy(),
            probabilities=None if evidence.probabilities is None else evidence.probabilities[b].cpu().numpy(),
        )


def _readable(batch: Sequence[Prepared | Unreadable]) -> list[Prepared]:
    return [item for item in batch if isinstance(item, Prepared)]


def _can_be_halved(batch: Sequence[Prepared], error: BaseException) -> bool:
    return len(batch) > 1 and out_of_memory(error)


def _wanted(batch: Sequence[Prepared], tasks: Mapping[str, Task], evidence: Evidence) -> Wanted:
    """For each picture and name, whether it is there for any task."""
    return [
        [
            any(task.reason(words, reason) is None for task in tasks.values())
            for words, reason in zip(item.texts.synonyms, absent, strict=True)
        ]
        for item, absent in zip(batch, evidence.absences, strict=True)
    ]


def _with_boxes(
    frame: Frame,
    finished: Iterator[tuple[Sequence[int], FloatArray]],
    reasons: Reasons,
    names: tuple[str, ...],
    rule: BoxRule,
    keep_maps: bool,
) -> tuple[FloatArray, Boxes, Reasons]:
    """The maps of all names, zero where none was made or none is kept; the boxes; and why names are not found.

    Args:
        frame: how the picture lies in the maps.
        finished: a few names at a time: their indices, and their maps `[p, H, W]`.
        reasons: for each name, why it is not there; None where it is.
        names: P names.
        rule: how maps become boxes.
        keep_maps: whether maps are kept.
    """
    shape = (len(names), *frame.input_hw)
    maps: FloatArray | None = None
    parts: list[Boxes] = []
    said = list(reasons)
    for some, values in finished:
        there = [said[p] for p in some]
        boxes, there_said = boxes_and_reasons(frame, values, there, tuple(names[p] for p in some), rule)
        parts.append(replace(boxes, label=np.asarray(some, np.int64)[boxes.label], names=names))
        for p, reason in zip(some, there_said, strict=True):
            said[p] = reason
        if keep_maps:
            if len(some) == len(names):
                maps = values
            else:
                maps = np.zeros(shape, np.float32) if maps is None else maps  # memory is taken only when written to
                maps[list(some)] = values
    if maps is None:
        maps = np.broadcast_to(np.zeros((), np.float32), shape)
    if not parts:
        none = np.zeros(0, np.float32)
        return maps, Boxes(none.reshape(0, 4), none, np.zeros(0, np.int64), names), tuple(said)
    return maps, _joined(parts), tuple(said)


def _joined(parts: Sequence[Boxes]) -> Boxes:
    """Concatenates boxes."""
    return Boxes(
        np.concatenate([one.xyxy for one in parts]),
        np.concatenate([one.score for one in parts]),
        np.concatenate([one.label for one in parts]),
        parts[0].names,
    )

"""The whole flow, from pictures and names to boxes, in the order in which it happens.

    requests → prepare → look (tower, methods) → weigh (which names may be there) → refine → join → boxes
             → second look (which boxes are right, which names are there) → results

Shapes: B pictures of a batch, P names, n inputs of one forward pass (whole pictures, or windows of them), D the joint
space's size, h × w a feature grid, H × W the first scale's input.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial, reduce
from itertools import count
from operator import or_
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cliploc.boxes import BoxRule
from cliploc.boxes.masks import MaskSource
from cliploc.boxes.reasons import boxes_and_reasons
from cliploc.errors import ModelError, UsageError
from cliploc.find.calibration import Calibration
from cliploc.find.memory import Memory, Remembered
from cliploc.find.prepare import (
    DECODERS,
    OnError,
    Preparation,
    Prepared,
    Request,
    Result,
    Unreadable,
    batches,
    stacked,
)
from cliploc.find.presence import Bank, Evidence, Reasons, looks_over, weigh
from cliploc.find.second_look import SecondLook, regions_of
from cliploc.find.steps import Lots, Steps, refuse_nan, with_features
from cliploc.find.tasks import Task, TaskMaker
from cliploc.find.texts import Texts
from cliploc.find.threads import Ahead, Tell, own_modes
from cliploc.find.views import (
    Joined,
    Look,
    LookMaps,
    StitchedFeatures,
    looks_at,
    not_flat,
    whole_look,
    window_embeddings,
)
from cliploc.images.geometry import Frame
from cliploc.localization import Localization, no_maps
from cliploc.methods import Context, TrainedHead, raw_maps
from cliploc.options import FOUND, Options, short
from cliploc.refine import resolve_refinements
from cliploc.support.reporter import Reporter
from cliploc.towers.tower import Backbone, Guide, Needs, Trace
from cliploc.values import Boxes, FloatArray, TextSet

if TYPE_CHECKING:
    from cliploc.find.learnt import Redrawn
    from cliploc.find.lesson import Lesson


READ_APART = 2.0  # from this scale on, scores and a second look have a pass of their own; docs/studies/presence.md


@dataclass(frozen=True)
class MaskedEncoder:
    """Embeds masked pictures."""

    encode: Callable[[Tensor], Tensor] | None  # [n, 3, H, W] normalised → [n, D]; None: the tower itself
    precision: str  # its precision; a `Memory` keeps the embeddings of each precision apart


@dataclass(frozen=True)
class Looked:
    """What the tower and the methods make of a batch, before the names are weighed."""

    batch: Sequence[Prepared]  # the pictures
    raw: list[list[LookMaps]]  # of each task, the maps of every look
    notes: list[list[list[str]]]  # of each task, for each picture, remarks of the method
    windows: list[Tensor]  # for each picture, [W, D] of its windows, not mirrored; W may be 0
    whole: list[Context]  # the whole pictures at the first scale, not mirrored and mirrored
    stitched: list[dict[int, Tensor]]  # the features of their windows, by stage
    read: Trace  # of the whole pictures, not mirrored, at the scale that is read


@dataclass(frozen=True)
class TaskMaps:
    """A method's maps of a batch."""

    joined: Joined  # computes the maps, in 0–1 over the first scale's input
    not_flat: Tensor  # [B, P] bool, whether any view's map is not constant
    notes: list[list[str]]  # for each picture, remarks of the method


@dataclass(frozen=True)
class Computed:
    """A batch with all that its boxes are made of."""

    batch: Sequence[Prepared]  # the pictures
    by_task: list[TaskMaps]  # the maps of each task, in their order
    embedding: Tensor  # [B, D] of the whole pictures, not mirrored, at the scale that is read
    windows: list[Tensor]  # for each picture, [W, D] of its windows, not mirrored, or of regions; W may be 0
    evidence: Evidence  # which names are there
    wanted: list[Sequence[int]]  # for each picture, the names whose maps are made; those of the others are zero
    places: Tensor | None  # [B, D, h, w] what a second look reads in the places of the pictures; None without one
    lessons: list[Lesson] | None  # of the pictures, for the first task; None unless they are asked for


class Flow:
    """From requests to results, with one model and one set of options, filled by the recipe; None: no such part."""

    def __init__(
        self,
        backbone: Backbone,
        texts: Texts,
        options: Options,
        head: tuple[str, TrainedHead] | None,
        masked: MaskedEncoder,
        *,
        second_look: tuple[Bank, Calibration] | None = None,
        guide: Guide | None = None,
        mask_source: MaskSource | None = None,
    ) -> None:
        self.backbone, self.texts, self.options, self.second_look = backbone, texts, options, second_look
        self._learnt = texts.learnt
        self.masked, self._guide, self._mask_source = masked, guide, mask_source
        self._memory: Memory | None = options.memory
        self._windows, self._scales = tuple(options.windows or ()), tuple(options.scales or ())
        # Scores and a second look read the first scale of the maps. Where it is so large that things look larger than
        # those that the model learnt, they read one more scale, the model's own, which comes last.
        self.reads_apart = bool(self._scales) and self._scales[0] >= READ_APART
        self.read_scale = len(self._scales) if self.reads_apart else 0
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
            (*self._scales, 1.0) if self.reads_apart else self._scales,
            self._windows,
            resize_ahead=options.memory is None,  # which may know a picture, so that its pixels are not needed
        )
        self.steps = Steps(backbone, steps, self._windows, self.preparation.input_hw, guide is not None)

    @property
    def min_presence(self) -> float:
        """The minimum of presence scores, which have another scale after a second look."""
        given = self.options.min_presence
        return self.usual_min_presence if given is None else given

    @property
    def usual_min_presence(self) -> float:
        """What the minimum is if none was given."""
        return FOUND if self.second_look else 0.5

    def tasks_of(self, methods: Sequence[str] | Mapping[str, Mapping[str, Any]]) -> dict[str, Task]:
        """The task of each method; the keys are the entries of `methods`."""
        if isinstance(methods, str) or not isinstance(methods, Sequence | Set | Mapping) or not methods:
            raise UsageError(f"expected a list of methods, got {short(methods)}: write ['cam']")
        asked = methods.items() if isinstance(methods, Mapping) else [(spec, {}) for spec in methods]
        return {spec: self.tasks.make(spec, options) for spec, options in asked}

    # ------------------------------------------------------------------------------------------------------- all of it
    def run(
        self,
        requests: Iterable[Request],
        tasks: Mapping[str, Task],
        bank: Bank | None,
        reporter: Reporter,
        on_error: OnError,
        *,
        absent_maps: bool = True,
        keep_maps: bool = True,
        boxes: bool = True,
        lessons: bool = False,
    ) -> Generator[Result, None, None]:
        """Works through requests; see `Localizer.run`. The tower sees the next batch while this one is used."""
        how: dict[str, Any] = {"absent_maps": absent_maps, "lessons": lessons}
        compute = partial(self.compute, tasks=list(tasks.values()), bank=bank, reporter=reporter, **how)
        # Few pictures are read ahead, as a whole batch of them is with the tower already.
        with (
            self.batches(requests, on_error, DECODERS) as gathered,
            Ahead(gathered, compute, reporter.masked, reporter.halved, on_error == "skip" and len(tasks) == 1) as ahead,
        ):
            for batch, computed in ahead:
                places = count()  # of the pictures that could be read, in what was computed
                for item in batch:
                    if isinstance(computed, ModelError) and isinstance(item, Prepared):
                        item = Unreadable.by(item, computed)
                    if isinstance(item, Unreadable):
                        reporter.failed(item.source, item.error)
                        yield Result(item.id, error=item.error)
                        continue
                    assert isinstance(computed, Computed)
                    b, localizations = next(places), {}
                    for (spec, task), maps in zip(tasks.items(), computed.by_task, strict=True):
                        localizations[spec] = self._result(b, task, maps, computed, keep_maps, boxes)
                    yield Result(item.id, localizations, lesson=computed.lessons[b] if computed.lessons else None)

    def batches(
        self, requests: Iterable[Request], on_error: OnError, ahead: int | None = None
    ) -> closing[Generator[list[Prepared | Unreadable], None, None]]:
        """Batches of prepared pictures, some read ahead; leaving the context ends the threads, also after an error."""
        size = self.options.batch_size
        ahead = size + DECODERS if ahead is None else ahead
        return closing(batches(self.preparation.stream(requests, ahead, on_error), size))

    # ------------------------------------------------------------------------------------------------------- a batch
    def compute(
        self,
        items: Sequence[Prepared | Unreadable],
        told: Tell,
        tasks: Sequence[Task],
        bank: Bank | None,
        reporter: Reporter,
        absent_maps: bool,
        lessons: bool,
    ) -> Callable[[], Computed | None]:
        """The tower's part of a batch, and the methods'; the call that it returns makes the rest, in any thread.

        bank: what uncalibrated presence asks.
        """
        batch = [item for item in items if isinstance(item, Prepared)]
        if not batch:
            return lambda: None
        bank = self.second_look[0] if self.second_look else bank
        taught = lessons or any(self._learnt_rows(item.texts) for item in batch)
        with own_modes(self.backbone.device), self._remembered_together(batch, taught) as together:
            if bank is not None:
                bank.embed(reporter.bank)
            directions = _of_names(batch, self.texts.directions)  # [B, P, D]
            looks = looks_at(batch, len(self._scales), bool(self.options.flip), self.options.batch_size)
            raw: list[list[LookMaps]] = [[] for _ in tasks]
            notes: list[list[list[str]]] = [[[] for _ in batch] for _ in tasks]
            embeddings: list[LookMaps] = []
            see = partial(self._see, batch=batch, directions=directions, taught=taught, began=reporter.tower)
            whole: list[Context] = []
            sums: list[StitchedFeatures] = []  # of the features of windows
            for number, look in enumerate(looks):
                counting = _MaskedCount(told, further_looks=len(looks) - 1 - number)
                context, maps = see(look, tasks=tasks, masked=counting, notes=notes)
                if look.scale == 0:  # the other traces are not kept, as they are large
                    whole.append(context)
                    sums.append(self.steps.stitched(context, batch, taught))
                elif look.windows is not None and ("stitched", look.flipped) not in together.shared:
                    sums[int(look.flipped)].add(look, context.trace)
                embeddings.append((look, context.trace.embedding))
                for kept, values in zip(raw, maps, strict=True):
                    kept.append((look, values))
            stitched = []
            for flipped, (context, features) in enumerate(zip(whole, sums, strict=True)):
                key = ("stitched", bool(flipped))
                if key not in together.shared:
                    together.shared[key] = features.over(context.trace)
                stitched.append(together.shared[key])
            read = whole[0].trace
            if self.reads_apart:
                read = see(whole_look(batch, self.read_scale), tasks=[], masked=told, notes=[])[0].trace
        looked = Looked(batch, raw, notes, window_embeddings(embeddings, len(batch)), whole, stitched, read)
        return partial(self._weighed, looked, tasks, bank, absent_maps, lessons, taught)

    def _weighed(
        self,
        looked: Looked,
        tasks: Sequence[Task],
        bank: Bank | None,
        absent_maps: bool,
        lessons: bool,
        taught: bool,
    ) -> Computed:
        """Which names are there, and the maps of every task after the steps on the grid."""
        batch, whole, embedding, windows = looked.batch, list(looked.whole), looked.read.embedding, looked.windows
        with own_modes(self.backbone.device), self._remembered_together(batch, taught) as together:
            places = self.backbone.dense(looked.read) if self.second_look else None
            if places is not None and not self._windows and self.backbone.kind == "cnn":
                if "regions" not in together.shared:
                    of_seen = self.backbone.dense(whole[0].trace) if self.reads_apart else places
                    together.shared["regions"] = regions_of([item.frames[0] for item in batch], of_seen)
                windows = together.shared["regions"]
            compared, calibration = None, self.second_look[1] if self.second_look else None
            if bank is not None and calibration is not None:
                compared = looks_over(batch, embedding, windows, bank, calibration.lifts, together.shared)
            evidence = weigh(
                batch,
                embedding,
                _of_names(batch, self.texts.embed),  # [B, P, D]
                windows,
                self.texts,
                min_presence=self.min_presence,
                bank=bank,
                calibration=calibration,
                looks=compared,
            )
            wanted = _wanted(batch, tasks, None if absent_maps else evidence)
            for flipped, (context, features) in enumerate(zip(looked.whole, looked.stitched, strict=True)):
                made = together.shared.setdefault(("made of stitched", bool(flipped)), {})
                whole[flipped] = with_features(context, features, made)

            def lessons_of(number: int, names: list[Sequence[int]]) -> list[Lesson]:
                return self.steps.lessons(looked.raw[number], batch, names, whole[0], embedding, together)

            learnt = [self._learnt_rows(item.texts) for item in batch]
            by_task = []
            for number, (task, kept, said) in enumerate(zip(tasks, looked.raw, looked.notes, strict=True)):
                redrawn = self._redrawn(task, learnt, wanted, partial(lessons_of, number))
                others = [
                    [p for p in names if p not in rows] if redrawn else names
                    for names, rows in zip(wanted, learnt, strict=True)
                ]
                joined = replace(self.steps.joined(task, kept, batch, others, whole, together), redrawn=redrawn)
                says = not_flat(kept, len(batch))
                for of_picture, lesson in zip(says, redrawn, strict=bool(redrawn)):
                    of_picture[[*lesson.rows]] = True
                by_task.append(TaskMaps(joined, says, said))
            own = lessons_of(0, wanted) if lessons else None
            return Computed(batch, by_task, embedding, windows, evidence, wanted, places, own)

    def _learnt_rows(self, texts: TextSet) -> dict[int, tuple[int, float]]:
        """The number of each name that was learnt → its row, and the share of the text's map; see `Redrawn`."""
        if self._learnt is None:
            return {}
        rows = {p: self.texts.learnt_row(words) for p, words in enumerate(texts.synonyms)}
        shown = [self.texts.by_exemplars(words) for words in texts.synonyms]  # then there is no map of a text
        return {p: (row, 0.0 if shown[p] else self._learnt.share[row]) for p, row in rows.items() if row is not None}

    def _redrawn(
        self,
        task: Task,
        learnt: Sequence[Mapping[int, tuple[int, float]]],
        wanted: list[Sequence[int]],
        lessons_of: Callable[[list[Sequence[int]]], list[Lesson]],
    ) -> list[Redrawn]:
        """For each picture, what draws the maps of a task's names that were learnt; none without such names."""
        names: list[Sequence[int]] = [[p for p in some if p in rows] for some, rows in zip(wanted, learnt, strict=True)]
        if self._learnt is None or not task.refined or not any(names):
            return []
        from cliploc.find.learnt import Redrawn

        level, device = self.steps.level_of(task), self.backbone.device
        lessons = zip(lessons_of(names), learnt, strict=True)
        return [Redrawn(self._learnt, lesson.on(device), rows, level) for lesson, rows in lessons]

    def _see(
        self,
        look: Look,
        *,
        batch: Sequence[Prepared],
        directions: Tensor,
        taught: bool,
        began: Callable[[], None],
        tasks: Sequence[Task],
        masked: Tell,
        notes: list[list[list[str]]],
    ) -> tuple[Context, list[Tensor]]:
        """One forward pass, and the maps of every task from it: `[n, P, h, w]` after ReLU, not mirrored."""

        @cache  # once, and only if the tower, a method or the guide asks for them
        def shown() -> Tensor:  # [n, 3, H, W] in 0–1
            began()
            return self._shown(look, batch)

        images = cache(lambda: self.backbone.normalize(shown()))
        owners = [batch[b] for b in look.owners]
        needs = reduce(or_, [task.needs for task in tasks] + self.steps.needs(look, taught), Needs())
        if self.second_look and look.scale in (0, self.read_scale) and not look.flipped:
            # A CNN's last features are always there.
            needs |= Needs(dense=1) if self.backbone.kind == "vit" else Needs(features=(-1,))
        with self._remembered(look, batch) as remembered:
            if needs not in remembered.traces:
                remembered.traces[needs] = self.backbone.trace(images(), needs)
            trace = remembered.traces[needs]
            refuse_nan(trace.embedding[:, None], owners, "an embedding", self.backbone)
            context = Context(
                images,
                _rows(directions, look.owners),  # [n, P, D]
                trace,
                self.backbone,
                self.options.batch_size,
                masked,
                encode_masked=self.masked.encode,
                cache=remembered.shared,
                empty_name=partial(_of_names, owners, self.texts.empty_name),
                words=[item.texts.synonyms for item in owners],
                guide=None if self._guide is None else partial(_guided, self._guide, shown, remembered.shared),
            )
            maps = []
            for task, said in zip(tasks, notes, strict=True):
                noting = replace(context, note=partial(_note, [said[b] for b in look.owners]))
                values = raw_maps(task.method, noting, task.options)  # [n, P, h, w]
                refuse_nan(values.flatten(2), owners, "a map", self.backbone)
                values = values.relu() if task.method.relu else values
                maps.append(values.flip(-1) if look.flipped else values)
        return context, maps

    def _shown(self, look: Look, batch: Sequence[Prepared]) -> Tensor:
        if look.windows is None:
            pixels = [batch[b].inputs[look.scale or 0] for b in look.owners]
        else:
            pixels = [batch[b].window(look.windows, frame) for b, frame in zip(look.owners, look.frames, strict=True)]
        together = stacked(pixels)  # [n, 3, H, W] uint8
        return (together.flip(-1) if look.flipped else together).to(self.backbone.device).float().div_(255)

    # ------------------------------------------------------------------------------------------------------ a picture
    def _result(
        self, b: int, task: Task, made: TaskMaps, computed: Computed, keep_maps: bool, boxes: bool
    ) -> Localization:
        """The boxes of a task for picture number `b` of what was computed, and all else that is known of it."""
        with own_modes(self.backbone.device):
            item, evidence = computed.batch[b], computed.evidence
            reasons = task.reasons(item.texts.synonyms, evidence.absences[b], made.not_flat[b].tolist())
            frame, lots = self.steps.finished(b, made.joined, task, computed.wanted[b])
            second = self._second_look(b, computed, made)
            rule = task.box_rule if boxes else None
            if rule is not None and second is not None:  # it chooses among all boxes
                rule = replace(rule, max_boxes=None, min_score=0.0)
            redrawn = made.joined.redrawn
            sides = redrawn[b].sides(len(item.texts)) if redrawn else None
            maps, cut, reasons = _with_boxes(frame, lots, reasons, item.texts.names, rule, keep_maps, sides)
            said = self.texts.remarks(item.texts) + tuple(dict.fromkeys(made.notes[b]))
            result = Localization(
                source=item.picture.source,
                image=item.picture.image,
                names=item.texts.names,
                scores=evidence.scores[b].cpu().numpy(),
                presence=None if evidence.presence is None else evidence.presence[b].cpu().numpy(),
                found=np.array([reason is None for reason in reasons]),
                reasons=reasons,
                maps=maps,
                frame=frame,
                boxes=cut,
                notes=item.picture.notes + item.notes + said,
                embedding=computed.embedding[b].clone().cpu().numpy(),
                method=task.method.title,
                model=self.backbone.name,
                threshold=task.box_rule.threshold,
                rule=task.box_rule,
                presence_rule=evidence.rule,
                ranks=None if evidence.ranks is None else evidence.ranks[b].cpu().numpy(),
                probabilities=None if evidence.probabilities is None else evidence.probabilities[b].cpu().numpy(),
                second_look=second if keep_maps else None,
                sides=sides,
                mask_source=self._mask_source,
                maps_kept=keep_maps,
            )
            if second is None or not boxes:
                return result
            return result.judged_by(second.judge(cut, reasons, task.box_rule))

    def _second_look(self, b: int, computed: Computed, made: TaskMaps) -> SecondLook | None:
        """The second look at picture number `b`; None if there is none, or no bank to compare with."""
        looks, item = computed.evidence.looks, computed.batch[b]
        if self.second_look is None or computed.places is None or looks is None:
            return None
        of_names, rivals = looks[b]
        competes = np.array([not self.texts.by_exemplars(words) for words in item.texts.synonyms])
        calibration, places = self.second_look[1], computed.places[b]
        learnt = tuple(made.joined.redrawn[b].rows) if made.joined.redrawn else ()
        frame, contrasts = item.frames[self.read_scale], item.texts.contrasts
        alike = self.texts.learnt_presence(item.texts, computed.embedding[b]).double().cpu().numpy()
        return SecondLook(
            calibration, frame, places, rivals, of_names, competes, contrasts,
            learnt=learnt, alike=alike, min_presence=self.min_presence,
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------------------ the memory
    def _remembered(self, look: Look, batch: Sequence[Prepared]) -> AbstractContextManager[Remembered]:
        """What the memory has of a look; new results are added to it."""
        if self._memory is None:
            return nullcontext(Remembered())
        guide = None if self._guide is None else self._guide.weights_id
        seen = [(batch[b].picture.checksum, frame) for b, frame in zip(look.owners, look.frames, strict=True)]
        return self._memory.of(self.backbone, *seen, look.flipped, self.masked.precision, guide)

    def _remembered_together(self, batch: Sequence[Prepared], taught: bool) -> AbstractContextManager[Remembered]:
        """What the memory has of all looks together, for the steps on the grid; new results are added to it."""
        if self._memory is None or not self.steps.on_grid:
            return nullcontext(Remembered())
        seen = [(item.picture.checksum, item.frames) for item in batch]
        stages = [tuple(step.needs(self.backbone).features) for step in self.steps.on_grid]
        input_hw, size = self.preparation.input_hw, self.options.batch_size
        how = ("together", self._windows, input_hw, size, tuple(stages), self._guide is None, taught)
        return self._memory.of(self.backbone, *seen, *how)


def _wanted(batch: Sequence[Prepared], tasks: Sequence[Task], evidence: Evidence | None) -> list[Sequence[int]]:
    """For each picture, the names that are there for any task; all names without evidence."""
    if evidence is None:
        return [range(len(item.texts)) for item in batch]
    return [
        [
            p
            for p, (words, reason) in enumerate(zip(item.texts.synonyms, absent, strict=True))
            if any(task.reason(words, reason) is None for task in tasks)
        ]
        for item, absent in zip(batch, evidence.absences, strict=True)
    ]


def _with_boxes(
    frame: Frame,
    lots: Lots,
    reasons: Reasons,
    names: tuple[str, ...],
    rule: BoxRule | None,
    keep_maps: bool,
    sides: FloatArray | None,
) -> tuple[FloatArray, Boxes, Reasons]:
    """Maps of all names, zero where none was made or kept; boxes by a rule; why names are not found (None: found)."""
    shape = (len(names), *frame.input_hw)
    maps: FloatArray | None = None
    parts: list[Boxes] = []
    said = list(reasons)
    for some, values in lots:
        if rule is not None:
            there = [said[p] for p in some]
            of_lot = None if sides is None else sides[list(some)]
            boxes, there_said = boxes_and_reasons(frame, values, there, tuple(names[p] for p in some), rule, of_lot)
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
        maps = no_maps(shape)
    return maps, Boxes.joined(parts, names), tuple(said)


def _of_names(batch: Sequence[Prepared], made: Callable[[TextSet], Tensor]) -> Tensor:
    """What is made of each picture's names, `[B, P, D]`; stored once if all pictures have the same names."""
    first = batch[0].texts
    if all(item.texts == first for item in batch):
        return made(first).expand(len(batch), -1, -1)
    return torch.stack([made(item.texts) for item in batch])


def _rows(directions: Tensor, owners: Sequence[int]) -> Tensor:
    """The rows of `[B, P, D]` for each owner, `[n, P, D]`; not copied if all are of one picture."""
    if len(set(owners)) == 1:
        return directions[owners[0]].expand(len(owners), -1, -1)
    return directions[list(owners)]


def _guided(guide: Guide, pixels: Callable[[], Tensor], shared: dict[Any, Any]) -> Tensor:
    """The guide's features `[B, C, h, w]` of a batch, computed once for all methods and steps."""
    if "guide" not in shared:
        shared["guide"] = guide.features(pixels().contiguous()).to(pixels().device)
    features: Tensor = shared["guide"]
    return features


class _MaskedCount:
    """Tells how many masked pictures are done and left; it assumes that each further look needs as many as this one."""

    def __init__(self, told: Tell, further_looks: int) -> None:
        self._told, self._further_looks, self._done = told, further_looks, 0

    def __call__(self, done: int, left: int) -> None:
        self._done += done
        self._told(done, left + self._further_looks * (self._done + left))


def _note(notes: list[list[str]], picture: int, remark: str) -> None:
    notes[picture].append(remark)

"""The whole flow, from pictures and names to boxes, in the order in which it happens.

    requests → prepare → passes (tower, methods) → presence (which names may be there) → refine → join → boxes
             → second look (which boxes are right, which names are there) → results

Shapes: B pictures of a batch, P names, n inputs of one forward pass (whole pictures, or windows of them), D the joint
space's size, h × w a feature grid, H × W the first scale's input.
"""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial, reduce
from operator import or_

import numpy as np
from torch import Tensor

from cliploc.boxes.masks import MaskSource
from cliploc.find import passes, recipes
from cliploc.find.calibration import Calibration
from cliploc.find.memory import Remembered
from cliploc.find.prepare import Preparation, Prepared, Request, Result, RunOptions, Unreadable
from cliploc.find.presence import Bank, Presence
from cliploc.find.running import Progress, torch_modes
from cliploc.find.second_look import SecondLook, regions_of
from cliploc.find.steps import BatchMaps, Steps, TaskMaps
from cliploc.find.tasks import Task, TaskMaker
from cliploc.find.texts import Texts
from cliploc.localization import Localization
from cliploc.methods import TrainedHead, raw_maps
from cliploc.options import FOUND, Options
from cliploc.refine import resolve_refinements
from cliploc.towers.tower import Backbone, Guide, Needs, Trace
from cliploc.values import TextSet

READ_APART = 2.0  # from this scale on, scores and a second look have a pass of their own; docs/studies/presence.md


class Flow:
    """From requests to results, with one model and one set of options, filled by the recipe; None: no such part."""

    def __init__(
        self,
        backbone: Backbone,
        texts: Texts,
        options: Options,
        head: tuple[str, TrainedHead] | None,
        masked: passes.MaskedEncoder,
        *,
        bank: Bank,
        calibration: Calibration,
        guide: Guide | None = None,
        mask_source: MaskSource | None = None,
    ) -> None:
        self.backbone, self.texts, self.options = backbone, texts, options
        self.bank, self.calibration, self.second_look = bank, calibration, bool(options.second_look)
        self.masked, self.mask_source, self.guide = masked, mask_source, guide
        self.min_presence = FOUND if options.min_presence is None else options.min_presence
        self.compares = self.second_look or self.min_presence > 0  # whether there is presence, unless a run says so
        windows, self._scales = tuple(options.windows or ()), tuple(options.scales or ())
        # Scores and a second look read the first scale of the maps. Where it is so large that things look larger than
        # those that the model learnt, they read one more scale, the model's own, which comes last.
        self.reads_apart = bool(self._scales) and self._scales[0] >= READ_APART
        self.read_scale = len(self._scales) if self.reads_apart else 0
        steps = resolve_refinements(options.refine or (), backbone)
        self.refine = tuple(step.name for step in steps)
        self.tasks = TaskMaker(backbone, options, head, steps, guide)
        scales = (*self._scales, 1.0) if self.reads_apart else self._scales
        self.preparation = Preparation(backbone, texts.templates, options, scales, windows)
        self.steps = Steps(backbone, steps, windows, self.preparation.input_hw, guide is not None, texts)
        self._runner = passes.PassRunner(backbone, texts, options, masked, guide, self._needs_of)

    def run(
        self, requests: Iterable[Request], tasks: Mapping[str, Task], run: RunOptions
    ) -> Generator[Result, None, None]:
        """Works through requests; see `Localizer.run`. The tower sees the next batch while this one is used."""
        bank = self.bank if (self.compares if run.presence is None else run.presence or self.second_look) else None
        presence = Presence(self.texts, self.min_presence, bank, self.calibration, self.second_look)
        compute = partial(self.compute, tasks=list(tasks.values()), presence=presence, run=run)
        apart = run.on_error == "skip" and len(tasks) == 1
        with closing(self.preparation.computed(requests, compute, run.on_error, run.reporter, apart)) as pictures:
            for item, of_batch, b in pictures:
                if isinstance(item, Unreadable):
                    yield Result(item.id, error=item.error)
                    continue
                assert of_batch is not None
                by_task = zip(tasks.items(), of_batch.by_task, strict=True)
                found = {spec: self._result(b, task, maps, of_batch, run) for (spec, task), maps in by_task}
                yield Result(item.id, found, lesson=of_batch.lessons[b] if of_batch.lessons else None)

    def _needs_of(self, forward: passes.ForwardPass, taught: bool) -> Needs:
        """What the steps and a second look read of a pass's trace."""
        needs = reduce(or_, self.steps.needs(forward, taught), Needs())
        if forward.scale in (0, self.read_scale) and not forward.flipped:
            if self.backbone.kind == "cnn":
                needs |= Needs(features=(-1,))  # which are always there
            elif self.second_look:
                needs |= Needs(dense=1)
        return needs

    def compute(
        self,
        items: Sequence[Prepared | Unreadable],
        progress: Progress,
        tasks: Sequence[Task],
        presence: Presence,
        run: RunOptions,
    ) -> Callable[[], BatchMaps | None]:
        """The tower's part of a batch, and the methods'; the call that it returns makes the rest, in any thread."""
        batch = [item for item in items if isinstance(item, Prepared)]
        if not batch:
            return lambda: None
        taught = run.lessons or any(self.texts.learnt_rows(item.texts) for item in batch)
        raws = [passes.Raw(task) for task in tasks]
        with torch_modes(self.backbone.device):
            if presence.bank is not None:
                presence.bank.embed(run.reporter.bank)
            directions = passes.of_names(batch, self.texts.directions)  # [B, P, D]
            run_pass = partial(
                self._runner.run, batch=batch, directions=directions, taught=taught, tower_called=run.reporter.tower
            )
            flip, at_once = bool(self.options.flip), self.options.batch_size
            contexts, sums, embeddings = [], [], []
            for forward in passes.forward_passes(batch, len(self._scales), flip, at_once):
                context = run_pass(forward, raws=raws, progress=progress)
                embeddings.append((forward, context.trace.embedding))
                if forward.scale == 0:  # the other traces are dropped, as they are large
                    contexts.append(context)
                    sums.append(self.steps.stitched(context, batch, taught, forward.flipped))
                elif forward.windows is not None:
                    sums[int(forward.flipped)].add(forward, context.trace)
            seen = read = contexts[0].trace
            if self.reads_apart:
                read = run_pass(passes.whole_picture_pass(batch, self.read_scale), progress=progress).trace
            contexts = [features.into(context) for context, features in zip(contexts, sums, strict=True)]
        windows = passes.window_embeddings(embeddings, len(batch))
        return partial(
            self._presence_and_maps, passes.TowerOutputs(batch, raws, windows, contexts, seen, read), presence, run
        )

    def find_after(
        self, item: Prepared, choose: Callable[[Trace], tuple[TextSet, Tensor]], task: Task, needs: Needs
    ) -> tuple[Trace, Localization, Tensor]:
        """One pass of a whole picture at the first scale, whose trace decides what is found.

        Returns the trace, where the chosen names are, and the method's map `[h, w]` of the chosen direction `[D]`.
        """
        run, seen, bank = RunOptions(), Remembered(), self.bank if self.compares else None
        presence = Presence(self.texts, self.min_presence, bank, self.calibration, self.second_look)
        with torch_modes(self.backbone.device):
            run_pass = partial(
                self._runner.run, passes.whole_picture_pass([item], 0), taught=False, tower_called=run.reporter.tower,
                progress=run.reporter.masked, needs=needs | task.needs, seen=seen,
            )  # fmt: skip
            texts, direction = choose(run_pass([item], self.texts.embed(item.texts)[None]).trace)
            item, raw = replace(item, texts=texts), passes.Raw(task)
            context = run_pass([item], self.texts.directions(texts)[None], raws=[raw])  # the same pass
            explained = raw_maps(task.method, replace(context, text=direction[None, None]), task.options)[0, 0]
        trace = context.trace
        outputs = passes.TowerOutputs([item], [raw], [trace.embedding[:0]], [context], trace, trace)
        maps = self._presence_and_maps(outputs, presence, run)
        return trace, self._result(0, task, maps.by_task[0], maps, run), explained

    def _presence_and_maps(self, outputs: passes.TowerOutputs, presence: Presence, run: RunOptions) -> BatchMaps:
        """Which names are there, and the maps of every task after the steps on the grid."""
        batch, embedding, windows = outputs.batch, outputs.read.embedding, outputs.windows
        with torch_modes(self.backbone.device):
            places = self.backbone.dense(outputs.read) if self.second_look else None
            if presence.bank is not None and not self.options.windows and self.backbone.kind == "cnn":
                windows = regions_of([item.frames[0] for item in batch], self.backbone.dense(outputs.seen))
            evidence = presence.of(batch, embedding, windows)
            tasks = [raw.task for raw in outputs.raws]
            wanted: list[Sequence[int]] = [  # the names that are there for any task
                [p for p, (words, why) in enumerate(zip(item.texts.synonyms, absent, strict=True))
                 if run.absent_maps or any(task.reason(words, why) is None for task in tasks)]
                for item, absent in zip(batch, evidence.absences, strict=True)
            ]  # fmt: skip
            made = [self.steps.maps_of(raw, batch, wanted, outputs.contexts, embedding) for raw in outputs.raws]
            first, contexts = outputs.raws[0].maps, outputs.contexts[0]
            lessons = self.steps.lessons(first, batch, wanted, contexts, embedding) if run.lessons else None
            return BatchMaps(batch, made, embedding, evidence, wanted, places, lessons)

    def _result(self, b: int, task: Task, maps: TaskMaps, of_batch: BatchMaps, run: RunOptions) -> Localization:
        """The boxes of a task for picture number `b` of a batch, and all else that is known of it."""
        item, evidence = of_batch.batch[b], of_batch.evidence
        with torch_modes(self.backbone.device):
            reasons = task.reasons(item.texts.synonyms, evidence.absences[b], maps.not_flat[b].tolist())
            second = self._second_look(b, of_batch, maps)
            chances = None if second is None or not self.is_calibrated(task.method.name) else second.calibrated()
            rule = task.box_rule if run.boxes else None
            if rule is not None and second is not None:  # it chooses among all boxes
                rule = replace(rule, max_boxes=None, min_score=0.0)
            remarks = dict.fromkeys(self.texts.remarks(item.texts))
            made = self.steps.finished(b, maps, task, of_batch.wanted[b], reasons, rule, run.keep_maps)
            frame, heat, boxes, reasons = made  # boxes before a second look
            result = Localization(
                source=item.picture.source,
                image=item.picture.image,
                names=item.texts.names,
                scores=evidence.scores[b].cpu().numpy(),
                presence=None if evidence.presence is None else evidence.presence[b].cpu().numpy(),
                found=np.array([reason is None for reason in reasons]),
                reasons=reasons,
                maps=heat,
                frame=frame,
                boxes=boxes,
                notes=(*item.picture.notes, *item.notes, *remarks),
                embedding=of_batch.embedding[b].clone().cpu().numpy(),
                method=task.method.title,
                model=self.backbone.name,
                threshold=task.box_rule.threshold,
                rule=task.box_rule,
                presence_rule=evidence.rule,
                second_look=second if run.keep_maps else None,
                calibrated=chances,
                sides=maps.sides(b),
                mask_source=self.mask_source,
                has_maps=run.keep_maps,
            )
            if second is None or not run.boxes:
                return result
            return result.judged_by(second.judge(boxes, reasons, task.box_rule))

    def is_calibrated(self, method: str) -> bool:
        """Whether the chances of a second look were fitted to this model, method and settings."""
        if self.backbone.name not in self.calibration.models:
            return False
        fitted = self.calibration.settings
        settings = recipes.settings_of(method, self.options)
        return settings in (recipes.settings_of_recipes(self.backbone) if fitted is None else [fitted])

    def _second_look(self, b: int, of_batch: BatchMaps, maps: TaskMaps) -> SecondLook | None:
        """The second look at picture number `b`; None if there is none, or no bank to compare with."""
        compared, texts = of_batch.evidence.compared, of_batch.batch[b].texts
        if not self.second_look or of_batch.places is None or compared is None:
            return None
        features, rivals = compared[b]
        frame, learnt = of_batch.batch[b].frames[self.read_scale], tuple(maps.joined.learnt_rows(b))
        competes = np.array([not self.texts.by_exemplars(words) for words in texts.synonyms])
        alike = self.texts.learnt_presence(texts, of_batch.embedding[b]).double().cpu().numpy()
        of_picture = (frame, of_batch.places[b], rivals, features, competes, texts.contrasts, learnt, alike)
        return SecondLook(self.calibration, *of_picture, self.min_presence, of_batch.evidence.rule or "bank")

"""The worker of an annotation: it computes all candidates for drafts of each picture."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import tee
from typing import Any

import numpy as np

from cliploc.boxes.components import are_first
from cliploc.errors import ModelError, UsageError
from cliploc.find import prepare, prompts
from cliploc.find.learnt import packed
from cliploc.images import rle
from cliploc.localization import Localization
from cliploc.localizer import Localizer
from cliploc.options import DEFAULTS, Options
from cliploc.runs import engine
from cliploc.runs.label_store import Candidate, PictureResult
from cliploc.runs.picture_files import PictureFile, digested
from cliploc.support.reporter import SILENT, Reporter
from cliploc.values import Boxes

LEAST_FIT = 0.02  # of boxes whose maps score less, only a name's best could ever be shown
RESERVED = {"text_cache"}  # options that `annotate` sets itself


class AnnotateWorker:
    """Holds a `Localizer` and turns shards of pictures into parts."""

    def __init__(
        self,
        labels: prompts.Labels,
        options: Options,  # of `Localizer`; scores and numbers of boxes are those of drafts, which are chosen later
        least: float | None = None,  # the least presence that any call asks for; None: the usual
        masks: bool = False,  # whether each box has its mask
        # whether lessons are stored, so that the folder can be taught; None: where the model's recipe allows it
        teach: bool | None = None,
    ) -> None:
        self._entries, self._masks = list(labels.entries), masks
        by_recipe = options.method is None and options.head is None
        second_look = by_recipe if options.second_look is None else options.second_look
        if second_look and least != 0:  # its gate is always the usual one, so that the presence can be changed
            least = None
        self.localizer = Localizer(
            **options.but(
                min_presence=least,
                min_score=0.0,
                max_boxes=DEFAULTS.max_boxes,
                text_cache=False,  # cached embeddings were computed in other batches, and can differ in the last bit
            ).changed()
        )
        why_not = self.localizer.unteachable_reason()
        if options.masks_by != "heat":  # taught maps are drawn again from the lesson, without the picture
            why_not = why_not or f"masks by {options.masks_by.partition(':')[0]}"
        if teach and why_not is not None:
            raise UsageError(f"expected settings that a folder can be taught with, got {why_not}: use --teach off")
        self._teach = teach is not False and why_not is None
        self.names = labels.names
        unknown = self.localizer.unknown_names(labels.entries)
        if len(unknown) == len(self.names) and not self._teach:
            raise UsageError(f"expected a name that the model knows: {next(iter(unknown.values()))}")
        self._known = np.array([name not in unknown for name in self.names])  # [P]
        gets = "drafts only from three or more pictures where it is drawn" if self._teach else "no boxes"
        self._sought = lru_cache(2)(self._sought_in)  # mostly the same in all pictures
        # Who read the labels has warned of commas.
        plain = [entry for entry in labels.entries if "," not in entry]
        readings = self.localizer.readings(plain) if plain else ()
        self.notes = (*(f"{reason}; {name!r} gets {gets}" for name, reason in unknown.items()), *readings)

    def doubts(self, entries: Sequence[str]) -> list[str]:
        """What the model says of names that seem to be misspelt."""
        unknown = self.localizer.unknown_names(entries).values() if entries else ()
        readings = self.localizer.readings(entries) if entries else ()
        return [line for line in (*unknown, *readings) if "did you mean" in line]

    def describe(self) -> dict[str, Any]:
        """All settings that the candidates depend on, including defaults."""
        settings = {"first_look": self.localizer.flow.bank.version, **self.localizer.describe()}
        if self._masks:
            settings["masks"] = True
        return {**settings, "teaching": self.localizer.teaching()} if self._teach else settings

    def stream(self, shards: Iterable[engine.Shard], reporter: Reporter = SILENT) -> Generator[engine.Part, None, None]:
        """Yields the parts of shards, in order."""
        notes = list[str]()
        digested_shards, fed = tee(digested(shards))
        samples = (sample for shard, _ in fed for sample in shard.samples)
        results = self.localizer.run(
            (prepare.Request(one.id, one.path, self._sought(one.labels)[1]) for one in samples),
            reporter=Reporter(masked=reporter.masked, bank=reporter.bank, halved=engine.collect_halved(notes)),
            absent_maps=False,
            presence=True,
            lessons=self._teach,
        )
        try:
            for shard, digests in digested_shards:
                found: list[PictureResult] = []
                try:
                    for picture, digest in zip(shard.samples, digests, strict=True):
                        found.append(self._outcome(picture, digest, results))
                        reporter.images(1)
                except KeyboardInterrupt:
                    if found:  # what was computed is not lost
                        yield engine.Part(shard.index, found, tuple(notes))
                    raise
                yield engine.Part(shard.index, found, tuple(notes))
                notes.clear()
        except (RuntimeError, MemoryError) as error:
            raise ModelError(engine.failure_reason(error)) from error
        finally:
            results.close()

    def _outcome(self, picture: PictureFile, digest: str, results: Iterator[prepare.Result]) -> PictureResult:
        """What is in a picture, whose result comes next."""
        if (result := next(results)).error is not None:
            reason = str(result.error)
            return PictureResult(picture.id, digest, reason.partition(": ")[2] or reason)
        (localization,) = result.found.values()
        features = b"" if result.lesson is None else packed(result.lesson, self._sought(picture.labels)[1])
        return self._found(picture, digest, localization, features)

    def _sought_in(self, labels: tuple[int, ...]) -> tuple[tuple[int, ...], list[str], tuple[str, ...]]:
        """The labels of a picture, what is looked for by them, and notes on that: of the run, not of each picture."""
        if not labels or self.localizer.method.prompts_interact:
            labels = tuple(range(len(self.names)))
        entries = [self._entries[p] for p in labels]
        return labels, entries, self.localizer.readings(entries)

    def close(self) -> None:
        """Nothing to end."""

    # ------------------------------------------------------------------------------------------------- one picture
    def _found(self, picture: PictureFile, digest: str, result: Localization, features: bytes = b"") -> PictureResult:
        labels, _, readings = self._sought(picture.labels)
        boxes = self._candidates(result)
        if result.second_look is not None:
            stays = ~result.second_look.contrast_fits(boxes)  # a part may, where its box does not
            boxes = boxes.where(stays)
            chances, presence = result.second_look.chances(boxes)
        else:  # without presence the model knows no name of the bank: nothing speaks against a name
            known = np.ones(len(labels)) if result.presence is None else result.presence
            chances, presence = boxes.score.astype(np.float64), known.astype(np.float64)
        presence = np.nan_to_num(presence, nan=1.0).round(4)  # learnt without text: nothing speaks against such a name
        order = np.lexsort((-chances, boxes.label, -chances.round(4)))
        masks: dict[int, str] = {}
        if self._masks:  # as COCO's compressed counts
            ordered = replace(result, boxes=boxes.where(order))
            masks = {index: rle.encode(mask)["counts"] for index, mask in ordered.box_masks()}
        columns = (
            np.array(labels)[boxes.label[order]].tolist(),
            boxes.xyxy[order].astype(float).round(2).tolist(),
            chances[order].round(4).tolist(),
            boxes.score[order].astype(float).round(4).tolist(),
        )
        return PictureResult(
            picture.id,
            digest,
            None,
            *result.image.size,
            [note for note in result.notes if note not in readings],
            {p: chance if self._known[p] else None for p, chance in zip(labels, presence.tolist(), strict=True)},
            [Candidate(*box, masks.get(index)) for index, box in enumerate(zip(*columns, strict=True))],
            features,
        )

    def _candidates(self, result: Localization) -> Boxes:
        """The candidates with the scores of their maps: the best of each name, and others that are likely."""
        judged, every = result.judged, result.boxes
        if judged is not None:
            every = replace(judged.candidates, score=judged.map_scores)
        every = every.where(np.lexsort((-every.score, every.label)))
        return every.where(are_first(every.label, 1) | (every.score >= LEAST_FIT))

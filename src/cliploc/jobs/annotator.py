"""The worker of an annotation: it computes for each picture a JSON line with the boxes that pass the run's filters."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Generator, Hashable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
import torch

from cliploc.boxes import features_of, high_enough, score_of, share_of_peak
from cliploc.boxes.groups import around_others, split_region
from cliploc.calibration import FOUND
from cliploc.config import DEFAULTS, MIN_SCORE, OPTIONS, Options, choice, number, share_or_auto
from cliploc.errors import ModelError, UsageError
from cliploc.geometry import iou_matrix
from cliploc.jobs.engine import Part, Shard
from cliploc.jobs.labels import Labels
from cliploc.jobs.notes import collect_halved, failure_reason
from cliploc.jobs.picture_files import bad_name
from cliploc.jobs.sources import Digests
from cliploc.localization import Localization
from cliploc.localizer import Localizer
from cliploc.pipeline.prepare import Request
from cliploc.pipeline.presence import VERSION as BANK_VERSION
from cliploc.reporter import SILENT, Reporter
from cliploc.rle import encode
from cliploc.values import Boxes, FloatArray

Groups = Literal["keep", "split", "drop"]
# Options that `annotate` sets itself.
RESERVED = {"background", "min_presence", "min_score", "min_area", "max_boxes", "text_cache"}
Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class BoxFilter:
    """The filter that decides which of the boxes found become drafts."""

    # minimum presence score of a name, 0–1, unless its label has its own threshold
    min_presence: float | None = None
    min_score: float | Literal["auto"] = MIN_SCORE  # minimum score of a box, as in `cliploc.Options`
    # maximum number of boxes of a name in a picture, best first; None for all
    max_boxes: int | None = DEFAULTS.max_boxes
    min_area: float = DEFAULTS.min_area  # minimum area of a box's region, as a share of the picture
    # of two boxes of different names whose IoU is above this, the one with the greater score × certainty stays; None to
    # keep all
    nms_across: float | None = None
    # what to do with a large box that contains several things: "keep" (it is marked, and reviewed first), "split" or
    # "drop"
    groups: Groups = "keep"

    def __post_init__(self) -> None:
        for name in ("min_presence", "max_boxes", "min_area"):
            OPTIONS[name].check(getattr(self, name))
        share_or_auto("min_score")(self.min_score)
        number("nms_across", 0, 1, above=True, none="boxes of all names")(self.nms_across)
        choice("groups", get_args(Groups))(self.groups)


@dataclass(frozen=True)
class AnnotatorSettings:
    """The settings of an annotation's worker; picklable. Calling them makes the worker."""

    labels: Labels  # names, thresholds and background
    filter: BoxFilter  # which boxes become drafts
    options: Options  # options of `Localizer`, except `RESERVED`, which labels and filter set
    masks: bool = False  # whether each box has its mask

    def __call__(self) -> AnnotateWorker:
        """The worker."""
        return AnnotateWorker(self)


class AnnotateWorker:
    """Holds a `Localizer` and turns shards of pictures into parts."""

    def __init__(self, settings: AnnotatorSettings) -> None:
        self._settings, labels = settings, settings.labels
        own = settings.filter.min_presence
        given = [own if one is None else one for one in labels.thresholds]
        known = [one for one in given if one is not None]
        options = settings.options.but(
            background=labels.background,
            min_area=settings.filter.min_area,
            min_presence=min(known) if len(known) == len(given) else min([FOUND, *known]),
            min_score=0.0,  # a box round several things may be split into others with a higher score
            text_cache=False,  # cached embeddings were computed in other batches, and can differ in the last bit
        )
        self.localizer = Localizer(**options.given())
        usual = self.localizer.usual_min_presence
        self._thresholds = np.array([usual if one is None else one for one in given])  # [P]
        self.names = labels.names
        unknown = self.localizer.unknown_names(labels.entries)
        if len(unknown) == len(self.names):
            raise UsageError(f"expected a name that the model knows: {next(iter(unknown.values()))}")
        self._known = np.array([name not in unknown for name in self.names])  # [P]
        self.notes = tuple(f"never gets boxes: {reason}" for reason in unknown.values())
        self._rivals: torch.Tensor | None = None
        if labels.background:
            self._rivals = self.localizer.embed_names(labels.background).float().cpu()  # [K, D]
        self._asks_presence = bool(self._thresholds.max() > 0)  # one rule for all names, also those with @0

    def describe(self) -> dict[str, Any]:
        """All settings that the boxes depend on, including defaults."""
        by_bank = {"presence_bank": BANK_VERSION} if self._asks_presence and not self.localizer.calibrated else {}
        with_masks = {"masks": True} if self._settings.masks else {}
        return {**self.localizer.describe(), **asdict(self._settings.filter), **by_bank, **with_masks}

    def stream(self, shards: Iterable[Shard], reporter: Reporter = SILENT) -> Generator[Part, None, None]:
        """See `cliploc.jobs.engine.Worker.stream`."""
        waiting: deque[Shard] = deque()  # shards that are not complete yet
        done: dict[Hashable, Row] = {}  # (shard, place in it) → row
        notes: list[str] = []
        digests = Digests(shards)

        def requests() -> Iterator[Request]:
            for shard in digests:
                waiting.append(shard)
                for place, picture in enumerate(shard.samples):
                    if reason := bad_name(picture.id):
                        keep((shard.index, place), {"status": "failed", "reason": reason})
                    else:
                        yield Request((shard.index, place), picture.path, entries)

        def keep(place: Hashable, row: Row) -> None:
            done[place] = row
            reporter.images(1)

        def parts() -> Iterator[Part]:
            while waiting:
                shard = waiting[0]
                places = [(shard.index, place) for place in range(len(shard.samples))]
                if not all(place in done for place in places):
                    return
                waiting.popleft()
                rows = [
                    {"picture": one.id, "blake2b": digest, **done.pop(place)}
                    for one, digest, place in zip(shard.samples, digests.pop(shard), places, strict=True)
                ]
                text = "".join(f"{json.dumps(row, allow_nan=False)}\n" for row in rows)
                yield Part(shard.index, text.encode("ascii"), tuple(notes))
                notes.clear()

        entries = list(self._settings.labels.entries)
        results = self.localizer.run(
            requests(),
            reporter=Reporter(masked=reporter.masked, bank=reporter.bank, halved=collect_halved(notes)),
            absent_maps=False,
            presence=self._asks_presence,
        )
        try:
            for result in results:
                if result.error is None:
                    (found,) = result.found.values()
                    keep(result.id, self._row(found))
                else:
                    reason = str(result.error)
                    keep(result.id, {"status": "failed", "reason": reason.partition(": ")[2] or reason})
                yield from parts()
            yield from parts()
        except (RuntimeError, MemoryError) as error:
            raise ModelError(failure_reason(error)) from error
        finally:
            results.close()

    def close(self) -> None:
        """Nothing to end."""

    # ------------------------------------------------------------------------------------------------- one picture
    def _row(self, result: Localization) -> Row:
        certain = self._certainty(result)  # [P]
        width, height = result.image.size
        boxes = self._boxes(result, certain)
        known = certain[self._known] - self._thresholds[self._known]
        row = {
            "status": "ok",
            "width": width,
            "height": height,
            "notes": list(result.notes),
            "margin": round(float(np.abs(known).min()), 4),
            "boxes": [[round(value, 2) for value in one.xyxy.astype(float).tolist()] for one in boxes],
            "scores": [round(one.score, 4) for one in boxes],
            "certainty": [round(one.certain, 4) for one in boxes],
            "labels": [one.label for one in boxes],
            "groups": [int(one.group) for one in boxes],
        }
        return {**row, "masks": self._masks(result, boxes)} if self._settings.masks else row

    def _masks(self, result: Localization, boxes: list[_Box]) -> list[str]:
        """The mask of each box, as COCO's compressed counts."""
        drafts = Boxes(
            np.array([one.xyxy for one in boxes], np.float32).reshape(-1, 4),
            np.array([one.score for one in boxes], np.float32),
            np.array([one.label for one in boxes], np.int64),
            result.names,
        )
        counts = {index: encode(mask)["counts"] for index, mask in replace(result, boxes=drafts).box_masks()}
        return [counts[index] for index in range(len(boxes))]

    def _certainty(self, result: Localization) -> FloatArray:
        """For each name how certain it is that it is in the picture, `[P]`.

        The presence score. Without one (an uncalibrated model at a minimum of 0, where every name is boxed): the
        softmax over all names and the background at the model's logit scale.
        """
        if result.presence is not None:
            return result.presence
        cosines = torch.from_numpy(result.scores).masked_fill(~torch.from_numpy(self._known), -1.0)
        if self._rivals is not None and result.embedding is not None:
            cosines = torch.cat([cosines, self._rivals @ torch.from_numpy(result.embedding)])
        share: FloatArray = (float(self.localizer.backbone.logit_scale) * cosines).softmax(0)[: len(self.names)].numpy()
        return share

    def _boxes(self, result: Localization, certain: FloatArray) -> list[_Box]:
        """The boxes that become drafts, best first."""
        chosen = self._settings.filter
        kept: list[_Box] = []
        for p in np.unique(result.boxes.label).tolist():
            if certain[p] < self._thresholds[p]:
                continue
            boxes = self._grouped(result, p, float(certain[p]))
            boxes = sorted(boxes, key=lambda one: -one.score)[: chosen.max_boxes]
            scores = np.array([one.score for one in boxes], np.float32)
            high = high_enough(scores, np.zeros(len(boxes), np.int64), chosen.min_score)
            kept += [one for one, stays in zip(boxes, high.tolist(), strict=True) if stays]
        kept.sort(key=lambda one: -one.score * one.certain)
        return kept if chosen.nms_across is None else _apart(kept, chosen.nms_across)

    def _grouped(self, result: Localization, p: int, certain: float) -> list[_Box]:
        """One name's boxes; boxes that contain several things are marked, split or dropped."""
        mode, of_name = self._settings.filter.groups, result.boxes.label == p
        xyxy, scores = result.boxes.xyxy[of_name], result.boxes.score[of_name]
        x0, y0, x1, y1 = result.frame.visible_xyxy
        heat, corner = result.maps[p, y0:y1, x0:x1], np.array([x0, y0, x0, y0])  # without padding, as boxes are made
        rule = self.localizer.box_rule
        tau = share_of_peak(heat, rule.threshold)
        boxes: list[_Box] = []
        for box, score, around in zip(xyxy, scores, around_others(xyxy), strict=True):
            on_map = result.frame.to_input(box[None])[0] - corner
            parts = split_region(heat, on_map, tau)
            if mode == "keep" or not (around or parts):
                boxes.append(_Box(box, float(score), certain, p, bool(around or parts)))
            elif mode == "split" and not around:  # the things in a box around others have their own boxes already
                parts_on_map = np.stack([part for part, _ in parts])
                of_parts = score_of(features_of(heat, parts_on_map, rule))
                boxes += [
                    _Box(part, float(part_score), certain, p, False)
                    for part, part_score in zip(result.frame.to_original(parts_on_map + corner), of_parts, strict=True)
                    if (part[2:] > part[:2]).all()
                ]
        return boxes


@dataclass(frozen=True)
class _Box:
    xyxy: npt.NDArray[np.floating[Any]]
    score: float
    certain: float
    label: int
    group: bool


def _apart(boxes: list[_Box], iou: float) -> list[_Box]:
    """Non-maximum suppression across names; boxes are given and returned best first."""
    kept: list[_Box] = []
    for one in boxes:
        rivals = [other.xyxy for other in kept if other.label != one.label]
        if not rivals or iou_matrix(one.xyxy[None], np.stack(rivals)).max() <= iou:
            kept.append(one)
    return kept

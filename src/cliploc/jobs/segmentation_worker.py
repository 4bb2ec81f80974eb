"""The worker of a segmentation benchmark: it turns shards into rows. The next picture is decoded ahead of the model."""

from __future__ import annotations

import io
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cliploc.datasets import IGNORE, LabelledPicture, LabelMap
from cliploc.errors import InputError, ModelError
from cliploc.jobs.engine import Part, Shard
from cliploc.jobs.failures import failure_reason
from cliploc.jobs.notes import collect_halved
from cliploc.jobs.plan import ModelSetup, Setting
from cliploc.jobs.rows import Row, failed_row, place_of, to_table
from cliploc.jobs.segmentation import SegmentationSettings, row_schema
from cliploc.jobs.setups import SetupWithoutBoxes, WorkerWithoutBoxes
from cliploc.jobs.sources import Digests
from cliploc.localizer import Localizer
from cliploc.metrics import average_precision, pixel_pairs
from cliploc.reporter import SILENT, Reporter
from cliploc.segmentation import Protocol, Segmenter

PREVIEW = 120  # longer side in pixels of the label maps kept for the report
# The parts of a localizer's description that the numbers depend on; its views and boxes are not used here.
IDENTITY = (
    "weights", "method", "options", "heads", "ensemble", "templates", "background", "refine", "precision",
    "masked_precision", "engine_backend", "guide", "batch_size",
)  # fmt: skip


@dataclass(frozen=True)
class _Read:
    """A picture with its true label map."""

    picture: Image.Image
    truth: LabelMap


class SegmentationWorker(WorkerWithoutBoxes["_LoadedSetup"]):
    """Holds a `Segmenter` for each setup and turns shards into parts."""

    def __init__(self, settings: SegmentationSettings) -> None:
        self._settings = settings
        super().__init__(
            settings.setups,
            settings.settings,
            lambda setup, chosen, built: _LoadedSetup(setup, chosen, settings.protocol, built),
        )

    def stream(self, shards: Iterable[Shard], reporter: Reporter = SILENT) -> Generator[Part, None, None]:
        """See `cliploc.jobs.engine.Worker.stream`."""
        digests = Digests(shards)
        with ThreadPoolExecutor(1, "cliploc-read") as reading:
            for shard in digests:
                notes: list[str] = []
                rows: list[Row] = []
                halved = Reporter(masked=reporter.masked, halved=collect_halved(notes))
                read = _ahead(reading, shard.samples)
                for sample, digest, one in zip(shard.samples, digests.pop(shard), read, strict=True):
                    facts = {
                        "sample": sample.id,
                        "path": place_of(sample.path, self._settings.root),
                        "blake2b": digest,
                        "width": sample.size_wh[0],
                        "height": sample.size_wh[1],
                    }
                    found: dict[str, Row] = {}
                    for setup in self._setups:
                        found |= self._rows(setup, sample, one, facts, notes, halved)
                        reporter.images(1)
                    rows += [found[setting.id] for setting in self._settings.settings]
                yield Part(shard.index, to_table(rows, row_schema()), tuple(dict.fromkeys(notes)))

    def _rows(
        self,
        setup: _LoadedSetup,
        sample: LabelledPicture,
        read: _Read | InputError,
        facts: Row,
        notes: list[str],
        reporter: Reporter,
    ) -> dict[str, Row]:
        """Setting → row of one picture."""
        if isinstance(read, InputError):
            return {one.id: failed_row(facts, one.id, str(read)) for one in setup.settings}
        rows: dict[str, Row] = {}
        for methods in ([one.method for one in setup.settings], *([one.method] for one in setup.settings)):
            left = [one for one in setup.settings if one.method in methods and one.id not in rows]
            if not left:
                continue
            try:
                judged = self._judged(setup.segmenter, sample, read, methods, reporter)
            except InputError as error:
                judged, reason = {}, str(error)
            except (ModelError, RuntimeError, MemoryError) as error:
                if len(methods) > 1:  # one failed, and with it all in its forward pass: run each alone
                    continue
                judged, reason = {}, failure_reason(error)
                notes.append(f"{left[0].id} failed on {sample.id}: {reason}")
            for one in left:
                rows[one.id] = (
                    {**facts, "setting": one.id, "status": "ok", "reason": None, **judged[one.method]}
                    if one.method in judged
                    else failed_row(facts, one.id, reason)
                )
        return rows

    def _judged(
        self, segmenter: Segmenter, sample: LabelledPicture, read: _Read, methods: Sequence[str], reporter: Reporter
    ) -> dict[str, Row]:
        """Method → the columns of its label map."""
        truth, protocol = read.truth, self._settings.protocol
        if (read.picture.height, read.picture.width) != truth.shape:
            raise InputError(
                f"{sample.id}: expected a label map of {read.picture.width}×{read.picture.height} pixels, got "
                f"{truth.shape[1]}×{truth.shape[0]}: correct it"
            )
        precision: dict[str, float] = {}
        maps: Mapping[str, npt.NDArray[Any]]
        if protocol.one_thing:
            if sample.name is None:
                raise InputError(f"{sample.id}: expected a picture with a name, got none: use another protocol")
            heats = segmenter.heat_maps(read.picture, sample.name, methods, reporter)
            side = (protocol.short_side, protocol.short_side)
            truth = np.asarray(Image.fromarray(truth.astype(np.uint8)).resize(side, Image.Resampling.NEAREST))
            maps = {name: (heat > heat.mean()).astype(np.int16) for name, heat in heats.items()}
            precision = {name: _precision(heat, truth) for name, heat in heats.items()}
        else:
            maps = segmenter.label_maps(read.picture, methods, reporter)
        true_preview = preview(truth)
        columns = {}
        for name, labels in maps.items():
            pairs = pixel_pairs(sample.id, labels, truth, len(protocol.classes))
            columns[name] = {
                "true": pairs.true.tolist(),
                "predicted": pairs.predicted.tolist(),
                "pixels": pairs.pixels.tolist(),
                "average_precision": precision.get(name),
                "preview": preview(labels),
                "true_preview": true_preview,
            }
        return columns


def _precision(heat: npt.NDArray[np.float32], truth: npt.NDArray[Any]) -> float:
    """Average precision of [1 − map, map] against the one-hot mask, over the pixels that count."""
    counted = truth != IGNORE
    scores = np.stack([1 - heat[counted], heat[counted]])
    return average_precision(scores, np.stack([truth[counted] == 0, truth[counted] != 0]))


class _LoadedSetup(SetupWithoutBoxes):
    """A `Segmenter` with the settings that it serves."""

    def __init__(
        self, setup: ModelSetup, chosen: Sequence[Setting], protocol: Protocol, built: Localizer | None
    ) -> None:
        super().__init__(setup, chosen, built, "segmentation")
        self.segmenter = Segmenter(self.localizer, protocol, self.methods)
        self.known = None if protocol.one_thing else sorted(self.segmenter.classes)
        unknown = self.segmenter.unknown
        if unknown and self.known is not None:
            self.note = (
                f"{self.segmenter.backbone.name} does not know {len(unknown)} of the names, such as "
                f"{next(iter(unknown))!r}: it can predict {len(self.known)} of {len(protocol.classes)} classes"
            )

    def describe(self) -> Iterator[dict[str, Any]]:
        weights = self.segmenter.backbone.weights_id
        for one in self.settings:
            cosines = self.segmenter.tasks[one.method].method.cosines
            yield self.described(one, IDENTITY, weights=weights, cosines=cosines, known_classes=self.known)


# --------------------------------------------------------------------------------------------------------------- values
def _read(sample: LabelledPicture) -> _Read | InputError:
    try:
        return _Read(sample.picture(), sample.truth.read())
    except InputError as error:
        return error


def _ahead(pool: ThreadPoolExecutor, samples: Sequence[LabelledPicture]) -> Iterator[_Read | InputError]:
    """The samples read, one ahead of the one that is asked for."""
    waiting: Future[_Read | InputError] | None = None
    for following in (*samples, None):
        started = None if following is None else pool.submit(_read, following)
        if waiting is not None:
            yield waiting.result()
        waiting = started


def preview(labels: npt.NDArray[Any]) -> bytes:
    """A label map as a small PNG, subsampled."""
    step = max(1, -(-max(labels.shape) // PREVIEW))
    content = io.BytesIO()
    Image.fromarray(labels[step // 2 :: step, step // 2 :: step].astype(np.uint8)).save(content, "PNG", optimize=True)
    return content.getvalue()

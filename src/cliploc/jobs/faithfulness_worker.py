"""The worker of a faithfulness benchmark: it turns shards into rows, a picture at a time."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from cliploc.errors import InputError, ModelError
from cliploc.faithfulness import AskedPicture, Faithfulness, Measured, chosen_metrics
from cliploc.jobs.engine import Part, Shard
from cliploc.jobs.failures import failure_reason
from cliploc.jobs.faithfulness import FaithfulnessSettings, row_schema
from cliploc.jobs.notes import collect_halved
from cliploc.jobs.plan import ModelSetup, Setting
from cliploc.jobs.rows import Row, failed_row, place_of, to_table
from cliploc.jobs.setups import SetupWithoutBoxes, WorkerWithoutBoxes
from cliploc.jobs.sources import Digests
from cliploc.jobs.thumbs import thumb
from cliploc.localizer import Localizer
from cliploc.reporter import SILENT, Reporter
from cliploc.values import FloatArray, Sample

# The parts of a localizer's description that the numbers depend on; its boxes are not used.
IDENTITY = (
    "weights", "method", "options", "heads", "ensemble", "templates", "background", "refine", "scales", "windows",
    "flip", "resize", "interpolation", "image_size", "precision", "masked_precision", "engine_backend", "guide",
    "batch_size",
)  # fmt: skip


class FaithfulnessWorker(WorkerWithoutBoxes["_LoadedSetup"]):
    """Holds a `Faithfulness` for each setup and turns shards into parts."""

    def __init__(self, settings: FaithfulnessSettings) -> None:
        self._settings = settings
        super().__init__(
            settings.setups,
            settings.settings,
            lambda setup, chosen, built: _LoadedSetup(setup, chosen, settings, built),
        )

    def stream(self, shards: Iterable[Shard], reporter: Reporter = SILENT) -> Generator[Part, None, None]:
        """See `cliploc.jobs.engine.Worker.stream`."""
        digests = Digests(shards)
        for shard in digests:
            notes: list[str] = []
            rows: list[Row] = []
            told = Reporter(masked=reporter.masked, halved=collect_halved(notes))
            for sample, digest in zip(shard.samples, digests.pop(shard), strict=True):
                facts = {
                    "sample": sample.id,
                    "path": place_of(sample.path, self._settings.root),
                    "blake2b": digest,
                    "label": sample.label,
                    "width": sample.size_wh[0],
                    "height": sample.size_wh[1],
                }
                found: dict[str, Row] = {}
                for setup in self._setups:
                    found |= self._rows(setup, sample, facts, notes, told)
                    reporter.images(1)
                rows += [found[setting.id] for setting in self._settings.settings]
            yield Part(shard.index, to_table(rows, row_schema()), tuple(dict.fromkeys(notes)))

    def _rows(
        self, setup: _LoadedSetup, sample: Sample, facts: Row, notes: list[str], reporter: Reporter
    ) -> dict[str, Row]:
        """Setting → row of one picture."""
        of = setup.measurer
        try:
            seen = of.see(sample.id, sample.path, self._settings.classes[sample.label])
            maps = self._maps(setup, seen, reporter)
        except InputError as error:
            return {one.id: failed_row(facts, one.id, str(error)) for one in setup.settings}
        except (ModelError, RuntimeError, MemoryError) as error:
            reason = failure_reason(error)
            notes.append(f"{setup.setup.model} failed on {sample.id}: {reason}")
            return {one.id: failed_row(facts, one.id, reason) for one in setup.settings}
        asked = {"name": of.known[seen.target], "probability": seen.probability, "cosine": seen.cosine}
        rows: dict[str, Row] = {}
        for one in setup.settings:
            heat = maps[one.method]
            try:
                if isinstance(heat, str):
                    raise ModelError(heat)
                measured = of.measure_map(seen, heat, partial(of.others, seen, one.method, reporter), reporter)
            except (ModelError, RuntimeError, MemoryError) as error:
                reason = failure_reason(error)
                notes.append(f"{one.id} failed on {sample.id}: {reason}")
                rows[one.id] = failed_row(facts, one.id, reason)
            else:
                rows[one.id] = {**facts, **asked, **columns(one.id, measured, heat)}
        return rows

    def _maps(self, setup: _LoadedSetup, seen: AskedPicture, reporter: Reporter) -> dict[str, FloatArray | str]:
        """Method → its map, or why there is none."""
        of = setup.measurer
        try:
            return dict(of.maps(seen, reporter=reporter))
        except (ModelError, RuntimeError, MemoryError) as error:
            failure_reason(error)  # raises the error if it is a bug
        # One failed, and with it all in its forward pass: run each alone.
        found: dict[str, FloatArray | str] = {}
        for method in of.methods:
            try:
                found |= of.maps(seen, [method], reporter=reporter)
            except (ModelError, RuntimeError, MemoryError) as error:
                found[method] = failure_reason(error)
        return found


def columns(setting: str, measured: Measured, heat: FloatArray) -> Row:
    """The columns of one map."""
    return {
        "setting": setting,
        "status": "ok",
        "reason": None,
        "values": list(measured.values.items()),
        "curves": list(measured.curves.items()),
        "thumb": thumb(heat),
    }


class _LoadedSetup(SetupWithoutBoxes):
    """A `Faithfulness` with the settings that it serves."""

    def __init__(
        self, setup: ModelSetup, chosen: Sequence[Setting], settings: FaithfulnessSettings, built: Localizer | None
    ) -> None:
        super().__init__(setup, chosen, built, "faithfulness")
        metrics = chosen_metrics(settings.metrics)
        self.measurer = Faithfulness(self.localizer, settings.classes, metrics, self.methods, settings.options)
        if unknown := self.measurer.unknown:
            self.note = (
                f"{self.measurer.backbone.name} does not know {len(unknown)} of {len(settings.classes)} classes, such "
                f"as {next(iter(unknown))!r}: the softmax is over the other {len(self.measurer.known)}"
            )

    def describe(self) -> Iterator[dict[str, Any]]:
        facts = {"names": len(self.measurer.known), "logit_scale": self.measurer.backbone.logit_scale}
        for one in self.settings:
            yield self.described(one, IDENTITY, **facts)

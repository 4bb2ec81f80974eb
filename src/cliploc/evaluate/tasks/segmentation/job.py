"""`run_segmentation` and its page: mIoU of a grid of settings, resumable; see docs/segmentation.md."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, Unpack

import numpy as np
import numpy.typing as npt
from PIL import Image

from cliploc.draw.html import embedded
from cliploc.draw.overlay import fit_within
from cliploc.errors import InputError, UsageError
from cliploc.evaluate import data, metrics
from cliploc.evaluate.tasks import evaluate, paired, report, task, worker
from cliploc.evaluate.tasks.rows import PictureRow, rows_of
from cliploc.evaluate.tasks.tables import Cell, Table, counted, numbers_csv, numbers_table, percent, to_markdown
from cliploc.find.segmentation.protocol import Protocol
from cliploc.find.segmentation.segmenter import Segmenter
from cliploc.formats.voc import palette
from cliploc.images.reading import LabelMap, picture_bytes, read_labels, small_png
from cliploc.runs.picture_files import LabelledPicture
from cliploc.runs.plan import ModelSetup, Setting
from cliploc.runs.store import Row
from cliploc.support.files import write_output
from cliploc.support.reporter import SILENT, Reporter
from cliploc.values import IGNORE, Problem

VERSION = 1  # of the format of manifest and summary
SHARD = 16  # pictures that are computed and written together
NUMBERS = {  # key → title and meaning
    "miou": ("mIoU", "percent: mean over classes of Σ intersection / Σ union over the whole set"),
    "miou_known": ("mIoU known", "over the classes that the model knows"),
    "mean_accuracy": ("mAcc", "mean over classes of Σ intersection / Σ true pixels"),
    "pixel_accuracy": ("pixel acc", "share of pixels with the right label"),
    "mean_average_precision": ("mAP", "mean average precision of the maps; ImageNet-Segmentation only"),
}
PREVIEW = 120  # longer side in pixels of the label maps kept for the report
MAPS, SUFFIX = "maps", ".png"  # the folder of saved label maps, and how they end
# The parts of a localizer's description that the numbers depend on; its views and boxes are not used here.
IDENTITY = (
    "weights", "method", "options", "heads", "templates", "refine", "precision",
    "masked_precision", "guide", "batch_size",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ the task
COLUMNS = {
    **dict.fromkeys(("sample", "setting", "path", "blake2b"), "text"),
    "width": "int32", "height": "int32", "status": "text", "reason": "text",
    # Each pair of a true and a predicted class that occurs, and its pixels; true −1 is a label of no class.
    "true": "int16[]", "predicted": "int16[]", "pixels": "int64[]", "average_precision": "double",
    # Small label maps as PNG, for the report.
    "preview": "bytes", "true_preview": "bytes",
}  # fmt: skip


def _legend(summary: Mapping[str, task.Summary], _: task.Manifest) -> list[str]:
    lines = ["percent; mIoU: mean over classes of Σ intersection / Σ union over the whole set"]
    if known := {numbers["known_classes"] for numbers in summary.values() if "known_classes" in numbers}:
        lines.append(f"mIoU known: over the {', '.join(map(str, sorted(known)))} classes that the model knows")
    return lines


TASK = task.BenchmarkTask(
    "segmentation",
    VERSION,
    report.FILES,
    lambda: COLUMNS,
    lambda: PixelRow,
    lambda setting, data, _: PixelTally([one.name for one in data.classes], setting.known_classes),
    _legend,
    lambda _: NUMBERS,
    cell=lambda _, value: percent(value),
)


def run_segmentation(
    dataset: data.LabelledDataset,
    setups: Sequence[ModelSetup],
    settings: Sequence[Setting],
    out: Path,
    *,
    protocol: Protocol,
    save_maps: bool = False,
    shard: int = SHARD,
    **how: Unpack[task.How],
) -> task.BenchmarkResult:
    """Benchmarks every setting on a segmentation set; see `run_benchmark`."""
    if save_maps and protocol.one_thing:
        raise UsageError(f"expected a set with label maps for --save-maps, got {dataset.name}: leave the option out")
    evaluator_of = partial(LabelMapEvaluator, protocol, out / MAPS if save_maps else None)
    entries = {"protocol": protocol.describe(), **({"save_maps": True} if save_maps else {})}
    return task.run_task(
        TASK, evaluator_of, dataset, setups, settings, out,
        entries=entries, folders=[MAPS] if save_maps else [], shard_size=shard, **how,
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------------- the evaluator
class _Read(NamedTuple):
    """A picture with its true label map."""

    sample: LabelledPicture
    picture: Image.Image
    truth: LabelMap


# A label map that a method made, and the average precision of its scores where the protocol has one.
_Labelled: TypeAlias = tuple[npt.NDArray[Any], float | None]


class LabelMapEvaluator(worker.PictureEvaluator):
    """Compares a `Segmenter`'s label maps with true ones."""

    def __init__(self, protocol: Protocol, folder: Path | None, *of_setup: Any) -> None:
        super().__init__(*of_setup)
        self._folder = folder  # to save label maps in
        self.segmenter = Segmenter(self.localizer, protocol, self.methods)
        self.known = None if protocol.one_thing else sorted(self.segmenter.classes)
        if self.known is not None:
            known = f"it can predict {len(self.known)} of {len(protocol.classes)} classes"
            self.note_unknown([*self.segmenter.unknown], "the names", known)

    def describe(self, setting: Setting) -> dict[str, Any]:
        cosines = self.segmenter.tasks[setting.method].method.cosines
        weights = self.segmenter.backbone.weights_id
        regions = {} if self.segmenter.regions is None else {"regions": self.segmenter.regions.id}
        return self.described(setting, IDENTITY, weights=weights, cosines=cosines, known_classes=self.known, **regions)

    def look(self, sample: LabelledPicture) -> _Read:
        picture, truth, protocol = sample.picture(), sample.truth.read(), self.segmenter.protocol
        if (picture.height, picture.width) != truth.shape:
            raise InputError(
                f"{sample.id}: expected a label map of {picture.width}×{picture.height} pixels, got "
                f"{truth.shape[1]}×{truth.shape[0]}: correct it"
            )
        if protocol.one_thing:
            side = (protocol.short_side, protocol.short_side)
            truth = np.asarray(Image.fromarray(truth.astype(np.uint8)).resize(side, Image.Resampling.NEAREST))
        return _Read(sample, picture, truth)

    def maps(self, seen: _Read, methods: Sequence[str], reporter: Reporter) -> dict[str, _Labelled]:
        if not self.segmenter.protocol.one_thing:
            made = self.segmenter.label_maps(seen.picture, methods, reporter, name=seen.sample.id)
            return {name: (labels, None) for name, labels in made.items()}
        assert seen.sample.name is not None
        counted = seen.truth != IGNORE
        true = seen.truth[counted]
        labelled: dict[str, _Labelled] = {}
        for name, heat in self.segmenter.heat_maps(seen.picture, seen.sample.name, methods, reporter).items():
            # Against the one-hot mask.
            precision = metrics.average_precision(
                np.stack([1 - heat[counted], heat[counted]]), np.stack([true == 0, true != 0])
            )
            labelled[name] = (heat > heat.mean()).astype(np.int16), precision
        return labelled

    def evaluate(self, seen: _Read, heat: _Labelled, setting: Setting, *_: Any) -> Row:
        labels, precision = heat
        pairs = metrics.pixel_pairs(seen.sample.id, labels, seen.truth, len(self.segmenter.protocol.classes))
        if self._folder is not None:
            write_output(self._folder / setting.id / f"{seen.sample.id}{SUFFIX}", png(labels), "--out")
        return {
            "true": pairs.true.tolist(),
            "predicted": pairs.predicted.tolist(),
            "pixels": pairs.pixels.tolist(),
            "average_precision": precision,
            "preview": preview(labels),
            "true_preview": preview(seen.truth),
        }


def preview(labels: npt.NDArray[Any]) -> bytes:
    """A label map as a small PNG, subsampled."""
    step = max(1, -(-max(labels.shape) // PREVIEW))
    return png(labels[step // 2 :: step, step // 2 :: step])


def png(labels: npt.NDArray[Any]) -> bytes:
    """A label map as a PNG of 8 bits, or 16 where they are needed."""
    kind = np.uint8 if labels.max(initial=0) <= IGNORE else np.uint16
    return picture_bytes(Image.fromarray(labels.astype(kind)), "PNG", optimize=True)


# -------------------------------------------------------------------------------------------------------- the numbers
class PixelRow(PictureRow, frozen=True, kw_only=True):
    """What numbers and examples need of a label map."""

    true: Sequence[int] = ()
    predicted: Sequence[int] = ()
    pixels: Sequence[int] = ()
    average_precision: float | None = None
    preview: bytes = b""
    true_preview: bytes = b""


class PixelTally(task.Tally):
    """Counts the rows of one setting; `known` as in `numbers_of`."""

    def __init__(self, names: Sequence[str], known: Sequence[int] | None) -> None:
        self._names, self._known, self._metric = names, known, metrics.MeanIoU(len(names))
        self._precisions: list[float] = []
        self._pixels: dict[str, npt.NDArray[np.float64]] = {}  # sample → [2K] of intersections, and of unions

    def add(self, row: PixelRow) -> None:
        true, predicted = np.array(row.true, np.int16), np.array(row.predicted, np.int16)
        pixels = np.array(row.pixels, np.int64)
        self._metric.restore(row.sample, metrics.PixelPairs(true, predicted, pixels))
        count, same, known = partial(np.bincount, minlength=len(self._names)), true == predicted, true >= 0
        common = count(true[same], pixels[same])
        either = count(predicted, pixels) + count(true[known], pixels[known]) - common
        self._pixels[row.sample] = np.concatenate([common, either])
        if row.average_precision is not None:
            self._precisions.append(row.average_precision)

    def per_picture(self) -> paired.PerPicture | None:
        def miou(means: npt.NDArray[Any]) -> npt.NDArray[Any]:
            common, either = np.split(np.asarray(means, np.float64), 2, axis=1)
            return np.asarray(np.nanmean(metrics.ratio(common, either), axis=1))

        samples = sorted(self._pixels)
        values = np.array([self._pixels[sample] for sample in samples]).reshape(len(samples), 2 * len(self._names))
        return paired.PerPicture("miou", samples, values, miou, 100)

    def summary(self, counts: Mapping[str, int], bootstrap: metrics.Bootstrap) -> task.Summary:
        if not len(self._metric):
            return dict(counts)
        numbers = numbers_of(self._metric.compute(bootstrap), self._names, self._known, self._precisions)
        return {**numbers, **counts}


def numbers_of(
    result: metrics.MeanIoUResult,
    names: Sequence[str],
    known: Sequence[int] | None = None,  # labels that the model can predict; None: all
    precisions: Sequence[float] = (),  # average precision of each picture, where each has one object
) -> task.Summary:
    """The numbers in percent (None: there is none), `per_class`, `confused`, and `miou_known` of known classes."""
    confusion = result.confusion
    true = confusion[:-1].sum(axis=1)
    per_class = {
        str(label): {
            "name": name,
            "iou": _percent(result.iou[label]),
            "accuracy": _percent(result.accuracy[label]),
            "pixels": int(true[label]),
        }
        for label, name in enumerate(names)
    }
    wrong = confusion[:-1] - np.diag(confusion[:-1].diagonal())
    worst = np.argsort(-wrong, axis=None, kind="stable")[:20]
    confused = [
        {"true": int(t), "predicted": int(p), "pixels": int(wrong[t, p]), "share": _percent(wrong[t, p] / true[t])}
        for t, p in zip(*np.unravel_index(worst, wrong.shape), strict=True)
        if wrong[t, p]
    ]
    interval = None if result.interval is None else [100 * end for end in result.interval]
    of_known: dict[str, Any] = {}
    if known is not None and len(known) < len(names):
        present = [result.iou[label] for label in known if np.isfinite(result.iou[label])]
        of_known = {"miou_known": _percent(np.mean(present)) if present else None, "known_classes": len(known)}
    return {
        "miou": _percent(result.miou),
        **of_known,
        "mean_accuracy": _percent(result.mean_accuracy),
        "pixel_accuracy": _percent(result.pixel_accuracy),
        **({"mean_average_precision": _percent(np.mean(precisions))} if len(precisions) else {}),
        "confidence_95": {"miou": interval} if interval else {},
        "classes": int(np.isfinite(result.iou).sum()),
        "per_class": per_class,
        "confused": confused,
    }


def _percent(share: Any) -> float | None:
    return 100 * float(share) if np.isfinite(share) else None


# --------------------------------------------------------------------------------------- label maps made by other tools
def evaluate_labels(
    predictions: str | Path, truth: data.LabelledDataset, *, reporter: Reporter = SILENT
) -> evaluate.EvaluatedFolder:
    """Evaluates any tool's `<id>.png`, a label a pixel, against a set of true label maps."""
    leave_out, predictions = evaluate.LeftOut(reporter), evaluate.folder_of("label maps", predictions)
    classes, samples = truth.classes, truth.samples
    if any(sample.name is not None for sample in samples):
        raise UsageError(
            f"{truth.name} is evaluated by score maps, not by label maps: use cliploc benchmark segmentation"
        )
    for problem in truth.problems:
        leave_out(problem)

    def pairs_of(picture: LabelledPicture) -> metrics.PixelPairs | Problem:
        path = predictions / f"{picture.id}{SUFFIX}"
        if not path.is_file():
            return Problem("prediction", picture.id, f"expected a label map at {path}, found none: not in the numbers")
        try:
            return metrics.pixel_pairs(picture.id, read_labels(path), picture.truth.read(), len(classes))
        except InputError as error:
            return Problem("prediction", picture.id, str(error))

    metric = metrics.MeanIoU(len(classes))
    for sample, pairs in evaluate.measured(samples, pairs_of, leave_out, reporter):
        metric.restore(sample.id, pairs)
    if not len(metric):
        raise UsageError(f"none of {len(samples)} pictures could be evaluated: check {predictions}")
    numbers = numbers_of(metric.compute(), [class_name.name for class_name in classes])
    counts = {"images": len(samples), "evaluated": len(metric)}
    document = {"schema_version": VERSION, **numbers, **counts, **evaluate.left_out_entries(leave_out.problems)}
    titles = {key: title for key, (title, _) in NUMBERS.items()}
    return evaluate.EvaluatedFolder(document, evaluate.lines_of(titles, numbers, evaluate.percents))


# ------------------------------------------------------------------------------------------------------------- the page
EXAMPLES = 6  # pictures, spread over the set
MOST_SETTINGS = 6  # beside each example, best first
SIDE = 240  # longer side in pixels of examples
FACTS = ("short_side", "window", "stride", "logit_scale", "background_threshold", "area_threshold", "position_rule")


def write_segmentation_report(folder: Path, *, pictures: bool = True) -> Path:
    """Writes report.html, tables.csv and tables.md into a segmentation benchmark's folder; see `write_report`."""
    run = report.read_run(folder, lambda _, numbers: numbers.get("miou"))
    refinements = ("refinements", lambda setting: ", ".join(setting.about.refine) or "–")
    counts, words = {"evaluated": ("pictures", "")}, {"steps": refinements}
    tables = [numbers_table(run, NUMBERS, counts, cell=percent, words=words)]
    if run.settings:
        columns = {"class": "", "true pixels": "", **dict.fromkeys((setting.id for setting in run.settings), "IoU, %")}
        rows = []
        for label, name in enumerate(run.classes):
            of_class = [setting.of_class(label) for setting in run.settings]
            if pixels := max(numbers.get("pixels", 0) for numbers in of_class):  # it is in the true maps
                rows.append([Cell(name), counted(pixels), *(percent(numbers.get("iou")) for numbers in of_class)])
        tables.append(Table("IoU of each class", columns, rows, {"class"}))
    title, protocol = run.title("Segmentation"), run.manifest.get("protocol") or {}
    page = run.render(
        "segmentation.html",
        title=title,
        about=run.facts(
            {"classes": f"{len(run.classes):,}"},
            {key.replace("_", " "): f"{protocol[key]}" for key in FACTS if key in protocol},
        ),
        numbers=tables[0],
        per_class=tables[1:],
        confused=_confusions(run),
        examples=_examples(run, pictures),
    )
    first, *others = NUMBERS
    csv = numbers_csv(run, [first], others, lambda setting: {"refine": " ".join(setting.about.refine)})
    return report.write_files(folder, csv, to_markdown(title, tables), page)


def _confusions(run: report.TaskRun) -> Table | None:
    """The pairs of classes with the most wrong pixels, by the best setting."""
    for setting in run.settings:
        if pairs := setting.numbers.get("confused"):
            rows = []
            for pair in pairs:
                names = [Cell(run.classes[pair[key]]) for key in ("true", "predicted")]
                rows.append([*names, counted(pair["pixels"]), percent(pair["share"])])
            columns = {"is": "", "called": "", "pixels": "", "%": "of the class's pixels"}
            return Table(f"What {setting.id} confuses most", columns, rows, {"is", "called"})
    return None


def _examples(run: report.TaskRun, pictures: bool) -> list[dict[str, Any]]:
    """A few pictures, spread over the set: photograph, true label map, and those of the best settings."""
    visible = [setting.id for setting in run.settings[:MOST_SETTINGS]]
    done = rows_of(run.folder, PictureRow, "row.status = 'ok'")
    samples = list(dict.fromkeys(row.sample for row in done if row.setting in visible))
    places = np.linspace(0, len(samples) - 1, min(EXAMPLES, len(samples))).round().astype(int)
    chosen = [samples[place] for place in dict.fromkeys(places.tolist())]
    rows = run.rows_of_samples(PixelRow, chosen)
    table, made = class_colours(run.classes), []
    for sample in chosen:
        present = {name: rows[sample, name] for name in visible if (sample, name) in rows}
        first = next(iter(present.values()))
        previews = {"true": first.true_preview, **{name: row.preview for name, row in present.items()}}
        maps = {name: np.asarray(small_png(png, 1024)) for name, png in previews.items()}
        size = fit_within((first.width, first.height), SIDE)
        photograph = run.photograph(first.path, size) if pictures else None
        figures = [] if photograph is None else [("picture", embedded(photograph, f"picture {sample}", quality=80))]
        for name, label_map in maps.items():
            drawn = Image.fromarray(table[label_map]).resize(size, Image.Resampling.NEAREST)
            figures.append((name, embedded(drawn, f"{sample}: {name}", quality=85)))
        labels = np.unique(np.concatenate([label_map.ravel() for label_map in maps.values()])).tolist()
        legend = [(run.classes[label], table[label].tolist()) for label in labels if label < len(run.classes)]
        made.append({"sample": sample, "figures": figures, "legend": legend})
    return made


def class_colours(classes: Sequence[str]) -> npt.NDArray[np.uint8]:
    """`[65536, 3]` a label's colour in all pictures, Pascal VOC's: background black, what does not count grey."""
    table = np.full((2**16, 3), 128, np.uint8)
    with_background = classes[0] == "background"
    table[: len(classes)] = palette(len(classes) + 1)[not with_background :][: len(classes)]
    return table

"""The report of a benchmark of boxes: the page with its pictures, and its tables; no model is loaded."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cliploc.draw import captions
from cliploc.draw.html import embedded
from cliploc.draw.overlay import BOX_COLOUR, fit_within, paint_map
from cliploc.evaluate import metrics
from cliploc.evaluate.tasks import report, tables
from cliploc.evaluate.tasks.rows import THUMB, PictureRow, rows_of
from cliploc.evaluate.tasks.tables import Cell, percent
from cliploc.values import GOOD_IOU, rounded_below

SIDE = 240  # longest side of a photograph in the page
EACH = 6  # pictures of each kind
GREY, TRUE_COLOUR = (90, 90, 90), (86, 224, 255)
Captioned = tuple[str, dict[str, Any]]  # a caption, and a picture for the macro `picture`


class BoxRow(PictureRow, frozen=True, kw_only=True):
    """What the page needs of a picture with true boxes in one setting."""

    label: int
    iou: float  # of the largest contour's box at the setting's τ
    highest: int
    hits_largest_50: bytes
    predictions: Sequence[int] = ()

    def hit(self, tau: float) -> bool:
        """Whether the largest contour's box at this τ is right."""
        return metrics.hit_at(self.hits_largest_50, self.highest, tau)

    def predicts(self, label: int) -> bool:
        """Whether this class is the model's first."""
        return self.predictions[:1] == [label]


# What is best by its least key.
KINDS: dict[str, Callable[[BoxRow], tuple[float, str]]] = {
    "Best": lambda row: (-row.iou, row.sample),
    "Borderline": lambda row: (abs(row.iou - GOOD_IOU), row.sample),
    "Worst": lambda row: (row.iou, row.sample),
}


class DrawnRow(PictureRow, frozen=True, kw_only=True):
    """What is drawn of it."""

    boxes: Sequence[Sequence[float]] = ()
    true_boxes: Sequence[Sequence[float]] = ()
    thumb: bytes


def galleries(
    run: report.TaskRun, rows: Sequence[Sequence[BoxRow]], visible: bool
) -> list[tuple[str, list[Captioned]]]:
    """The best setting's best, borderline and worst pictures, and those where the IoUs of settings differ most."""
    made = [
        (f"{kind}: {rows[0][0].setting}", drawn(run, [(row, run.classes[row.label]) for row in chosen], visible))
        for kind, key in KINDS.items()
        if (chosen := sorted(rows[0], key=key)[:EACH])
    ]
    of_sample: dict[str, list[BoxRow]] = {}
    for row in (row for of_setting in rows for row in of_setting):
        of_sample.setdefault(row.sample, []).append(row)
    in_all = [each for each in of_sample.values() if len(each) == len(rows) > 1]
    for each in sorted(in_all, key=lambda each: -float(np.std([row.iou for row in each])))[:EACH]:
        title = f"The settings differ: {run.classes[each[0].label]}"
        made.append((title, drawn(run, [(row, row.setting) for row in each], visible)))
    return made


def drawn(run: report.TaskRun, rows: Iterable[tuple[BoxRow, str]], visible: bool) -> list[Captioned]:
    """These rows, each with the start of its caption; `visible`: with photographs."""
    chosen = list(rows)
    stored = run.rows_of_samples(DrawnRow, {row.sample for row, _ in chosen})
    pictures = []
    for row, title in chosen:
        text = " · ".join(filter(None, [title, f"IoU {rounded_below(row.iou, GOOD_IOU)}", _prediction(run, row)]))
        alt = f"{run.classes[row.label]} in {row.path.rsplit('/', 1)[-1]}, {row.setting}: {text}"
        image = _picture(run, stored[row.sample, row.setting], visible)
        pictures.append((text, embedded(image, alt, quality=80)))
    return pictures


def _prediction(run: report.TaskRun, row: BoxRow) -> str:
    """Words on the predicted class; none where nothing was predicted."""
    if not row.predictions:
        return ""
    return "class right" if row.predicts(row.label) else f"taken for {run.classes[row.predictions[0]]}"


def _picture(run: report.TaskRun, row: DrawnRow, visible: bool) -> Image.Image:
    size = fit_within((row.width, row.height), SIDE)
    photograph = run.photograph(row.path, size) if visible else None
    image = Image.new("RGB", size, GREY) if photograph is None else photograph.convert("RGB")
    paint_map(image, np.frombuffer(row.thumb, np.uint8).reshape(THUMB, THUMB))
    scale, line = np.array(size * 2) / np.array([row.width, row.height] * 2), captions.line_width(size)
    for boxes, colour, dash in ((row.boxes, BOX_COLOUR, 0), (row.true_boxes, TRUE_COLOUR, 4 * line)):
        for box in boxes:
            captions.draw_box(image, captions.to_rectangle(box * scale, size), colour, line, dash=dash)
    return image


# ------------------------------------------------------------------------------------------------------------- the page
MOST_DRAWN = 8  # settings in one figure
MOST_OTHERS = 3  # classes outside a confusion matrix that it names
NO_INTERVALS = metrics.Bootstrap(replicates=0)
NOTES = (
    "Percent, with 95 % intervals (bootstrap over pictures). The best by MaxBoxAcc first.",
    "The boxes of baselines are fixed beforehand and the same for every picture and name: a method whose boxes are not "
    "better has only found the middle of the picture. Their Top-1 and Top-5 Loc use the model's classification.",
)
COUNTS = {"evaluated": ("evaluated", "")}
ROLES = {"tune": "may choose τ", "report": "may only be reported on"}
Rows = Mapping[str, Sequence[BoxRow]]  # setting → its rows with boxes


def write_boxes_report(folder: Path, *, pictures: bool = True) -> Path:
    """Writes report.html, tables.csv and tables.md into the folder of a benchmark of boxes; see `write_report`."""
    run = report.read_run(folder, by_accuracy)
    numbers = {
        key: number
        for key, number in metrics.all_numbers().items()
        if any(setting.number(key) is not None for setting in run.settings)
    }
    titles = {key: (number.title, number.about) for key, number in numbers.items()}
    of_tau = "of GT-known, Top-1 and Top-5 Loc, VL-Score's rule and mean best IoU"
    words = {"τ": (of_tau, lambda setting: f"{_tau(setting):.3g}")}
    table = tables.numbers_table(run, titles, COUNTS, NOTES, cell=percent, words=words)
    rows: dict[str, list[BoxRow]] = {setting.id: [] for setting in run.settings}
    for row in rows_of(folder, BoxRow, "row.iou IS NOT NULL"):
        rows[row.setting].append(row)
    measured = [setting for setting in run.settings if rows[setting.id]][:MOST_DRAWN]
    text = "the dot is the best τ for all pictures, an oracle; the ring the τ that the setting used"
    page = run.render(
        "boxes.html",
        title=run.title("Boxes"),
        about=run.facts({"role": ROLES.get(run.dataset.role, ""), "subset": run.dataset.subset or "all"}, {}),
        numbers=list(titles.values()),
        table=table,
        curves=[(text, _curves(measured, rows))] if measured else [],
        legend=tables.legend((setting.index, setting.id) for setting in measured),
        studies=_studies(run, measured, rows, pictures) if measured else [],
        confusion=_confusion(run, measured[0], rows) if measured and _studied(run, rows) else None,
        classes=_classes(run, measured),
        visible=pictures,
        galleries=galleries(run, [rows[setting.id] for setting in measured], pictures) if measured else [],
    )
    taus = ("best_threshold", "threshold", "threshold_chosen_on_these_images")
    csv = tables.numbers_csv(
        run, metrics.all_numbers(), (*taus, "images"), lambda setting: {"pretrained": setting.about.pretrained}
    )
    return report.write_files(folder, csv, tables.to_markdown(run.title("Boxes"), [table]), page)


def by_accuracy(_: Mapping[str, Any], numbers: Mapping[str, Any]) -> float | None:
    """MaxBoxAcc, or PxAP where there are masks only."""
    value: float | None = numbers.get("max_box_acc")
    return numbers.get("pxap") if value is None else value


def _tau(setting: report.SettingResult) -> float:
    """The τ of a setting's boxes."""
    return float(setting.numbers.get("threshold", setting.about.threshold))


def _curves(settings: Sequence[report.SettingResult], rows: Rows) -> tables.Figure:
    """MaxBoxAcc over τ."""
    curves = {}
    for setting in settings:
        metric = metrics.MaxBoxAcc()
        for row in rows[setting.id]:
            columns = {"highest": row.highest, metrics.LARGEST_HITS: row.hits_largest_50}
            metric.add(row.sample, columns, None, None)
        curves[setting.id] = 100 * metric.compute(NO_INTERVALS).curve

    def draw(axes: Any) -> None:
        for setting in settings:
            curve = curves[setting.id]
            best = int(curve.argmax())
            colour = tables.plot(axes, setting.index, metrics.TAUS, curve)
            axes.plot(metrics.TAUS[best], curve[best], "o", color=colour, markersize=6)
            ring: dict[str, Any] = {"markersize": 9, "fillstyle": "none", "markeredgewidth": 1.6}
            axes.plot(_tau(setting), setting.number("gt_known"), "o", color=colour, **ring)
        axes.set(xlim=(0, 1), ylim=(0, None), xlabel="threshold τ, share of the map's maximum", ylabel="MaxBoxAcc, %")

    bests = (f"{name}: {curve.max():.1f} % at {metrics.TAUS[curve.argmax()]:.3f}" for name, curve in curves.items())
    return tables.figure(draw, f"MaxBoxAcc at every threshold. Best: {'; '.join(bests)}", (5.8, 4.0))


# ------------------------------------------------------------------------------------------------------------- classes
def _classes(run: report.TaskRun, settings: Sequence[report.SettingResult]) -> tables.Table:
    """GT-known Loc of every class and setting, at the setting's τ."""
    columns = {"class": "", "id": "", "pictures": "", **{setting.id: "GT-known Loc, %" for setting in settings}}
    rows = []
    for label, entry in enumerate(run.dataset.classes):
        if images := max((setting.of_class(label).get("images", 0) for setting in settings), default=0):
            shares = (percent(setting.of_class(label).get("gt_known")) for setting in settings)
            rows.append([Cell(entry.name), Cell(entry.wnid or f"{label}"), tables.counted(images), *shares])
    return tables.Table("GT-known Loc of each class", columns, rows, {"class", "id"})


def _studied(run: report.TaskRun, rows: Rows) -> dict[int, str]:
    """The classes with a reason in the manifest and with pictures: label → why its details are shown."""
    present = {row.label for of_setting in rows.values() for row in of_setting}
    labels = {entry.wnid: label for label, entry in enumerate(run.dataset.classes)}
    reasons = {labels[wnid]: reason for wnid, reason in run.dataset.reasons.items() if wnid in labels}
    return {label: reason for label, reason in reasons.items() if label in present}


def _studies(
    run: report.TaskRun, settings: Sequence[report.SettingResult], rows: Rows, visible: bool
) -> list[tuple[str, str, tables.Table, list[Captioned]]]:
    """Name, reason, numbers per setting, and the best setting's best, middle and worst picture of each such class."""
    studies = []
    for label, reason in _studied(run, rows).items():
        ranked = sorted((row for row in rows[settings[0].id] if row.label == label), key=KINDS["Best"])
        places = sorted({0, (len(ranked) - 1) // 2, len(ranked) - 1}) if ranked else []
        examples = drawn(run, [(ranked[place], "") for place in places], visible)
        entry = run.dataset.classes[label]
        studies.append((f"{entry.name} {entry.wnid}", reason, _class_numbers(run, settings, rows, label), examples))
    return studies


def _class_numbers(
    run: report.TaskRun, settings: Sequence[report.SettingResult], rows: Rows, label: int
) -> tables.Table:
    columns = {
        "setting": "",
        "GT-known Loc": "at the setting's τ",
        "MaxBoxAcc": "at the τ best for all pictures of the run",
        "mean IoU": "of the largest contour's box",
        "Top-1 class": "",
        "Top-1 Loc": "",
    }
    cells = []
    for setting in settings:
        of_class, stored = [row for row in rows[setting.id] if row.label == label], setting.of_class(label)
        first = [row.predicts(label) for row in of_class]
        both = [row.predicts(label) and row.hit(_tau(setting)) for row in of_class]
        ious, *shares = (
            float(np.mean(each)) if each else None for each in ([row.iou for row in of_class], first, both)
        )
        line = [percent(stored.get("gt_known")), percent(stored.get("max_box_acc")), tables.decimal(ious, 2)]
        cells.append([Cell(setting.id), *line, *(percent(share and 100 * share) for share in shares)])
    return tables.Table(f"Numbers for {run.classes[label]}", columns, cells, {"setting"})


def _confusion(run: report.TaskRun, setting: report.SettingResult, rows: Rows) -> tables.Table:
    """What the best setting's model predicts for the classes in detail: numbers of pictures."""
    labels = list(_studied(run, rows))
    predicted = {label: Counter[int]() for label in labels}
    for row in rows[setting.id]:
        if row.label in predicted and row.predictions:
            predicted[row.label][row.predictions[0]] += 1
    cells = []
    for label, counts in predicted.items():
        others = Counter({other: n for other, n in sorted(counts.items()) if other not in predicted})
        most = ", ".join(f"{run.classes[other]} {n}" for other, n in others.most_common(MOST_OTHERS))
        amounts = [*(counts[other] for other in labels), others.total()]
        cells.append([Cell(run.classes[label]), *map(tables.counted, amounts), Cell(most or "–")])
    first, *_, last = columns = [
        "true ↓ predicted →",
        *(run.classes[label] for label in labels),
        "another",
        "most often",
    ]
    return tables.Table(f"What the model of {setting.id} predicts", dict.fromkeys(columns, ""), cells, {first, last})

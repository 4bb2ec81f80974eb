"""The folder of a benchmark of boxes as its report needs it: numbers, labels of settings, rows without maps."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from cliploc.evaluate import metrics
from cliploc.evaluate.tasks import report
from cliploc.evaluate.tasks.report import Floats, SettingResult, TaskRun, pandas, worth
from cliploc.runs.evaluation import batches

HITS = metrics.LARGEST_HITS
COLUMNS = (
    "sample", "setting", "label", "n_boxes", "area_share", "status", "predictions", "iou", "boxes", "true_boxes",
    "pointing_hit", "highest", HITS,
)  # fmt: skip
# Keys that distinguish settings, in their order in a label.
TELLING = (
    "model", "pretrained", "method", "options", "head", "prompts", "templates", "refine", "scales", "flip",
    "image_size", "resize", "background", "precision", "threshold", "ensemble",
)  # fmt: skip
OF_METHOD = frozenset({"options", "head", "threshold"})  # always differ between methods
MISSES = {
    "none": ("no box", "the map gives none, or the name was not found"),
    "several": ("several instances", "the box holds more than 30 % of at least two true boxes"),
    "part": ("a part", "more than half of the box lies on the object, but it holds too little of it"),
    "more": ("too much", "the box holds more than 70 % of the object, and too much around it"),
    "elsewhere": ("elsewhere", "none of these"),
}
Boxes = list[tuple[float, float, float, float]]


class PictureRow(msgspec.Struct, frozen=True):
    """The columns of a row that a picture of the page needs."""

    path: str
    label: int
    width: int
    height: int
    iou: float | None
    boxes: Boxes | None
    true_boxes: Boxes
    predictions: list[int] | None
    thumb: bytes | None


@dataclass(frozen=True)
class BenchmarkRun(TaskRun):
    """The folder of a benchmark of boxes; its settings are in the order of the manifest."""

    # a pandas frame with a row for each sample and setting, with `hit` (whether the largest contour's box is right at
    # the setting's τ), `miss` (the kind of error, a key of `MISSES`) and `predicted` (a label; −1 for none)
    rows: Any

    @property
    def ranked(self) -> list[SettingResult]:
        """The settings, best first, by MaxBoxAcc (by PxAP where there are masks only)."""

        def place(setting: SettingResult) -> tuple[float, int]:
            value = setting.number("max_box_acc")
            return -worth(setting.number("pxap") if value is None else value), setting.index

        return sorted(self.settings, key=place)

    def class_name(self, label: int) -> str:
        """The name of a label's class."""
        return str(self.dataset["classes"][label]["name"])

    def wnid(self, label: int) -> str:
        """The WordNet id of a label's class, or ""."""
        return str(self.dataset["classes"][label].get("wnid") or "")

    def of(self, setting: SettingResult) -> Any:
        """The evaluated rows of one setting."""
        return self.rows[(self.rows["setting"] == setting.id) & (self.rows["status"] == "ok")]

    def pictures(self, samples: Collection[str]) -> dict[tuple[str, str], PictureRow]:
        """(sample, setting) → its picture, of these samples."""
        rows = self.rows_of_samples(PictureRow.__struct_fields__, samples)
        return {key: msgspec.convert(row, PictureRow) for key, row in rows.items()}


def read_run(folder: Path) -> BenchmarkRun:
    """Reads the folder of `cliploc benchmark boxes`."""
    run = report.read_run(folder)
    rows, curves = _rows(run)
    labels = _labels([setting.about for setting in run.settings])
    settings = [
        replace(setting, label=label, curve=curves.get(setting.id))
        for setting, label in zip(run.settings, labels, strict=True)
    ]
    return BenchmarkRun(folder, run.manifest, tuple(settings), rows)


def distinct(settings: Iterable[SettingResult]) -> list[SettingResult]:
    """Without the baselines of further models, whose boxes are the same."""
    first: dict[str, SettingResult] = {}
    for setting in settings:
        of_box = json.dumps([setting.about.get("method"), setting.about.get("options"), setting.threshold])
        first.setdefault(of_box if setting.baseline else setting.id, setting)
    return list(first.values())


# ------------------------------------------------------------------------------------------------------------- labels
def _labels(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Labels with the method and what else differs between settings; the id where labels would be equal."""
    differing = {key for key in TELLING if key not in OF_METHOD and _differ(entries, key)}
    for method in {entry.get("method") for entry in entries}:
        alike = [entry for entry in entries if entry.get("method") == method]
        differing |= {key for key in OF_METHOD if _differ(alike, key)}
    silent = {"method", "threshold", "templates" if "prompts" in differing else ""}
    keys = [key for key in TELLING if key in differing - silent]
    labels = [" · ".join([str(entry.get("method", entry["id"])), *_differences(entry, keys)]) for entry in entries]
    for key, mark in (("threshold", "τ "), ("id", "")):
        twice = {label for label in labels if labels.count(label) > 1} if key == "id" or key in differing else set()
        labels = [
            f"{label} · {mark}{in_words(entry.get(key))}" if label in twice else label
            for label, entry in zip(labels, entries, strict=True)
        ]
    return labels


def _differences(entry: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """What an entry has for these keys, in words; nothing of what is empty or off."""
    parts = []
    for key in keys:
        value = entry.get(key)
        if value is True:
            parts.append(key)
        elif key in ("templates", "background") and isinstance(value, list) and len(value) > 1:
            parts.append(f"{len(value)} {key}")
        elif value is not None and value is not False and value not in ("", [], {}):
            unit = f"{key.replace('_', ' ')} " if key in ("scales", "image_size") else ""
            parts.append(unit + in_words(value))
    return parts


def _differ(entries: Sequence[Mapping[str, Any]], key: str) -> bool:
    return len({json.dumps(entry.get(key), sort_keys=True) for entry in entries}) > 1


def in_words(value: Any) -> str:
    """Any value of the manifest in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={in_words(part)}" for key, part in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(map(in_words, value)) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


# --------------------------------------------------------------------------------------------------------------- rows
def _rows(run: TaskRun) -> tuple[Any, dict[str, Floats]]:
    """Reads all rows without maps, and computes each setting's MaxBoxAcc at each τ in percent."""
    thresholds = {setting.id: setting.threshold for setting in run.settings}
    accuracy: dict[str, metrics.MaxBoxAcc] = {}
    frames = []

    def judged(row: Any) -> tuple[bool, str]:
        """Whether a row is a hit, and how it is a miss."""
        if row.status != "ok" or getattr(row, HITS) is None:
            return False, ""
        columns = {"highest": row.highest, HITS: getattr(row, HITS)}
        accuracy.setdefault(row.setting, metrics.MaxBoxAcc()).add(row.sample, columns, None, None)
        tau = thresholds.get(row.setting)
        # A setting with a τ for each map (Otsu's) is judged by the stored IoU.
        hit = row.iou >= 0.5 if tau is None else metrics.hit_at(getattr(row, HITS), row.highest, tau)
        return hit, "" if hit else miss_kind(row.boxes, row.true_boxes)

    for rows in batches(run.read_rows(COLUMNS)):
        frame = pandas().DataFrame(rows, columns=COLUMNS)
        frame[["hit", "miss"]] = [judged(row) for row in frame.itertuples()]
        frame["predicted"] = [labels[0] if labels else -1 for labels in frame["predictions"]]
        frame = frame.drop(columns=[HITS, "highest", "boxes", "true_boxes", "predictions"])
        frames.append(frame.astype({"area_share": float, "iou": float, "hit": bool}))
    no_intervals = metrics.Bootstrap(replicates=0)
    curves = {setting: 100 * metric.compute(no_intervals).curve for setting, metric in accuracy.items()}
    return pandas().concat(frames, ignore_index=True), curves


def miss_kind(boxes: Any, truths: Any) -> str:
    """The kind of error of the largest box, a key of `MISSES`; after TS-CAM's kinds (Gao et al. 2021)."""
    drawn, true = as_boxes(boxes), as_boxes(truths)
    if not len(drawn) or not len(true):
        return "none"
    area = (drawn[:, 2:] - drawn[:, :2]).prod(axis=1)
    box = drawn[int(area.argmax())]
    low, high = np.maximum(true[:, :2], box[:2]), np.minimum(true[:, 2:], box[2:])
    common = (high - low).clip(min=0).prod(axis=1)
    covered = common / np.maximum((true[:, 2:] - true[:, :2]).prod(axis=1), 1e-9)  # of each true box
    if (covered > 0.3).sum() > 1:
        return "several"
    if common.max() / max(float(area.max()), 1e-9) > 0.5:
        return "part"
    return "more" if covered.max() > 0.7 else "elsewhere"


def as_boxes(boxes: Any) -> Floats:
    """Lists of corners, or None, as an array `[n, 4]`."""
    return np.array(boxes or [], np.float64).reshape(-1, 4)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion in percent (Wilson 1927); it also suits few pictures, 0 % and 100 %."""
    z = 1.959964
    share, extra = hits / n, z * z / n
    middle, half = share + extra / 2, z * np.sqrt(share * (1 - share) / n + extra / (4 * n))
    return 100 * max(float(middle - half) / (1 + extra), 0.0), 100 * min(float(middle + half) / (1 + extra), 1.0)

"""Reads a benchmark's folder – manifest, numbers, rows – for the report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cliploc.evaluate.metrics import LARGEST_HITS, Bootstrap, MaxBoxAcc, hit_at
from cliploc.evaluate.tasks import task_folder
from cliploc.evaluate.tasks.task_folder import Floats, SettingResult, TaskRun, pandas, worth
from cliploc.runs.evaluation import Row, batches

Box = tuple[float, float, float, float]
NO_INTERVALS = Bootstrap(replicates=0)
LIGHT = (
    "sample", "setting", "path", "label", "n_boxes", "area_share", "status", "reason", "score", "predictions",
    "iou", "boxes", "true_boxes", "pointing_hit", "highest", LARGEST_HITS,
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


@dataclass(frozen=True)
class BenchmarkRun(TaskRun):
    """The folder of a benchmark of boxes; its settings are in the order of the manifest."""

    # a pandas frame with a row for each sample and setting, with the columns of `LIGHT` (no maps), `hit` (whether the
    # largest contour's box is right at the setting's τ) and `miss` (the kind of error, a key of `MISSES`)
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
        classes = self.dataset["classes"]
        return str(classes[label]["name"]) if 0 <= label < len(classes) else f"class {label}"

    def wnid(self, label: int) -> str:
        """The WordNet id of a label's class, or ""."""
        classes = self.dataset["classes"]
        return str(classes[label].get("wnid") or "") if 0 <= label < len(classes) else ""

    def of(self, setting: SettingResult) -> Any:
        """The evaluated rows of one setting."""
        return self.rows[(self.rows["setting"] == setting.id) & (self.rows["status"] == "ok")]


def read_run(folder: Path) -> BenchmarkRun:
    """Reads what `cliploc benchmark` wrote."""
    run = task_folder.read_run(folder)
    rows, curves = _rows(run)
    labels = _labels([setting.about for setting in run.settings])
    settings = [
        replace(setting, label=label, curve=curves.get(setting.id))
        for setting, label in zip(run.settings, labels, strict=True)
    ]
    return BenchmarkRun(folder, run.manifest, tuple(settings), rows)


# ------------------------------------------------------------------------------------------------------------- labels
def _labels(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Labels with the method and what else differs between settings; the id where labels would be equal."""
    differing = {key for key in TELLING if key not in OF_METHOD and _differ(entries, key)}
    for method in {entry.get("method") for entry in entries}:
        differing |= {
            key for key in OF_METHOD if _differ([entry for entry in entries if entry.get("method") == method], key)
        }
    silent = {"method", "threshold", "templates" if "prompts" in differing else ""}
    shown = [key for key in TELLING if key in differing - silent]
    labels = []
    for entry in entries:
        parts = [str(entry.get("method", entry["id"]))]
        for key in shown:
            value = entry.get(key)
            if value is True:
                parts.append(key)
            elif key in ("templates", "background") and isinstance(value, list | tuple) and len(value) > 1:
                parts.append(f"{len(value)} {key}")
            elif value is not None and value is not False and value not in ("", [], {}):  # these need no mention
                unit = f"{key.replace('_', ' ')} " if key in ("scales", "image_size") else ""
                parts.append(unit + in_words(value))
        labels.append(" · ".join(parts))
    with_tau = [
        f"{label} · τ {in_words(entry.get('threshold'))}"
        if labels.count(label) > 1 and "threshold" in differing
        else label
        for label, entry in zip(labels, entries, strict=True)
    ]
    return [
        f"{label} · {entry['id']}" if with_tau.count(label) > 1 else label
        for label, entry in zip(with_tau, entries, strict=True)
    ]


def _differ(entries: Sequence[Mapping[str, Any]], key: str) -> bool:
    return len({json.dumps(entry.get(key), sort_keys=True) for entry in entries}) > 1


def in_words(value: Any) -> str:
    """Any value of the manifest in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={in_words(part)}" for key, part in value.items()) or "–"
    if isinstance(value, list | tuple):
        return ", ".join(in_words(part) for part in value) or "–"
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


# --------------------------------------------------------------------------------------------------------------- rows
def _rows(run: TaskRun) -> tuple[Any, dict[str, Floats]]:
    """Reads all rows without maps, and computes each setting's MaxBoxAcc at each τ in percent."""
    thresholds = {setting.id: setting.threshold for setting in run.settings}
    frames = []
    accuracy: dict[str, MaxBoxAcc] = {}
    for rows in batches(run.read_rows(LIGHT)):
        frame = pandas().DataFrame(rows).astype(dict.fromkeys(("area_share", "score", "iou"), "float64"))
        frame["hit"], frame["miss"] = False, ""
        done = np.flatnonzero(((frame["status"] == "ok") & frame[LARGEST_HITS].notna()).to_numpy())
        if len(done):
            columns = ("setting", "sample", "highest", LARGEST_HITS, "iou")
            hit = np.zeros(len(done), np.bool_)
            for i, values in enumerate(zip(*(frame[name].iloc[done] for name in columns), strict=True)):
                row = dict(zip(columns, values, strict=True))
                accuracy.setdefault(row["setting"], MaxBoxAcc()).add(row["sample"], row, None, None)
                tau = thresholds.get(row["setting"])
                # A setting with a τ for each map (Otsu's) is judged by the stored IoU.
                hit[i] = row["iou"] >= 0.5 if tau is None else hit_at(row[LARGEST_HITS], row["highest"], tau)
            frame.loc[done, "hit"] = hit
            missed = done[~hit]
            pairs = zip(frame["boxes"].iloc[missed], frame["true_boxes"].iloc[missed], strict=True)
            frame.loc[missed, "miss"] = [miss_kind(*pair) for pair in pairs]
        frame["predicted"] = [
            int(labels[0]) if labels is not None and len(labels) else -1 for labels in frame["predictions"]
        ]
        frames.append(frame.drop(columns=[LARGEST_HITS, "boxes", "true_boxes", "predictions"]))
    curves = {setting: 100 * metric.compute(NO_INTERVALS).curve for setting, metric in accuracy.items()}
    return pandas().concat(frames, ignore_index=True), curves


def details(run: BenchmarkRun, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], Row]:
    """Reads all columns, also maps, of the rows with these (setting, sample) keys, for the galleries."""
    found = run.rows_of_samples(None, {sample for _, sample in wanted})
    return {(setting, sample): row for (sample, setting), row in found.items() if (setting, sample) in wanted}


def miss_kind(boxes: Any, truths: Any) -> str:
    """The kind of error of the largest box, a key of `MISSES`; after TS-CAM's kinds (Gao et al. 2021)."""
    drawn, true = as_boxes(boxes), as_boxes(truths)
    if not len(drawn) or not len(true):
        return "none"
    area = (drawn[:, 2:] - drawn[:, :2]).prod(axis=1)
    box = drawn[int(area.argmax())]
    low, high = np.maximum(true[:, :2], box[:2]), np.minimum(true[:, 2:], box[2:])
    common = (high - low).clip(min=0).prod(axis=1)
    held = common / np.maximum((true[:, 2:] - true[:, :2]).prod(axis=1), 1e-9)  # of each true box
    if (held > 0.3).sum() > 1:
        return "several"
    if common.max() / max(float(area.max()), 1e-9) > 0.5:
        return "part"
    return "more" if held.max() > 0.7 else "elsewhere"


def as_boxes(boxes: Any) -> Floats:
    """Converts nested lists from Parquet to an array `[n, 4]`."""
    if boxes is None or not len(boxes):
        return np.zeros((0, 4))
    return np.array([[float(value) for value in box] for box in boxes]).reshape(-1, 4)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion in percent (Wilson 1927); it also suits few pictures, 0 % and 100 %."""
    z = 1.959964
    share, extra = hits / n, z * z / n
    middle, half = share + extra / 2, z * np.sqrt(share * (1 - share) / n + extra / (4 * n))
    return 100 * max(float(middle - half) / (1 + extra), 0.0), 100 * min(float(middle + half) / (1 + extra), 1.0)

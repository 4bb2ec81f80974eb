"""A benchmark's folder without a model: pictures with one bright object, maps that see it more or less well."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from cliploc.evaluate.tasks.boxes.job import BoxTally, CountedRow
from cliploc.evaluate.tasks.measuring import measure_sample
from cliploc.evaluate.tasks.rows import box_columns, cells_of, sample_facts, table_of, to_table
from cliploc.evaluate.tasks.task import summed_up
from cliploc.evaluate.tasks.worker import thumb
from cliploc.runs.store import PICTURE, Row, open_run
from cliploc.values import Sample

REASON = "damaged <b>& broken</b>: download it again"
SIDE, SIZE_WH = 224, (160, 120)
CLASSES = ["tench", "red fox", "acorn", "organ"]
WNIDS = ["n01440764", "n02119022", "n12267677", "n03854065"]


def make_folder(
    out: Path,
    root: Path,
    *,
    samples: int = 24,
    methods: Sequence[str] = ("cam", "grad_cam"),
    names: Sequence[str] = CLASSES,
    wnids: Sequence[str] = WNIDS,
    failed: Sequence[int] = (),
    oracle: bool = False,
    threshold: float = 0.4,
    reasons: bool = True,
) -> dict[str, Any]:
    """Writes the run's file, the summary and the pictures; returns the summary's settings."""
    out.mkdir(parents=True)
    (root / "val").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    truths = [
        Sample(f"val/{one:03}", root / f"val/{one:03}.jpg", one % len(names), SIZE_WH, _truth(random, one))
        for one in range(samples)
    ]
    for one in truths:
        _picture(random, one.boxes_xyxy).save(one.path)
    ids = [f"mini_{method}" for method in methods]
    rows: list[Row] = []
    for number, one in enumerate(truths):
        for place, setting in enumerate(ids):
            row = {**sample_facts(one, root, "00"), "setting": setting, "status": "failed", "reason": REASON}
            if number not in failed:
                heat = _map(random, one.boxes_xyxy[0], blur=14 + 16 * place, shift=6 + 10 * place)
                row |= _judged(one, heat, threshold, len(names))
            rows.append(row)
    columns = box_columns()
    counted = msgspec.convert(rows, list[CountedRow.of_metrics()])
    summary = summed_up(counted, {one: BoxTally(threshold, False) for one in ids})
    for numbers in summary.values():
        numbers["threshold_chosen_on_these_images"] = oracle
    classes = [{"name": name, "synonyms": [name], "wnid": wnid} for name, wnid in zip(names, wnids, strict=True)]
    settings = {
        one: {
            "id": one, "model": "mini", "pretrained": None, "weights": "f00", "method": method,
            "options": {}, "templates": ["a photo of a {}."], "threshold": threshold, "resize": "squash",
            "image_size": [224, 224], "precision": "fp32", "scales": [1.0], "flip": False, "refine": [],
        }
        for one, method in zip(ids, methods, strict=True)
    }  # fmt: skip
    session = {
        "started": "2026-01-02T03:04:05+00:00",
        "commit": "abc1234",
        "command": ["cliploc", "benchmark", "boxes", "--dataset", "wsol", "--root", str(root)],
        "versions": {"python": "3.11.7", "torch": "2.13"},
        "machine": {"processor": "a processor & more", "cores": 2},
    }
    dataset = {"name": "wsol", "split": "val", "role": "tune", "classes": classes}
    about = {"schema_version": 2, "cliploc_version": "0.1", "kind": "benchmark"}
    with open_run(out, (PICTURE, table_of(columns))) as run:
        run["manifest"] = {**about, "dataset": dataset, "settings": settings}
        run["samples"], run["sessions"], run["summary"] = {"samples": samples}, [session], summary
        run["here"] = {
            "root": str(root),
            "reasons": dict(zip(wnids, (f"why {name}" for name in names), strict=True)) if reasons else {},
            "problems": [{"kind": "missing picture", "source": "val/<x>.jpg", "reason": "not there: fetch it"}],
        }
        run.insert("picture", [(place, one.id, "00", "") for place, one in enumerate(truths)])
        run.insert("row", cells_of(to_table(rows, columns).to_pylist(maps_as_pydicts="strict"), columns))
    (out / "summary.json").write_text(json.dumps({"schema_version": 2, "settings": summary}), encoding="utf-8")
    return summary


def _truth(random: np.random.Generator, number: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """One to four true boxes `[n, 4]`; the first is the one that maps see."""
    boxes = []
    for _ in range(1 + (number % 5 == 0) + (number % 7 == 0) + (number % 10 == 0)):
        w, h = random.uniform(25, 110), random.uniform(25, 90)
        x, y = random.uniform(0, SIZE_WH[0] - w), random.uniform(0, SIZE_WH[1] - h)
        boxes.append((round(x, 1), round(y, 1), round(x + w, 1), round(y + h, 1)))
    return np.array(boxes, np.float32)


def _picture(random: np.random.Generator, boxes: np.ndarray[Any, np.dtype[np.float32]]) -> Image.Image:
    small = random.integers(60, 130, (9, 12, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(small).resize(SIZE_WH, Image.Resampling.BICUBIC)).copy()
    for x0, y0, x1, y1 in boxes:
        image[int(y0) : int(y1), int(x0) : int(x1)] = (230, 170, 90)
    return Image.fromarray(image)


def _map(
    random: np.random.Generator, box: np.ndarray[Any, np.dtype[np.float32]], blur: float, shift: float
) -> np.ndarray[Any, np.dtype[np.float32]]:
    scale = np.array([SIDE / SIZE_WH[0], SIDE / SIZE_WH[1]] * 2)
    x0, y0, x1, y1 = box * scale + random.normal(0, shift, 4)
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    inside = np.minimum.reduce([x - x0, x1 - x, y - y0, y1 - y]) / blur
    heat = 1 / (1 + np.exp(-inside)) + 0.2 * random.random()
    heat = heat - heat.min()
    return (heat / heat.max()).astype(np.float32)


def _judged(sample: Sample, heat: np.ndarray[Any, np.dtype[np.float32]], tau: float, classes: int) -> Row:
    """The columns of a map with one box at τ, and of a classifier that is right for two pictures of three."""
    number, label = int(sample.id[-3:]), sample.label
    ranked = np.random.default_rng(number).permutation(classes)[:5].tolist()
    if number % 3:
        ranked = [label, *[other for other in ranked if other != label]]
    y, x = np.nonzero(heat > tau * heat.max())
    scale = np.array([SIZE_WH[0] / SIDE, SIZE_WH[1] / SIDE] * 2)
    found = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) * scale
    (of_map,) = measure_sample(sample, heat[None], [tau])
    return {
        "status": "ok", "reason": None, "score": 0.25, "found": True, "predictions": ranked,
        "prediction_scores": [0.3] * len(ranked), "boxes": [found.tolist()], "box_scores": [0.9], **of_map,
        "thumb": thumb(heat),
    }  # fmt: skip

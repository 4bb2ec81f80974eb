"""A benchmark's folder without a model: pictures with one bright object, maps that see it more or less well."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from cliploc._files import part_path
from cliploc.jobs.rows import write_part
from cliploc.jobs.summary import joined
from cliploc.metrics import (
    EnergyInBoxes,
    JudgedMap,
    LocalizationAccuracy,
    MaxBoxAcc,
    MaxBoxAccV2,
    MeanBestIoU,
    PointingGame,
    VLScoreRule,
    box_curve,
    boxes_on_map,
    packed_hits,
)

REASON = "damaged <b>& broken</b>: download it again"
SIDE, SIZE_WH = 224, (160, 120)
CLASSES = ["tench", "red fox", "acorn", "organ"]
WNIDS = ["n01440764", "n02119022", "n12267677", "n03854065"]
ROW = pa.schema(
    [
        ("sample", pa.string()), ("setting", pa.string()), ("path", pa.string()), ("label", pa.int32()),
        ("n_boxes", pa.int16()), ("area_share", pa.float32()), ("width", pa.int32()), ("height", pa.int32()),
        ("true_boxes", pa.list_(pa.list_(pa.float32(), 4))), ("status", pa.string()), ("reason", pa.string()),
        ("score", pa.float32()), ("presence", pa.float32()), ("found", pa.bool_()),
        ("predictions", pa.list_(pa.int32())), ("prediction_scores", pa.list_(pa.float32())),
        ("boxes", pa.list_(pa.list_(pa.float32(), 4))), ("box_scores", pa.list_(pa.float32())),
        ("highest", pa.uint8()), ("hits_largest_50", pa.binary(32)), ("hits_every_30", pa.binary(32)),
        ("hits_every_50", pa.binary(32)), ("hits_every_70", pa.binary(32)), ("iou", pa.float32()),
        ("best_iou", pa.float32()), ("vl_hit", pa.bool_()), ("pointing_hit", pa.bool_()), ("energy", pa.float32()),
        ("pxap", pa.binary()), ("thumb", pa.binary(784)),
    ]
)  # fmt: skip


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
    role: str = "tune",
    reasons: bool = True,
    sizes: bool = True,
) -> dict[str, Any]:
    """Writes manifest, parts, summary and the pictures; returns the summary's settings."""
    (out / "parts").mkdir(parents=True)
    (root / "val").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    truths = [_truth(random, one) for one in range(samples)]
    for one, boxes in enumerate(truths):
        _picture(random, boxes).save(root / "val" / f"{one:03}.jpg")
    ids = [f"mini_{method}" for method in methods]
    rows: list[dict[str, Any]] = []
    metrics: dict[str, dict[str, Any]] = {
        one: {
            "one": MaxBoxAcc(), "two": MaxBoxAccV2(), "located": LocalizationAccuracy(None if oracle else threshold),
            "vl": VLScoreRule(threshold), "pointing": PointingGame(), "energy": EnergyInBoxes(),
            "mean": MeanBestIoU(threshold),
        }
        for one in ids
    }  # fmt: skip
    for number, boxes in enumerate(truths):
        for place, setting in enumerate(ids):
            facts = _facts(number, setting, boxes, len(names))
            if number in failed:
                rows.append(facts | {"status": "failed", "reason": REASON})
                continue
            heat = _map(random, boxes[0], blur=14 + 16 * place, shift=6 + 10 * place)
            rows.append(facts | _judged(heat, boxes, facts, threshold, random, metrics[setting], len(names)))
    drop = () if sizes else ("width", "height", "true_boxes")
    for part in range(0, len(rows), 2 * len(ids) * 5):
        table = pa.Table.from_pylist(rows[part : part + 2 * len(ids) * 5], schema=ROW).drop_columns(list(drop))
        write_part(part_path(out, part), table)
    summary = {
        one: _numbers(metrics[one], samples, failed)
        if samples > len(failed)
        else {"images": samples, "evaluated": 0, "failed": _failed(failed)}
        for one in ids
    }
    classes = [{"name": name, "wnid": wnid} for name, wnid in zip(names, wnids, strict=True)]
    manifest = {
        "schema_version": 2,
        "cliploc_version": "0.1",
        "kind": "benchmark",
        "sessions": [
            {
                "started": "2026-01-02T03:04:05+00:00",
                "commit": "abc1234",
                "command": ["cliploc", "benchmark", "--dataset", "wsol", "--root", str(root)],
                "versions": {"python": "3.11.7", "torch": "2.13"},
                "machine": {"processor": "a processor & more", "cores": 2},
            }
        ],
        "dataset": {
            "name": "wsol", "root": str(root), "split": "val", "role": role, "samples": samples, "classes": classes,
            "reasons": dict(zip(wnids, (f"why {name}" for name in names), strict=True)) if reasons else {},
            "problems": [{"kind": "missing picture", "source": "val/<x>.jpg", "reason": "not there: fetch it"}],
        },
        "settings": [
            {
                "id": one, "model": "mini", "pretrained": None, "weights": "f00", "method": method,
                "options": {}, "templates": ["a photo of a {}."], "threshold": threshold, "resize": "squash",
                "image_size": [224, 224], "precision": "fp32", "scales": [1.0], "flip": False, "refine": [],
            }
            for one, method in zip(ids, methods, strict=True)
        ],
    }  # fmt: skip
    (out / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (out / "summary.json").write_text(json.dumps({"schema_version": 2, "settings": summary}), encoding="utf-8")
    return summary


def _failed(numbers: Sequence[int]) -> list[dict[str, str]]:
    return [{"sample": f"val/{number:03}", "reason": REASON} for number in numbers]


def _truth(random: np.random.Generator, number: int) -> list[tuple[float, float, float, float]]:
    """One to four true boxes; the first is the one that maps see."""
    boxes = []
    for _ in range(1 + (number % 5 == 0) + (number % 7 == 0) + (number % 10 == 0)):
        w, h = random.uniform(25, 110), random.uniform(25, 90)
        x, y = random.uniform(0, SIZE_WH[0] - w), random.uniform(0, SIZE_WH[1] - h)
        boxes.append((round(x, 1), round(y, 1), round(x + w, 1), round(y + h, 1)))
    return boxes


def _picture(random: np.random.Generator, boxes: Sequence[tuple[float, float, float, float]]) -> Image.Image:
    small = random.integers(60, 130, (9, 12, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(small).resize(SIZE_WH, Image.Resampling.BICUBIC)).copy()
    for x0, y0, x1, y1 in boxes:
        image[int(y0) : int(y1), int(x0) : int(x1)] = (230, 170, 90)
    return Image.fromarray(image)


def _map(
    random: np.random.Generator, box: tuple[float, float, float, float], blur: float, shift: float
) -> np.ndarray[Any, np.dtype[np.float32]]:
    scale = np.array([SIDE / SIZE_WH[0], SIDE / SIZE_WH[1]] * 2)
    x0, y0, x1, y1 = np.array(box) * scale + random.normal(0, shift, 4)
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    inside = np.minimum.reduce([x - x0, x1 - x, y - y0, y1 - y]) / blur
    heat = 1 / (1 + np.exp(-inside)) + 0.2 * random.random()
    heat = heat - heat.min()
    return (heat / heat.max()).astype(np.float32)


def _facts(number: int, setting: str, boxes: Sequence[Sequence[float]], classes: int) -> dict[str, Any]:
    area = max((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes) / (SIZE_WH[0] * SIZE_WH[1])
    return {
        "sample": f"val/{number:03}", "setting": setting, "path": f"val/{number:03}.jpg", "label": number % classes,
        "n_boxes": len(boxes), "area_share": area, "width": SIZE_WH[0], "height": SIZE_WH[1],
        "true_boxes": [list(one) for one in boxes],
    }  # fmt: skip


def _judged(
    heat: np.ndarray[Any, np.dtype[np.float32]],
    boxes: Sequence[Sequence[float]],
    facts: dict[str, Any],
    tau: float,
    random: np.random.Generator,
    metrics: dict[str, Any],
    classes: int,
) -> dict[str, Any]:
    one, label = facts["sample"], facts["label"]
    true = np.asarray(boxes, dtype=np.float64)
    curve = box_curve(one, heat, boxes_on_map(true, SIZE_WH, (SIDE, SIDE)))
    ranked = [int(i) for i in np.random.default_rng(int(one[-3:])).permutation(classes)[:5]]
    if int(one[-3:]) % 3:
        ranked = [label, *[other for other in ranked if other != label]]
    judged = JudgedMap(one, heat, true, SIZE_WH)
    for metric in metrics.values():
        metric.add(one, metric.judge(judged), label, ranked)
    y, x = np.nonzero(heat > tau * heat.max())
    scale = np.array([SIZE_WH[0] / SIDE, SIZE_WH[1] / SIDE] * 2)
    found = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1]) * scale
    return {
        "status": "ok", "score": 0.25, "presence": None, "found": True, "predictions": ranked,
        "prediction_scores": [0.3] * len(ranked), "boxes": [found.tolist()], "box_scores": [0.9],
        "highest": len(curve.best) - 1, "hits_largest_50": packed_hits(curve, 0.5, "largest"),
        **{f"hits_every_{i}": packed_hits(curve, i / 100, "every") for i in (30, 50, 70)},
        "iou": float(curve.largest[curve.index(tau)]), "best_iou": float(curve.best[curve.index(tau)]),
        "vl_hit": True, "pointing_hit": True, "energy": 0.5,
        "thumb": (heat.reshape(28, 8, 28, 8).mean(axis=(1, 3)) * 255).astype(np.uint8).tobytes(),
    }  # fmt: skip


def _numbers(metrics: dict[str, Any], images: int, failed: Sequence[int]) -> dict[str, Any]:
    numbers, facts, per_class = joined(metric.summarise(False) for metric in metrics.values())
    counts = {"images": images, "evaluated": images - len(failed), "failed": _failed(failed)}
    return {**numbers, **facts, **counts, "per_class": per_class}

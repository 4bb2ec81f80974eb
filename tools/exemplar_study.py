"""How well a picture of one thing finds others of its kind: text, exemplar, and both. For docs/studies/exemplars.md.

Of every category of a dataset in COCO's layout, the exemplar is its largest box in the first picture that shows it, by
the order of the pictures' ids; nothing is chosen by its result. Asked for is the category in all other pictures that
show it. Two shares: of (picture, category) pairs whose hottest place lies in a true box, and of those whose best-scored
box has IoU ≥ 0.5 with one. The localizer is the model's default recipe; nothing is tuned.

    python tools/exemplar_study.py ../shared/data/coco_dev --model mini --model mini-vit
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cliploc.evaluate.data import open_dataset
from cliploc.images.exemplars import Exemplar
from cliploc.images.geometry import iou_matrix
from cliploc.localizer import Localizer
from cliploc.values import Dataset, Sample

KINDS = ("text", "exemplar", "both")


def exemplar_samples(dataset: Dataset) -> dict[int, Sample]:
    """Category → the sample that its exemplar is cut from."""
    first: dict[int, Sample] = {}
    for sample in sorted(dataset.samples, key=lambda one: one.path.name):
        first.setdefault(sample.label, sample)
    return first


def largest(sample: Sample) -> tuple[float, float, float, float]:
    boxes = sample.boxes_xyxy
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    x0, y0, x1, y1 = boxes[int(np.argmax(areas))].tolist()
    width, height = sample.size_wh
    x0, y0 = max(0.0, np.floor(x0)), max(0.0, np.floor(y0))
    return x0, y0, min(float(width), max(x0 + 1, np.ceil(x1))), min(float(height), max(y0 + 1, np.ceil(y1)))


def judged(localizer: Localizer, asked: dict[Path, list[Sample]], names: Sequence[str]) -> dict[int, list[list[bool]]]:
    """Category → for each picture whether the hottest place, and whether the best box, is right."""
    found: dict[int, list[list[bool]]] = defaultdict(list)
    for path, samples in asked.items():
        result = localizer(path, [names[one.label] for one in samples])
        for p, sample in enumerate(samples):
            heat = result.heatmaps[p]
            y, x = np.unravel_index(int(heat.argmax()), heat.shape)
            true = sample.boxes_xyxy
            inside = (true[:, 0] <= x) & (x < true[:, 2]) & (true[:, 1] <= y) & (y < true[:, 3])
            boxes = result.boxes
            own = np.flatnonzero(boxes.label == p)
            best = own[np.argmax(boxes.score[own])] if len(own) else None
            iou = 0.0 if best is None else float(iou_matrix(boxes.xyxy[[best]], true).max())
            found[sample.label].append([bool(heat.max() > 0 and inside.any()), iou >= 0.5])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--kind", action="append", choices=KINDS, help="of these only")
    settings = parser.parse_args()
    dataset = open_dataset("coco", settings.root)
    first = exemplar_samples(dataset)
    names = [one.name for one in dataset.classes]
    asked: dict[Path, list[Sample]] = defaultdict(list)
    for sample in dataset.samples:
        if first[sample.label].path != sample.path:
            asked[sample.path].append(sample)
    for model in settings.model:
        unknown = Localizer(model).unknown_names(names)
        for kind in settings.kind or KINDS:
            exemplars = [
                Exemplar(names[label], one.path, largest(one), with_text=kind == "both" and names[label] not in unknown)
                for label, one in first.items()
            ]
            localizer = Localizer(model, exemplars=[] if kind == "text" else exemplars)
            found = judged(localizer, asked, names)
            for group, wanted in (("known", False), ("unknown", True)):
                rows = [row for label, of in found.items() if (names[label] in unknown) is wanted for row in of]
                if rows and not (wanted and kind != "exemplar"):
                    point, box = np.mean(rows, axis=0) * 100
                    print(
                        f"{model:9} {kind:9} {group:8} pairs {len(rows):4} point {point:5.1f} box {box:5.1f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()

"""What votes of regions do to label maps: the numbers of docs/studies/segmentation.md.

Label maps of coco_object, with each way to make regions. "oracle" votes in the connected pieces of the true label map:
no regions can do more. Differences to the plain label maps are paired, with the standard error of 300 bootstrap draws
of pictures.

    python tools/region_study.py --root ../shared/data/coco_tune --colour 16,64,0.5 40,64,0.5 24,96,0.5  # to choose
    python tools/region_study.py --root ../shared/data/coco_dev  # to report
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from cliploc.evaluate.data import open_labelled
from cliploc.find.segmentation.protocol import protocol_of
from cliploc.find.segmentation.regions import ColourRegions, Regions, voted
from cliploc.find.segmentation.segmenter import Segmenter
from cliploc.localizer import Localizer
from cliploc.options import Options

ROOT = Path(__file__).parents[1] / "../shared/data/coco_dev"
IGNORE = 255
DRAWS = 300
Counts = npt.NDArray[np.int64]  # [pictures, true, predicted]


def pieces(truth: npt.NDArray[np.int64]) -> Regions:
    """The connected pieces `[H, W]` of a true label map."""
    regions = np.full(truth.shape, -1, np.int32)
    for label in np.unique(truth).tolist():
        _, piece = cv2.connectedComponents((truth == label).astype(np.uint8))
        start = int(regions.max()) + 1
        inside = piece > 0
        regions[inside] = start + piece[inside] - 1
    return regions


def miou(counts: Counts) -> float:
    """Of `[true, predicted]`, in percent."""
    both = np.diag(counts)
    either = counts.sum(0) + counts.sum(1) - both
    return float(100 * (both[either > 0] / either[either > 0]).mean())


def standard_error(one: Counts, other: Counts) -> float:
    """Of the difference between the mIoU of two lots of label maps of the same pictures."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(DRAWS):
        times = np.bincount(rng.integers(len(one), size=len(one)), minlength=len(one))
        drawn.append(miou(np.tensordot(times, other, 1)) - miou(np.tensordot(times, one, 1)))
    return float(np.std(drawn))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="COCO's folders")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--method", default="cam")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--colour", nargs="+", default=[], metavar="COUNT,SIDE,PLACE")
    asked = parser.parse_args()
    sources = {"colour": ColourRegions()}
    for text in asked.colour:
        count, side, place = text.split(",")
        sources[f"colour {text}"] = ColourRegions(int(count), int(side), float(place))
    dataset = open_labelled("coco_object", asked.root, limit=asked.limit)
    localizer = Localizer(**Options(model=asked.model, method=asked.method, templates="openai-80").changed())
    segmenter = Segmenter(localizer, protocol_of("coco_object"), {asked.method: {}})
    classes = len(dataset.classes)
    found: dict[str, list[npt.NDArray[np.int64]]] = {name: [] for name in ("none", *sources, "oracle")}
    for sample in dataset.samples:
        picture, truth = sample.picture(), sample.truth.read().astype(np.int64)
        labels = segmenter.label_maps(picture)[asked.method].astype(np.int64)
        maps = {"none": labels, "oracle": voted(labels, pieces(truth))}
        maps |= {name: voted(labels, source(picture)) for name, source in sources.items()}
        counted = truth != IGNORE
        for name, one in maps.items():
            pairs = truth[counted] * classes + one[counted]
            found[name].append(np.bincount(pairs, minlength=classes**2).reshape(classes, classes))
    plain = np.stack(found["none"])
    print("| regions | mIoU | difference | pixel accuracy |\n|---|---|---|---|")
    for name, kept in found.items():
        counts, whole = np.stack(kept), np.sum(kept, axis=0)
        by = miou(whole) - miou(plain.sum(0))
        accuracy = 100 * np.trace(whole) / whole.sum()
        print(f"| {name} | {miou(whole):.1f} | {by:+.2f} ± {standard_error(plain, counts):.2f} | {accuracy:.1f} |")


if __name__ == "__main__":
    main()

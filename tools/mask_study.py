"""Masks by the heat and by GrabCut against COCO's polygons: the numbers of docs/masks.md.

Each picture is asked for the names that it shows and that the model knows, and keeps all of them. A name's mask is
compared with its true pixels. The second column is a paired difference to the heat, with the standard error over
pictures.

    python tools/mask_study.py --root ../shared/data/coco_tune --grabcut 240,0.1,1 240,0.2,1 240,0.3,1  # to choose
    python tools/mask_study.py --root ../shared/data/coco_dev  # to report
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cliploc.boxes.masks import GrabCutMasks, MaskSource
from cliploc.evaluate.data import open_labelled
from cliploc.localization import Localization
from cliploc.localizer import Localizer
from cliploc.options import Options

ROOT = Path(__file__).parents[1] / "../shared/data/coco_dev"
FOUND = 0.3  # IoU from which the map has found the thing
Found = tuple[int, Localization, list[npt.NDArray[np.bool_]]]  # number of the picture, result, true mask of each name


def localized(root: Path, localizer: Localizer, limit: int | None) -> Iterator[Found]:
    dataset = open_labelled("coco_object", root, limit=limit)
    names = [one.name for one in dataset.classes]
    unknown = localizer.unknown_names(names[1:])
    for number, sample in enumerate(dataset.samples):
        truth = sample.truth.read()  # [H, W]
        there = [c for c in np.unique(truth).tolist() if 0 < c < len(names) and names[c] not in unknown]
        if there:
            found = localizer(sample.picture(), [names[c] for c in there])
            yield number, found, [truth == c for c in there]


def iou(mask: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float:
    return float((mask & truth).sum() / max(1, (mask | truth).sum()))


def clustered(difference: npt.NDArray[np.float64], pictures: npt.NDArray[np.int64]) -> float:
    """The standard error of a mean over names, several of which may be of one picture."""
    sums = np.bincount(pictures, difference - difference.mean())
    return float(np.sqrt((sums**2).sum()) / len(difference))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT, help="COCO's folders")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--grabcut", nargs="+", default=[], metavar="SIDE,MARGIN,ROUNDS")
    asked = parser.parse_args()
    sources: dict[str, MaskSource | None] = {"heat": None, "grabcut": GrabCutMasks()}
    for text in asked.grabcut:
        side, margin, rounds = text.split(",")
        sources[f"grabcut {text}"] = GrabCutMasks(int(side), float(margin), int(rounds))
    localizer = Localizer(**Options(model=asked.model, recipe=asked.recipe, min_presence=0).changed())
    pictures: list[int] = []
    shares: dict[str, list[float]] = {name: [] for name in sources}
    for number, found, truths in localized(asked.root, localizer, asked.limit):
        pictures += [number] * len(truths)
        for name, source in sources.items():
            drawn = replace(found, mask_source=source)
            shares[name] += [iou(drawn.name_mask(p), truth) for p, truth in enumerate(truths)]
    heat, place = np.array(shares["heat"]), np.array(pictures)
    for words, kept in (("all names", heat >= 0), (f"names whose heat has IoU ≥ {FOUND:g}", heat >= FOUND)):
        print(f"\n{kept.sum()} {words}\n\n| masks | mean IoU | difference | IoU ≥ 0.5 |\n|---|---|---|---|")
        for name, values in shares.items():
            own = np.array(values)[kept]
            difference = own - heat[kept]
            print(
                f"| {name} | {own.mean():.3f} | {difference.mean():+.3f} ± {clustered(difference, place[kept]):.3f} | "
                f"{(own >= 0.5).mean():.3f} |"
            )


if __name__ == "__main__":
    main()

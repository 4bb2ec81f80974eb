"""Chooses each method's default box threshold τ, and its temperature where it has one, on the tuning pictures.

The pictures are 118 ImageNet training pictures (`../shared/data/imagenet_one_per_class`) whose boxes were drawn by hand
(`tools/tuning_boxes.json`); no number is reported on them. For every τ in steps of 0.05 it prints the share of pictures
whose best box has IoU ≥ 0.5 with a true box (boxes as the product makes them: all components), and the best; last, the
MaxBoxAcc of the WSOL evaluation (the largest contour's box), by which options are chosen.

    python tools/choose_thresholds.py                       # the fast methods that work on `mini`
    python tools/choose_thresholds.py --model mini-vit      # and on `mini-vit`
    python tools/choose_thresholds.py --method score_cam --option temperature=0.02 --limit 60
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np

from cliploc import methods as saliency
from cliploc import towers
from cliploc.boxes import BoxRule, boxes_from_maps
from cliploc.evaluate.metrics import Bootstrap, MaxBoxAcc, box_curve, boxes_on_map
from cliploc.images.geometry import iou_matrix
from cliploc.localizer import Localizer
from cliploc.methods import methods as registered

TAUS = [round(0.05 * step, 2) for step in range(1, 19)]
ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "../shared/data/imagenet_one_per_class"
SYNSETS = ROOT / "../shared/data/ilsvrc_val_dev/synsets.csv"


def _value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", help="names, with commas [default: all of the model's tower that mask nothing]")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--pretrained", help="its weights, where they are not its own")
    parser.add_argument("--image-size", type=int, help="as in `cliploc localize`")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="a method's option")
    parser.add_argument("--template", action="append", help="as in `cliploc localize`")
    parser.add_argument("--scales", default="1", help="as in `cliploc localize`")
    parser.add_argument("--flip", action="store_true")
    parser.add_argument("--refine", default="", help="as in `cliploc localize`")
    parser.add_argument("--limit", type=int, help="only the first N pictures")
    arguments = parser.parse_args()
    options = {key: _value(value) for key, value in (pair.split("=") for pair in arguments.option)}
    drawn = json.loads((ROOT / "tools/tuning_boxes.json").read_text())["boxes"]
    names = {row["wnid"]: row["synset_words"].split(", ")[0] for row in csv.DictReader(SYNSETS.open())}
    wnids = list(drawn)[: arguments.limit]
    print(f"{len(wnids)} tuning pictures; share with IoU ≥ 0.5 for the best box, per τ")
    print(f"{'method':<14}" + "".join(f"{tau:>6}" for tau in TAUS) + "   best τ   default   MaxBoxAcc")
    backbone = towers.create(arguments.model, arguments.pretrained)
    left_out = ("perturbation", "baseline")  # slow; nothing to choose
    fitting = saliency.fitting(backbone)  # not those that need a guide
    fast = [one.name for one in registered if one.name in fitting and one.family not in left_out]
    methods = arguments.method.split(",") if arguments.method else fast
    localizer = Localizer(
        backbone,
        method=methods[0],
        image_size=arguments.image_size,
        templates=arguments.template,
        scales=[float(scale) for scale in arguments.scales.split(",")],
        flip=arguments.flip,
        refine=arguments.refine.split(",") if arguments.refine else [],
        min_presence=0,
    )
    hits = {method: np.zeros(len(TAUS)) for method in methods}
    max_box_acc = {method: MaxBoxAcc() for method in methods}
    pictures = [PICTURES / f"{wnid}.jpg" for wnid in wnids]
    asked = [[names[wnid]] for wnid in wnids]
    for wnid, found in zip(wnids, localizer.compare(pictures, asked, dict.fromkeys(methods, options)), strict=True):
        size, on_input = (drawn[wnid]["width"], drawn[wnid]["height"]), next(iter(found.values())).maps.shape[-2:]
        truths = boxes_on_map(drawn[wnid]["xyxy"], size, on_input)
        for method, result in found.items():
            max_box_acc[method].update(box_curve(wnid, result.maps[0], truths))
            for index, tau in enumerate(TAUS):
                on_map = boxes_from_maps(result.maps, BoxRule(threshold=tau))
                boxes = result.frame.to_original(on_map.xyxy)
                hits[method][index] += len(boxes) > 0 and iou_matrix(boxes, drawn[wnid]["xyxy"]).max() >= 0.5
    for method, right in hits.items():
        share, best = right / len(wnids), max_box_acc[method].compute(Bootstrap(replicates=0)).accuracy
        row = "".join(f"{value:6.2f}" for value in share)
        print(
            f"{method:<14}{row}   {TAUS[int(share.argmax())]:<6}   {registered.get(method).threshold:<7g}   {best:.3f}"
        )


if __name__ == "__main__":
    main()

"""Chooses what the refinement `affinity` does: stage, cut, power, rounds, mix. For docs/studies/refinement.md.

The pictures and boxes are those of tools/choose_thresholds.py; no number is reported on them. The tower runs once for
each picture and input size, and its output is kept in a folder; all tables are made of that. A number in a table is the
share of pictures where the box of the largest region has IoU ≥ 0.5 with a true box, at the best τ of 0.15, 0.2 … 0.75.

    python tools/refinement_study.py --cache /tmp/study stage
    python tools/refinement_study.py --cache /tmp/study variant
    python tools/refinement_study.py --cache /tmp/study threshold
    python tools/refinement_study.py --cache /tmp/study guided
    python tools/refinement_study.py --cache /tmp/study --model mini-vit stage
    python tools/refinement_study.py steps --model mini --steps "" lposs affinity,pamr --guide "" mini-vit

The last one's rows are runs of the product at one size: refinements, each with each guide.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from cliploc import towers
from cliploc.boxes import BoxRule, boxes_from_maps
from cliploc.images.geometry import Frame, iou_matrix
from cliploc.localizer import Localizer
from cliploc.methods import Context, min_max
from cliploc.methods import methods as registered
from cliploc.options import parse_list
from cliploc.refine import LONGEST, refinements
from cliploc.refine.affinity import directions
from cliploc.towers.tower import Needs

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "../shared/data/imagenet_one_per_class"
SYNSETS = ROOT / "../shared/data/ilsvrc_val_dev/synsets.csv"
TAUS = [round(0.05 * step, 2) for step in range(3, 16)]
SIDE = 224  # of the maps that boxes are taken from
SIZES = (224, 320, 448)
CUTS = (0.0, 0.1, 0.2, 0.3)
STAGES = {"mini": (-5, -4, -3, -1), "mini-vit": (-4, -3, -2, -1)}  # from the end
METHODS = {
    "mini": ("cam", "layer_cam"),
    "mini-vit": ("naclip", "legrad"),
}


@dataclass(frozen=True)
class Variant:
    """One way to spread a map.

    Attributes:
        stage: whose features are compared, from the end; None: the map stays as it is.
        cut: places whose cosine is lower exchange no heat.
        power: of max(0, S − cut).
        rounds: how often the map is spread.
        mix: share of the original map in the result.
        cell: pixels of the input that a cell of the grid is wide, for the guided filter that follows; None: none does.
    """

    stage: int | None = None
    cut: float = 0.1
    power: int = 1
    rounds: int = 1
    mix: float = 0.0
    cell: int | None = None


@dataclass(frozen=True)
class Photo:
    """A picture with boxes, as the tower saw it.

    Attributes:
        path: the file.
        boxes_on_map: `[m, 4]` the true boxes on a map of SIDE × SIDE.
        frame: how it lies in the input.
        kept: features by stage `[C, h, w]`, and raw maps by method `[h, w]`.
    """

    path: Path
    boxes_on_map: np.ndarray
    frame: Frame
    kept: dict[str, Tensor]

    def heat(self, method: str, variant: Variant) -> Tensor:
        """A method's map after the variant, `[SIDE, SIDE]` over the picture, in 0–1."""
        raw = self.kept[method][None, None].relu()  # [1, 1, h, w]
        if variant.stage is not None:
            raw = self._spread(raw, variant)
        heat = F.interpolate(raw, self.frame.input_hw, mode="bilinear", align_corners=False)
        if variant.cell is not None:
            heat = self._guided(min_max(heat)[0], variant.cell)[None]
        return min_max(F.interpolate(heat, (SIDE, SIDE), mode="bilinear", align_corners=False))[0, 0]

    def _spread(self, raw: Tensor, variant: Variant) -> Tensor:
        features = self.kept[str(variant.stage)][None]  # [1, C, h, w]
        grid = (features.shape[-2], features.shape[-1])
        maps = F.interpolate(min_max(raw), grid, mode="bilinear", align_corners=False)
        places = directions(features)[0]  # [N, C]
        alike = (places @ places.T).fill_diagonal_(1)  # [N, N]
        alike = (alike - variant.cut).relu() ** variant.power
        alike = alike / alike.sum(dim=1, keepdim=True)
        heat = maps.flatten()  # [N]
        for _ in range(variant.rounds):
            heat = alike @ heat
        heat = heat.view(1, 1, *grid)
        return (1 - variant.mix) * min_max(heat) + variant.mix * maps if variant.mix else heat

    def _guided(self, heat: Tensor, cell: int) -> Tensor:
        frame = self.frame.over_picture(LONGEST)
        with Image.open(self.path) as file:
            pixels = torch.from_numpy(np.array(frame.apply(file.convert("RGB")))).permute(2, 0, 1)[None].float() / 255
        width, height = (round(cell * a / b) for a, b in zip(frame.scale_xy, self.frame.scale_xy, strict=True))
        heat = min_max(self.frame.map_to_frame(heat, frame))
        refined: Tensor = refinements.get("guided").function(pixels, heat[None], (height, width))[0]
        return refined


def read(model: str, size: int, cache: Path, limit: int | None) -> list[Photo]:
    """The tuning pictures at one input size; what the cache lacks is computed."""
    drawn = json.loads((ROOT / "tools/tuning_boxes.json").read_text())["boxes"]
    names = {row["wnid"]: row["synset_words"].split(", ")[0] for row in csv.DictReader(SYNSETS.open())}
    localizer = Localizer(model)
    backbone = localizer.backbone
    needs = Needs(features=STAGES[model])
    for name in METHODS[model]:
        needs |= registered.get(name).needs(**registered.get(name).options)
    folder = cache / f"{model}-{size}"
    folder.mkdir(parents=True, exist_ok=True)
    photos = []
    for wnid in list(drawn)[:limit]:
        path, kept_at = PICTURES / f"{wnid}.jpg", folder / f"{wnid}.safetensors"
        with Image.open(path) as file:
            image = file.convert("RGB")
        frame = Frame.fit("squash", (image.height, image.width), (size, size))
        if not kept_at.exists():
            pixels = torch.from_numpy(np.array(frame.apply(image))).permute(2, 0, 1)[None]
            images = backbone.normalize(pixels.float() / 255)
            trace = backbone.trace(images, needs)
            ctx = Context(lambda images=images: images, localizer.embed_names([names[wnid]])[None], trace, backbone)
            kept = {str(stage): trace.features[stage][0].float() for stage in STAGES[model]}
            for name in METHODS[model]:
                method = registered.get(name)
                kept[name] = method.function(ctx, **method.options)[0, 0].detach().float()
            save_file({key: value.contiguous() for key, value in kept.items()}, kept_at)
        on_map = np.array(drawn[wnid]["xyxy"]) * SIDE / np.array([image.width, image.height] * 2)
        photos.append(Photo(path, on_map, frame, load_file(kept_at)))
    return photos


def curve(photos: Sequence[Photo], method: str, variant: Variant) -> np.ndarray:
    """For each τ, the share of pictures whose largest region's box has IoU ≥ 0.5 with a true box."""
    heats = torch.stack([photo.heat(method, variant) for photo in photos]).numpy()  # [n, SIDE, SIDE]
    shares = np.zeros(len(TAUS))
    for place, tau in enumerate(TAUS):
        found = boxes_from_maps(heats, BoxRule(tau, "largest"))
        for box, index in zip(found.xyxy, found.index, strict=True):
            shares[place] += iou_matrix(box[None], photos[index].boxes_on_map).max() >= 0.5
    return shares / len(photos)


def product_curve(model: str, method: str, steps: str, guide: str, size: int, limit: int | None) -> np.ndarray:
    """As `curve`, of what the product makes with these steps, named as on the command line, and this guide."""
    drawn = json.loads((ROOT / "tools/tuning_boxes.json").read_text())["boxes"]
    names = {row["wnid"]: row["synset_words"].split(", ")[0] for row in csv.DictReader(SYNSETS.open())}
    wnids = list(drawn)[:limit]
    localizer = Localizer(
        model, method=method, refine=parse_list(steps), guide=guide or None, image_size=size, min_presence=0
    )
    found = localizer.stream([PICTURES / f"{wnid}.jpg" for wnid in wnids], [[names[wnid]] for wnid in wnids])
    shares = np.zeros(len(TAUS))
    for wnid, result in zip(wnids, found, strict=True):
        sides = np.array([drawn[wnid]["width"], drawn[wnid]["height"]] * 2)
        truths = np.array(drawn[wnid]["xyxy"]) * SIDE / sides
        heat = result.maps_over_picture((SIDE, SIDE))  # [1, SIDE, SIDE]
        for place, tau in enumerate(TAUS):
            box = boxes_from_maps(heat, BoxRule(tau, "largest")).xyxy
            shares[place] += len(box) > 0 and iou_matrix(box, truths).max() >= 0.5
    return shares / len(wnids)


def best(shares: np.ndarray) -> str:
    """The best share and its τ."""
    return f"{shares.max():.3f} at {TAUS[int(shares.argmax())]:.2f}"


def table(by_size: dict[int, list[Photo]], methods: Sequence[str], rows: dict[str, Variant]) -> None:
    """Variants down, methods and sizes across; last the mean over all of them."""
    columns = [(method, size) for method in methods for size in by_size]
    print("| | " + " | ".join(f"{method} {size}" for method, size in columns) + " | mean |")
    print("|---" * (2 + len(columns)) + "|")
    for title, variant in rows.items():
        curves = [curve(by_size[size], method, variant) for method, size in columns]
        mean = np.mean([one.max() for one in curves])
        print(f"| {title} | " + " | ".join(best(one) for one in curves) + f" | {mean:.3f} |", flush=True)


def threshold_table(rows: dict[str, tuple[list[Photo], str, Variant]]) -> None:
    """Thresholds across."""
    print("| | " + " | ".join(f"τ {tau:.2f}" for tau in TAUS) + " |\n" + "|---" * (1 + len(TAUS)) + "|")
    for title, what in rows.items():
        print(f"| {title} | " + " | ".join(f"{share:.3f}" for share in curve(*what)) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", choices=list(STAGES))
    parser.add_argument("--cache", type=Path, default=Path("/tmp/study"), help="a folder for what the tower says")
    parser.add_argument("--stage", type=int, help="of the tables that compare no stages")
    parser.add_argument("--limit", type=int, help="only the first N pictures")
    parser.add_argument("table", choices=["stage", "variant", "threshold", "guided", "steps"])
    parser.add_argument("--steps", nargs="+", default=[""], help='of `steps`: refinements, with commas; "": none')
    parser.add_argument("--guide", nargs="+", default=[""], help='of `steps`: as in `cliploc localize`; "": none')
    parser.add_argument("--method", nargs="+", help="of `steps`; its own two methods unless given")
    parser.add_argument("--size", type=int, default=320, help="of `steps`: of the input, in pixels")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    methods = METHODS[arguments.model]
    if arguments.table == "steps":
        print("| method | steps | guide | best | " + " | ".join(f"τ {tau:.2f}" for tau in TAUS) + " |")
        print("|---" * (4 + len(TAUS)) + "|")
        for method, steps, guide in product(arguments.method or methods, arguments.steps, arguments.guide):
            shares = product_curve(arguments.model, method, steps, guide, arguments.size, arguments.limit)
            cells = " | ".join(f"{share:.3f}" for share in shares)
            print(f"| {method} | {steps or '–'} | {guide or '–'} | {best(shares)} | {cells} |", flush=True)
        return
    by_size = {size: read(arguments.model, size, arguments.cache, arguments.limit) for size in SIZES}
    plain, rows = {"unrefined": Variant()}, {}
    if arguments.table == "stage":
        rows = {f"stage {stage}, cut {cut:g}": Variant(stage, cut) for stage in STAGES[arguments.model] for cut in CUTS}
        table(by_size, methods, plain | rows)
        return
    chosen = Variant(arguments.stage)
    if arguments.table == "variant":
        rows = {
            "A": chosen,
            "squared": replace(chosen, power=2),
            "squared, cut 0": replace(chosen, power=2, cut=0),
            "twice": replace(chosen, rounds=2),
            "twice, cut 0.2": replace(chosen, rounds=2, cut=0.2),
            "a quarter of the map": replace(chosen, mix=0.25),
            "half of the map": replace(chosen, mix=0.5),
        }
        table(by_size, methods, plain | rows)
    elif arguments.table == "threshold":
        threshold_table({f"{method}, {size}": (by_size[size], method, chosen) for method in methods for size in SIZES})
    else:
        stride = towers.create(arguments.model).stride
        rows = {"guided": Variant(cell=stride), "A, then guided": replace(chosen, cell=stride)}
        if stride > 16:
            rows["A, then guided with the windows of a finer grid"] = replace(chosen, cell=16)
        threshold_table(
            {
                f"{method}, {size}, {title}": (by_size[size], method, variant)
                for method in methods
                for size in SIZES[:2]
                for title, variant in rows.items()
            }
        )


if __name__ == "__main__":
    main()

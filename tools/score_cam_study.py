"""What temperature and budget do to the Score-CAM family: the tables of docs/studies/performance.md.

The pictures and boxes are those of tools/choose_thresholds.py; no number is reported on them. The table `report` alone
is of others, `../shared/data/ilsvrc_val_dev` as `cliploc benchmark --sample 100 --seed 0` draws them, at every default:
nothing may be chosen by it. The tower runs once for every mask of every picture, and what it says is kept in a folder
(8 MB and some 15 s a picture, in bf16 half of that); all tables are made of that.

    python tools/score_cam_study.py --cache /tmp/masked --limit 60 temperature
    python tools/score_cam_study.py --cache /tmp/masked --limit 60 budget
    python tools/score_cam_study.py --cache /tmp/masked --limit 60 precision --other /tmp/masked-bf16
    python tools/score_cam_study.py --cache /tmp/masked-bf16 --precision bf16 --limit 60 fill
    python tools/score_cam_study.py --cache /tmp/masked-report --precision bf16 report --sample 100 --seed 0
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from cliploc import backbones
from cliploc.backbones.mini import Mini
from cliploc.boxes import BoxRule, boxes_from_maps
from cliploc.datasets import open_dataset
from cliploc.geometry import Frame, iou_matrix
from cliploc.localizer import Localizer
from cliploc.maps import min_max
from cliploc.method import Context
from cliploc.metrics import SIDE, box_curve, boxes_on_map
from cliploc.saliency import methods
from cliploc.saliency._infra.channels import channel_maps
from cliploc.saliency._infra.masked import BASELINE_KEY, MaskedEmbeddings, masked_embeddings
from cliploc.tower import Needs, Trace
from cliploc.values import ResizePolicy

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "../shared/data/imagenet_one_per_class"
SYNSETS = ROOT / "../shared/data/ilsvrc_val_dev/synsets.csv"
TAUS = [round(0.05 * step, 2) for step in range(2, 17)]
TIMES_OWN = (0.4, 1, 2, 4, 8, 16, 40)  # temperatures tried, as multiples of the model's own, 1 / logit scale
BUDGETS = (32, 64, 128, 256)
REPORT = ROOT / "../shared/data/ilsvrc_val_dev"
FAMILY = ("score_cam", "vl_score", "gscore_cam")


@dataclass(frozen=True)
class Photo:
    """A picture with boxes."""

    key: str  # of its file in the cache
    path: Path
    names: tuple[str, ...]  # its own, and perhaps another's: "cat|kitten" for synonyms
    boxes: np.ndarray  # [m, 4]
    size_wh: tuple[int, int] | None  # what the boxes belong to, where the file is stretched


@dataclass(frozen=True)
class Picture:
    """A picture whose masks have all been tried."""

    mini: Mini
    photo: Photo
    frame: Frame
    images: Tensor  # [1, 3, H, W], of which only the size is needed
    text: Tensor  # [n, D]: of the photo's names
    kept: dict[str, Tensor]

    @cached_property
    def trace(self) -> Trace:
        features = self.kept["features"][None]  # [1, C, h, w]
        embedding = F.normalize(self.mini.pool(features), dim=-1)
        return Trace(embedding, (features.shape[-2], features.shape[-1]), {-1: features})

    @cached_property
    def masked(self) -> MaskedEmbeddings:
        """As the methods make them, with none left to try."""
        ctx = Context(lambda: self.images, self.text[None], self.trace, self.mini)
        ctx.cache[BASELINE_KEY] = self.kept["baseline"]
        masked = masked_embeddings(ctx, wanted=torch.zeros_like(self.kept["alive"])[None])
        masked.embeddings[0, self.kept["alive"]] = self.kept["embeddings"]
        masked.done.fill_(True)
        return masked

    @property
    def different(self) -> int:
        """How many masks there are, each counted once."""
        return len(torch.unique(self.masked.twin[self.masked.alive]))

    def context(self, own_only: bool = False, **kwargs: object) -> Context:
        """Whose masked pictures are all known already."""
        text = self.text[None, :1] if own_only else self.text[None]
        ctx = Context(lambda: self.images, text, self.trace, self.mini, **kwargs)  # type: ignore[arg-type]
        ctx.cache["masked embeddings", channel_maps(ctx).key] = self.masked
        return ctx

    def heat(self, raw: Tensor) -> Tensor:
        """A raw map `[h, w]` → `[1, H, W]` in 0–1 over the input, as the `Localizer` makes it."""
        up = F.interpolate(raw.relu()[None, None], self.frame.input_hw, mode="bilinear", align_corners=False)
        return min_max(up)[0]

    def gt_known(self, raw: Tensor, tau: float) -> bool:
        """Of a raw map `[h, w]`: whether the largest contour's box has IoU ≥ 0.5 with a true box, as in a benchmark."""
        assert self.photo.size_wh is not None
        whole = self.frame.map_to_picture(self.heat(raw), (SIDE, SIDE))[0].clamp(0, 1).numpy()
        true = boxes_on_map(self.photo.boxes, self.photo.size_wh, (SIDE, SIDE), "wsoleval")
        curve = box_curve(self.photo.key, whole, true)
        return bool(curve.largest[curve.index(tau)] >= 0.5)

    def hits(self, raw: Tensor) -> np.ndarray:
        """Of a raw map `[h, w]`: for each τ whether its best box, of all regions, has IoU ≥ 0.5 with a true box."""
        heat = self.heat(raw).numpy()  # [1, H, W]
        found = np.zeros(len(TAUS))
        for index, tau in enumerate(TAUS):
            boxes = self.frame.to_original(boxes_from_maps(heat, BoxRule(threshold=tau)).xyxy)
            found[index] = len(boxes) > 0 and iou_matrix(boxes, self.photo.boxes).max() >= 0.5
        return found


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, of two maps after their ReLU; 0 where one is flat."""
    a, b = (m.relu().flatten() - m.relu().mean() for m in (a, b))
    return float(a @ b / (a.norm() * b.norm()).clamp(min=1e-30))


def tuning_photos(limit: int | None) -> list[Photo]:
    """The first of those with hand-drawn boxes, each with its own name and another's."""
    drawn = json.loads((ROOT / "tools/tuning_boxes.json").read_text())["boxes"]
    names = {row["wnid"]: row["synset_words"].split(", ")[0] for row in csv.DictReader(SYNSETS.open())}
    wnids = list(drawn)
    others = [names[wnids[(place + 7) % len(wnids)]] for place in range(len(wnids))]
    return [
        Photo(wnid, PICTURES / f"{wnid}.jpg", (names[wnid], other), np.array(drawn[wnid]["xyxy"]), None)
        for wnid, other in zip(wnids[:limit], others, strict=False)
    ]


def report_photos(sample: int, seed: int) -> list[Photo]:
    """Those that `cliploc benchmark --dataset wsol --sample N --seed N` draws, with their class's synonyms."""
    dataset = open_dataset("wsol", REPORT, sample=sample, seed=seed)
    return [
        Photo(
            Path(one.id).stem, one.path, ("|".join(dataset.classes[one.label].synonyms),), one.boxes_xyxy, one.size_wh
        )
        for one in dataset.samples
    ]


def read(photos: list[Photo], cache: Path, precision: str, resize: ResizePolicy | None = None) -> list[Picture]:
    """What the tower says of them; what the cache lacks is computed."""
    mini = backbones.create("mini", device="cpu")
    fast = backbones.create("mini", device="cpu", precision=precision)
    assert isinstance(mini, Mini)
    localizer = Localizer(mini)
    cache.mkdir(parents=True, exist_ok=True)
    pictures = []
    for place, photo in enumerate(photos):
        with Image.open(photo.path) as file:
            image = file.convert("RGB")
        frame = Frame.fit(resize or mini.resize_policy, (image.height, image.width), mini.input_hw)
        pixels = torch.from_numpy(np.array(frame.apply(image))).permute(2, 0, 1)[None]
        images = mini.normalize(pixels.float() / 255)
        path = cache / f"{photo.key}.safetensors"
        if not path.exists():
            trace = mini.trace(images, Needs(features=(-1,)))  # in float32: only the masked pictures are in `precision`
            masked = masked_embeddings(
                Context(lambda images=images: images, torch.zeros(1, 1, 1), trace, fast, batch_size=8)
            )
            alive = masked.alive[0]
            found = {"features": trace.features[-1][0], "alive": alive, "embeddings": masked.embeddings[0][alive]}
            save_file({k: v.contiguous() for k, v in {**found, "baseline": masked.baseline}.items()}, path)
            print(f"{place + 1}: {photo.key}, {int(alive.sum())} masks", file=sys.stderr, flush=True)
        pictures.append(Picture(mini, photo, frame, images, localizer.embed_names(photo.names), load_file(path)))
    return pictures


def temperature_table(pictures: list[Picture]) -> None:
    """Share of pictures located against temperature, for the three methods."""
    own = 1 / pictures[0].mini.logit_scale
    print("| temperature | × own | " + " | ".join(f"{name}: located | τ | two names" for name in FAMILY) + " |")
    print("|---" * (2 + 3 * len(FAMILY)) + "|")
    for times in TIMES_OWN:
        cells = []
        for name in FAMILY:
            hits, alike = np.zeros(len(TAUS)), []
            for picture in pictures:
                first, second = methods.get(name).function(picture.context(), temperature=times * own)[0]
                hits += picture.hits(first)
                alike.append(correlation(first, second))
            share = hits / len(pictures)
            cells.append(f"{share.max():.3f} | {TAUS[int(share.argmax())]} | {np.mean(alike):.2f}")
        print(f"| {times * own:.3g} | {times:g} | " + " | ".join(cells) + " |", flush=True)


def budget_table(pictures: list[Picture], names: list[str], temperatures: list[float]) -> None:
    """How near a budget's maps come, what it said of itself, and what that means for boxes, at each default τ."""
    print("| method | × own | budget | masks tried | correlation: mean | 10th % | least | said | located | all masks |")
    print("|---" * 10 + "|")
    own = 1 / pictures[0].mini.logit_scale
    for name in names:
        method = methods.get(name)
        tau = TAUS.index(method.threshold)
        for times in temperatures:
            exact = [method.function(p.context(own_only=True), temperature=times * own)[0, 0] for p in pictures]
            located = np.mean([p.hits(raw)[tau] for p, raw in zip(pictures, exact, strict=True)])
            for budget in BUDGETS:
                near, said, tried, found = [], [], [], []
                for picture, whole in zip(pictures, exact, strict=True):
                    remarks: list[str] = []
                    ctx = picture.context(own_only=True, note=lambda _, text, to=remarks: to.append(text))
                    raw = method.function(ctx, temperature=times * own, budget=budget)[0, 0]
                    near.append(correlation(raw, whole))
                    found.append(picture.hits(raw)[tau])
                    if remarks:
                        tried.append(int(remarks[0].split()[0]))
                        said.append(float(remarks[0].split()[-1]))
                print(
                    f"| {name} | {times:g} | {budget} | {np.mean(tried):.0f} | {np.mean(near):.4f} | "
                    f"{np.quantile(near, 0.1):.4f} | {min(near):.4f} | {np.mean(said):.4f} | {np.mean(found):.3f} | "
                    f"{located:.3f} |",
                    flush=True,
                )


def precision_table(
    pictures: list[Picture], others: list[Picture], names: list[str], temperatures: list[float]
) -> None:
    """How far the maps of another precision's masked pictures are from these."""
    print("| method | × own | correlation: mean | least |\n|---|---|---|---|")
    own = 1 / pictures[0].mini.logit_scale
    for name in names:
        for times in temperatures:
            maps = [
                [methods.get(name).function(p.context(), temperature=times * own)[0, 0] for p in both]
                for both in (pictures, others)
            ]
            near = [correlation(a, b) for a, b in zip(*maps, strict=True)]
            print(f"| {name} | {times:g} | {np.mean(near):.5f} | {min(near):.5f} |", flush=True)


def report_table(pictures: list[Picture], names: list[str]) -> None:
    """What a budget's map is beside the one of all masks, at every default, and GT-known of both."""
    print("| method | budget | masks tried | correlation: mean | 10th % | least | GT-known | gained | lost |")
    print("|---" * 9 + "|")
    for name in names:
        method = methods.get(name)
        assert isinstance(method.threshold, float)
        exact = [method.function(p.context())[0, 0] for p in pictures]
        located = np.array([p.gt_known(raw, method.threshold) for p, raw in zip(pictures, exact, strict=True)])
        every = [p.different for p in pictures]
        print(f"| {name} | all | {np.mean(every):.0f} | 1 | 1 | 1 | {100 * located.mean():.1f} | | |", flush=True)
        for budget in BUDGETS:
            near, tried, found = [], [], []
            for picture, whole, masks in zip(pictures, exact, every, strict=True):
                remarks: list[str] = []
                ctx = picture.context(note=lambda _, text, to=remarks: to.append(text))
                raw = method.function(ctx, budget=budget)[0, 0]
                near.append(correlation(raw, whole))
                tried.append(int(remarks[0].split()[0]) if remarks else masks)
                found.append(picture.gt_known(raw, method.threshold))
            now = np.array(found)
            print(
                f"| {name} | {budget} | {np.mean(tried):.0f} | {np.mean(near):.4f} | {np.quantile(near, 0.1):.4f} | "
                f"{min(near):.4f} | {100 * now.mean():.1f} | {int((now & ~located).sum())} | "
                f"{int((located & ~now).sum())} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("fill", "temperature", "budget", "precision", "report"))
    parser.add_argument("--cache", type=Path, required=True, help="folder of what the tower said; filled as needed")
    parser.add_argument("--precision", default="fp32", help="of the masked pictures that are not in the cache yet")
    parser.add_argument("--other", type=Path, help="a cache of the same pictures in bf16, for `precision`")
    parser.add_argument("--limit", type=int, help="only the first N pictures")
    parser.add_argument("--method", default="score_cam,vl_score", help="of the tables `budget`, `precision`, `report`")
    parser.add_argument("--times-own", default="1,4", help="of `budget` and `precision`: multiples of the model's own")
    parser.add_argument("--sample", type=int, default=100, help="of `report`: so many pictures, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of that draw")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    names, temperatures = given.method.split(","), [float(times) for times in given.times_own.split(",")]
    if given.table == "report":
        pictures = read(report_photos(given.sample, given.seed), given.cache, given.precision, "squash")
        print(f"\n{len(pictures)} pictures of ilsvrc_val_dev\n")
        report_table(pictures, names)
        return
    photos = tuning_photos(given.limit)
    pictures = read(photos, given.cache, given.precision)
    print(f"\n{len(pictures)} tuning pictures\n")
    if given.table == "temperature":
        temperature_table(pictures)
    elif given.table == "budget":
        budget_table(pictures, names, temperatures)
    elif given.table == "precision":
        precision_table(pictures, read(photos, given.other, "bf16"), names, temperatures)


if __name__ == "__main__":
    main()

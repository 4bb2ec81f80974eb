"""What temperature and precision do to the Score-CAM family: the tables of docs/studies/performance.md.

The pictures and boxes are those of tools/choose_thresholds.py; no number is reported on them. The tower runs once for
every mask of every picture, and what it says is kept in a folder (8 MB and some 15 s a picture, in bf16 half of that);
all tables are made of that.

    python tools/score_cam_study.py --cache /tmp/masked --limit 60 temperature
    python tools/score_cam_study.py --cache /tmp/masked --limit 60 precision --other /tmp/masked-bf16
    python tools/score_cam_study.py --cache /tmp/masked-bf16 --precision bf16 --limit 60 fill
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

from cliploc import towers
from cliploc.boxes import BoxRule, boxes_from_maps
from cliploc.images.geometry import Frame, iou_matrix
from cliploc.localizer import Localizer
from cliploc.methods import Context, methods, min_max
from cliploc.methods._infra.masked import BASELINE_KEY, MaskedEmbeddings, masked_embeddings
from cliploc.towers.mini import Mini
from cliploc.towers.tower import Needs, Trace

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "../shared/data/imagenet_one_per_class"
SYNSETS = ROOT / "../shared/data/ilsvrc_val_dev/synsets.csv"
TAUS = [round(0.05 * step, 2) for step in range(2, 17)]
TIMES_OWN = (0.4, 1, 2, 4, 8, 16, 40)  # temperatures tried, as multiples of the model's own, 1 / logit scale
FAMILY = ("score_cam", "vl_score", "gscore_cam")


@dataclass(frozen=True)
class Photo:
    """A picture with boxes."""

    key: str  # of its file in the cache
    path: Path
    names: tuple[str, ...]  # its own, and perhaps another's: "cat|kitten" for synonyms
    boxes: np.ndarray  # [m, 4]


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

    def context(self, **kwargs: object) -> Context:
        """Whose masked pictures are all known already."""
        ctx = Context(lambda: self.images, self.text[None], self.trace, self.mini, **kwargs)  # type: ignore[arg-type]
        ctx.cache["masked embeddings", -1] = self.masked
        return ctx

    def heat(self, raw: Tensor) -> Tensor:
        """A raw map `[h, w]` → `[1, H, W]` in 0–1 over the input, as the `Localizer` makes it."""
        up = F.interpolate(raw.relu()[None, None], self.frame.input_hw, mode="bilinear", align_corners=False)
        return min_max(up)[0]

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
        Photo(wnid, PICTURES / f"{wnid}.jpg", (names[wnid], other), np.array(drawn[wnid]["xyxy"]))
        for wnid, other in zip(wnids[:limit], others, strict=False)
    ]


def read(photos: list[Photo], cache: Path, precision: str) -> list[Picture]:
    """What the tower says of them; what the cache lacks is computed."""
    mini = towers.create("mini", device="cpu")
    fast = towers.create("mini", device="cpu", precision=precision)
    assert isinstance(mini, Mini)
    localizer = Localizer(mini)
    cache.mkdir(parents=True, exist_ok=True)
    pictures = []
    for place, photo in enumerate(photos):
        with Image.open(photo.path) as file:
            image = file.convert("RGB")
        frame = Frame.fit(mini.resize_policy, (image.height, image.width), mini.input_hw)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("fill", "temperature", "precision"))
    parser.add_argument("--cache", type=Path, required=True, help="folder of what the tower said; filled as needed")
    parser.add_argument("--precision", default="fp32", help="of the masked pictures that are not in the cache yet")
    parser.add_argument("--other", type=Path, help="a cache of the same pictures in bf16, for `precision`")
    parser.add_argument("--limit", type=int, help="only the first N pictures")
    parser.add_argument("--method", default="score_cam,vl_score", help="of the table `precision`")
    parser.add_argument("--times-own", default="1,4", help="of `precision`: multiples of the model's own")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    names, temperatures = given.method.split(","), [float(times) for times in given.times_own.split(",")]
    photos = tuning_photos(given.limit)
    pictures = read(photos, given.cache, given.precision)
    print(f"\n{len(pictures)} tuning pictures\n")
    if given.table == "temperature":
        temperature_table(pictures)
    elif given.table == "precision":
        precision_table(pictures, read(photos, given.other, "bf16"), names, temperatures)


if __name__ == "__main__":
    main()

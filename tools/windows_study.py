"""Chooses what the refinement `affinity` does where a picture is seen in windows. For docs/studies/refinement.md.

The pictures are those of tools/recipe_study.py, "one" and "small"; no number is reported on them. The map before the
step is that of `--method cam --scales 1.43 --windows 1.5,2`. The step compares the features of the whole picture, or
those of the windows of 2, stitched. A number is the share of pictures where a box has IoU ≥ 0.5 with a true box, at the
best τ and at 0.45, 0.5 and 0.55: the box of the largest region for "one", the one with the hottest place for "small".

    python tools/windows_study.py --cache /tmp/windows
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from recipe_study import SIDE, TAUS, Photo, curve, photos_of
from torch import Tensor
from torch.nn import functional as F

from cliploc.images.geometry import Frame, Mosaic
from cliploc.localizer import Localizer
from cliploc.methods import min_max
from cliploc.refine.affinity import directions, spread_along
from cliploc.towers.tower import Needs

SCALES, WINDOWS = (1.43,), (1.5, 2.0)
SETS = ("one", "small")
CUTS, KEPT = (0.1, 0.15, 0.2), (0.0, 0.2, 0.4)
SHOWN = (0.45, 0.5, 0.55)


def looked_at(localizer: Localizer, photo: Photo, kept: Path) -> dict[str, Tensor]:
    """The map before the step `[1, 1, H, W]`, and the features of the whole and of the windows `[1, C, h, w]`."""
    if not kept.exists():
        backbone, stage = localizer.backbone, localizer.backbone.middle_stage
        hw = (photo.image.height, photo.image.width)

        def features(frame: Frame) -> Tensor:
            pixels = torch.from_numpy(np.array(frame.apply(photo.image, backbone.interpolation)))  # [H, W, 3]
            images = backbone.normalize(pixels.permute(2, 0, 1)[None].float() / 255)
            return backbone.trace(images, Needs(features=(stage,))).features[stage][0]

        heat = torch.from_numpy(localizer(photo.image, [photo.name]).maps)  # [1, H, W]
        whole = Frame.fit("squash", hw, (heat.shape[1], heat.shape[2]))
        mosaic = Mosaic(whole, (28, 28))
        for window in Frame.windows(hw, backbone.input_hw, WINDOWS[-1]):
            mosaic.add(window, features(window))
        found = {"heat": heat, "whole": features(whole), "windows": mosaic.mean_feature()}
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez(kept, **{name: values.numpy().astype(np.float16) for name, values in found.items()})
    with np.load(kept) as file:
        return {name: torch.from_numpy(file[name].astype(np.float32))[None] for name in file.files}


def refined_on_grid(seen: dict[str, Tensor], source: str, cut: float, kept: float) -> Tensor:
    """The map after the step, `[1, 1, h, w]` in 0–1."""
    features = seen[source]
    heat = F.interpolate(seen["heat"], features.shape[-2:], mode="area")
    return min_max((1 - kept) * min_max(spread_along(directions(features), heat, cut)) + kept * heat)


def refined(seen: dict[str, Tensor], source: str, cut: float, kept: float) -> np.ndarray:
    """The map after the step, `[SIDE, SIDE]`."""
    heat = refined_on_grid(seen, source, cut, kept)
    return min_max(F.interpolate(heat, (SIDE, SIDE), mode="bilinear"))[0, 0].numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="a folder for maps and features")
    parser.add_argument("--limit", type=int, help="only the first N pictures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    localizer = Localizer("mini", method="cam", min_presence=0, scales=SCALES, windows=WINDOWS)
    photos = {which: list(photos_of(which, arguments.limit)) for which in SETS}
    seen = {
        which: [looked_at(localizer, one, arguments.cache / which / f"{n}.npz") for n, one in enumerate(of_set)]
        for which, of_set in photos.items()
    }
    columns = [f"{which}: {what}" for which in SETS for what in ("best", *(f"τ {tau:g}" for tau in SHOWN))]
    print(f"| features | cut | kept | {' | '.join(columns)} |\n{'|---' * (3 + len(columns))}|")
    for source in ("whole", "windows"):
        for cut in CUTS:
            for kept in KEPT:
                cells = []
                for which in SETS:
                    maps = np.stack([refined(one, source, cut, kept) for one in seen[which]])
                    shares = curve(photos[which], maps, largest=which == "one")
                    cells.append(f"{shares.max():.3f} at {TAUS[int(shares.argmax())]:.2f}")
                    cells += [f"{shares[TAUS.index(tau)]:.3f}" for tau in SHOWN]
                print(f"| {source} | {cut:g} | {kept:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

"""Draws maps of one photo by the model itself and with shuffled weights: the picture of docs/studies/faithfulness.md.

    python tools/randomised_maps.py PHOTO NAME OUT.jpg --model mini --method cam layer_cam …

A row for each method; the columns are the model's own map and those with the last 25, 50 and 100 % of the image tower's
weight tensors shuffled, as the metric `randomisation` has them, with the rank correlation with the own map.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from cliploc.draw.overlay import paint_map
from cliploc.evaluate.tasks.faithfulness.measure import Faithfulness, spearman
from cliploc.evaluate.tasks.faithfulness.metrics import chosen_metrics
from cliploc.evaluate.tasks.faithfulness.metrics.randomisation import SHARES
from cliploc.images.reading import load
from cliploc.localizer import Localizer

SIDE, LINE, MARGIN = 150, 20, 6  # pixels


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("name")
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--method", nargs="+", required=True)
    given = parser.parse_args()
    localizer = Localizer(given.model, method=given.method[0], resize="squash", min_presence=0)
    metrics = chosen_metrics(["randomisation"])
    of = Faithfulness(localizer, [given.name], metrics, {one: {} for one in given.method})
    seen = of.see(given.photo.name, given.photo)
    small = load(given.photo).image.convert("RGB").resize((SIDE, SIDE))
    width, height = (len(SHARES) + 1) * (SIDE + MARGIN), len(given.method) * (SIDE + LINE + MARGIN)
    sheet = Image.new("RGB", (width, height), "white")
    writer, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for row, (method, own) in enumerate(of.maps(seen).items()):
        others = of.others(seen, method)
        maps = [torch.from_numpy(own), *map(others.of_random_tower, SHARES)]
        for column, heat in enumerate(maps):
            place = (column * (SIDE + MARGIN), row * (SIDE + LINE + MARGIN))
            alike = spearman(maps[0], heat)
            said = (
                method
                if not column
                else f"{SHARES[column - 1]:.0%} random: {'flat' if alike is None else f'{alike:.2f}'}"
            )
            writer.text(place, said, fill="black", font=font)
            levels = (np.nan_to_num(heat.numpy()).clip(0, 1) * 255).round().astype(np.uint8)
            drawn = small.copy()
            paint_map(drawn, levels)
            sheet.paste(drawn, (place[0], place[1] + LINE))
    sheet.save(given.out, quality=85)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

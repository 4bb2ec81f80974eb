"""Writes docs/check.jpg: what `cliploc check` says of the demo pictures' labels, some of which are planted errors."""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from cliploc.images.reading import load
from cliploc.label import check
from cliploc.label.checking.job import SIDE, crop
from cliploc.support.files import demo_folder

OUT = Path(__file__).parents[1] / "docs/check.jpg"
PLANTED = {"cat.jpg": "rocket", "wren.jpg": "boat", "otters.jpg": "dog", "bee.jpg": "cup"}  # of the first box
GAP, TEXT = 16, 66  # pixels
INK, WRONG, RIGHT = (17, 17, 17), (168, 50, 10), (10, 107, 61)
FONT = ImageFont.load_default(24)

photos = json.loads((demo_folder() / "photos.json").read_text())
with tempfile.TemporaryDirectory() as folder:
    labels = Path(folder, "labels.csv")
    with labels.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "x0", "y0", "x1", "y1"])
        for photo in photos:
            for place, box in enumerate(photo["boxes"]):
                name = box["name"] if place else PLANTED.get(photo["file"], box["name"])
                writer.writerow([photo["file"], name, *box["xyxy"]])
        # The names that were planted are right elsewhere; those that they took the place of must be names of the set.
        writer.writerows([["cat.jpg", "cat", 0, 0, 400, 300], ["bee.jpg", "bee", 49, 110, 333, 394]])
    suspects = check(labels, demo_folder()).of("wrong name")[: len(PLANTED)]
sheet = Image.new("RGB", (len(suspects) * (SIDE + GAP) - GAP, SIDE + TEXT), "white")
for place, one in enumerate(suspects):
    left = place * (SIDE + GAP)
    shown = crop(load(demo_folder() / one.picture).image, [one.x0 or 0, one.y0 or 0, one.x1 or 0, one.y1 or 0])
    sheet.paste(shown, (left, SIDE - shown.height))
    draw = ImageDraw.Draw(sheet)
    draw.text((left, SIDE + 4), one.name, WRONG, FONT)
    width = draw.textlength(f"{one.name} ", FONT)
    draw.text((left + width, SIDE + 4), f"> {one.likelier}", RIGHT, FONT)
    draw.text((left, SIDE + 34), f"wrong: {100 * (one.chance or 0):.0f} %", INK, FONT)
sheet.save(OUT, quality=80, optimize=True, progressive=True)

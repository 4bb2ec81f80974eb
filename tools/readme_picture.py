"""Writes docs/demo.jpg, the README's picture: name → heat → boxes on three demo pictures, by the default recipe."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cliploc import Localizer
from cliploc.localization import Localization

OUT = Path(__file__).parents[1] / "docs/demo.jpg"
ASKED = {"bee": "bee", "otters": "otter", "bridge": "bridge"}  # picture → name
TITLES = ("a name …", "… where the model sees it …", "… and a box, with its score")
CELL, GAP, HEAD = (456, 304), 16, 52  # pixels; shown at half of them
INK, BOX = (17, 17, 17), (255, 187, 0)
FONT = ImageFont.load_default(30)


def fitted(image: Image.Image) -> tuple[Image.Image, float, np.ndarray]:
    """A picture that fills a cell, the scale, and where the cell begins in it."""
    scale = max(CELL[0] / image.width, CELL[1] / image.height)
    whole = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    left, top = ((side - cell) // 2 for side, cell in zip(whole.size, CELL, strict=True))
    return whole.crop((left, top, left + CELL[0], top + CELL[1])), scale, np.array([left, top])


def labelled(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str) -> None:
    """A text on a plate, whose lower left corner this is."""
    x, y = place
    width = draw.textlength(text, FONT)
    draw.rectangle((x, y - 40, x + width + 18, y), fill=BOX)
    draw.text((x + 9, y - 36), text, INK, FONT)


def row(found: Localization, name: str) -> list[Image.Image]:
    """The picture with the name, its heat, its boxes."""
    named, scale, start = fitted(found.image)
    labelled(ImageDraw.Draw(named), (14, CELL[1] - 14), f'"{name}"')
    heat, *_ = fitted(found.overlay(opacity=0.65, boxes=False, caption=False))
    boxed, *_ = fitted(found.image)
    draw = ImageDraw.Draw(boxed)
    for xyxy, score in zip(found.boxes.xyxy, found.boxes.score, strict=True):
        corners = np.clip(xyxy.reshape(2, 2) * scale - start, 3, np.array(CELL) - 4)
        draw.rectangle(tuple(corners.ravel()), outline=BOX, width=6)
        labelled(draw, (corners[0, 0], max(corners[0, 1], 40)), f"{name} {score:.2f}")
    return [named, heat, boxed]


localizer = Localizer()
rows = [row(localizer(f"demo:{photo}.jpg", [name]), name) for photo, name in ASKED.items()]
sheet = Image.new("RGB", (3 * CELL[0] + 2 * GAP, HEAD + len(rows) * (CELL[1] + GAP) - GAP), "white")
for column, title in enumerate(TITLES):
    left = column * (CELL[0] + GAP)
    ImageDraw.Draw(sheet).text((left, 6), title, INK, FONT)
    for number, cells in enumerate(rows):
        sheet.paste(cells[column], (left, HEAD + number * (CELL[1] + GAP)))
sheet.save(OUT, quality=75, optimize=True, progressive=True)

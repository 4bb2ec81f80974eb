"""Writes docs/demo.jpg, the README's picture: four demo photographs as `cliploc demo` shows them.

Overlays by the recipe of `mini`, and below by that of the model that stands beside it.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from cliploc import Localizer
from cliploc.cli.demo import BESIDE

ROOT = Path(__file__).parents[1]
ASKED = {"cat": ["cat"], "fig": ["fig", "bowl"], "bee": ["bee"], "bridge": ["bridge"]}
HEIGHT = 300

GAP = 8


def row(localizer: Localizer) -> Image.Image:
    """The overlays beside each other."""
    strips = []
    for photo, names in ASKED.items():
        overlay = localizer(ROOT / f"src/cliploc/demo_photos/{photo}.jpg", names).overlay()
        size = (round(overlay.width * HEIGHT / overlay.height), HEIGHT)
        strips.append(overlay.resize(size, Image.Resampling.LANCZOS))
    sheet = Image.new("RGB", (sum(strip.width for strip in strips) + GAP * (len(strips) - 1), HEIGHT), "white")
    left = 0
    for strip in strips:
        sheet.paste(strip, (left, 0))
        left += strip.width + GAP
    return sheet


rows = [row(Localizer()), row(Localizer(BESIDE))]
both = Image.new("RGB", (rows[0].width, 2 * HEIGHT + GAP), "white")
for number, one in enumerate(rows):
    both.paste(one, (0, number * (HEIGHT + GAP)))
both.save(ROOT / "docs/demo.jpg", quality=85)

"""Writes docs/demo.jpg, the README's picture: overlays of four demo photographs as `cliploc demo` makes them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from cliploc import Localizer
from cliploc.cli import DEMO_VIEWS

ROOT = Path(__file__).parents[1]
ASKED = {"cat": ["cat"], "fig": ["fig", "bowl"], "bee": ["bee"], "bridge": ["bridge"]}
HEIGHT = 300

localizer = Localizer(**DEMO_VIEWS)
strips = []
for photo, names in ASKED.items():
    overlay = localizer(ROOT / f"src/cliploc/demo_photos/{photo}.jpg", names).overlay()
    strips.append(overlay.resize((round(overlay.width * HEIGHT / overlay.height), HEIGHT), Image.Resampling.LANCZOS))
sheet = Image.new("RGB", (sum(s.width for s in strips) + 8 * (len(strips) - 1), HEIGHT), "white")
left = 0
for strip in strips:
    sheet.paste(strip, (left, 0))
    left += strip.width + 8
sheet.save(ROOT / "docs/demo.jpg", quality=85)

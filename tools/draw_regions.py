"""Draws the sheets from which tools/everyday_regions.txt was read: six photographs each, under a grid of 10×10 cells.

python tools/draw_regions.py --out /tmp/sheets
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).resolve().parent.parent
GRID, SIDE, COLUMNS, ROWS = 10, 400, 3, 2
LEFT, TOP = 24, 42  # room for the numbers of rows, and for the id and the numbers of columns


def sheet(pictures: Sequence[Path]) -> Image.Image:
    """Up to six pictures, each stretched to a square, with its id and the numbers of its rows and columns."""
    font = ImageFont.load_default(15)
    paper = Image.new("RGB", (COLUMNS * (SIDE + LEFT), ROWS * (SIDE + TOP)), "white")
    draw = ImageDraw.Draw(paper)
    step = SIDE // GRID
    for number, path in enumerate(pictures):
        x, y = LEFT + number % COLUMNS * (SIDE + LEFT), TOP + number // COLUMNS * (SIDE + TOP)
        paper.paste(Image.open(path).convert("RGB").resize((SIDE, SIDE)), (x, y))
        draw.text((x, y - 40), path.stem, "black", font)
        for i in range(GRID + 1):
            draw.line([(x + i * step, y), (x + i * step, y + SIDE)], "yellow")
            draw.line([(x, y + i * step), (x + SIDE, y + i * step)], "yellow")
        for i in range(GRID):
            draw.text((x + i * step + step // 3, y - 20), str(i), "red", font)
            draw.text((x - 14, y + i * step + step // 4), str(i), "red", font)
    return paper


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, default=ROOT.parent / "shared/data/imagenet_one_per_class")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pictures = sorted(options.pictures.glob("n*.jpg"))
    for start in range(0, len(pictures), COLUMNS * ROWS):
        name = f"{start // (COLUMNS * ROWS):03}.jpg"
        sheet(pictures[start : start + COLUMNS * ROWS]).save(options.out / name, quality=88)


if __name__ == "__main__":
    main()

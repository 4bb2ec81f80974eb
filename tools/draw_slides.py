"""Draws microscope slides with diatoms: a thing that `mini` does not know, in pictures of ours that may be passed on.

    python tools/draw_slides.py slides [--pictures 40]

writes `slides/images`, and the true boxes in YOLO's format into `slides/labels`. The drawings are the same on each run
(CC0). The README and docs/label_200.md label them, and a browser test plays it.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 480, 360  # pixels
Image = NDArray[np.float32]  # [H, W, 3], 0 to 1


def blend(image: Image, mask: NDArray[np.float32], colour: tuple[float, float, float]) -> None:
    """Puts a colour over the picture where the mask `[H, W]` is, in place."""
    image += mask[..., None] * (np.array(colour, np.float32) - image)


def local_axes(centre: tuple[float, float], angle: float) -> tuple[Image, Image]:
    """Of each pixel, its way along and across an axis through `centre`, in pixels: two `[H, W]`."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    dx, dy = x - centre[0], y - centre[1]
    return dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)


def soft(inside: NDArray[np.float32]) -> NDArray[np.float32]:
    """From a distance to an edge, in pixels and positive inside, a mask with a soft edge."""
    return np.clip(inside / 1.5 + 0.5, 0, 1).astype(np.float32)


def draw_diatom(image: Image, rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Draws one diatom: a lens of glass with ribs and a line along its middle; returns its box, xyxy."""
    length, width = rng.uniform(75, 100), rng.uniform(40, 52)  # half axes
    centre = (rng.uniform(115, WIDTH - 115), rng.uniform(115, HEIGHT - 115))
    along, across = local_axes(centre, rng.uniform(0, np.pi))
    half = width * np.clip(1 - (along / length) ** 2, 0, 1) ** 0.8
    inside = soft(half - np.abs(across)) * (np.abs(along) < length)
    ribs = 0.5 + 0.5 * np.cos(along * 2 * np.pi / rng.uniform(6, 8))
    blend(image, inside * 0.75, (0.72, 0.62, 0.30))
    blend(image, inside * ribs * 0.45, (0.38, 0.30, 0.10))
    blend(image, inside * soft(1.6 - np.abs(across)) * 0.7, (0.95, 0.90, 0.65))
    blend(image, inside * soft(3.0 - np.abs(half - np.abs(across))) * 0.7, (0.30, 0.24, 0.08))
    ys, xs = np.nonzero(inside > 0.5)
    return float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)


def draw_bubble(image: Image, rng: np.random.Generator) -> None:
    """Draws one air bubble: a dark ring with a bright middle."""
    centre, radius = (rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT)), rng.uniform(8, 30)
    distance = np.hypot(*local_axes(centre, 0))
    blend(image, soft(radius - distance) * 0.25, (1, 1, 1))
    blend(image, soft(3 - np.abs(distance - radius)) * 0.6, (0.35, 0.40, 0.42))


def draw_fibre(image: Image, rng: np.random.Generator) -> None:
    """Draws one fibre, a thin curve through the picture."""
    along, across = local_axes((rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT)), rng.uniform(0, np.pi))
    wave = rng.uniform(8, 25) * np.sin(along / rng.uniform(25, 60))
    blend(image, soft(2 - np.abs(across - wave)) * (np.abs(along) < rng.uniform(60, 160)) * 0.55, (0.45, 0.50, 0.62))


def overlaps(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def draw_slide(seed: int) -> tuple[NDArray[np.uint8], list[tuple[float, float, float, float]]]:
    """One slide `[H, W, 3]` in RGB, and the boxes of its diatoms: two, one, or none in every eighth."""
    rng = np.random.default_rng(100 + seed)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    light = 1 - 0.25 * ((x / WIDTH - 0.5) ** 2 + (y / HEIGHT - 0.5) ** 2) * 2  # darker in the corners
    image = light[..., None] * np.array([0.87, 0.90, 0.86], np.float32) * rng.uniform(0.9, 1.05)
    for _ in range(rng.integers(3, 8)):
        draw_bubble(image, rng)
    for _ in range(rng.integers(1, 4)):
        draw_fibre(image, rng)
    boxes: list[tuple[float, float, float, float]] = []
    for _ in range(0 if seed % 8 == 0 else 1):
        while True:
            drawn = image.copy()
            box = draw_diatom(drawn, rng)
            if not any(overlaps(box, other) for other in boxes):
                image, boxes = drawn, [*boxes, box]
                break
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.6, 1.2)) + rng.normal(0, 0.02, image.shape)
    return (np.clip(image, 0, 1) * 255).astype(np.uint8), boxes


def yolo_line(x0: float, y0: float, x1: float, y1: float) -> str:
    shares = ((x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT, (x1 - x0) / WIDTH, (y1 - y0) / HEIGHT)
    return f"0 {' '.join(f'{share:.6f}' for share in shares)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=40)
    flags = parser.parse_args()
    images, labels = flags.folder / "images", flags.folder / "labels"
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(exist_ok=True)
    count = 0
    for number in range(1, flags.pictures + 1):
        slide, boxes = draw_slide(number)
        cv2.imwrite(str(images / f"{number:02}.jpg"), slide[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
        lines = [yolo_line(*box) for box in boxes]
        (labels / f"{number:02}.txt").write_text("".join(lines), encoding="utf-8")
        count += len(boxes)
    (flags.folder / "data.yaml").write_text("train: images\nval: images\nnames: [diatom]\n", encoding="utf-8")
    print(f"{flags.pictures} slides with {count} diatoms in {flags.folder}")


if __name__ == "__main__":
    main()

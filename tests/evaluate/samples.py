"""A small dataset in the WSOL layout: the demo's photographs, stretched, with true boxes in original pixels."""

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image, ImageOps

from cliploc.evaluate.data import open_dataset
from cliploc.evaluate.tasks.boxes import job as benchmark_localization
from cliploc.evaluate.tasks.boxes.job import run_benchmark
from cliploc.values import Dataset
from tests.commands import PHOTOS
from tests.evaluate.data.folders import metadata

SIDE = 112  # of the files; nothing depends on it


def wsol_folder(root: Path, count: int = 11) -> Path:
    """`count` pictures: the demo's photographs, then the same mirrored, then half as wide …"""
    entries = [one for one in json.loads((PHOTOS / "photos.json").read_text()) if one["boxes"]]
    names = sorted({box["name"] for one in entries for box in one["boxes"]} | {"teapot", "wolf"})
    rows: dict[str, tuple[int, tuple[int, int], list[list[int]]]] = {}
    (root / "val").mkdir(parents=True)
    for number in range(count):
        entry, turn = entries[number % len(entries)], number // len(entries)
        width, height = entry["width"], entry["height"]
        name = entry["boxes"][0]["name"]
        one = f"val/{number:03d}.jpg"
        with Image.open(PHOTOS / entry["file"]) as opened:
            picture = opened.convert("RGB")
        picture = ImageOps.mirror(picture) if turn % 2 else picture
        picture.resize((SIDE - 8 * (turn // 2), SIDE)).save(root / one, quality=95)
        boxes = [box["xyxy"] for box in entry["boxes"] if box["name"] == name]
        boxes = [(width - x1, y0, width - x0, y1) if turn % 2 else (x0, y0, x1, y1) for x0, y0, x1, y1 in boxes]
        rows[one] = names.index(name), (width, height), np.minimum(boxes, [width, height] * 2).tolist()
    metadata(root / "metadata", rows)
    classes = [f"{label},,{name}" for label, name in enumerate(names)]
    (root / "synsets.csv").write_text("\n".join(["label,wnid,synset_words", *classes]) + "\n")
    return root


def boxes_folder(root: Path, count: int) -> Path:
    """Small pictures of noise with a patch that is red or blue in turn, and boxes.csv."""
    random, lines = np.random.default_rng(0), ["path,label,x0,y0,x1,y1"]
    root.mkdir(exist_ok=True)
    for number in range(count):
        pixels = random.integers(0, 255, (40, 48, 3)).astype(np.uint8)
        pixels[8:24, 8:28] = (255, 0, 0) if number % 2 else (0, 0, 255)
        Image.fromarray(pixels).save(root / f"{number}.png")
        lines.append(f"{number}.png,{'red' if number % 2 else 'blue'},8,8,28,24")
    (root / "boxes.csv").write_text("\n".join(lines) + "\n")
    return root


THINGS = {"val2017": [("cat.jpg", "cat", [0, 0, 400, 290]), ("dogs.jpg", "dog", [10, 10, 300, 200])]}


def coco_folder(root: Path, sets: Mapping[str, list[tuple[str, str, list[int]]]] = THINGS) -> Path:
    """Two photographs, or others, in COCO's layout, with four names."""
    names = ["cat", "cup", "dog", "sun"]
    (root / "annotations").mkdir(parents=True)
    for split, things in sets.items():
        (root / split).mkdir()
        files = sorted({name for name, _, _ in things})
        images = []
        for number, name in enumerate(files):
            with Image.open(PHOTOS / name) as photo:
                images.append({"id": number, "file_name": name, "width": photo.width, "height": photo.height})
            shutil.copy(PHOTOS / name, root / split / name)
        document = {
            "images": images,
            "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
            "annotations": [
                {"id": i, "image_id": files.index(name), "category_id": names.index(word), "bbox": box}
                for i, (name, word, box) in enumerate(things)
            ],
        }
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(document))
    return root


@contextlib.contextmanager
def judged_here() -> Iterator[None]:
    """Benchmarks start no process that measures boxes: it takes seconds to import torch."""
    with mock.patch.object(
        benchmark_localization, "run_benchmark", lambda *given, **more: run_benchmark(*given, **{**more, "workers": 0})
    ):
        yield


def dataset(root: Path, split: str | None = None) -> Dataset:
    return open_dataset("wsol", root, split)

"""What teaching reads of a run's pictures, a blob of safetensors each; read as needed, as all may not fit in memory."""

import json
from collections.abc import Sequence
from dataclasses import replace

import torch
from safetensors.torch import load, save

from cliploc.find.learnt import Lesson
from cliploc.images.geometry import Frame
from cliploc.runs.label_store import LabellingRun, Picture

TENSORS = ("heat", "places", "features", "embedding")
TOGETHER = 500  # pictures of a query


def packed(lesson: Lesson, texts: Sequence[str]) -> bytes:
    """A lesson as safetensors. Its names are there as they were looked for: a run may number them otherwise later."""
    f = lesson.frame
    names = json.dumps([texts[p] for p in lesson.names]).encode()
    return save(
        {
            "names": torch.tensor([*names], dtype=torch.uint8),
            "scale": torch.tensor(lesson.scale, dtype=torch.float32),
            "frame": torch.tensor([*f.original_hw, *f.input_hw, *f.resized_wh, *f.offset_xy], dtype=torch.int32),
            **{key: getattr(lesson, key).contiguous() for key in TENSORS},
        }
    )


def unpacked(content: bytes, texts: Sequence[str]) -> Lesson:
    """A lesson of such bytes, with the maps of these names."""
    tensors = load(content)
    heat, places, features, embedding, scale, names, sizes = (
        tensors[key] for key in (*TENSORS, "scale", "names", "frame")
    )
    frame = Frame(*((*pair,) for pair in sizes.view(4, 2).tolist()))
    numbers = {text: p for p, text in enumerate(texts)}
    rows = {numbers[text]: row for row, text in enumerate(json.loads(bytes(names.tolist()))) if text in numbers}
    return Lesson(tuple(rows), heat[[*rows.values()]], places, features, float(scale), embedding, frame)


def joined(before: bytes, now: bytes, texts: Sequence[str]) -> bytes:
    """The lesson of a picture in which more names were looked for, with the maps of all."""
    earlier, later = unpacked(before, texts), unpacked(now, texts)
    rows = {p: row for row, p in enumerate([*earlier.names, *later.names])}
    names = sorted(rows)
    heat = torch.cat([earlier.heat, later.heat])[[rows[p] for p in names]]
    return packed(replace(earlier, names=tuple(names), heat=heat), texts)


def lessons_of(run: LabellingRun, pictures: Sequence[Picture]) -> list[Lesson]:
    """The lessons of some pictures."""
    found: dict[int, Lesson] = {}
    for start in range(0, len(pictures), TOGETHER):
        ids = [picture.id for picture in pictures[start : start + TOGETHER]]
        found |= {number: unpacked(content, run.entries) for number, content in run.features(ids).items()}
    return [found[picture.id] for picture in pictures]

"""What teaching reads of a run's pictures, a blob of safetensors each; read as needed, as all may not fit in memory."""

from collections.abc import Sequence

import torch
from safetensors.torch import load, save

from cliploc.find.learnt import Lesson
from cliploc.images.geometry import Frame
from cliploc.runs.label_store import LabellingRun, Picture

TENSORS = ("heat", "places", "features", "embedding")
TOGETHER = 500  # pictures of a query


def packed(lesson: Lesson) -> bytes:
    """A lesson as safetensors."""
    f = lesson.frame
    return save(
        {
            "names": torch.tensor(lesson.names, dtype=torch.int32),
            "scale": torch.tensor(lesson.scale, dtype=torch.float32),
            "frame": torch.tensor([*f.original_hw, *f.input_hw, *f.resized_wh, *f.offset_xy], dtype=torch.int32),
            **{key: getattr(lesson, key).contiguous() for key in TENSORS},
        }
    )


def unpacked(content: bytes) -> Lesson:
    """A lesson of such bytes."""
    tensors = load(content)
    heat, places, features, embedding, scale, names, sizes = (
        tensors[key] for key in (*TENSORS, "scale", "names", "frame")
    )
    frame = Frame(*((*pair,) for pair in sizes.view(4, 2).tolist()))
    return Lesson(tuple(names.tolist()), heat, places, features, float(scale), embedding, frame)


def lessons_of(run: LabellingRun, pictures: Sequence[Picture]) -> list[Lesson]:
    """The lessons of some pictures."""
    found: dict[int, Lesson] = {}
    for start in range(0, len(pictures), TOGETHER):
        ids = [picture.id for picture in pictures[start : start + TOGETHER]]
        found |= {number: unpacked(content) for number, content in run.features(ids).items()}
    return [found[picture.id] for picture in pictures]

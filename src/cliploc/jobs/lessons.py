"""The lessons of a run, in files beside its parts; read one by one, as all of them do not fit into memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from cliploc._files import part_path
from cliploc.geometry import Frame
from cliploc.teaching.lesson import Lesson

SUFFIX = ".safetensors"
KEYS = ("names", "heat", "places", "features", "scale", "embedding", "frame")  # of a lesson's tensors
SEVERAL = 4  # pictures of a part, from which it is read as a whole
LISTED = "pictures"  # the entry with the pictures and the digests of their files


def lessons_path(out: Path, index: int) -> Path:
    """Where the lessons of a part lie."""
    return part_path(out, index, SUFFIX)


def packed(lessons: Mapping[tuple[str, str], Lesson]) -> bytes:
    """The lessons of a part by picture and digest, as safetensors."""
    tensors: dict[str, Tensor] = {
        LISTED: torch.frombuffer(bytearray(json.dumps([*lessons]), "utf-8"), dtype=torch.uint8)
    }
    for number, lesson in enumerate(lessons.values()):
        f = lesson.frame
        facts = [*f.original_hw, *f.input_hw, *f.resized_wh, *f.offset_xy]
        tensors |= {
            f"{number}.names": torch.tensor(lesson.names, dtype=torch.int32),
            f"{number}.scale": torch.tensor(lesson.scale, dtype=torch.float32),
            f"{number}.frame": torch.tensor(facts, dtype=torch.int32),
            **{
                f"{number}.{key}": getattr(lesson, key).contiguous()
                for key in ("heat", "places", "features", "embedding")
            },
        }
    return save(tensors)


@dataclass(frozen=True)
class _LessonPlace:
    path: Path
    number: int
    digest: str


class Lessons:
    """The lessons of a run by picture. Files that cannot be read are as if they were not there."""

    def __init__(self, out: Path) -> None:
        self._places: dict[str, _LessonPlace] = {}
        for path in sorted((out / "parts").glob(f"*{SUFFIX}")):
            try:
                with safe_open(path, "pt") as file:
                    listed = json.loads(bytes(file.get_tensor(LISTED).tolist()))
                for number, (picture, digest) in enumerate(listed):
                    self._places[picture] = _LessonPlace(path, number, digest)
            except (OSError, SafetensorError, ValueError):
                continue

    def has(self, picture: str, digest: str) -> bool:
        """Whether there is the lesson of a picture whose file has this digest."""
        return picture in self._places and self._places[picture].digest == digest

    def of(self, picture: str) -> Lesson:
        """The lesson of a picture that is there."""
        place = self._places[picture]
        with safe_open(place.path, "pt") as file:
            # Copied: a tensor of the file keeps the whole part mapped.
            return _unpacked(lambda key: file.get_tensor(key).clone(), place.number)

    def each(self, pictures: Sequence[str]) -> list[Lesson]:
        """The lessons of some pictures. A part that has several of them is read as a whole: each of its takes less."""
        of_part: dict[Path, list[str]] = {}
        for picture in pictures:
            of_part.setdefault(self._places[picture].path, []).append(picture)
        lessons: dict[str, Lesson] = {}
        for path, several in of_part.items():
            if len(several) < SEVERAL:
                lessons |= {picture: self.of(picture) for picture in several}
                continue
            tensors = load(path.read_bytes())
            lessons |= {picture: _unpacked(tensors.__getitem__, self._places[picture].number) for picture in several}
        return [lessons[picture] for picture in pictures]


def _unpacked(tensor: Callable[[str], Tensor], number: int) -> Lesson:
    """The lesson of a part with this number."""
    names, heat, places, features, scale, embedding, facts = (tensor(f"{number}.{key}") for key in KEYS)
    sizes = facts.tolist()
    frame = Frame(*((sizes[i], sizes[i + 1]) for i in range(0, 8, 2)))
    return Lesson(tuple(names.tolist()), heat, places, features, float(scale), embedding, frame)

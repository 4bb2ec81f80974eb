"""The lessons of a run, in files beside its parts; read one by one, as all of them do not fit into memory.

Each has a checksum, as damaged ones would change drafts: `annotate` computes these again, who else reads one stops.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from cliploc._files import part_path
from cliploc.errors import UsageError
from cliploc.geometry import Frame
from cliploc.teaching.lesson import Lesson

SUFFIX = ".safetensors"
KEYS = ("names", "heat", "places", "features", "scale", "embedding", "frame")  # of a lesson's tensors
AGAIN = "run the same `cliploc annotate` again, which computes it again"
_DAMAGES = (OSError, SafetensorError, ValueError, KeyError, TypeError)
SEVERAL = 4  # pictures of a part, from which it is read as a whole
LISTED = "pictures"  # the entry with the pictures, the digests of their files, and the checksums of their lessons


def lessons_path(out: Path, index: int) -> Path:
    """Where the lessons of a part lie."""
    return part_path(out, index, SUFFIX)


def packed(lessons: Mapping[tuple[str, str], Lesson]) -> bytes:
    """The lessons of a part by picture and digest, as safetensors."""
    tensors: dict[str, Tensor] = {}
    listed = []
    for number, (picture, lesson) in enumerate(lessons.items()):
        f = lesson.frame
        own = {key: getattr(lesson, key).contiguous() for key in ("heat", "places", "features", "embedding")}
        own |= {
            "names": torch.tensor(lesson.names, dtype=torch.int32),
            "scale": torch.tensor(lesson.scale, dtype=torch.float32),
            "frame": torch.tensor([*f.original_hw, *f.input_hw, *f.resized_wh, *f.offset_xy], dtype=torch.int32),
        }
        tensors |= {f"{number}.{key}": tensor for key, tensor in own.items()}
        listed.append([*picture, _checksum(own)])
    tensors[LISTED] = torch.frombuffer(bytearray(json.dumps(listed), "utf-8"), dtype=torch.uint8)
    return save(tensors)


def are_whole(out: Path, index: int) -> bool:
    """Whether the lessons of a part are as they were written."""
    try:
        tensors = load(lessons_path(out, index).read_bytes())
        for number, (_, _, checksum) in enumerate(_listed(tensors[LISTED])):
            _unpacked(tensors.__getitem__, number, checksum)
    except _DAMAGES:
        return False
    return True


@dataclass(frozen=True)
class _LessonPlace:
    path: Path
    number: int
    checksum: str


class Lessons:
    """The lessons of some pictures of a run."""

    def __init__(self, out: Path, digests: Mapping[str, str]) -> None:
        """`digests`: picture → digest of its file.

        Raises:
            UsageError: a file of lessons is damaged, or the lesson of a picture is not there.
        """
        self._places: dict[str, _LessonPlace] = {}
        for path in sorted((out / "parts").glob(f"*{SUFFIX}")):
            with _read(path), safe_open(path, "pt") as file:
                listed = _listed(file.get_tensor(LISTED))
            for number, (picture, digest, checksum) in enumerate(listed):
                if digests.get(picture) == digest:  # another one is of a file that was replaced
                    self._places[picture] = _LessonPlace(path, number, checksum)
        if away := next((picture for picture in digests if picture not in self._places), None):
            raise UsageError(f"what was kept of {away} to learn from is not in {out / 'parts'}: {AGAIN}")

    def of(self, picture: str) -> Lesson:
        """The lesson of a picture."""
        place = self._places[picture]
        with _read(place.path), safe_open(place.path, "pt") as file:
            # Copied: a tensor of the file keeps the whole part mapped.
            return _unpacked(lambda key: file.get_tensor(key).clone(), place.number, place.checksum)

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
            with _read(path):
                tensors = load(path.read_bytes())
                for picture in several:
                    place = self._places[picture]
                    lessons[picture] = _unpacked(tensors.__getitem__, place.number, place.checksum)
        return [lessons[picture] for picture in pictures]


@contextmanager
def _read(path: Path) -> Iterator[None]:
    """Within this, what is wrong with a file of lessons is said."""
    try:
        yield
    except _DAMAGES as error:
        raise UsageError(f"{path} is damaged: {AGAIN}") from error


def _listed(tensor: Tensor) -> list[tuple[str, str, str]]:
    """Of each lesson of a part its picture, the digest of that file, and the lesson's checksum."""
    return [(picture, digest, checksum) for picture, digest, checksum in json.loads(bytes(tensor.tolist()))]


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for key in KEYS:
        digest.update(tensors[key].numpy().tobytes())
    return digest.hexdigest()


def _unpacked(tensor: Callable[[str], Tensor], number: int, checksum: str) -> Lesson:
    """The lesson of a part with this number; a `ValueError` where it is not as it was written."""
    tensors = {key: tensor(f"{number}.{key}") for key in KEYS}
    if _checksum(tensors) != checksum:
        raise ValueError("another checksum")
    names, heat, places, features, scale, embedding, facts = tensors.values()
    sizes = facts.tolist()
    frame = Frame(*((sizes[i], sizes[i + 1]) for i in range(0, 8, 2)))
    return Lesson(tuple(names.tolist()), heat, places, features, float(scale), embedding, frame)

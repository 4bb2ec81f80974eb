"""What was learnt of names, as a small file: a direction in the tower's features for each; and maps drawn with it.

A `Lesson` is what is kept of each picture of a run, so that a folder can be searched again without the model: the maps
of its names before the steps on the grid, and the tower's features in eight bits: 90 to 170 KB.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import torch
from msgspec import Meta, Struct
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional as F

from cliploc.boxes.sides import LENGTH
from cliploc.errors import InputError, UsageError, first_line
from cliploc.find.prompts import CONTRAST
from cliploc.images.geometry import Frame, padding_least
from cliploc.methods import min_max
from cliploc.options import FOUND
from cliploc.refine import affinity
from cliploc.refine.level import leveled
from cliploc.support.files import user_path
from cliploc.towers.tower import Backbone
from cliploc.values import FloatArray

KIND, VERSION = "cliploc learnt", 2
TENSORS = ("weights", "bias", "share", "embedding", "sides", "alike")  # of a file
OF_LESSON = ("heat", "places", "features", "embedding")  # tensors of a lesson
# Of a run's settings, those that a file holds for.
HOLDS_FOR = ("model", "weights", "method", "image_size", "scales", "windows", "refine", "flip", "resize", "teaching")

SURE = 0.95  # chance of a name in a picture that is as like those with it as three quarters of them are
# Places must be more alike to exchange heat than in `affinity` alone; chosen on the raccoon pictures, see
# docs/studies/teaching.md.
CUT = 0.3
LESSON_VERSION = 4  # of what a `Lesson` has
# Wider features are projected at random (Johnson & Lindenstrauss 1984).
MOST_CHANNELS = 320
MOST_OF_PLACES = 128  # channels of the features that places are compared by
SEED = 0  # of that projection
MOST_CELLS = 256  # of the grid of the features that are taught; finer ones are averaged


# ------------------------------------------------------------------------------------------- what is kept of a picture
def taught_stage(backbone: Backbone) -> int:
    """The stage whose features are taught: of a CNN the last but one, of a ViT what enters the last block."""
    return -2 if backbone.kind == "cnn" else -1


@dataclass(frozen=True)
class Lesson:
    """One picture, on grids over the first scale's input."""

    names: tuple[int, ...]  # the numbers of the p names that have maps
    heat: Tensor  # [p, h, w] float16 in 0–1: the mean of the views, before the steps on the grid
    places: Tensor  # [C, h, w] int8, 127 times the directions of `cliploc.refine.affinity`
    features: Tensor  # [c, h′, w′] int8, in steps of `scale`
    scale: float
    embedding: Tensor  # [D] float16
    frame: Frame

    def map_of(self, name: int) -> Tensor:
        """The map of a name by its number, `[h, w]` float32; zero where none was made."""
        if name in self.names:
            return self.heat[self.names.index(name)].float()
        return torch.zeros(self.places.shape[-2:], device=self.places.device)

    def directions(self) -> Tensor:
        """`[h·w, C]` float32."""
        return self.places.flatten(1).T.float() / 127

    def on(self, device: torch.device | str) -> "Lesson":
        """The same, to be drawn on this device."""
        moved = {name: getattr(self, name).to(device) for name in ("heat", "places", "features")}
        return replace(self, **moved)

    def maps_of_features(self) -> Tensor:
        """The features `[c, h′, w′]` float32."""
        return self.features.float() * self.scale

    def readings(self) -> Tensor:
        """The features `[h′·w′, c]` float32."""
        return self.maps_of_features().flatten(1).T


def packed(lesson: Lesson, texts: Sequence[str]) -> bytes:
    """A lesson as safetensors. Its names are there as they were looked for: a run may number them otherwise later."""
    f = lesson.frame
    names = json.dumps([texts[p] for p in lesson.names]).encode()
    return save(
        {
            "names": torch.tensor([*names], dtype=torch.uint8),
            "scale": torch.tensor(lesson.scale, dtype=torch.float32),
            "frame": torch.tensor([*f.original_hw, *f.input_hw, *f.resized_wh, *f.offset_xy], dtype=torch.int32),
            **{key: getattr(lesson, key).contiguous() for key in OF_LESSON},
        }
    )


def unpacked(content: bytes, texts: Sequence[str]) -> Lesson:
    """A lesson of such bytes, with the maps of these names."""
    tensors = load(content)
    heat, places, features, embedding, scale, names, sizes = (
        tensors[key] for key in (*OF_LESSON, "scale", "names", "frame")
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


def keep(
    names: Sequence[int], heat: Tensor, places: Tensor, features: Tensor, embedding: FloatArray | Tensor, frame: Frame
) -> Lesson:
    """The lesson of a picture: maps `[p, h, w]`, features of the middle stage `[C, h, w]` and of the taught stage."""
    along = narrowed(affinity.directions(places[None])[0].T.reshape(places.shape), MOST_OF_PLACES)
    coarse = (along * 127).round().clamp(-127, 127).to(torch.int8).cpu()
    taught = taught_features(features)
    scale = max(float(taught.abs().amax()) / 127, torch.finfo(torch.float32).tiny)
    taught, of_picture = (taught / scale).round().to(torch.int8).cpu(), torch.as_tensor(embedding).half().cpu()
    return Lesson(tuple(names), heat.half().cpu(), coarse, taught, scale, of_picture, frame)


def narrowed(features: Tensor, most: int) -> Tensor:
    """Features `[C, h, w]` with at most so many channels; products between places stay nearly the same."""
    channels = len(features)
    if channels <= most:
        return features
    chance = torch.randn(most, channels, generator=torch.Generator().manual_seed(SEED)) / most**0.5
    return torch.einsum("nc,chw->nhw", chance.to(features.device), features)


def taught_features(features: Tensor) -> Tensor:
    """The features `[C, h, w]` of the taught stage as lessons have them, not rounded."""
    features = features.float()
    while features.shape[-2] * features.shape[-1] > MOST_CELLS:
        features = pooled(features, (-(-features.shape[-2] // 2), -(-features.shape[-1] // 2)))
    return narrowed(features, MOST_CHANNELS)


def pooled(maps: Tensor, hw: tuple[int, int]) -> Tensor:
    """Maps `[…, h, w]` on another grid: the means of its cells, or between them."""
    if maps.shape[-2:] == hw:
        return maps
    flat = maps.reshape(1, -1, *maps.shape[-2:])
    coarser = hw[0] <= maps.shape[-2] and hw[1] <= maps.shape[-1]
    resized = F.adaptive_avg_pool2d(flat, hw) if coarser else F.interpolate(flat, hw, mode="bilinear")
    return resized.reshape(*maps.shape[:-2], *hw)


# ------------------------------------------------------------------------------------------------------ what was learnt
@dataclass(frozen=True)
class Learnt:
    """Directions of P names in features `[c]`; see `cliploc.find.directions`."""

    names: tuple[str, ...]
    weights: Tensor  # [P, c] float32
    bias: Tensor  # [P] float32
    share: tuple[float, ...]  # [P] the share of the map from the text in the new one; 0: the model knows no such name
    embedding: Tensor  # [P, D] float32, unit norm: the mean of the pictures that show a name
    sides: Tensor  # [P, LENGTH] float32, how the sides of boxes are moved; see `cliploc.boxes.sides`
    # What it holds for: model, weights, and how lessons are made; and of each name, of how many pictures it was learnt.
    about: Mapping[str, Any]
    # [P, 2] float32, cosines with `embedding` of a picture in which a name is found just so, and for `SURE`; NaN where
    # pictures that look alike need not show it.
    alike: Tensor
    path: str = "what was learnt"  # of its file

    def chances(self, embedding: Tensor, rows: Sequence[int]) -> Tensor:
        """The chance that some of the names are in a picture `[D]`, by how alike it looks: `[p]`; NaN: not known."""
        low, high = self.alike[list(rows)].to(embedding).T
        cosines = F.normalize(self.embedding[list(rows)].to(embedding), dim=1) @ F.normalize(embedding, dim=0)
        steps = (cosines - low) / (high - low)  # 0 where a name is found just so, 1 where it is sure
        least, most = torch.tensor([FOUND, SURE]).to(embedding).logit()
        return torch.sigmoid(least + steps * (most - least))

    def row(self, word: str) -> int | None:
        """The row of a name, by the first of its words; None if it is not among them. Case does not matter.

        Example:
            >>> some = torch.zeros(2, 3)
            >>> learnt = Learnt(("cup~bowl", "Cat"), some, some[:, 0], (0.5, 0.0), some, some, {}, some)
            >>> learnt.row("cat"), learnt.row("cup"), learnt.row("dog")
            (1, 0, None)
        """
        return self._rows.get(word.casefold())

    @cached_property
    def _rows(self) -> Mapping[str, int]:
        """First word → row; of two names with the same one, the first name's."""
        words = [name.partition(CONTRAST)[0].casefold() for name in self.names]
        return {word: row for row, word in reversed([*enumerate(words)])}

    def digest(self) -> str:
        """A digest of what maps depend on, for the identity of a run."""
        digest = hashlib.sha256(json.dumps([self.names, self.share]).encode())
        for tensor in (self.weights, self.bias, self.embedding, self.sides, self.alike):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def check(self, settings: Mapping[str, Any], keys: Sequence[str] = HOLDS_FOR) -> None:
        """Refuses a run with settings that it does not hold for."""
        reason, size = misfit(self.about, settings, keys), self.embedding.shape[1]
        if reason is None and settings.get("embedding_size", size) != size:  # a file of another tower does not even fit
            reason = f"it has embeddings of {size} numbers"
        if reason is not None:
            raise UsageError(
                f"expected a file learnt with this model and these settings, got {self.path}: {reason}: give the "
                "settings of its run, or leave learnt out"
            )

    def project(self, features: Tensor, names: Sequence[int]) -> Tensor:
        """How like some of the names each place is: features `[c, h, w]` → `[p, h, w]` in 0–1."""
        if self.weights.shape[1] != len(features):
            raise InputError(
                f"expected what was learnt of {len(features)} features, got {self.weights.shape[1]}: teach it again"
            )
        return projected(self.weights[list(names)].to(features), self.bias[list(names)].to(features), features)

    def content(self) -> bytes:
        """It as safetensors."""
        tensors = {key: torch.as_tensor(getattr(self, key)).contiguous() for key in TENSORS}
        facts = {"kind": KIND, "version": VERSION, "names": list(self.names), "about": dict(self.about)}
        return save(tensors, {"cliploc": json.dumps(facts, sort_keys=True)})


def projected(weights: Tensor, bias: Tensor, features: Tensor) -> Tensor:
    """How like each name each place is: `Whitening.unwhitened`, features `[c, h, w]` → `[P, h, w]` in 0–1."""
    return (torch.einsum("pc,chw->phw", weights, features) + bias[:, None, None]).clamp(0, 1)


def misfit(about: Mapping[str, Any], settings: Mapping[str, Any], keys: Sequence[str] = HOLDS_FOR) -> str | None:
    """Why what was learnt with one run's settings does not hold for another's, in words; None if it does."""
    for key in keys:
        learnt_with, other = (json.dumps(facts.get(key), sort_keys=True, default=str) for facts in (about, settings))
        if learnt_with == other:
            continue
        if key == "weights":
            return f"it was learnt with other weights of {about.get('model')}"
        if key == "teaching":
            return "it was learnt by another version of cliploc"
        return f"it was learnt with {key} {learnt_with}, and {key} is {other} here"
    return None


class _Facts(Struct):
    kind: Literal["cliploc learnt"]
    version: Literal[2]
    names: Annotated[tuple[str, ...], Meta(min_length=1)]
    about: dict[str, Any]


def load_learnt(path: str | os.PathLike[str]) -> Learnt:
    """Reads the file of `Learnt.save`.

    Raises:
        InputError: no such file, or not one of these.
    """
    path = user_path(path)
    try:
        with safe_open(path, "pt") as file:
            facts = msgspec.json.decode((file.metadata() or {})["cliploc"], type=_Facts)
            tensors = [file.get_tensor(key).float() for key in TENSORS]
        weights, bias, share, embedding, sides, alike = tensors
        axes, lengths = [tensor.ndim for tensor in tensors], {len(tensor) for tensor in tensors}
        if (
            axes != [2, 1, 1, 2, 2, 2]
            or lengths != {len(facts.names)}
            or (sides.shape[1], alike.shape[1]) != (LENGTH, 2)
        ):
            raise ValueError("tensors of other sizes")
        if not all(tensor.isfinite().all() for tensor in tensors[:-1]):
            raise ValueError("values that cannot be used")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise InputError(
            f"{path}: expected learnt.safetensors of `cliploc annotate`, of this version, cannot use it "
            f"({first_line(error)}): check the path, or annotate its folder again"
        ) from None
    return Learnt(facts.names, weights, bias, tuple(share.tolist()), embedding, sides, facts.about, alike, str(path))


# --------------------------------------------------------------------------------------------------- maps drawn with it
def drawn(
    lessons: Sequence[Lesson],  # of B pictures with the same grids
    names: Sequence[int],  # the numbers of the p names
    like: Tensor,  # [B, p, h′, w′] how like each name each place is, in 0–1
    share: Sequence[float],  # [p] of the map of the text in the result
    level: float | None,  # τ of the step `level`; None without it
    cut: float = CUT,  # of `affinity`
) -> Iterator[Tensor]:
    """For each picture maps `[p, H, W]` in 0–1 over the first scale's input; they do not depend on the others."""
    # Drafts of a folder and results with a file of what was learnt are drawn here, so that both are the same.
    heat = torch.stack([torch.stack([lesson.map_of(p) for p in names]) for lesson in lessons])  # [B, p, h, w]
    taught = F.interpolate(like, (heat.shape[-2], heat.shape[-1]), mode="bilinear")
    of_text = torch.tensor(share, device=heat.device)[:, None, None]
    maps = min_max(of_text * min_max(heat.float()) + (1 - of_text) * taught)
    frames = [lesson.frame for lesson in lessons]
    spread = [  # one by one: a picture's pairs of places fit into the fast memory, those of several do not
        affinity.with_details(affinity.spread_along(lesson.directions()[None], maps[i : i + 1], cut), maps[i : i + 1])
        for i, lesson in enumerate(lessons)
    ]
    maps = min_max(padding_least(torch.cat(spread), frames, False))
    if level is not None:
        maps = min_max(padding_least(leveled(maps, level), frames, False))
    for raw, frame in zip(maps, frames, strict=True):
        yield min_max(frame.sampling_of_whole(frame, raw).over_input(raw))


@dataclass(frozen=True)
class Redrawn:
    """The names of a picture whose maps are drawn by what was learnt."""

    learnt: Learnt
    lesson: Lesson  # with the maps of those that are asked for
    rows: Mapping[int, tuple[int, float]]  # the number of a name → its row, and the share of the text's map
    level: float | None  # τ of the step `level`; None without it

    def sides(self, count: int) -> FloatArray:
        """`[P, LENGTH]` how the sides of the boxes of all `count` names are moved; see `cliploc.boxes.sides`."""
        sides = np.zeros((count, LENGTH), np.float32)
        for p, (row, _) in self.rows.items():
            sides[p] = self.learnt.sides[row].numpy()
        return sides

    def maps(self, names: Sequence[int]) -> Tensor:
        """Maps `[p, H, W]` in 0–1 of some of the names over the first scale's input."""
        rows, share = [self.rows[p][0] for p in names], [self.rows[p][1] for p in names]
        like = self.learnt.project(self.lesson.maps_of_features(), rows)
        return next(drawn([self.lesson], names, like[None], share, self.level))

"""Annotated pictures, as exports and the review page get them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cliploc.formats import AnnotatedPicture, ExportSettings, exports


def annotated(
    name: str,
    path: Path,
    size_wh: tuple[int, int],
    boxes: Sequence[Sequence[float]] | np.ndarray = (),
    label: Sequence[int] | np.ndarray | None = None,
    score: Sequence[float] | np.ndarray | None = None,
    number: int = 1,
    **more: Any,
) -> AnnotatedPicture:
    """A picture with these boxes; labels are 0 and scores 0.5 unless they are given."""
    count = len(boxes)
    facts = {"box_ids": tuple(range(count)), "margin": 0.5, **more}
    return AnnotatedPicture(
        number=number,
        name=name,
        path=path,
        size_wh=size_wh,
        xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        score=np.full(count, 0.5, np.float32) if score is None else np.array(score, np.float32),
        label=np.zeros(count, np.int64) if label is None else np.array(label, np.int64),
        **facts,
    )


def written(name: str, pictures: Sequence[AnnotatedPicture], settings: ExportSettings, out: Path) -> list[Path]:
    """Writes these pictures in a format into a folder, which is made; the paths of its outputs."""
    out.mkdir(exist_ok=True)
    chosen = exports.get(name)
    chosen.check(settings)
    chosen.write(lambda: iter(pictures), settings, out)
    assert sorted(one.name for one in out.iterdir()) == sorted(chosen.outputs)
    return [out / one for one in chosen.outputs]

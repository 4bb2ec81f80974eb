from collections.abc import Callable, Sequence

import numpy as np
import pytest
from PIL import Image

from cliploc.images.geometry import Frame
from cliploc.localization import Localization
from cliploc.values import Boxes, ResizePolicy

Build = Callable[..., Localization]


@pytest.fixture
def build() -> Build:
    """Makes a `Localization` without a model: maps are boxes of heat given in original pixels."""

    def make(
        size_wh: tuple[int, int] = (320, 200),
        names: Sequence[str] = ("cat",),
        hot: Sequence[tuple[float, float, float, float] | None] = ((80, 50, 240, 150),),
        policy: ResizePolicy = "squash",
        boxes: Sequence[tuple[int, Sequence[float], float]] = (),
        found: Sequence[bool] | None = None,
        presence: Sequence[float] | None = None,
        scores: Sequence[float] | None = None,
        source: str = "folder/photo.jpg",
        notes: tuple[str, ...] = (),
        colour: tuple[int, int, int] | None = None,
    ) -> Localization:
        width, height = size_wh
        noise = np.random.default_rng(0).integers(60, 190, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(noise) if colour is None else Image.new("RGB", size_wh, colour)
        frame = Frame.fit(policy, (height, width), (64, 64))
        maps = np.zeros((len(names), 64, 64), dtype=np.float32)
        for index, box in enumerate(hot):
            if box is not None:
                x0, y0, x1, y1 = frame.to_input(box).round().astype(int)[0].clip(0, 64)
                maps[index, y0:y1, x0:x1] = 1
        is_found = np.array([True] * len(names) if found is None else list(found))
        return Localization(
            source=source,
            image=image,
            names=tuple(names),
            scores=np.array(scores if scores is not None else [0.25] * len(names), dtype=np.float32),
            presence=None if presence is None else np.array(presence, dtype=np.float32),
            found=is_found,
            reasons=tuple(None if one else "not in the picture" for one in is_found),
            maps=maps,
            frame=frame,
            boxes=Boxes(
                np.array([xyxy for _, xyxy, _ in boxes], dtype=np.float32).reshape(-1, 4),
                np.array([score for *_, score in boxes], dtype=np.float32),
                np.array([label for label, *_ in boxes], dtype=np.int64),
                tuple(names),
            ),
            notes=notes,
        )

    return make

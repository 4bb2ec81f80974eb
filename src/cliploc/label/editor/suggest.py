"""Boxes that the model suggests while a person edits: a name's heat in one picture, and the region round a click."""

import threading
from collections.abc import Hashable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from PIL import Image

from cliploc.boxes import share_of_peak
from cliploc.boxes.masks import name_mask
from cliploc.errors import InputError
from cliploc.formats import Box
from cliploc.images.reading import picture_bytes
from cliploc.images.rle import encode
from cliploc.localization import Localization
from cliploc.localizer import Localizer
from cliploc.values import Floats

MARGIN = 0.15  # of a box's side, in which it is not split
FLAT = 0.95  # heat of a valley, as a share of the lower hill's, from which it is none
HILL = 0.2  # of the highest one
HEAT_SIDE = 480  # longest side of the heat that is shown
# Options of the drafts that change what a suggestion shows. Weights are not among them: the model is loaded by name.
OPTIONS = (
    "method", "refine", "scales", "windows", "flip", "threshold", "split_peaks", "min_score", "resize", "image_size",
)  # fmt: skip


def options_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The options with which a localizer finds what a run with these settings drafted."""
    options = {name: settings[name] for name in OPTIONS}
    return {**options, "method_options": settings["options"], "second_look": "second_look" in settings}


class Suggester:
    """One model, which computes one picture at a time; loaded when it is first asked."""

    def __init__(self, model: str, **options: Any) -> None:
        self._model, self._options = model, options
        self._last: tuple[Hashable, Localization] | None = None
        self._lock = threading.Lock()

    def heat(self, image: Image.Image, picture: Hashable, name: str) -> tuple[bytes, float, str]:
        """The heat of a name over the picture as PNG, τ that the model's boxes have, and a sentence for the user."""
        localization = self._found(image, picture, name)
        heat = localization.heatmaps[0]
        image = Image.fromarray((heat / max(float(heat.max()), 1e-6) * 255).round().astype(np.uint8))
        image.thumbnail((HEAT_SIDE, HEAT_SIDE))
        reason = f"{localization.reasons[0]}; " if localization.reasons[0] else ""
        message = f"{localization.names[0]}: {reason}click in a hot region to make a box"
        return picture_bytes(image, "PNG"), self._threshold(localization), message

    def box(
        self, image: Image.Image, picture: Hashable, name: str, threshold: float | None, at: tuple[float, float]
    ) -> tuple[list[float], str]:
        """The box round the region hotter than τ (None: the model's) that a point is in, and its compressed counts."""
        localization = self._found(image, picture, name)
        tau = self._threshold(localization) if threshold is None else threshold
        rule = replace(self._localizer.box_rule, threshold=tau)
        hot = name_mask(localization.frame, localization.maps[0], rule)
        _, regions, stats, _ = cv2.connectedComponentsWithStats(hot.astype(np.uint8), connectivity=rule.connectivity)
        height, width = hot.shape
        column, row = (int(min(max(value, 0), side - 1)) for value, side in zip(at, (width, height), strict=True))
        number = regions[row, column]
        if not number:
            raise InputError("the map is not hot there: click in the hot region, or lower the threshold")
        x, y, w, h, _ = stats[number].astype(float).tolist()
        return [x, y, x + w, y + h], encode(regions == number)["counts"]

    def cut(self, image: Image.Image, picture: Hashable, name: str, xyxy: Box) -> tuple[int, float]:
        """Where the heat in a box is least between two hot parts: the axis (0: x), and the place on it."""
        localization = self._found(image, picture, name)
        x0, y0, x1, y1 = np.clip(localization.frame.to_input(np.array([xyxy]))[0].round().astype(int), 0, None).tolist()
        heat = localization.maps[0][y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
        cuts = [valley(heat.mean(axis=1 - axis)) for axis in (0, 1)]  # of rows and of columns
        depth, place, axis = min((*cuts[1 - axis], axis) for axis in (0, 1))
        wide = xyxy[2] - xyxy[0] >= xyxy[3] - xyxy[1]
        if depth > FLAT:  # there are no two parts
            place, axis = 0.5, 1 - int(wide)
        return axis, round(xyxy[axis] + place * (xyxy[axis + 2] - xyxy[axis]), 2)

    def _threshold(self, localization: Localization) -> float:
        """τ that the model's boxes have on this map, as a number."""
        x0, y0, x1, y1 = localization.frame.visible_xyxy
        return share_of_peak(localization.maps[0, y0:y1, x0:x1], self._localizer.box_rule.threshold)

    def _found(self, image: Image.Image, picture: Hashable, name: str) -> Localization:
        """What is found; a second call for the same id of a picture and name does not compute again."""
        if not name.strip() or "@" in name or not name.isprintable():  # the command line reads @FILE as a picture
            raise InputError("expected a name, such as cat or cat|kitten")
        with self._lock:  # one at a time
            key = (picture, name)
            if self._last is None or self._last[0] != key:
                if unknown := self._localizer.unknown_names([name]):
                    raise InputError(next(iter(unknown.values())))
                self._last = (key, self._localizer(image, [name]))
            return self._last[1]

    @cached_property
    def _localizer(self) -> Localizer:
        return Localizer(self._model, **self._options)


def valley(profile: Floats) -> tuple[float, float]:
    """The lowest valley of a profile: its heat as a share of the lower hill's beside it, and its place in 0–1."""
    count = len(profile)
    low, high = int(np.ceil(MARGIN * count)), int(np.floor((1 - MARGIN) * count))
    if high - low < 1:
        return 1.0, 0.5
    hills = np.minimum(np.maximum.accumulate(profile), np.maximum.accumulate(profile[::-1])[::-1])
    ratios = np.where(hills > HILL * profile.max(), profile / np.maximum(hills, 1e-9), 1.0)[low:high]
    return float(ratios.min()), (low + int(ratios.argmin()) + 0.5) / count

"""`Detector`: a `Localizer` where `supervision` expects a model – slicers, trackers, annotators, datasets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from cliploc import prompts
from cliploc.errors import UsageError

if TYPE_CHECKING:
    from supervision import Detections

    from cliploc.localizer import Localizer


class Detector:
    """Calls a localizer as `supervision` calls its models: a picture in, `Detections` out.

    Args:
        localizer: what finds things.
        names: what to look for; `class_id` counts them, `data["class_name"]` names them.
        channels: of arrays: "bgr", as OpenCV and supervision have them, or "rgb". PIL images and files are never
            taken for BGR.
        masks: whether boxes have their masks. supervision then compares masks, not boxes, which takes its time.

    Raises:
        UsageError: a name or an order of channels that cannot be used.

    Example:
        >>> import cliploc
        >>> detector = cliploc.Detector(cliploc.Localizer(), ["cat", "dog"])
        >>> detector(np.zeros((64, 48, 3), np.uint8)).xyxy.shape[1]
        4
    """

    def __init__(
        self,
        localizer: Localizer,
        names: Sequence[str],
        channels: Literal["bgr", "rgb"] = "bgr",
        masks: bool = False,
    ) -> None:
        if channels not in ("bgr", "rgb"):
            raise UsageError(f"expected channels bgr or rgb, got {channels!r}")
        self.classes = list(prompts.parse(names).names)
        self._localizer, self._names, self._channels, self._masks = localizer, list(names), channels, masks

    def __call__(self, image: npt.NDArray[np.uint8] | Image.Image | str) -> Detections:
        """The boxes found in one picture; thread-safe as far as the model is.

        Raises:
            InputError: a picture that cannot be read.
        """
        seen: Any = image
        if isinstance(image, np.ndarray) and image.ndim == 3 and self._channels == "bgr":
            seen = np.ascontiguousarray(image[..., [2, 1, 0, *range(3, image.shape[2])]])
        found = self._localizer(seen, self._names)
        return found.to_supervision(masks=self._masks)  # type: ignore[no-any-return]

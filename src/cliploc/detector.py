"""`Detector`: a `Localizer` where `supervision` expects a model – slicers, trackers, annotators, datasets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import numpy as np
from PIL import Image

from cliploc.errors import UsageError
from cliploc.find import prompts
from cliploc.values import ByteArray

if TYPE_CHECKING:
    from supervision import Detections

    from cliploc.localizer import Localizer

Picture: TypeAlias = ByteArray | Image.Image | str


class Detector:
    """A localizer as a detector for `supervision`: a picture in, `Detections` out; a list in, a list out.

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
        self, localizer: Localizer, names: Sequence[str], channels: Literal["bgr", "rgb"] = "bgr", masks: bool = False
    ) -> None:
        if channels not in ("bgr", "rgb"):
            raise UsageError(f"expected channels bgr or rgb, got {channels!r}")
        if not callable(localizer):
            raise UsageError(f"expected a Localizer, got {localizer!r}: write cliploc.Localizer({localizer!r})")
        self.classes = list(prompts.parse(names).names)
        self._localizer, self._names, self._channels, self._masks = localizer, list(names), channels, masks

    @overload
    def __call__(self, images: Picture) -> Detections: ...
    @overload
    def __call__(self, images: list[Picture] | tuple[Picture, ...]) -> list[Detections]: ...
    def __call__(self, images: Picture | list[Picture] | tuple[Picture, ...]) -> Detections | list[Detections]:
        """The boxes found in one picture, or in each of several; thread-safe as far as the model is.

        Args:
            images: a picture, or a list of pictures of any sizes, as `InferenceSlicer(..., batch_size=8)` gives them.
                The model sees as many of them at once as the localizer's `batch_size` says.

        Returns:
            `Detections`, or a list of them in the order of the pictures; empty for an empty list.

        Raises:
            InputError: a picture that cannot be read.
        """
        if not isinstance(images, list | tuple):
            return self([images])[0]
        results = self._localizer([self._in_rgb(image) for image in images], self._names)
        return [result.to_supervision(masks=self._masks) for result in results]

    def _in_rgb(self, image: Any) -> Any:
        """An array's channels as RGB; other pictures as they are."""
        if isinstance(image, np.ndarray) and image.ndim == 3 and self._channels == "bgr":
            return np.ascontiguousarray(image[..., [2, 1, 0, *range(3, image.shape[2])]])
        return image

"""Masks of boxes, and regions, by Segment Anything (SAM or SAM 2), through `transformers`: the extra `sam`."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from huggingface_hub import snapshot_download

from cliploc.errors import MissingWeightsError, ModelError, UsageError, first_line
from cliploc.support.files import user_path
from cliploc.support.imports import install, not_installed
from cliploc.support.process import out_of_memory
from cliploc.towers._transformers_folder import from_pretrained, model_from_pretrained
from cliploc.towers.tower import tensors_digest
from cliploc.values import BoolArray, Floats

if TYPE_CHECKING:
    from PIL import Image

    from cliploc.localization import Localization

SUPPORTED = ("sam", "sam2")  # types of models
AT_ONCE = 32  # boxes of a picture that are prompts of one call


class SamMasks:
    """Masks of a picture's boxes by a frozen SAM or SAM 2.

    Each box of a `Localization` is a prompt. The picture is encoded once for up to 32 boxes.

    Args:
        model: a folder that `save_pretrained` of transformers wrote, with safetensors and the processor's
            configuration, or a repository on Hugging Face, such as "facebook/sam-vit-base" or
            "facebook/sam2.1-hiera-tiny".
        device: a torch device.

    Raises:
        UsageError: transformers is not installed.
        ModelError: the model cannot be loaded, or is not SAM or SAM 2.
    """

    def __init__(self, model: str | os.PathLike[str], device: str = "cpu") -> None:
        self._model, self._processor = _loaded(model, device)
        self.device = torch.device(device)

    @cached_property
    def id(self) -> str:
        """What tells these masks from others: a checksum of the weights and of what goes in."""
        return _checksum(self._model, self._processor)

    def __call__(self, found: Localization) -> BoolArray:
        """The masks of `found.boxes`, `[n, H, W]`; only picture and boxes are read."""
        masks = np.zeros((len(found.boxes), *found.frame.original_hw), bool)
        for index, mask in self.box_masks(found):
            masks[index] = mask
        return masks

    def box_masks(self, found: Localization) -> Iterator[tuple[int, BoolArray]]:
        """The number and the mask `[H, W]` of each box."""
        image, wh = found.image.convert("RGB"), found.frame.original_hw[::-1]
        image = image if image.size == wh else image.resize(wh)  # a smaller copy
        boxes = found.boxes.xyxy.astype(float)  # [n, 4]
        for start in range(0, len(boxes), AT_ONCE):
            yield from enumerate(self._masks(image, boxes[start : start + AT_ONCE]), start)

    @torch.no_grad()
    def _masks(self, image: Any, boxes: Floats) -> BoolArray:
        """Boxes `[n, 4]` → masks `[n, H, W]`."""
        inputs = self._processor(images=image, return_tensors="pt", input_boxes=[boxes.tolist()])
        outputs = self._model(**inputs.to(self.device), multimask_output=False)
        # SAM pads pictures to a square, and needs to know how much of it is picture; SAM 2 squashes them.
        sizes = [inputs[key].cpu() for key in ("original_sizes", "reshaped_input_sizes") if key in inputs]
        found: torch.Tensor = self._processor.post_process_masks(outputs.pred_masks.cpu(), *sizes)[0]
        return found[:, 0].numpy()


class SamRegions:
    """Regions of a picture: the masks that a frozen SAM or SAM 2 gives for a grid of points, smaller ones on top.

    Args:
        model: as for `SamMasks`.
        quality: the least IoU that the model expects of a mask.
        stability: the least IoU of the mask with itself at a higher and a lower threshold.
        points: along each side of the grid.
        device: a torch device.

    Raises:
        UsageError: transformers is not installed.
        ModelError: the model cannot be loaded, or is not SAM or SAM 2.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        quality: float = 0.88,
        stability: float = 0.95,
        points: int = 32,
        device: str = "cpu",
    ) -> None:
        loaded, processor = _loaded(model, device)
        from transformers import pipeline

        self.id = _checksum(loaded, processor, quality, stability, points)
        self._settings = {"pred_iou_thresh": quality, "stability_score_thresh": stability, "points_per_crop": points}
        self._generate: Any = pipeline(
            "mask-generation", model=loaded, image_processor=processor.image_processor, device=torch.device(device)
        )

    def __call__(self, picture: Image.Image, name: str = "") -> npt.NDArray[np.int32]:  # noqa: ARG002
        """The region `[H, W]` of each pixel, from 0; −1: in none."""
        masks = [np.asarray(mask, bool) for mask in self._generate(picture.convert("RGB"), **self._settings)["masks"]]
        regions = np.full((picture.height, picture.width), -1, np.int32)
        for number, mask in enumerate(sorted(masks, key=np.sum, reverse=True)):
            regions[mask] = number
        return regions


def _loaded(model: str | os.PathLike[str], device: str) -> tuple[Any, Any]:
    """A SAM or SAM 2 and its processor."""
    try:
        from transformers import AutoModelForMaskGeneration, AutoProcessor
    except ImportError as error:
        raise not_installed(error, install("sam", "SAM")) from error
    folder = user_path(model)  # after "sam:" a shell leaves ~ as it is
    source = os.fspath(folder if folder.is_dir() else model)
    if not folder.is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise UsageError(f"expected SAM's folder or a repository as ORG/NAME, got {source!r}: check the path")
    kind = ModelError if folder.is_dir() else MissingWeightsError
    try:
        if not folder.is_dir():
            folder = Path(snapshot_download(source, allow_patterns=["*.json", "*.safetensors"]))
        loaded = model_from_pretrained(AutoModelForMaskGeneration, folder, use_safetensors=True)
        processor = from_pretrained(AutoProcessor, folder)
    except Exception as error:  # damaged files make transformers raise nearly anything
        if out_of_memory(error):
            raise
        raise kind(
            f"SAM cannot be loaded from {source} ({first_line(error)}): give a folder with config.json, "
            "processor_config.json and model.safetensors"
        ) from error
    if loaded.config.model_type not in SUPPORTED:
        raise ModelError(f"expected sam or sam2, got {loaded.config.model_type} in {source}: give another model")
    return loaded.to(torch.device(device)), processor


def _checksum(model: Any, processor: Any, *facts: object) -> str:
    """What tells a SAM's results from others: the weights, and what goes in."""
    known = f"{processor.image_processor.to_dict()} {facts}".encode()
    return "sam:" + hashlib.sha256(tensors_digest(model.state_dict()) + known).hexdigest()

"""Masks of boxes, and regions, by Segment Anything (SAM or SAM 2), through `transformers`: the extra `sam`."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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

if TYPE_CHECKING:
    from PIL import Image

    from cliploc.localization import Localization

SUPPORTED = ("sam", "sam2")  # types of models
AT_ONCE = 32  # boxes of a picture that are prompts of one call


class SamMasks:
    """Masks of a picture's boxes by a frozen SAM or SAM 2.

    Each box of a `Localization`, or the hottest place inside it, is a prompt. The picture is encoded once for up to 32
    boxes. SAM itself proposes several masks where one point may mean several things: its most certain one is taken.

    Args:
        model: a folder that `save_pretrained` of transformers wrote, with safetensors and the processor's
            configuration, or a repository on Hugging Face, such as "facebook/sam-vit-base" or
            "facebook/sam2.1-hiera-tiny".
        prompt: "box", or "point".
        device: a torch device.

    Raises:
        UsageError: transformers is not installed, or a prompt that there is not.
        ModelError: the model cannot be loaded, or is not SAM or SAM 2.
    """

    def __init__(
        self, model: str | os.PathLike[str], prompt: Literal["box", "point"] = "box", device: str = "cpu"
    ) -> None:
        if prompt not in ("box", "point"):
            raise UsageError(f"expected prompt to be one of box, point, got {prompt!r}")
        self._model, self._processor = _loaded(model, device)
        self.prompt, self.device = prompt, torch.device(device)

    @cached_property
    def id(self) -> str:
        """What tells these masks from others: a checksum of the weights and of what goes in."""
        return _checksum(self._model, self._processor, self.prompt)

    def __call__(self, found: Localization) -> npt.NDArray[np.bool_]:
        """The masks of `found.boxes`, `[n, H, W]`; only picture, boxes and, for points, heatmaps are read."""
        masks = np.zeros((len(found.boxes), *found.frame.original_hw), bool)
        for index, mask in self.box_masks(found):
            masks[index] = mask
        return masks

    def box_masks(self, found: Localization) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
        """The number and the mask `[H, W]` of each box."""
        image = found.image.convert("RGB")
        height, width = found.frame.original_hw
        if image.size != (width, height):  # a smaller copy
            image = image.resize((width, height))
        boxes = found.boxes.xyxy.astype(float)  # [n, 4]
        prompts = {"input_boxes": boxes} if self.prompt == "box" else {"input_points": points_of(found)}
        for start in range(0, len(boxes), AT_ONCE):
            chosen = {key: value[start : start + AT_ONCE] for key, value in prompts.items()}
            yield from enumerate(self._masks(image, chosen), start)

    @torch.no_grad()
    def _masks(self, image: Any, prompts: dict[str, npt.NDArray[np.float64]]) -> npt.NDArray[np.bool_]:
        """Boxes `[n, 4]` or points `[n, 1, 2]` → masks `[n, H, W]`."""
        inputs = self._processor(images=image, return_tensors="pt", **{k: [v.tolist()] for k, v in prompts.items()})
        outputs = self._model(**inputs.to(self.device), multimask_output=self.prompt == "point")
        # SAM pads pictures to a square, and needs to know how much of it is picture; SAM 2 squashes them.
        sizes = [inputs[key].cpu() for key in ("original_sizes", "reshaped_input_sizes") if key in inputs]
        proposed = self._processor.post_process_masks(outputs.pred_masks.cpu(), *sizes)[0]  # [n, m, H, W] bool
        best = outputs.iou_scores[0].cpu().argmax(dim=1)  # [n]
        chosen: npt.NDArray[np.bool_] = proposed[torch.arange(len(best)), best].numpy()
        return chosen


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
        if broken := [name for name, values in loaded.state_dict().items() if not values.isfinite().all()]:
            raise ValueError(f"{broken[0]} holds values that are not numbers")
        processor = from_pretrained(AutoProcessor, folder)
        if loaded.config.model_type in SUPPORTED:  # a trial, which fails where the processor's values cannot be
            processor(images=np.full((8, 8, 3), 128, np.uint8), input_boxes=[[[1.0, 1.0, 7.0, 7.0]]])
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


def points_of(found: Localization) -> npt.NDArray[np.float64]:
    """The middle of the hottest pixel in each box, `[n, 1, 2]` as x, y in pixels of the picture."""
    points = np.zeros((len(found.boxes.xyxy), 1, 2))
    if not len(points):
        return points
    heatmaps = found.heatmaps  # [P, H, W]
    height, width = heatmaps.shape[1:]
    for place, (box, label) in enumerate(zip(found.boxes.xyxy, found.boxes.label, strict=True)):
        x0, y0 = min(int(box[0]), width - 1), min(int(box[1]), height - 1)
        inside = heatmaps[label, y0 : max(y0 + 1, int(box[3])), x0 : max(x0 + 1, int(box[2]))]
        y, x = np.unravel_index(int(inside.argmax()), inside.shape)
        points[place, 0] = x0 + x + 0.5, y0 + y + 0.5
    return points

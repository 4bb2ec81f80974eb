"""Masks of boxes by Segment Anything (SAM or SAM 2), through `transformers`: `pip install 'cliploc[sam]'`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from cliploc._imports import install, not_installed
from cliploc.errors import MissingWeightsError, ModelError, UsageError

if TYPE_CHECKING:
    from cliploc.localization import Localization

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
        try:
            from transformers import AutoModelForMaskGeneration, AutoProcessor
        except ImportError as error:
            raise not_installed(error, install("sam", "SAM")) from error
        source = os.fspath(model)
        if not Path(source).is_dir() and not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
            raise UsageError(f"expected SAM's folder or a repository as ORG/NAME, got {source!r}: check the path")
        try:
            loaded = AutoModelForMaskGeneration.from_pretrained(source, use_safetensors=True)
            self._processor = AutoProcessor.from_pretrained(source)  # type: ignore[no-untyped-call, unused-ignore]
        except (OSError, ValueError) as error:  # transformers raises these for folders, files and the network
            said = (str(error).strip().splitlines() or ["no reason given"])[0]
            kind = ModelError if Path(source).is_dir() else MissingWeightsError
            raise kind(
                f"SAM cannot be loaded from {source} ({said[:200]}): give a folder with config.json, "
                "processor_config.json and model.safetensors"
            ) from error
        if loaded.config.model_type not in ("sam", "sam2"):
            raise ModelError(f"expected sam or sam2, got {loaded.config.model_type} in {source}: give another model")
        self.prompt, self.device = prompt, torch.device(device)
        self._model = loaded.eval().requires_grad_(False).to(self.device)

    def __call__(self, found: Localization) -> npt.NDArray[np.bool_]:
        """The masks of `found.boxes`, `[n, H, W]`; only picture, boxes and, for points, heatmaps are read."""
        image = found.image.convert("RGB")
        boxes = found.boxes.xyxy.astype(float)  # [n, 4]
        masks = np.zeros((len(boxes), image.height, image.width), bool)
        prompts = {"input_boxes": boxes} if self.prompt == "box" else {"input_points": points_of(found)}
        for start in range(0, len(boxes), AT_ONCE):
            chosen = {key: value[start : start + AT_ONCE] for key, value in prompts.items()}
            masks[start : start + AT_ONCE] = self._masks(image, chosen)
        return masks

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

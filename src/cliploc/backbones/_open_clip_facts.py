"""What an open_clip model says about itself, apart from its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from open_clip.model import get_model_preprocess_cfg
from open_clip.transform import PreprocessCfg

from cliploc.schema import ResizePolicy

RESIZE_POLICIES: dict[str, ResizePolicy] = {"shortest": "crop", "longest": "pad", "squash": "squash"}


@dataclass(frozen=True)
class OpenClipFacts:
    """Preprocessing and scale of an open_clip model.

    Attributes:
        input_hw: the input the tower was built for.
        mean: per channel.
        std: per channel.
        resize_policy: OpenAI's models crop, SigLIP's squash.
        logit_scale: what cosines are multiplied by.
    """

    input_hw: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize_policy: ResizePolicy
    logit_scale: float

    @classmethod
    def of(cls, model: Any) -> OpenClipFacts:
        """Of a built open_clip model; one that no factory made has OpenAI's preprocessing."""
        preprocess = PreprocessCfg(**get_model_preprocess_cfg(model))
        side = model.visual.image_size
        return cls(
            input_hw=(side, side) if isinstance(side, int) else (side[0], side[1]),
            mean=tuple(preprocess.mean),
            std=tuple(preprocess.std),
            resize_policy=RESIZE_POLICIES[preprocess.resize_mode],
            logit_scale=float(model.logit_scale.detach().float().exp()),
        )

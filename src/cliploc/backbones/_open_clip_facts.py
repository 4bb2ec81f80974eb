"""What an open_clip model says about itself, apart from its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from open_clip.model import get_model_preprocess_cfg
from open_clip.transform import PreprocessCfg

from cliploc.backbones._catalogue import describe_preprocessing
from cliploc.backbones._tower import DualEncoder
from cliploc.values import Interpolation, ResizePolicy

RESIZE_POLICIES: dict[str, ResizePolicy] = {"shortest": "crop", "longest": "pad", "squash": "squash"}


def interpolation_of(name: str) -> Interpolation:
    """open_clip's word for it; "random", of some trainings, means bicubic in use, as there."""
    return "bilinear" if name == "bilinear" else "bicubic"


def published_preprocessing(published: Mapping[str, Any]) -> str:
    """How published weights want pictures, in words; as OpenAI's where open_clip's list says nothing."""
    config = PreprocessCfg(**published)
    policy, interpolation = RESIZE_POLICIES[config.resize_mode], interpolation_of(config.interpolation)
    return describe_preprocessing(policy, interpolation, config.mean, config.std)


@dataclass(frozen=True)
class OpenClipFacts:
    """Preprocessing and scale of an open_clip model.

    Attributes:
        input_hw: the input the tower was built for.
        mean: per channel.
        std: per channel.
        resize_policy: OpenAI's models crop, SigLIP's squash.
        interpolation: how pictures are resized; OpenAI's and SigLIP's are bicubic, CLIPA, MobileCLIP, PE-Core bilinear.
        logit_scale: what cosines are multiplied by.
    """

    input_hw: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize_policy: ResizePolicy
    interpolation: Interpolation
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
            interpolation=interpolation_of(preprocess.interpolation),
            logit_scale=float(model.logit_scale.detach().float().exp()),
        )

    def set_on(self, backbone: DualEncoder) -> None:
        """Hands them to the model's adapter, apart from mean and standard deviation, which it is made with."""
        backbone.input_hw, backbone.logit_scale = self.input_hw, self.logit_scale
        backbone.resize_policy, backbone.interpolation = self.resize_policy, self.interpolation

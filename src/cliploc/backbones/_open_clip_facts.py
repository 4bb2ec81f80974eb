"""Preprocessing and logit scale of open_clip's models and published weights."""

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
    """Our name of open_clip's interpolation; "random", used in some trainings, means bicubic at inference."""
    return "bilinear" if name == "bilinear" else "bicubic"


def published_preprocessing(published: Mapping[str, Any]) -> str:
    """The preprocessing of published weights, in words; OpenAI's where open_clip's list does not state it."""
    config = PreprocessCfg(**published)
    policy, interpolation = RESIZE_POLICIES[config.resize_mode], interpolation_of(config.interpolation)
    return describe_preprocessing(policy, interpolation, config.mean, config.std)


@dataclass(frozen=True)
class OpenClipFacts:
    """Preprocessing and scale of an open_clip model."""

    input_hw: tuple[int, int]  # the input the tower was built for
    mean: tuple[float, ...]  # per channel
    std: tuple[float, ...]  # per channel
    # how pictures are fitted to the input; "crop" for OpenAI's models, "squash" for SigLIP's
    resize_policy: ResizePolicy
    # of the resizing; "bicubic" for OpenAI's and SigLIP's, "bilinear" for CLIPA, MobileCLIP, PE-Core
    interpolation: Interpolation
    logit_scale: float  # factor of the cosines

    @classmethod
    def of(cls, model: Any) -> OpenClipFacts:
        """The facts of a built open_clip model; OpenAI's preprocessing if open_clip's factory did not build it."""
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
        """Sets them on the model's adapter, except mean and standard deviation, which its constructor takes."""
        backbone.input_hw, backbone.logit_scale = self.input_hw, self.logit_scale
        backbone.resize_policy, backbone.interpolation = self.resize_policy, self.interpolation

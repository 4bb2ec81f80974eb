"""A CLIP of open_clip, small enough for every test: a ResNet of one block a stage, and two layers of text."""

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transform import PreprocessCfg
from torch import nn

from tests.tiny import seeded

SIDE = 64  # pixels: a grid of 2×2
CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"layers": [1, 1, 1, 1], "width": 16, "image_size": SIDE, "patch_size": None},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
TEXTS = ["a photo of a cat.", "an osprey over the water", ""]


def tokenizer() -> Any:
    return open_clip.SimpleTokenizer(context_length=16)


def small_clip(quick_gelu: bool = False, seed: int = 0) -> open_clip.CLIP:
    """In eval mode, with batch norms that have seen something and residual branches that do something."""

    def build() -> open_clip.CLIP:
        config = json.loads(json.dumps(CONFIG))
        model = open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"], quick_gelu=quick_gelu)
        season(model)
        return model

    model = seeded(build, seed)
    open_clip.model.set_model_preprocess_cfg(model, PreprocessCfg(size=SIDE).__dict__)
    return model.eval()


@torch.no_grad()
def season(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.2)


def save_folder(folder: Path, quick_gelu: bool = False, **changes: Any) -> Path:
    """The configuration of `small_clip`, as open_clip saves it beside weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": {**CONFIG, "quick_gelu": quick_gelu}, "preprocess_cfg": changes}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder

"""Adapter of CLIP's ResNets in open_clip: RN50, RN101, RN50x4, RN50x16, RN50x64 and their quick-GELU variants."""

import math
from typing import Any

import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn

from cliploc.towers._cnn import AttentionPool, ConvolutionalBackbone
from cliploc.towers._layers import fold_batch_norms
from cliploc.towers._open_clip_parts import OpenClipParts, Tokenizer, adapter
from cliploc.towers.tower import Pooling


class Stem(nn.Module):
    """CLIP's three first convolutions and average pool, stride 4; in open_clip's tower they are not one module."""

    def __init__(self, visual: ModifiedResNet) -> None:
        super().__init__()
        for name in ("conv1", "bn1", "act1", "conv2", "bn2", "act2", "conv3", "bn3", "act3", "avgpool"):
            self.add_module(name, getattr(visual, name))

    def forward(self, images: Tensor) -> Tensor:
        """`[B, 3, H, W]` → `[B, C, H/4, W/4]`."""
        x = images
        for layer in self.children():
            x = layer(x)
        return x


@adapter
class OpenClipResNet(ConvolutionalBackbone):
    """CLIP's ModifiedResNet (Radford 2021); stages −1 layer4 … −4 layer1, −5 the stem; any input size."""

    pooling: Pooling = "attention"
    stride = 32
    middle_stage = -2  # layer3, stride 16

    def __init__(self, model: Any, tokenizer: Tokenizer, name: str, *, copied: bool = True) -> None:
        parts = OpenClipParts(model, tokenizer, name, OpenClipResNet, copied=copied)
        tower = fold_batch_norms(parts.visual)
        super().__init__([Stem(tower), tower.layer1, tower.layer2, tower.layer3, tower.layer4], parts.mean, parts.std)
        # Our attention pool with open_clip's parameters: it has batched gradients and fits any grid.
        pool, side = tower.attnpool, math.isqrt(len(tower.attnpool.positional_embedding) - 1)
        with torch.device("meta"):  # skips the random initialisation, as weights are loaded next
            channels = pool.positional_embedding.shape[1]
            self.pool_layer = AttentionPool((side, side), channels, pool.num_heads, pool.c_proj.out_features)
        self.pool_layer.load_state_dict(pool.state_dict(), assign=True)
        self.embedding_size = tower.output_dim
        parts.complete(self)

    @staticmethod
    def supports(visual: nn.Module) -> bool:
        return isinstance(visual, ModifiedResNet)

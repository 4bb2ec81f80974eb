"""`mini-vit`: a hybrid ViT on `mini`'s convolutions, distilled from `mini`; tools/build_mini_vit.py."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cliploc.towers import mini
from cliploc.towers._catalogue import check_bundled, register_model
from cliploc.towers._layers import resize_positions, resolve_precision
from cliploc.towers._mini_text import MiniTextTower, read_facts
from cliploc.towers._transformer import PreNormBlock, TransformerBackbone
from cliploc.towers.mini import EfficientNetLite0

WEIGHTS = Path(__file__).parent / "mini_vit_weights"
STEM_CHANNELS = 320


def load_stem() -> nn.Sequential:
    """`mini`'s convolutions, `[B, 3, H, W]` → `[B, 320, h, w]` at stride 16: dilated (Yu & Koltun 2016)."""
    tensors = {name: tensor.float() for name, tensor in load_file(mini.WEIGHTS / "image.safetensors").items()}
    first, *stages, _ = EfficientNetLite0.of(tensors, output_stride=16).stages()
    stem = nn.Sequential(*first, *stages)
    return stem.to(memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]


class HybridBlocks(nn.Module):
    """The trained part: patch projection, class token, position embeddings, blocks, projection to the joint space."""

    def __init__(self, grid: tuple[int, int], width: int, depth: int, heads: int, mlp_ratio: float, size: int) -> None:
        super().__init__()
        self.grid = grid
        self.patch_embed = nn.Linear(STEM_CHANNELS, width)
        self.class_token = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.zeros(1 + grid[0] * grid[1], width))
        self.blocks: Sequence[PreNormBlock]
        self.blocks = nn.ModuleList(PreNormBlock(width, heads, mlp_ratio) for _ in range(depth))  # type: ignore[assignment]
        self.ln_post = nn.LayerNorm(width)
        self.projection = nn.Linear(width, size, bias=False)

    def embed(self, features: Tensor, positions: Tensor) -> Tensor:
        """The first block's tokens `[B, 1+N, d]`, from the stem's features `[B, N, 320]` and positions `[1+N, d]`."""
        patches = self.patch_embed(features)  # [B, N, d]
        first = self.class_token.to(patches.dtype).expand(len(patches), 1, -1)
        return torch.cat([first, patches], dim=1) + positions.to(patches.dtype)

    def gathered(self, features: Tensor, positions: Tensor) -> Tensor:
        """The class token after the last block and `ln_post`, `[B, d]`; arguments as for `embed`."""
        tokens = self.embed(features, positions)
        for block in self.blocks:
            tokens = block(tokens)
        return self.ln_post(tokens[:, 0])

    def forward(self, features: Tensor, positions: Tensor) -> Tensor:
        """The class token's embedding `[B, D]`, not normalised; arguments as for `embed`."""
        return self.projection(self.gathered(features, positions))


class MiniVit(TransformerBackbone):
    """`mini`'s convolutions, four transformer blocks with a class token, and `mini`'s text tower: 1,280 dimensions."""

    name = "mini-vit"
    input_hw = (224, 224)
    stride = 16
    text: MiniTextTower
    channels_last = True

    def __init__(self, stem: nn.Module, net: HybridBlocks, text: MiniTextTower, facts: Any) -> None:
        super().__init__(net.blocks, 1, mini.MEAN, mini.STD)
        self.stem, self.net, self.ln_post, self.text = stem, net, net.ln_post, text
        self.embedding_size = net.projection.out_features
        self.logit_scale = facts.logit_scale

    @classmethod
    def bundled(cls) -> Self:
        """Loads the model in the package, frozen, in eval mode, on the CPU."""
        facts = read_facts(WEIGHTS / "mini_vit.json")
        tensors = {name: tensor.float() for name, tensor in load_file(WEIGHTS / "image.safetensors").items()}
        with torch.device("meta"):
            net = HybridBlocks(**vars(facts.shape))
        net.load_state_dict(tensors, assign=True)
        model = cls(load_stem(), net, MiniTextTower.load(mini.WEIGHTS), facts)
        return model.eval().requires_grad_(False)

    def embed(self, images: Tensor) -> Tensor:
        features = self.stem(images)  # [B, 320, h, w]
        grid = (features.shape[-2], features.shape[-1])
        positions = resize_positions(self.net.positions, 1, self.net.grid, grid, self.position_rule)  # [1+N, d]
        return self.net.embed(features.flatten(2).transpose(1, 2), positions)

    def pool(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.read_normed(self.ln_post(tokens[:, 0])), None

    @property
    def last_norm(self) -> nn.LayerNorm:
        return self.ln_post

    def read_normed(self, normed: Tensor) -> Tensor:
        return self.net.projection(normed)

    def unknown_reason(self, word: str) -> str | None:
        return self.text.unknown_reason(word, self.name)

    def remark(self, word: str) -> str | None:
        return self.text.remark(word, self.name)


def _build(pretrained: str | None, device: str, precision: str) -> MiniVit:
    check_bundled("mini-vit", pretrained)
    model = MiniVit.bundled()
    dtype = resolve_precision(precision, device)  # the text tower stays in float32
    model.stem.to(dtype)
    model.net.to(dtype)
    return model.to(device)


register_model(
    "mini-vit", MiniVit, _build, mini.MEAN, mini.STD, parameters=8.2, licence="Apache-2.0",
    about="bundled: a small vision transformer taught by mini; runs offline, every ViT method works on it",
)  # fmt: skip

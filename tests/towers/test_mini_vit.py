"""`mini-vit`: its stem and words are `mini`'s, its blocks are those of timm, and it knows real photographs."""

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models.vision_transformer import Block as TimmBlock
from torch import Tensor, nn

from cliploc.images.demo import demo_photos
from cliploc.images.geometry import Frame
from cliploc.towers import mini
from cliploc.towers._mini_text import MiniTextTower
from cliploc.towers.mini_vit import WEIGHTS, HybridBlocks, MiniVit, PreNormBlock, load_stem
from tests.tiny import seeded
from tests.tolerances import assert_rounded
from tests.towers.seam import SENTENCES, BundledContract, TransformerContract, perturb, timms_attention
from tests.towers.test_mini import pixels, shipped


@pytest.fixture(scope="module")
def backbone() -> MiniVit:
    return MiniVit.bundled()


def timms(block: PreNormBlock) -> TimmBlock:
    """timm's block with the same tensors."""
    theirs = TimmBlock(block.norm1.normalized_shape[0], block.heads, 2, qkv_bias=True)
    theirs.load_state_dict(block.state_dict())
    return theirs


class Host(nn.Module):
    """The same tower out of timm's own parts: norms not folded, blocks run by themselves."""

    def __init__(self, net: HybridBlocks) -> None:
        super().__init__()
        convolutions = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0, output_stride=16)
        convolutions.load_state_dict(shipped())
        net = copy.deepcopy(net)
        net.blocks = nn.ModuleList(timms(block) for block in net.blocks)
        self.visual = nn.ModuleDict({"convolutions": convolutions, "net": net}).requires_grad_(True)

    def encode_image(self, images: Tensor) -> Tensor:
        convolutions, net = self.visual["convolutions"], self.visual["net"]
        x = convolutions.blocks(convolutions.bn1(convolutions.conv_stem(images)))  # [B, 320, h, w]
        x = net.patch_embed(x.permute(0, 2, 3, 1)).flatten(1, 2)  # [B, N, d]
        x = torch.cat([net.class_token.expand(len(x), 1, -1), x], dim=1) + net.positions
        for block in net.blocks:
            x = block(x)
        return net.projection(net.ln_post(x))[:, 0]

    def encode_text(self, tokens: Tensor) -> Tensor:
        return mini.Mini.bundled().encode_text(SENTENCES)


class TestBundled(BundledContract):
    """The fixture is the module's."""

    weights, most = WEIGHTS, 15 * 10**6


class TestSmall(TransformerContract):
    """The stem as it is, and small random blocks learnt on a grid of 3×4."""

    @pytest.fixture(scope="class")
    @classmethod
    def net(cls) -> HybridBlocks:
        return perturb(seeded(lambda: HybridBlocks((3, 4), width=32, depth=3, heads=4, mlp_ratio=2, size=1280), 0))

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, net: HybridBlocks) -> Host:
        return Host(net).eval()

    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls, net: HybridBlocks) -> MiniVit:
        facts = SimpleNamespace(logit_scale=40.0, presence=SimpleNamespace(scale=1.0, bias=0.0))
        small = MiniVit(load_stem(), net, MiniTextTower.load(mini.WEIGHTS), facts).eval()
        small.input_hw = (48, 64)
        return small.requires_grad_(False)

    def resized(self, model: Host, height: int, width: int) -> Host:
        other = copy.deepcopy(model)
        net, grid = other.visual["net"], [height // 16, width // 16]
        positions = net.positions.detach()[None]
        resized = timm.layers.resample_abs_pos_embed(positions, grid, [3, 4], num_prefix_tokens=1)[0]
        net.positions = nn.Parameter(resized)
        return other

    def blocks(self, model: Host) -> nn.ModuleList:
        return model.visual["net"].blocks

    def their_attention(
        self, model: Host, index: int, entering: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        return timms_attention(self.blocks(model)[index], entering)

    def test_half_precision_gives_float32_close_to_full(self, backbone: Any, images: Tensor) -> None:
        """The text tower, which is shared, stays in float32; see `test_precision`."""


def test_a_complete_block_is_timms() -> None:
    """As in training; where it is run in steps, the contract compares it."""
    block = perturb(seeded(lambda: PreNormBlock(32, 4, 2), 0))
    x = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert_rounded(block(x), timms(block)(x), block)


@pytest.mark.parametrize("hw", [(224, 224), (96, 160)])
def test_every_second_location_is_minis(hw: tuple[int, int]) -> None:
    backbone, stem = mini.Mini.bundled(), load_stem()
    images = backbone.normalize(pixels(*hw))
    with torch.no_grad():
        expected = images
        for stage in backbone.stages[:8]:
            expected = stage(expected)  # [1, 320, H/32, W/32]
        fine = stem(images)
    assert fine.shape[-2:] == (hw[0] // 16, hw[1] // 16)
    assert_rounded(fine[:, :, 1::2, 1::2], expected, stem)
    assert (fine[:, :, ::2, ::2] - expected).abs().max() > 0.1


def test_it_says_of_photographs_what_mini_says(backbone: MiniVit) -> None:
    """By the whole path of preprocessing, image and text; none of these photographs was trained on."""
    teacher = mini.Mini.bundled()
    images = []
    for photo in demo_photos():
        image = Image.open(photo.path).convert("RGB")
        square = Frame.fit("squash", (image.height, image.width), (224, 224)).apply(image)
        images.append(torch.tensor(np.asarray(square)).permute(2, 0, 1) / 255)
    x = torch.stack(images)
    ours, theirs = backbone.encode_image(backbone.normalize(x)), teacher.encode_image(teacher.normalize(x))
    assert (ours * theirs).sum(dim=1).mean() > 0.6
    # Of all pictures each is most like itself as the teacher sees it.
    assert ((ours @ theirs.T).argmax(dim=1) == torch.arange(len(x))).float().mean() >= 0.9
    names = [photo.ask[0] for photo in demo_photos()]
    first = (ours @ backbone.encode_text([f"a photo of a {name}." for name in names]).T).argmax(dim=1)
    right = [names[int(i)] in photo.truth for i, photo in zip(first, demo_photos(), strict=True)]
    assert sum(right) >= len(right) - 2

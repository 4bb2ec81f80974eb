"""dino.txt's layout, on random weights of tiny sizes: the embeddings of a plain implementation of its equations.

dinotxt_authors.json has what the authors' own code (facebookresearch/dinov3 at 6876159, facebookresearch/dinov2 at
b8931f7) makes of models of these sizes: names and shapes of the tensors of each published file, in their order, and
every 32nd number of the embeddings that the weights of `checkpoint` give there.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.errors import CliplocWarning, ModelError, UsageError
from cliploc.towers import create
from cliploc.towers._weights import Checkpoint
from cliploc.towers.dinotxt import DinoTxt, Family, with_weights
from cliploc.towers.tower import Needs
from tests.methods.towers import ours
from tests.tolerances import assert_rounded
from tests.towers.plain_blocks import PlainBlock, PlainTowerContract
from tests.towers.seam import SENTENCES, pictures, refusing

WIDTH, HEADS, REGISTERS, SIDE = 128, 2, 4, 64
TEXT_WIDTH, CONTEXT = 64, 20
FAMILIES = ("dinov3", "dinov2")
PATCH = {"dinov3": 16, "dinov2": 14}
AUTHORS = json.loads((Path(__file__).parent / "dinotxt_authors.json").read_text())
PREFIXES = {"image": "visual_model.backbone", "head": "visual_model.head", "text": "text_model"}
TEXTS = ["a cat", "two DOGS on a sofa", "word " * 60]


# ------------------------------------------------------------------------------------------- a checkpoint of the layout
def files(family: str) -> dict[str, dict[str, Tensor]]:
    """The published files, with random numbers."""
    random = np.random.RandomState(3)
    made: dict[str, dict[str, Tensor]] = {}
    for part, shapes in AUTHORS[family]["files"].items():
        made[part] = {name: tensor(name, shape, random) for name, shape in shapes.items()}
    return made


def tensor(name: str, shape: list[int], random: np.random.RandomState) -> Tensor:
    if name == "logit_scale":
        return torch.tensor([3.0])
    if name.endswith("periods"):
        return 100.0 ** (2 * torch.arange(16) / 32)
    if name.endswith("bias_mask"):
        return torch.tensor([1.0, 0.0, 1.0]).repeat_interleave(WIDTH)
    scale = shape[-1] ** -0.5 if name.endswith("weight") and len(shape) == 2 else 0.3
    numbers = torch.from_numpy((scale * random.standard_normal(shape)).astype(np.float32))
    return numbers + 1 if name.endswith("weight") and ("norm" in name or "ln_final" in name) else numbers


def checkpoint(family: str) -> dict[str, Tensor]:
    """All tensors by the names that DINOv3 has for them in the whole model."""
    if family == "dinov3":
        image, rest = files(family).values()
        return {f"{PREFIXES['image']}.{name}": t for name, t in image.items()} | rest
    return {
        f"{PREFIXES[part]}.{name.replace('block_list', 'blocks')}": t
        for part, tensors in files(family).items()
        for name, t in tensors.items()
    }


def full_model(family: str) -> dict[str, Tensor]:
    """The state dict of the authors' whole model, in which DINOv2's image tower is wrapped once more."""
    if family == "dinov3":
        return checkpoint(family)
    prefixes = PREFIXES | {"image": "visual_model.backbone.model"}
    named = {f"{prefixes[part]}.{name}": t for part, tensors in files(family).items() for name, t in tensors.items()}
    return named | {"logit_scale": torch.tensor([3.0])}


# ----------------------------------------------------------------------------------------- the plain implementation
def block(part: dict[str, Tensor]) -> PlainBlock:
    """A block with these tensors: DINO's, or the head's, without biases of queries, keys and values, and gated."""
    gated, bias = "mlp.w1.weight" in part, "attn.qkv.bias" in part
    if bias:
        part["attn.qkv.bias"] = part["attn.qkv.bias"] * part.pop("attn.qkv.bias_mask")
    for end in ("weight", "bias") if gated else ():
        part[f"mlp.w12.{end}"] = torch.cat([part.pop(f"mlp.w1.{end}"), part.pop(f"mlp.w2.{end}")])
    inner = part["mlp.w3.weight" if gated else "mlp.fc2.weight"].shape[1]
    made = PlainBlock(WIDTH, HEADS, "gamma", gated=gated, inner=inner, bias=bias, eps=1e-5)
    made.load_state_dict(part)
    return made


def below(part: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): t for name, t in part.items() if name.startswith(f"{prefix}.")}


def norm(part: dict[str, Tensor], name: str) -> nn.LayerNorm:
    layer = nn.LayerNorm(part[f"{name}.weight"].shape[0], eps=1e-5)
    layer.load_state_dict(below(part, name))
    return layer


class Visual(nn.Module):
    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.part, head = below(tensors, "visual_model.backbone"), below(tensors, "visual_model.head")
        self.blocks = nn.ModuleList(block(below(self.part, f"blocks.{i}")) for i in range(2))
        self.head = nn.ModuleList(block(below(head, f"blocks.{i}")) for i in range(2))
        self.norm, self.ln_final = norm(self.part, "norm"), norm(head, "ln_final")

    def turn(self, grid: tuple[int, int]) -> Any:
        """RoPE (Su 2021) of a head's queries or keys: places from −1 to 1, the rows' in the first quarter of angles."""
        rows, columns = (2 * (torch.arange(n) + 0.5) / n - 1 for n in grid)
        y, x = (places.flatten() for places in torch.meshgrid(rows, columns, indexing="ij"))
        periods = self.part["rope_embed.periods"].float()
        angles = torch.cat([2 * math.pi * place[:, None] / periods for place in (y, x)], dim=1).repeat(1, 2)  # [N, 64]

        def turned(tokens: Tensor) -> Tensor:
            first, patches = tokens[:, : 1 + REGISTERS], tokens[:, 1 + REGISTERS :]
            half = torch.cat([-patches[..., 32:], patches[..., :32]], dim=-1)
            return torch.cat([first, patches * angles.cos() + half * angles.sin()], dim=1)

        return turned

    def dino(self, images: Tensor) -> Tensor:
        """The frozen tower's normed tokens."""
        part = self.part
        patches = F.conv2d(images, part["patch_embed.proj.weight"], part["patch_embed.proj.bias"], stride=16)
        grid = (patches.shape[-2], patches.shape[-1])
        first = (part[name].expand(len(images), -1, -1) for name in ("cls_token", "storage_tokens"))
        x = torch.cat([*first, patches.flatten(2).transpose(1, 2)], dim=1)
        for one in self.blocks:
            x = one(x, turn=self.turn(grid))
        return self.norm(x)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.dino(images)
        for one in self.head:
            x = one(x)
        x = self.ln_final(x)
        patches = x[:, 1 + REGISTERS :]
        return torch.cat([x[:, 0], patches.mean(dim=1)], dim=1), patches


class Plain(nn.Module):
    """The whole model, with the members that the tests of towers ask of a host."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        self.visual = Visual(tensors)

    def encode_image(self, images: Tensor) -> Tensor:
        return self.visual(images)[0]

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Of `SENTENCES`, by our own tower: the authors' embeddings are compared below."""
        return tiny("dinov3").encode_text(SENTENCES)


def tiny(family: Family) -> DinoTxt:
    return with_weights(Checkpoint(Path("tiny.pth"), checkpoint(family)), family)


# --------------------------------------------------------------------------------------------------------------- tests
class TestHead(PlainTowerContract):
    """What every ViT holds, with the blocks of the head as the tower's."""

    side = SIDE

    @staticmethod
    def make() -> Plain:
        return Plain(checkpoint("dinov3")).eval()

    @staticmethod
    def read(folder: Path, model: Plain) -> DinoTxt:
        return tiny("dinov3")

    def blocks(self, model: Plain) -> nn.ModuleList:
        return model.visual.head


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family → a folder with the published files, one of DINOv3's as safetensors."""
    made = {}
    for family in FAMILIES:
        made[family] = tmp_path_factory.mktemp(family)
        for part, tensors in files(family).items():
            torch.save(tensors, made[family] / f"{part}.pth")
    save_file(files("dinov3")["image"], made["dinov3"] / "image.safetensors")
    (made["dinov3"] / "image.pth").unlink()
    return made


@pytest.mark.filterwarnings("ignore:.*has no logit_scale")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", ["published files", "whole model"])
def test_the_authors_files_give_the_authors_embeddings(
    folders: dict[str, Path], tmp_path: Path, family: str, form: str
) -> None:
    path = folders[family]
    if form == "whole model":
        torch.save(full_model(family), path := tmp_path / "whole.pth")
    backbone, theirs = create(f"{family}-l-dinotxt", str(path)), AUTHORS[family]["outputs"]
    for rows, columns in ((5, 5), (4, 7)):
        shape = (2, 3, rows * PATCH[family], columns * PATCH[family])
        images = torch.from_numpy(np.random.RandomState(5).standard_normal(shape).astype(np.float32))
        assert_rounded(
            backbone.encode_image(images)[:, ::32], torch.tensor(theirs[f"images {rows}x{columns}"]), backbone
        )
    assert_rounded(backbone.encode_text(TEXTS)[:, ::32], torch.tensor(theirs["texts"]), backbone)
    assert backbone.logit_scale == pytest.approx(
        100 if (family, form) == ("dinov2", "published files") else math.exp(3)
    )


@pytest.mark.parametrize("cells", [(5, 5), (4, 7)], ids=str)
def test_patches_are_those_of_the_equations(folders: dict[str, Path], cells: tuple[int, int]) -> None:
    backbone, plain = create("dinov3-l-dinotxt", str(folders["dinov3"])), Plain(checkpoint("dinov3"))
    images, message = pictures(cells[0] * 16, cells[1] * 16), backbone.encode_text(TEXTS)
    with torch.no_grad():
        full, patches = plain.visual(images)
        dino = plain.visual.dino(images)[:, 1 + REGISTERS :].transpose(1, 2).reshape(2, WIDTH, *cells)
    assert_rounded(backbone.encode_image(images), F.normalize(full, dim=1), backbone)
    # The dense reading: every patch after the head against the second half of the text.
    expected = F.normalize(patches, dim=2) @ F.normalize(message[:, WIDTH:], dim=1).T  # [B, N, P]
    assert_rounded(
        ours("patch_tokens", backbone, images, message), expected.transpose(1, 2).reshape(2, 3, *cells), backbone
    )
    # What enters the head are DINO's own features, by which places are compared.
    assert_rounded(backbone.trace(images, Needs(features=(-2,))).features[backbone.middle_stage], dino, backbone)
    assert backbone.weights_file == folders["dinov3"]
    assert (backbone.input_hw, backbone.resize_policy) == ((224, 224), "crop")


def test_what_is_missing_or_another_models_is_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    path, tensors = tmp_path / "whole.safetensors", checkpoint("dinov3")

    def refused(changed: dict[str, Tensor | None], *fragments: str, name: str = "dinov3") -> None:
        save_file({key: t for key, t in (tensors | changed).items() if t is not None}, path)
        with refusing(str(path), *fragments):
            create(f"{name}-l-dinotxt", str(path))

    image = {key: None for key in tensors if key.startswith("visual_model.backbone.")}
    refused(image, "lacks dino.txt's image tower: give a folder with the files of all")
    refused({"visual_model.head.ln_final.bias": None}, "1 missing (visual_model.head.ln_final.bias …)")
    refused({"visual_model.backbone.patch_embed.proj.weight": torch.zeros(4)}, "does not hold a model that can be used")
    refused({}, "use --model dinov3-l-dinotxt --pretrained", name="dinov2")
    with pytest.raises(UsageError, match="expected weights for dinov2-l-dinotxt, got none: add --pretrained with a"):
        create("dinov2-l-dinotxt")
    (tmp_path / "none").mkdir()
    with pytest.raises(ModelError, match=f"expected dino.txt's weights in {tmp_path / 'none'}, found none"):
        create("dinov3-l-dinotxt", str(tmp_path / "none"))
    save_file({"blocks.0.weight": torch.zeros(2)}, path)
    with pytest.raises(ModelError, match=r"holds no part of dino.txt: expected names such as visual_model.head.ln_fi"):
        create("dinov3-l-dinotxt", str(path))


def test_dinov2s_files_have_no_logit_scale_and_get_clips() -> None:
    with pytest.warns(CliplocWarning, match=r"tiny\.pth has no logit_scale: CLIP's, 100, is used"):
        assert tiny("dinov2").logit_scale == pytest.approx(100)

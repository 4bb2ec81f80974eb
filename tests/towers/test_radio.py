"""C-RADIO's files, on random weights of tiny sizes: the embeddings of a plain implementation of its equations.

The files have the authors' layout (NVlabs/RADIO at c0f3701: `enable_spectral_reparam.py` saves it, `hubconf.py` reads
it): arch, epoch, state dict, and the settings of the training as a namespace of argparse.
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.errors import MissingWeightsError, ModelError, UsageError
from cliploc.methods import fitting
from cliploc.towers import create
from cliploc.towers.radio import Radio
from tests.commands import cliploc_
from tests.methods.towers import ours
from tests.tolerances import assert_rounded
from tests.towers import small_clip
from tests.towers.plain_blocks import PlainBlock, PlainTowerContract
from tests.towers.seam import SENTENCES, perturb, pictures, refusing

WIDTH, HEADS, PATCH, GRID, DEPTH, PREFIX, SIZE = 84, 12, 16, 5, 3, 8, 24
TEACHERS = [
    {"name": "clip", "type": "open_clip", "model": "small-clip", "pretrained": "dfn5b"},
    {"name": "siglip2", "type": "siglip2", "model": "siglip2-so400m"},
    {"name": "sam", "type": "sam", "model": "vit-h", "use_summary": False},
]
SETTINGS = {"model": "vit_base_patch16_224", "teachers": TEACHERS, "mlp_version": "v2", "dtype": torch.float32}


def step(size: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(40), nn.GELU(), nn.Linear(40, size))


class Plain(nn.Module):
    """The tower with one head, with the members that the tests of towers ask of a host."""

    def __init__(self, slot: int, *, scaled: bool = False, normed: bool = False) -> None:
        super().__init__()
        blocks = nn.ModuleList(PlainBlock(WIDTH, HEADS, "grandma" if scaled else "") for _ in range(DEPTH))
        self.slot, self.visual = slot, nn.ModuleDict({"blocks": blocks})
        self.visual["embedder"] = nn.Linear(3 * PATCH**2, WIDTH, bias=False)
        self.visual["norm"] = nn.LayerNorm(WIDTH, eps=1e-6) if normed else nn.Identity()
        self.first, self.places = nn.Parameter(torch.zeros(PREFIX, WIDTH)), nn.Parameter(torch.zeros(1, GRID**2, WIDTH))
        self.head = nn.ModuleDict(
            {"fc1": nn.Linear(WIDTH, 40), "blocks": nn.ModuleList([step(40)]), "final": step(SIZE)}
        )

    def tokens(self, images: Tensor) -> Tensor:
        h, w = images.shape[-2] // PATCH, images.shape[-1] // PATCH
        cells = images.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5)  # [B, h, w, 3, p, p]
        places = self.places.reshape(1, GRID, GRID, WIDTH).permute(0, 3, 1, 2)
        places = F.interpolate(places, size=(max(h, w),) * 2, mode="bilinear")[..., :h, :w].flatten(2).transpose(1, 2)
        x = torch.cat(
            [self.first.expand(len(images), -1, -1), self.visual["embedder"](cells.reshape(-1, h * w, 768)) + places], 1
        )
        for block in self.visual["blocks"]:
            x = block(x)
        return self.visual["norm"](x)

    def read(self, x: Tensor) -> Tensor:
        x = self.head["fc1"](x)
        return self.head["final"](x + self.head["blocks"][0](x))

    def encode_image(self, images: Tensor) -> Tensor:
        return self.read(self.tokens(images)[:, self.slot])

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Of `SENTENCES`, by the text tower beside the file."""
        return text_tower().encode_text(small_clip.tokenizer()(SENTENCES))

    def state(self, heads: str) -> dict[str, Tensor]:
        """Under the authors' names."""
        part = "base_model.patch_generator."
        named = {f"{part}cls_token.token": self.first, f"{part}pos_embed": self.places}
        for name, tensor in self.visual.state_dict().items():
            named["base_model." + ("patch_generator." if name.startswith("embedder") else "") + name] = tensor
        return named | {f"{heads}.{name}": tensor for name, tensor in self.head.state_dict().items()}


def text_tower() -> Any:
    return perturb(small_clip.small_clip())


def plain(slot: int = 0, **how: bool) -> Plain:
    torch.manual_seed(1)
    return perturb(Plain(slot, **how), 0.2)


def saved(folder: Path, tower: Plain, heads: str, name: str = "c-radio_v3-b_half.pth.tar", **changes: Any) -> Path:
    """A file of the authors' layout, and beside it the text towers of both of its heads."""
    for text in ("small-clip", "siglip2-so400m-patch16-naflex"):
        if not (folder / text).exists():
            save_file(text_tower().state_dict(), small_clip.save_folder(folder / text) / "open_clip_model.safetensors")
    state, key = {k: t.detach().clone() for k, t in tower.state(heads).items()}, changes.pop("key", "state_dict")
    state |= {
        "base_model.reg_token": torch.zeros(1, 4, WIDTH),
        "_feature_projections.clip.fc1.weight": torch.zeros(2, 2),
    }
    state |= {"input_conditioner.norm_mean": torch.full((3, 1, 1), 0.4), **changes.pop("tensors", {})}
    environment = {k: t for k, t in state.items() if t is not None}
    torch.save({"arch": "vit", "epoch": 1, key: environment, "args": Namespace(**(SETTINGS | changes))}, folder / name)
    return folder / name


class TestTower(PlainTowerContract):
    """What every ViT holds; the clip head's class token is the first."""

    side = GRID * PATCH
    make = staticmethod(plain)

    @staticmethod
    def read(folder: Path, model: Plain) -> Radio:
        return create("c-radio-clip", str(saved(folder, model, "_heads.clip")))


@pytest.mark.parametrize("head", ["clip", "siglip2"])
@pytest.mark.parametrize("like_dino", [False, True])
def test_a_file_of_the_authors_gives_embeddings_and_patches_of_the_equations(
    tmp_path: Path, head: str, like_dino: bool
) -> None:
    slot = 0 if head == "clip" else 1
    model, heads = plain(slot, scaled=like_dino, normed=like_dino), f"_heads.{slot if like_dino else head}"
    key = "state_dict_ema" if like_dino else "state_dict"
    arch = "vit_base_patch16_v2_224" if like_dino else SETTINGS["model"]
    saved(tmp_path, model, heads, key=key, model=arch, model_norm=like_dino)
    backbone: Any = create(f"c-radio-{head}", str(tmp_path))
    for height, width in ((80, 80), (48, 112)):
        images = pictures(height, width)
        with torch.no_grad():
            expected = F.normalize(model.encode_image(images), dim=1)
            tokens = model.tokens(images)[:, PREFIX:]
            patches = F.normalize(model.read(tokens), dim=2) @ backbone.encode_text(["a cat"]).T  # [B, N, 1]
        assert_rounded(backbone.encode_image(images), expected, backbone)
        maps = ours("patch_tokens", backbone, images, backbone.encode_text(["a cat"]))
        assert_rounded(maps.flatten(2), patches.transpose(1, 2), backbone)
    assert {"radseg", "decomposition", "grad_eclip"} <= set(fitting(backbone))
    assert backbone.mean.flatten().tolist() == pytest.approx([0.4] * 3)
    assert (backbone.input_hw, backbone.prefix_tokens) == ((512, 512), PREFIX)
    assert backbone.logit_scale == pytest.approx(1 / 0.07, rel=0.3)
    with torch.no_grad():
        message = F.normalize(
            text_tower().encode_text(small_clip.tokenizer()(["Two_DOGS, on  it's way!", "two dogs on its way"]))
        )
    reported = backbone.encode_text(["Two_DOGS, on  it's way!"])
    assert_rounded(reported[0], message[1 if head == "siglip2" else 0], backbone)  # big_vision's canonical form


def test_a_weight_stored_as_direction_and_norm_is_computed(tmp_path: Path) -> None:
    """σReparam: W = scale · V / σ(V), for queries, keys and values apart; what only training perturbs is as it is."""
    model, at = plain(), "base_model.blocks.0.attn"
    layers = model.visual["blocks"][0].attn
    tensors: dict[str, Tensor | None] = {f"{at}.{name}.weight": None for name in ("qkv", "proj")}
    tensors[f"{at}.qkv.parametrizations.weight.original"] = layers.qkv.weight.detach().clone()
    for i, part in enumerate(layers.qkv.weight.detach().chunk(3)):
        _, sizes, v = torch.linalg.svd(part)
        tensors |= {f"{at}.qkv.parametrizations.weight.0.parts.{i}.{k}": t for k, t in norm_of(v[0], 1.0 + i).items()}
        layers.qkv.weight.data[i * WIDTH : (i + 1) * WIDTH] = (
            part * (F.softplus(torch.tensor(1.0 + i)) + 0.05) / sizes[0]
        )
    tensors[f"{at}.proj.parametrizations.weight.original"] = layers.proj.weight.detach().clone()
    backbone: Any = create("c-radio-clip", str(saved(tmp_path, model, "_heads.clip", tensors=tensors)))
    with torch.no_grad():
        assert_rounded(
            backbone.encode_image(pictures(80, 80)), F.normalize(model.encode_image(pictures(80, 80)), dim=1), backbone
        )
    del tensors[f"{at}.qkv.parametrizations.weight.0.parts.1._v"]
    with pytest.raises(ModelError, match="does not hold a model that can be used"):
        create("c-radio-clip", str(saved(tmp_path, model, "_heads.clip", tensors=tensors)))


def norm_of(v: Tensor, scale: float) -> dict[str, Tensor]:
    return {"_v": v.clone(), "scale": torch.tensor([[scale]]), "_sn_version": torch.tensor(2)}


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    def refused(*fragments: str, heads: str = "_heads.clip", **changes: Any) -> None:
        path = saved(tmp_path, plain(), heads, **changes)
        with refusing(str(tmp_path), *fragments):
            create("c-radio-clip", str(path))

    refused("expected a ViT of C-RADIOv3 with a head of the type open_clip", teachers=TEACHERS[1:])
    refused("is a dinov2_vitg14_reg with heads of clip, siglip2, sam", model="dinov2_vitg14_reg")
    refused("does not say how C-RADIO was trained (", "teachers", teachers="clip")
    refused("does not hold a model that can be used", heads="_heads.dino")
    refused("normalises its features", tensors={"_feature_normalizer.mean": torch.zeros(2)})
    refused("1 missing (blocks.1.attn.proj.bias …)", tensors={"base_model.blocks.1.attn.proj.bias": None})
    refused(
        "1 unexpected (blocks.0.attn.q_norm.weight", tensors={"base_model.blocks.0.attn.q_norm.weight": torch.ones(8)}
    )
    refused("refused: ", "could run code (pathlib", root=Path("somewhere"))
    path = saved(tmp_path, plain(), "_heads.clip")
    torch.save(plain().state("_heads.clip"), tmp_path / "bare.pth")
    with pytest.raises(ModelError, match="does not say how C-RADIO was trained"):
        create("c-radio-clip", str(tmp_path / "bare.pth"))
    with pytest.raises(MissingWeightsError, match=r"expected one file of C-RADIO in .*, found 2: name the file"):
        create("c-radio-clip", str(tmp_path))
    with pytest.raises(UsageError, match="expected weights for c-radio-clip, got none: add --pretrained with the file"):
        create("c-radio-clip")
    with pytest.raises(ModelError, match=r"refused: .*could run code \(argparse"):
        create("ViT-B-32", str(path))  # only C-RADIO's reader takes a namespace
    assert "NVIDIA Open Model License" in cliploc_("models", "c-radio-siglip2").out

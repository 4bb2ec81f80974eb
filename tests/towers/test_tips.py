"""TIPSv2's files, on random weights of tiny sizes: the embeddings of a plain implementation of its equations.

The files have the layout of google/tipsv2-b14: the state dicts of the authors' `image_encoder.py` and `text_encoder.py`
(google-deepmind/tips at 4db271d) under two prefixes, in one safetensors file, and a tokenizer saved by transformers.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.errors import MissingWeightsError, UsageError
from cliploc.methods import fitting
from cliploc.towers import create
from cliploc.towers.tips import Tips
from tests.methods.towers import ours
from tests.tolerances import assert_rounded
from tests.towers.plain_blocks import PlainBlock, PlainTowerContract
from tests.towers.seam import SENTENCES, perturb, pictures, refusing

WIDTH, HEADS, PATCH, GRID, DEPTH = 128, 2, 14, 5, 3
WORDS = ["<pad>", "<unk>", "a", "photo", "of", "cat", "dogs", "two"]


class Plain(nn.Module):
    """Both towers, with the members that the tests of towers ask of a host."""

    def __init__(self, *, gated: bool = False) -> None:
        super().__init__()
        blocks = nn.ModuleList(PlainBlock(WIDTH, HEADS, "gamma", gated=gated, inner=2 * WIDTH) for _ in range(DEPTH))
        self.visual = nn.ModuleDict({"blocks": blocks, "norm": nn.LayerNorm(WIDTH, eps=1e-6)})
        self.visual["patch_embed"] = nn.ModuleDict({"proj": nn.Conv2d(3, WIDTH, PATCH, PATCH)})
        self.tokens = nn.ParameterDict(
            {
                "cls_token": torch.zeros(1, 1, WIDTH),
                "register_tokens": torch.zeros(1, 1, WIDTH),
                "pos_embed": torch.zeros(1, 1 + GRID**2, WIDTH),
                "mask_token": torch.zeros(1, WIDTH),
            }
        )
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 96, 0.0, "relu", batch_first=True, norm_first=True)
        self.layers = nn.ModuleList([layer])
        self.words, self.ln_final = nn.Embedding(len(WORDS), WIDTH), nn.LayerNorm(WIDTH)

    def features(self, images: Tensor) -> Tensor:
        tokens = self.tokens
        x = self.visual["patch_embed"]["proj"](images)  # [B, d, h, w]
        places = tokens["pos_embed"][:, 1:].reshape(1, GRID, GRID, WIDTH).permute(0, 3, 1, 2)
        x = (x + F.interpolate(places, size=x.shape[-2:], mode="bilinear", antialias=True)).flatten(2).transpose(1, 2)
        first = torch.cat([tokens["cls_token"] + tokens["pos_embed"][:, :1], tokens["register_tokens"]], dim=1)
        x = torch.cat([first.expand(len(x), -1, -1), x], dim=1)
        for block in self.visual["blocks"]:
            x = block(x)
        return self.visual["norm"](x)

    def encode_image(self, images: Tensor) -> Tensor:
        return self.features(images)[:, 0]

    def say(self, text: str) -> Tensor:
        """One text, alone, so that nothing fills it: the mean over its tokens."""
        ids = torch.tensor([WORDS.index(word) if word in WORDS else 1 for word in text.lower().split()])[:64]
        angles = torch.arange(len(ids))[:, None] / 10_000 ** (torch.arange(WIDTH // 2) / (WIDTH // 2 - 1))
        x = math.sqrt(WIDTH) * self.words(ids) + torch.cat([angles.sin(), angles.cos()], dim=1)
        return self.ln_final(self.layers[0](x[None]))[0].mean(dim=0)

    def encode_text(self, tokens: Tensor) -> Tensor:
        return torch.stack([self.say(text) for text in SENTENCES])

    def state(self) -> dict[str, Tensor]:
        """Under the authors' names."""
        image = {**self.visual.state_dict(), **self.tokens}
        text = {"token_embedding.weight": self.words.weight}
        text |= {f"ln_final.{name}": tensor for name, tensor in self.ln_final.state_dict().items()}
        names = {"self_attn": "attn", "norm1": "ln_1", "norm2": "ln_2", "linear1": "mlp.c_fc", "linear2": "mlp.c_proj"}
        for name, tensor in self.layers[0].state_dict().items():
            part, _, rest = name.partition(".")
            text[f"transformer.resblocks.0.{names[part]}.{rest}"] = tensor
        named = {f"vision_encoder.{name}": tensor for name, tensor in image.items()}
        return named | {f"text_encoder.{name}": tensor for name, tensor in text.items()}


def plain(**how: bool) -> Plain:
    torch.manual_seed(2)
    return perturb(Plain(**how))


def saved(folder: Path, model: Plain, **changes: Tensor | None) -> str:
    tensors = {name: tensor.detach().clone() for name, tensor in model.state().items()} | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / "model.safetensors")
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.enable_padding(length=64)  # as some tokenizers are saved
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


class TestTower(PlainTowerContract):
    """What every ViT holds."""

    side = GRID * PATCH
    make = staticmethod(plain)

    @staticmethod
    def read(folder: Path, model: Plain) -> Tips:
        return create("tipsv2", saved(folder, model))


@pytest.mark.parametrize("gated", [False, True])
def test_a_folder_gives_embeddings_and_patches_of_the_equations(tmp_path: Path, gated: bool) -> None:
    model = plain(gated=gated)
    changes = {} if gated else {"temperature": torch.tensor(0.02)}
    backbone: Any = create("tipsv2", saved(tmp_path, model, **changes))
    texts = ["a photo of a CAT", "two dogs", "dogs " * 80, "an unknown word"]
    message = backbone.encode_text(texts)
    with torch.no_grad():
        assert_rounded(message, F.normalize(torch.stack([model.say(text) for text in texts]), dim=1), backbone)
        for height, width in ((70, 70), (42, 98)):
            images = pictures(height, width)
            tokens = model.features(images)
            assert_rounded(backbone.encode_image(images), F.normalize(tokens[:, 0], dim=1), backbone)
            expected = F.normalize(tokens[:, 2:], dim=2) @ message.T  # [B, N, P]
            maps = ours("patch_tokens", backbone, images, message)
            assert_rounded(maps.flatten(2), expected.transpose(1, 2), backbone)
    assert backbone.logit_scale == pytest.approx(1 / 0.005065968260169029 if gated else 50)
    assert backbone.encode_text([""]).isfinite().all()
    assert (backbone.input_hw, backbone.resize_policy, backbone.interpolation) == ((448, 448), "squash", "bilinear")
    assert {"radseg", "maskclip", "decomposition"} <= set(fitting(backbone))


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    def refused(*fragments: str, **changes: Tensor | None) -> None:
        with refusing(str(tmp_path), *fragments):
            create("tipsv2", saved(tmp_path, plain(), **changes))

    for part in ("vision_encoder.register_tokens", "text_encoder.token_embedding.weight"):
        refused("does not hold a model that can be used", **{part: None})
    refused("image tower of TIPSv2: of its tensors 1 missing (norm.bias …)", **{"vision_encoder.norm.bias": None})
    saved(tmp_path, plain())
    (tmp_path / "tokenizer.json").write_text("{}")
    with refusing("does not hold a model that can be used"):
        create("tipsv2", str(tmp_path))
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(
        MissingWeightsError, match=r"expected tokenizer.json in .*: save it there, once, with transformers"
    ):
        create("tipsv2", str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(MissingWeightsError, match=r"expected a file of weights, found none at .*model.safetensors"):
        create("tipsv2", str(tmp_path))
    with pytest.raises(UsageError, match="expected weights for tipsv2, got none: add --pretrained with a folder"):
        create("tipsv2")

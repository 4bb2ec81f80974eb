"""TIPSv2 (Cao et al. 2026): a ViT like DINOv2's and a text tower, whose patches are trained to match texts."""

import math
from collections.abc import Mapping, Sequence

import torch
from open_clip.transformer import ResidualAttentionBlock
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.errors import MissingWeightsError, UsageError
from cliploc.support.files import user_path
from cliploc.towers._catalogue import register_model
from cliploc.towers._layers import resolve_precision
from cliploc.towers._timm_vit import PlainVit, TimmBlock, count_parts, sizes
from cliploc.towers._transformer import TransformerBackbone
from cliploc.towers._weights import load_exactly, read_checkpoint
from cliploc.values import Interpolation, ResizePolicy

MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
SIDE, CONTEXT = 448, 64  # pixels, tokens
TEMPERATURE = 0.005065968260169029  # transformers' for files that have none
IMAGE, TEXT = "vision_encoder.", "text_encoder."
WEIGHTS, TOKENIZER = "model.safetensors", "tokenizer.json"
# The authors' names in the image tower, and transformers' where they differ → timm's.
NAMES = ((".c_fc.", ".fc1."), (".c_proj.", ".fc2."), (".w3.", ".fc2."), ("patch_embed.proj.", "patches."))


def heads_of(width: int) -> int:
    """So400m has 16 of 72 numbers, the others heads of 64."""
    return 16 if width == 1152 else width // 64


class TipsText(nn.Module):
    """The text tower: the mean of the tokens, with sines and cosines as positions, and MLPs with ReLU."""

    def __init__(self, tensors: Mapping[str, Tensor], tokenizer: Tokenizer) -> None:
        super().__init__()
        words, width = sizes(tensors, "token_embedding.weight")
        inner = sizes(tensors, "blocks.0.mlp.c_fc.weight")[0]
        self.tokenizer, self.heads = tokenizer, heads_of(width)
        self.token_embedding = nn.Embedding(words, width)
        self.blocks = nn.ModuleList(
            ResidualAttentionBlock(width, self.heads, mlp_ratio=(inner + 0.5) / width, act_layer=nn.ReLU)
            for _ in range(count_parts(tensors, "blocks."))
        )
        self.ln_final = nn.LayerNorm(width)

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """Sentences → `[n, D]` float32, unit norm."""
        weight = self.token_embedding.weight
        ids = self.token_ids(texts).to(weight.device)
        longest = ids.shape[1]
        empty = ids == 0
        empty[:, 0] = False  # a text without tokens is one that fills
        time = torch.arange(longest, device=weight.device)[:, None]
        step = math.log(10_000) / max(1, weight.shape[1] // 2 - 1)
        angles = time * torch.exp(-step * torch.arange(weight.shape[1] // 2, device=weight.device))  # [T, d/2]
        x = self.token_embedding(ids) * weight.shape[1] ** 0.5
        x = x + torch.cat([angles.sin(), angles.cos()], dim=1).to(x.dtype)
        mask = torch.zeros_like(empty, dtype=x.dtype).masked_fill(empty, -torch.inf)  # [n, T]
        mask = mask[:, None, None].expand(-1, self.heads, longest, -1).flatten(0, 1)  # [n·H, T, T]
        for block in self.blocks:
            x = block(x, attn_mask=mask)
        x = self.ln_final(x).float().masked_fill(empty[..., None], 0)
        return F.normalize(x.sum(dim=1), dim=-1)  # of the same direction as the mean

    def token_ids(self, texts: Sequence[str]) -> Tensor:
        """`[n, T]`, filled with 0."""
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch([text.lower() for text in texts])]
        longest = max(1, *(len(row) for row in rows))
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


class Tips(TransformerBackbone):
    """The embedding is the first class token, which learnt from captions of the web; a second one is a prefix token."""

    resize_policy: ResizePolicy = "squash"
    interpolation: Interpolation = "bilinear"
    input_hw = (SIDE, SIDE)

    def __init__(self, image: PlainVit, text: TipsText, name: str) -> None:
        super().__init__([TimmBlock(block) for block in image.blocks], len(image.prefix), MEAN, STD)
        self.image, self.text, self.name = image, text, name
        self.stride, self.embedding_size = image.patches.kernel_size[0], image.patches.out_channels
        self.eval().requires_grad_(False)

    def embed(self, images: Tensor) -> Tensor:
        return self.image.first_tokens(images, self.grid(images.shape[-2], images.shape[-1]), antialias=True)

    def pool(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """The first class token, normed: `[B, prefix+N, d]` → `[B, D]`, not of unit length."""
        return self.image.norm(tokens[:, 0]), None

    @property
    def last_norm(self) -> nn.LayerNorm | nn.Identity:
        return self.image.norm

    def read_normed(self, normed: Tensor) -> Tensor:
        """The tower's own space is the joint one: `[B, n, d]` as it is."""
        return normed


# --------------------------------------------------------------------------------------------------------------- files
def _build(pretrained: str | None, device: str, precision: str) -> Tips:
    dtype = resolve_precision(precision, device)
    if pretrained is None:
        raise UsageError(
            "expected weights for tipsv2, got none: add --pretrained with a folder that has the files of "
            f"huggingface.co/google/tipsv2-b14 (or -l14, -so400m14, -g14) and {TOKENIZER}"
        )
    folder = user_path(pretrained)
    weights = read_checkpoint(folder / WEIGHTS)
    image_tensors, text_tensors = renamed(weights.tensors)
    if not (folder / TOKENIZER).is_file():
        raise MissingWeightsError(
            f"expected {TOKENIZER} in {folder}, found none: save it there, once, with transformers: "
            f"AutoTokenizer.from_pretrained('google/tipsv2-b14').save_pretrained('{folder}')"
        )
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    tokenizer.no_padding()
    tokenizer.enable_truncation(CONTEXT)
    with torch.random.fork_rng(devices=[]):
        image = PlainVit(image_tensors, heads_of(sizes(image_tensors, "norm.weight")[0]))
        text = TipsText(text_tensors, tokenizer)
    load_exactly(image, image_tensors, weights.path, "the image tower of TIPSv2")
    load_exactly(text, text_tensors, weights.path, "the text tower of TIPSv2")
    backbone = Tips(image, text, f"tipsv2:{folder.name}")
    backbone.logit_scale = 1 / float(weights.tensors.get("temperature", torch.tensor(TEMPERATURE)))
    backbone.weights_file = weights.path
    return backbone.convert(dtype).to(device)


def renamed(theirs: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The authors' tensors under the names of `PlainVit` and `TipsText`."""
    image, text = (
        {name.removeprefix(prefix): tensor for name, tensor in theirs.items() if name.startswith(prefix)}
        for prefix in (IMAGE, TEXT)
    )
    positions, first = image.pop("pos_embed")[0], image.pop("cls_token")[0]  # [1+G², d], [1, d]
    image.pop("mask_token", None)
    named = {"prefix": torch.cat([first + positions[:1], image.pop("register_tokens")[0]]), "positions": positions[1:]}
    for name, tensor in image.items():
        for tensor_name, other in NAMES:
            name = name.replace(tensor_name, other)
        if ".w12." in name:  # silu of the first half, times the second
            halves = tensor.chunk(2)
            named |= {name.replace("w12", part): half for part, half in zip(("fc1_g", "fc1_x"), halves, strict=True)}
        else:
            named[name] = tensor
    return named, {name.removeprefix("transformer.res"): tensor for name, tensor in text.items()}


register_model(
    "tipsv2", Tips, _build, MEAN, STD, parameters=None, licence="CC-BY-4.0",
    about="TIPSv2's ViT/14, whose patches are trained with texts; --pretrained takes a folder with its files",
)  # fmt: skip

"""A ViT's block as its equations are written, for the references of towers that are read from their authors' files."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cliploc.methods import fitting
from tests.methods.towers import ours
from tests.towers.seam import TransformerContract, pictures


class Attention(nn.Module):
    """softmax(qkᵀ/√d_h)·v, one head after the other, of queries and keys that `turn` turns."""

    def __init__(self, width: int, heads: int, *, bias: bool = True) -> None:
        super().__init__()
        self.size = width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=bias), nn.Linear(width, width)

    def parts(self, x: Tensor, turn: Callable[[Tensor], Tensor] = lambda one: one) -> tuple[Tensor, Tensor]:
        q, k, v = (part.split(self.size, dim=-1) for part in self.qkv(x).chunk(3, dim=-1))
        maps = [
            (turn(a) @ turn(b).transpose(-2, -1) / self.size**0.5).softmax(dim=-1) for a, b in zip(q, k, strict=True)
        ]
        return torch.stack(maps, dim=1), torch.cat([a @ c for a, c in zip(maps, v, strict=True)], dim=-1)

    def forward(self, x: Tensor, **how: Any) -> Tensor:
        return self.proj(self.parts(x, **how)[1])


class PlainBlock(nn.Module):
    """x + γ₁·attention(norm₁ x), then + γ₂·mlp(norm₂ x), γ under this name or 1; gated: w₃(silu(a)·b), a, b = w₁₂x."""

    def __init__(
        self,
        width: int,
        heads: int,
        scale: str = "",
        *,
        gated: bool = False,
        inner: int = 90,
        bias: bool = True,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=eps), nn.LayerNorm(width, eps=eps)
        self.attn, self.scale = Attention(width, heads, bias=bias), scale
        first, second = ("w12", "w3") if gated else ("fc1", "fc2")
        into = nn.Linear(width, 2 * inner if gated else inner)
        self.mlp = nn.ModuleDict({first: into, second: nn.Linear(inner, width)})
        self.ls1, self.ls2 = (nn.ParameterDict({scale: torch.ones(width)} if scale else {}) for _ in range(2))

    def branch(self, x: Tensor, **how: Any) -> Tensor:
        branch = self.attn(self.norm1(x), **how)
        return self.ls1[self.scale] * branch if self.scale else branch

    def forward(self, x: Tensor, **how: Any) -> Tensor:
        x = x + self.branch(x, **how)
        y, mlp = self.norm2(x), self.mlp
        if "w12" in mlp:
            a, b = mlp["w12"](y).chunk(2, dim=-1)
            y = mlp["w3"](F.silu(a) * b)
        else:
            y = mlp["fc2"](F.gelu(mlp["fc1"](y)))
        return x + (self.ls2[self.scale] * y if self.scale else y)


class PlainTowerContract(TransformerContract):
    """The references of a tower of `PlainBlock`s, which takes pictures of any size.

    A subclass has the `side` that the tower was made for, `make() → model`, and `read(folder, model) → backbone`.
    """

    side: int

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls) -> Any:
        return cls.make()

    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls, tmp_path_factory: pytest.TempPathFactory) -> Any:
        backbone = cls.read(tmp_path_factory.mktemp("tower"), cls.make())
        backbone.weights_file = None  # its values are not those of the file, as the tests change them
        backbone.input_hw = (cls.side, cls.side)
        return backbone

    def resized(self, model: Any, height: int, width: int) -> Any:
        return model

    def blocks(self, model: Any) -> Any:
        return model.visual["blocks"]

    def test_every_method_that_fits_runs(self, backbone: Any) -> None:
        images, texts = pictures(*backbone.input_hw), backbone.encode_text(["a cat", "a dog"])
        masking = {"score_cam", "gscore_cam", "vl_score", "rise", "occlusion", "m2ib"}
        for name in set(fitting(backbone)) - masking:
            assert ours(name, backbone, images, texts).isfinite().all(), name

    @torch.no_grad()
    def their_attention(self, model: Any, index: int, entering: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        block = self.blocks(model)[index]
        return block.attn.parts(block.norm1(entering))[0], block.branch(entering)

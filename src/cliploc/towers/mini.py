"""`mini`, the small CNN in the package: EfficientNet-Lite0 and `_mini_text`; by tools/build_mini.py, docs/mini.md.

timm, which has EfficientNet-Lite0, takes long to import.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from cliploc.towers._catalogue import check_bundled, register_model
from cliploc.towers._cnn import ConvolutionalBackbone, GlobalAveragePool, StageMixture
from cliploc.towers._layers import resolve_precision
from cliploc.towers._mini_text import MiniTextTower, read_facts
from cliploc.towers.tower import MIXTURE, Pooling

WEIGHTS = Path(__file__).parent / "mini_weights"
MIXTURE_FILE = "mixture.safetensors"  # stage → [32, C]
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3  # Google's (x·255 − 127)/128
STEM, HEAD = 32, 1280  # channels
SIX_IN_BFLOAT16 = 0x40C0
EPSILON = 1e-3  # of the batch norms, as TensorFlow trained them


class _Stage(NamedTuple):
    """One stage: a row of the paper's table."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STAGES = (
    _Stage(1, 3, 1, 1, 16), _Stage(2, 3, 2, 6, 24), _Stage(2, 5, 2, 6, 40), _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112), _Stage(4, 5, 2, 6, 192), _Stage(1, 3, 1, 6, 320),
)  # fmt: skip


class _StridedConv(nn.Conv2d):
    """Stride 2 with TensorFlow's padding: both ends get the larger pad and the extra first output is cut."""

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` → `[B, C', ⌈H/2⌉, ⌈W/2⌉]`, which may be a view."""
        height, width = (int(side) for side in x.shape[-2:])
        high, wide = 1 - height % 2, 1 - width % 2  # 1 where there is an output to cut off
        below, right = (size // 2 for size in self.kernel_size)
        padding = (below + high, right + wide)
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, groups=self.groups)[..., high:, wide:]


class _ReLU6(nn.ReLU6):
    """ReLU6; in bfloat16 on a CPU on the bits, four times as fast: positive floats are ordered as their bits."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.bfloat16 or x.device.type != "cpu" or (torch.is_grad_enabled() and x.requires_grad):
            return super().forward(x)
        bits = x.view(torch.int16)
        bits = bits.clamp_(0, SIX_IN_BFLOAT16) if self.inplace else bits.clamp(0, SIX_IN_BFLOAT16)
        return bits.view(torch.bfloat16)


def _activation(conv: nn.Conv2d) -> _ReLU6:
    """The ReLU6 after a convolution: in place, unless that returns a view, which the next layer would have to copy."""
    return _ReLU6(inplace=not isinstance(conv, _StridedConv))


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1) -> nn.Conv2d:
    if stride > 1:
        return _StridedConv(inputs, outputs, kernel, stride, groups=groups)
    padding = dilation * (kernel - 1) // 2
    return nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, groups=groups)


class _InvertedResidual(nn.Sequential):
    """An inverted residual block (Sandler 2018): expand, depthwise, project; with a skip if the shapes agree."""

    def __init__(self, inputs: int, stage: _Stage, stride: int, dilation: int) -> None:
        wide = inputs * stage.expansion
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if stage.expansion > 1:
            expand = _conv(inputs, wide, 1)
            layers["conv_pw"], layers["act_pw"] = expand, _activation(expand)
        depthwise = _conv(wide, wide, stage.kernel, stride, dilation, groups=wide)
        layers["conv_dw"], layers["act_dw"] = depthwise, _activation(depthwise)
        layers["conv_pwl" if stage.expansion > 1 else "conv_pw"] = _conv(wide, stage.channels, 1)
        super().__init__(layers)
        self.residual = stride == 1 and inputs == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self:
            y = layer(y)
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """The tower (Tan & Le 2019), batch norms folded in; an output stride of 16 drops a stride, then dilates."""

    def __init__(self, output_stride: int = 32) -> None:
        super().__init__()
        self.conv_stem = _conv(3, STEM, 3, stride=2)
        stages, inputs, reached, dilation = [], STEM, 2, 1
        for row in STAGES:
            blocks = []
            for number in range(row.repeats):
                stride = row.stride if number == 0 else 1
                if reached * stride > output_stride:
                    blocks.append(_InvertedResidual(inputs, row, 1, dilation))
                    dilation *= stride  # for the convolutions after this one, whose inputs keep their spacing
                else:
                    blocks.append(_InvertedResidual(inputs, row, stride, dilation))
                    reached *= stride
                inputs = row.channels
            stages.append(nn.Sequential(*blocks))
        self.blocks: Sequence[nn.Sequential] = nn.Sequential(*stages)  # type: ignore[assignment]
        self.conv_head = _conv(inputs, HEAD, 1)

    @classmethod
    @torch.no_grad()
    def of(cls, tensors: Mapping[str, Tensor], output_stride: int = 32) -> Self:
        """Builds the tower in eval mode from tensors of convolutions and batch norms."""
        with torch.device("meta"):  # skips the random initialisation, as weights are loaded next
            tower = cls(output_stride)
        # `bn1` is folded into a block's first convolution, `bn2` into its second …; differs by rounding (5e-7).
        folded: dict[str, Tensor] = {}
        for parent_name, parent in tower.named_modules():
            prefix = f"{parent_name}." if parent_name else ""
            names = [name for name, child in parent.named_children() if isinstance(child, nn.Conv2d)]
            for number, name in enumerate(names, start=1):
                mean, variance, weight, bias = (
                    tensors[f"{prefix}bn{number}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
                )
                convolution = tensors[f"{prefix}{name}.weight"]
                folded[f"{prefix}{name}.weight"], folded[f"{prefix}{name}.bias"] = fuse_conv_bn_weights(
                    convolution, None, mean, variance, EPSILON, weight, bias
                )
        tower.load_state_dict(folded, assign=True)
        return tower.eval()

    def stages(self) -> list[nn.Sequential]:
        """The modules to run one after another: the stem, seven stages of blocks, and the last convolution."""
        stem, last = (nn.Sequential(conv, _activation(conv)) for conv in (self.conv_stem, self.conv_head))
        return [stem, *self.blocks, last]


class Mini(ConvolutionalBackbone):
    """EfficientNet-Lite0 and class-anchor text in one joint space of 1,280 dimensions."""

    name = "mini"
    input_hw = (224, 224)
    pooling: Pooling = "global average"
    stride = 32
    middle_stage = MIXTURE  # 32 channels, stride 16, from three stages; learnt from masks by tools/build_mixture.py
    embedding_size = 1280
    text: MiniTextTower

    def __init__(self) -> None:
        tensors = {name: tensor.float() for name, tensor in load_file(WEIGHTS / "image.safetensors").items()}
        facts = read_facts(WEIGHTS / "mini.json")
        super().__init__(EfficientNetLite0.of(tensors).stages(), MEAN, STD)
        mixture = load_file(WEIGHTS / MIXTURE_FILE)
        self.mixture = StageMixture({int(stage): weight for stage, weight in mixture.items()})
        self.pool_layer = GlobalAveragePool(tensors["mean_feature"])
        self.text = MiniTextTower.load(WEIGHTS)
        self.logit_scale = facts.logit_scale

    @classmethod
    def bundled(cls) -> Self:
        """Loads the model in the package, frozen, in eval mode, on the CPU."""
        return cls().eval().requires_grad_(False)

    def unknown_reason(self, word: str) -> str | None:
        return self.text.unknown_reason(word)

    def remark(self, word: str) -> str | None:
        return self.text.remark(word)


def _build(pretrained: str | None, device: str, precision: str) -> Mini:
    check_bundled("mini", pretrained)
    mini = Mini.bundled()
    mini.stages.to(resolve_precision(precision, device))  # pooling and text stay in float32
    return mini.to(device)


register_model(
    "mini", Mini, _build, MEAN, STD, parameters=4.7, licence="Apache-2.0",
    about="bundled: EfficientNet-Lite0 and word vectors; runs offline, knows what resembles ImageNet's classes",
)  # fmt: skip

"""EfficientNet-Lite0 is timm's, tensor by tensor."""

import itertools
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import load_file
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cliploc.backbones.mini import WEIGHTS, EfficientNetLite0, _ReLU6
from tests.commands import CAT
from tests.tolerances import assert_rounded


def shipped() -> dict[str, Tensor]:
    tensors = {name: tensor.float() for name, tensor in load_file(WEIGHTS / "image.safetensors").items()}
    del tensors["mean_feature"]
    return tensors


def random_ones() -> dict[str, Tensor]:
    """Tensors of which each matters: an affine step that does nothing, or a mean of 0, would hide a mistake."""
    generator = torch.Generator().manual_seed(3)

    def drawn(name: str, like: Tensor) -> Tensor:
        if not like.is_floating_point():
            return like
        noise = torch.randn(like.shape, generator=generator)
        return noise / like[0].numel() ** 0.5 if like.dim() == 4 else noise.abs() + 0.5 if "bias" not in name else noise

    return {name: drawn(name, tensor) for name, tensor in shipped().items()}


def timms(tensors: dict[str, Tensor], output_stride: int) -> nn.Module:
    """timm's tower with each batch norm folded by torch, so that both round alike."""
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0, output_stride=output_stride)
    model.load_state_dict(tensors)
    model.eval()
    for parent in list(model.modules()):
        for (first, conv), (second, norm) in itertools.pairwise(list(parent.named_children())):
            if isinstance(norm, BatchNormAct2d):
                setattr(parent, first, fuse_conv_bn_eval(conv, norm))
                setattr(parent, second, norm.act)
    return model


@pytest.mark.parametrize("output_stride", [32, 16])
@pytest.mark.parametrize("tensors", [shipped(), random_ones()], ids=["shipped", "random"])
@pytest.mark.parametrize("hw", [(224, 224), (75, 98)])
def test_every_stage_is_timms(tensors: dict[str, Tensor], output_stride: int, hw: tuple[int, int]) -> None:
    reference = timms(tensors, output_stride)
    tower = EfficientNetLite0.of(tensors, output_stride)
    stem = nn.Sequential(reference.conv_stem, reference.bn1)
    theirs = [stem, *reference.blocks, nn.Sequential(reference.conv_head, reference.bn2)]
    x = torch.rand(2, 3, *hw, generator=torch.Generator().manual_seed(0)) * 2 - 1
    y = x.clone()
    with torch.no_grad():
        for ours, host in zip(tower.stages(), theirs, strict=True):
            x, y = ours(x), host(y)
            assert x.shape == y.shape
            assert_rounded(x, y, reference)


@pytest.mark.parametrize("hw", [(64, 64), (75, 98)])
def test_gradients_are_timms(hw: tuple[int, int]) -> None:
    reference, tower = timms(shipped(), 32), EfficientNetLite0.of(shipped())
    x, y = (torch.rand(1, 3, *hw, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
    found, expected = nn.Sequential(*tower.stages())(x), reference.forward_features(y)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (ours,), (theirs,) = (torch.autograd.grad((out * weights).sum(), of) for out, of in ((found, x), (expected, y)))
    assert (ours - theirs).norm() <= 0.01 * theirs.norm()  # where ReLU6's input is nearly 0 or 6, rounding opens it


@pytest.mark.parametrize("inplace", [True, False])
def test_relu6_of_every_bfloat16_is_torchs(inplace: bool) -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    numbers = every[~every.isnan()]
    given = numbers.clone()
    found = _ReLU6(inplace)(given)
    assert torch.equal(found, F.relu6(numbers))
    assert torch.equal(given, found if inplace else numbers)


def test_relu6_of_bfloat16_has_gradients() -> None:
    x = torch.tensor([-1.0, 2.0, 7.0], dtype=torch.bfloat16, requires_grad=True)
    (gradient,) = torch.autograd.grad(_ReLU6()(x).sum(), x)
    assert gradient.tolist() == [0, 1, 0]


def test_a_photo_by_the_bundled_models_imports_nothing_that_it_does_not_need() -> None:
    """Some of these take longer to import than the photo takes."""
    code = f"""
import sys
from cliploc.cli import main

codes = [main(["localize", {str(CAT)!r}, "-p", "cat", "--model", model, "--json"]) for model in ("mini", "mini-vit")]
heavy = ("timm", "torchvision", "torch._dynamo", "open_clip", "sympy", "matplotlib", "pandas", "jinja2", "scipy")
heavy += ("supervision", "openvino", "PIL.FpxImagePlugin", "cliploc.teaching")
print(codes, [name for name in heavy if name in sys.modules], file=sys.stderr)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert ran.stderr.splitlines()[-1] == "[0, 0] []"

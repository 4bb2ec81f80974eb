"""`mini`: its image tower is timm's own, tensor by tensor. What words mean to it: test_mini_words."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from cliploc.images.geometry import Frame
from cliploc.towers.mini import MIXTURE_FILE, WEIGHTS, EfficientNetLite0, Mini, _ReLU6
from cliploc.towers.tower import MIXTURE, Needs
from tests.tolerances import assert_rounded
from tests.towers.seam import BundledContract

PACKAGE = Path(__file__).parents[2] / "src" / "cliploc"


@pytest.fixture(scope="module")
def backbone() -> Mini:
    return Mini.bundled()


class TestMini(BundledContract):
    weights, most = WEIGHTS, 25 * 10**6


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


@pytest.fixture(scope="module")
def reference():
    """timm's model as it comes, with the tensors of the package: (model, mean feature)."""
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    model.load_state_dict(shipped())
    return model.eval(), load_file(WEIGHTS / "image.safetensors")["mean_feature"].float()


def pixels(height=224, width=224, count=1):
    rng = np.random.default_rng(height + width)
    coarse = torch.from_numpy(rng.random((count, 3, 7, 9), dtype=np.float32))
    return F.interpolate(coarse, size=(height, width), mode="bilinear")


@pytest.mark.parametrize("hw", [(224, 224), (224, 288), (320, 192), (32, 64)])
def test_features_and_embeddings_are_timms_and_the_map_is_exact(backbone, reference, hw):
    model, mean_feature = reference
    seen = pixels(*hw, count=2)
    images = (seen * 255 - 127) / 128  # Google's preprocessing
    with torch.no_grad():
        features, embedding = model.forward_features(images), F.normalize(model(images) - mean_feature, dim=-1)
    trace = backbone.trace(backbone.normalize(seen), Needs(features=(-1, -3)))
    assert trace.grid == tuple(features.shape[-2:]) == backbone.grid(*hw) == (hw[0] // 32, hw[1] // 32)
    assert_rounded(trace.features[-1], features, model)
    assert_rounded(trace.embedding, embedding, model)
    assert_rounded(backbone.head(trace.features[-3], trace, -3), embedding, model)
    dense = backbone.dense(trace)
    assert_rounded(dense, features - mean_feature[:, None, None], model)
    assert_rounded(F.normalize(dense.mean(dim=(-2, -1)), dim=-1), embedding, model)
    torch.testing.assert_close(trace.embedding.norm(dim=-1), torch.ones(2))


def test_the_mixture_is_the_sum_of_the_readings_of_its_stages(backbone):
    images = backbone.normalize(pixels(224, 288))
    stages = {int(stage): weight.double() for stage, weight in load_file(WEIGHTS / MIXTURE_FILE).items()}
    trace = backbone.trace(images, Needs(features=(*stages, MIXTURE)))
    expected = torch.zeros(1, 32, 14, 18, dtype=torch.float64)
    for stage, weight in stages.items():
        on_grid = F.interpolate(trace.features[stage].double(), (14, 18), mode="bilinear")
        expected += torch.einsum("dc,bchw->bdhw", weight, on_grid)
    torch.testing.assert_close(trace.features[MIXTURE].double(), expected, rtol=1e-4, atol=1e-4)
    assert set(backbone.trace(images, Needs(features=(MIXTURE,))).features) == {MIXTURE}  # its stages are not kept


def test_real_photographs_are_what_they_show(backbone):
    """By the whole path of preprocessing, image and text. (The fig looks like coffee to it.)"""
    visible = {
        "cat": "cat", "coffee": "coffee cup", "drum": "drum", "bee": "bee", "otters": "otter", "fig": "fig",
        "osprey": "osprey", "dogs": "dog", "rocket": "rocket", "bridge": "bridge",
    }  # fmt: skip
    names = list(visible.values())
    text = backbone.encode_text([f"a photo of a {name}." for name in names])
    wrong = []
    for file, name in visible.items():
        image = Image.open(PACKAGE / "demo_photos" / f"{file}.jpg").convert("RGB")
        square = Frame.fit("squash", (image.height, image.width), (224, 224)).apply(image)
        x = torch.tensor(np.asarray(square)).permute(2, 0, 1)[None] / 255
        if names[int((text @ backbone.encode_image(backbone.normalize(x))[0]).argmax())] != name:
            wrong.append(file)
    assert wrong in ([], ["fig"])


def test_a_wide_name_is_seen_in_each_thing_of_its_kind(backbone):
    """Not only in what resembles the mean of the kind: the first of these heads had a cosine of 0.00 with "dog"."""
    photo = Image.open(PACKAGE / "demo_photos/dogs.jpg").convert("RGB")
    dog, cat, vehicle = backbone.encode_text(["a photo of a dog.", "a photo of a cat.", "a photo of a vehicle."])
    for box in ((130, 148, 223, 260), (200, 285, 286, 422)):
        x = torch.tensor(np.asarray(photo.crop(box).resize((224, 224)))).permute(2, 0, 1)[None] / 255
        head = backbone.encode_image(backbone.normalize(x))[0]
        assert head @ dog > 0.1
        assert max(head @ cat, head @ vehicle) < 0.05


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


@pytest.mark.parametrize("inplace", [True, False])
def test_relu6_of_every_bfloat16_is_torchs(inplace: bool) -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    numbers = every[~every.isnan()]
    passed = numbers.clone()
    found = _ReLU6(inplace)(passed)
    assert torch.equal(found, F.relu6(numbers))
    assert torch.equal(passed, found if inplace else numbers)

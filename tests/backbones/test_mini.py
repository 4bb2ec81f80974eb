"""`mini`: its image tower is timm's own with the shipped weights. What words mean to it: test_mini_words."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from cliploc.backbones.mini import MIXTURE_FILE, WEIGHTS, Mini
from cliploc.errors import UsageError
from cliploc.geometry import Frame
from cliploc.tower import MIXTURE, Needs
from tests.backbones.seam import BundledContract
from tests.tiny import tower
from tests.tolerances import assert_rounded

PACKAGE = Path(__file__).parents[2] / "src" / "cliploc"


@pytest.fixture(scope="module")
def backbone() -> Mini:
    return Mini.bundled()


class TestMini(BundledContract):
    weights, most = WEIGHTS, 25 * 10**6


@pytest.fixture(scope="module")
def reference():
    """timm's model as it comes, with the tensors of the package: (model, mean feature)."""
    weights = {name: tensor.float() for name, tensor in load_file(WEIGHTS / "image.safetensors").items()}
    mean_feature = weights.pop("mean_feature")
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    model.load_state_dict(weights)
    return model.eval(), mean_feature


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


def test_no_stage_follows_the_mixture_and_other_towers_have_none(backbone):
    trace = backbone.trace(backbone.normalize(pixels()), Needs(features=(MIXTURE,)))
    with pytest.raises(UsageError, match=r"expected a stage of mini from -9 to -1"):
        backbone.head(trace.features[MIXTURE], trace, MIXTURE)
    with pytest.raises(UsageError, match=r"from -3 to -1 \(the last\), got 0"):
        tower("gap_cnn").trace(torch.zeros(1, 3, 8, 8), Needs(features=(MIXTURE,)))


def test_pixels_are_normalised_alike_however_they_lie_in_memory(backbone):
    x = pixels(32, 48, count=2)
    last = x.contiguous(memory_format=torch.channels_last)
    found = backbone.normalize(last)
    assert torch.equal(found, backbone.normalize(x))
    assert found.is_contiguous(memory_format=torch.channels_last)  # as its first convolution takes them
    assert torch.equal(backbone.encode_image(found), backbone.encode_image(backbone.normalize(x)))


def test_real_photographs_are_what_they_show(backbone):
    """By the whole path of preprocessing, image and text. (The fig looks like coffee to it.)"""
    shown = {
        "cat": "cat", "coffee": "coffee cup", "drum": "drum", "bee": "bee", "otters": "otter", "fig": "fig",
        "osprey": "osprey", "dogs": "dog", "rocket": "rocket", "bridge": "bridge",
    }  # fmt: skip
    names = list(shown.values())
    text = backbone.encode_text([f"a photo of a {name}." for name in names])
    wrong = []
    for file, name in shown.items():
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
        assert backbone.presence(head @ dog) > 0.9
        assert backbone.presence(head @ cat) < 0.5
        assert backbone.presence(head @ vehicle) < 0.5

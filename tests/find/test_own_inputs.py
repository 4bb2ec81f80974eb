"""What a notebook has in memory goes in and comes out: tensors, tables, gradients, and open_clip's models."""

import numpy as np
import pytest
import torch

from cliploc import Localizer, towers
from cliploc.errors import InputError, UsageError
from tests.commands import CAT
from tests.tiny import tower
from tests.towers.small_clip import small_clip

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)


def plain(backbone, **options):
    return Localizer(backbone, min_presence=0, second_look=False, text_cache=False, **options)


def test_a_tensor_is_a_picture_with_its_channels_first():
    localizer = plain(tower("gap_cnn", (8, 8)))
    expected = localizer(PIXELS, ["red"]).maps
    tensor = torch.from_numpy(PIXELS).permute(2, 0, 1)
    for one in (tensor, tensor.float() / 255):
        np.testing.assert_array_equal(localizer(one, ["red"]).maps, expected)
    for found in localizer.stream(torch.stack([tensor, tensor]), ["red"]):
        np.testing.assert_array_equal(found.maps, expected)
    with pytest.raises(InputError, match=r"^image 0: expected a tensor \[3, H, W\], got one of shape \[5, 8, 9\]"):
        localizer(torch.zeros(5, 8, 9), ["red"])


def test_boxes_as_a_table():
    found = Localizer("mini", recipe="fast")(CAT, ["cat", "dog"])
    table = found.to_dataframe()
    assert table.columns.tolist() == ["source", "label", "score", "presence", "x0", "y0", "x1", "y1"]
    assert table.label.tolist() == [found.names[label] for label in found.boxes.label]
    np.testing.assert_array_equal(table[["x0", "y0", "x1", "y1"]], found.boxes.xyxy)
    assert len(found.names) == 2 > table.label.nunique() > 0


@pytest.mark.parametrize("kind", ["gap_cnn", "vit"])
def test_what_was_traced_has_a_graph_on_request(kind):
    localizer = plain(tower(kind, (8, 8)))
    inside = localizer.trace(PIXELS, ["red"], graph=True)
    value = inside.features().sum() + inside.embedding @ inside.text[0].clone()
    (gradient,) = torch.autograd.grad(value, inside.images)
    assert gradient.shape == inside.images.shape
    assert gradient.abs().max() > 0
    assert not localizer.trace(PIXELS, ["red"]).embedding.requires_grad


def test_a_model_of_open_clip_goes_in_as_it_is():
    model = small_clip(seed=5)
    localizer = plain(model)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.encode_image(images, normalize=True)
    torch.testing.assert_close(localizer.backbone.encode_image(images), expected, rtol=1e-4, atol=1e-5)
    assert localizer(PIXELS, ["red car"]).maps.shape[0] == 1
    with pytest.raises(UsageError, match="expected a model of open_clip, got Linear: name one of `cliploc models`"):
        towers.adapt(torch.nn.Linear(2, 2))

"""What a notebook has in memory goes in and comes out: tensors, tables, gradients, and open_clip's models."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cliploc import Localizer, towers
from cliploc.errors import InputError, UsageError
from tests.commands import CAT, document_of
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


def test_embeddings_take_the_place_of_names():
    localizer = plain(tower("gap_cnn", (8, 8)))
    rows, expected = localizer.embed_names(["red", "blue"]), localizer(PIXELS, ["red", "blue"])
    for names, labels in (
        (rows, ("text 1", "text 2")),
        (rows.numpy(), ("text 1", "text 2")),
        ({"warm": rows[0], "cold": 3 * rows[1].numpy()}, ("warm", "cold")),
    ):
        found = localizer(PIXELS, names)
        assert found.names == labels
        np.testing.assert_allclose(found.maps, expected.maps, atol=1e-5)
        (compared,) = localizer.compare([PIXELS], names, ["cam"])
        np.testing.assert_allclose(compared["cam"].scores, expected.scores, atol=1e-5)
        traced = localizer.trace(PIXELS, names)
        torch.testing.assert_close(traced.text, rows, atol=1e-5, rtol=0)
    first, second = (localizer(PIXELS, {"it": row}).scores[0] for row in rows)  # other embeddings of one name
    assert [first, second] == pytest.approx(expected.scores.tolist(), abs=1e-5)
    with pytest.raises(UsageError, match=r"^expected embeddings of \d+ numbers, as gap_cnn has, got 3 for 'it'"):
        localizer(PIXELS, {"it": np.ones(3)})
    with pytest.raises(
        UsageError, match=r"^expected an embedding \[D\] of finite numbers for 'it', got one of shape \[2\]"
    ):
        localizer(PIXELS, {"it": np.array([1.0, np.nan])})


def test_a_file_of_embeddings_on_the_command_line(tmp_path):
    rows = Localizer().embed_names(["cat", "car"])
    save_file({"my cat": rows[0].clone(), "both": rows}, tmp_path / "text.safetensors")
    document = document_of(
        "localize", CAT, "--labels", tmp_path / "text.safetensors", "--json", "--out", tmp_path / "out"
    )
    [photo] = document["pictures"]
    names = {one["name"]: one for one in photo["names"]}
    assert names.keys() == {"my cat", "both 1", "both 2"}
    assert names["my cat"]["boxes"] == names["both 1"]["boxes"] != []
    assert names["my cat"]["score"] == names["both 1"]["score"] > names["both 2"]["score"]


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
    value = inside.features().sum() + inside.embedding @ inside.text[0]
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

"""`Localizer.trace`, and what a notebook has in memory: tensors, tables, gradients, and open_clip's models."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cliploc import towers
from cliploc.errors import InputError, UsageError
from cliploc.localizer import Localizer
from cliploc.towers.tower import Needs
from tests.commands import CAT, document_of
from tests.tiny import tower
from tests.tolerances import assert_rounded
from tests.towers.small_clip import small_clip

NAMES = ["cat|kitten", "dog"]


@pytest.fixture(scope="module")
def vit():
    localizer = Localizer("mini-vit", method="legrad", method_options={"blocks": "all"})
    return localizer, localizer.trace(CAT, NAMES)


def test_attention_times_values_is_what_the_block_gathers(vit):
    _, inside = vit
    q, k, v = inside.projections(-1)
    own = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
    assert_rounded(own, inside.attention(-1), inside.backbone)
    class_token, patches = inside.attention(-1)[:, 0], inside.class_attention(-1)  # [H, T], [H, h, w]
    assert torch.equal(patches.flatten(1), class_token[:, inside.tower.prefix_tokens :])
    end = inside.tower.end(inside.trace.entering[-1], -1, inside.grid)
    assert_rounded(end.gathered[0], own @ v, inside.backbone)
    assert_rounded(end.tokens()[0], inside.tokens(-1), inside.backbone)


def test_the_heads_average_to_the_methods_map(vit):
    _, inside = vit
    blocks = [inside.head_maps(block).mean(dim=1) for block in range(-inside.tower.depth, 0)]
    torch.testing.assert_close(torch.stack(blocks).mean(dim=0), inside.raw, rtol=1e-4, atol=1e-7)


def test_the_last_blocks_map_is_the_towers_own_reading(vit):
    _, inside = vit
    maps = inside.block_maps()
    assert maps.shape == (inside.tower.depth, 2, *inside.grid)
    _, w = inside.grid
    patch = inside.tokens(-1)[None, inside.tower.prefix_tokens + 2 * w + 1]
    read = torch.nn.functional.normalize(inside.tower.read_tokens(patch[None])[0, 0], dim=-1)
    assert maps[-1, :, 2, 1].tolist() == pytest.approx((inside.text @ read).tolist(), abs=1e-5)


@pytest.mark.parametrize("model", ["mini", "mini-vit"])
def test_raw_maps_embedding_and_text_are_those_of_a_run(model):
    localizer = Localizer(model, method="layer_cam" if model == "mini" else "gem")
    inside = localizer.trace(CAT, NAMES)
    found = localizer(CAT, NAMES)
    assert inside.names == ("cat", "dog")
    assert np.abs(inside.embedding.numpy() - found.embedding).max() < 1e-6
    assert torch.equal(inside.text, localizer.embed_names(NAMES))
    assert inside.raw.shape == (2, *inside.grid)
    up = torch.nn.functional.interpolate(inside.raw.relu()[None], inside.frame.input_hw, mode="bilinear")[0]
    best = [np.unravel_index(int(one.argmax()), one.shape) for one in (up[0].numpy(), found.maps[0])]
    assert np.abs(np.subtract(best[0], best[1])).max() <= localizer.backbone.stride
    assert inside.cosines().abs().max() <= 1 + 1e-5


def test_what_is_not_there_is_said():
    cnn = Localizer("mini").trace(CAT, NAMES)
    with pytest.raises(UsageError, match="expected a ViT tower, got mini, a CNN: choose another model"):
        cnn.block_maps()
    with pytest.raises(UsageError, match=r"expected a block that the trace kept \(none\), got -1: ask for it with"):
        cnn.attention()
    vit = Localizer("mini-vit", method="gem")
    lean = vit.trace(CAT, NAMES, "raw_attention", needs=Needs(features=(-1,)))
    assert -1 in lean.trace.attention
    with pytest.raises(UsageError, match="expected a method with method_options"):
        vit.trace(CAT, NAMES, method_options={"blocks": 1})


# ---------------------------------------------------------------------------------------------- tensors, tables, models
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

"""Guides by name: towers of timm with random weights against timm's own answers, and where weights come from."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from cliploc.errors import MissingWeightsError, ModelError, UnknownNameError, UsageError
from cliploc.towers import create, create_guide, guides
from cliploc.towers.tower import Guide, Needs

TINY = "test_vit3"  # timm's own, for tests: 64 pixels a side, patches of 16


def pixels(height: int, width: int) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("entry", list(guides), ids=[one.name for one in guides])
def test_the_table_says_what_timm_has(entry: Any) -> None:
    published = timm.get_pretrained_cfg(entry.timm)
    assert published.hf_hub_id == f"timm/{entry.timm}"
    assert published.license.split("-")[0].lower() == entry.licence.split("-")[0].split(" ")[0].lower()
    with torch.device("meta"):
        module = timm.create_model(entry.timm, pretrained=False, num_classes=0)
    assert module.feature_info[-1]["reduction"] == entry.stride
    assert sum(one.numel() for one in module.parameters()) / 1e6 == pytest.approx(entry.parameters, abs=0.06)


@pytest.mark.parametrize("name", [TINY, "dinov3-s", "resnet10t.c3_in1k"])
def test_features_are_those_of_timm(name: str) -> None:
    guide = create_guide(f"{name}@random")
    assert isinstance(guide, Guide)
    stride = 32 if name.startswith("resnet") else 16
    seen = pixels(4 * stride, 5 * stride)
    found = guide.features(seen)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sized = {} if name.startswith("resnet") else {"dynamic_img_size": True}
        timm_name = guides.get(name).timm if name in guides.names() else name
        module = timm.create_model(timm_name, pretrained=False, num_classes=0, **sized).eval()
    how = module.pretrained_cfg
    images = (seen - torch.tensor(how["mean"]).view(1, 3, 1, 1)) / torch.tensor(how["std"]).view(1, 3, 1, 1)
    with torch.no_grad():
        tokens = module.forward_features(images)
    if tokens.dim() == 3:
        tokens = tokens[:, module.num_prefix_tokens :].transpose(1, 2).unflatten(2, (4, 5))
    assert found.shape[-2:] == (4, 5)
    torch.testing.assert_close(found, tokens, rtol=1e-4, atol=1e-5)


def test_queries_and_keys_are_those_that_the_last_block_computes() -> None:
    guide, plain = create_guide(f"qk:{TINY}@random"), create_guide(f"{TINY}@random")
    seen = pixels(64, 80)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = timm.create_model(TINY, pretrained=False, num_classes=0, dynamic_img_size=True).eval()
    computed: list[torch.Tensor] = []
    module.blocks[-1].attn.qkv.register_forward_hook(lambda _, __, output: computed.append(output))
    how = module.pretrained_cfg
    with torch.no_grad():
        module((seen - torch.tensor(how["mean"]).view(1, 3, 1, 1)) / torch.tensor(how["std"]).view(1, 3, 1, 1))
    q, k, _ = computed[0][:, module.num_prefix_tokens :].chunk(3, dim=2)
    torch.testing.assert_close(guide.features(seen), (q + k).transpose(1, 2).unflatten(2, (4, 5)), rtol=1e-4, atol=1e-5)
    assert (guide.name, guide.weights_id != plain.weights_id) == (f"qk:{TINY}", True)
    refused = {"resnet10t.c3_in1k": "has no queries and keys to read", "mini": "expected a tower of timm"}
    for name, message in refused.items():
        with pytest.raises(UsageError, match=message):
            create_guide(f"qk:{name}@random" if name != "mini" else "qk:mini")


def test_pictures_of_any_size_are_resized_to_complete_cells() -> None:
    guide, seen = create_guide(f"{TINY}@random"), pixels(70, 41)
    full = F.interpolate(seen, (64, 48), mode="bilinear", antialias=True)
    torch.testing.assert_close(guide.features(seen), guide.features(full))
    assert create_guide("mini-vit").features(pixels(70, 41)).shape[-2:] == (4, 3)


def test_one_of_our_models_gives_its_middle_stage() -> None:
    seen, mini = pixels(64, 96), create("mini")
    expected = mini.trace(mini.normalize(seen), Needs(features=(mini.middle_stage,))).features[mini.middle_stage]
    torch.testing.assert_close(create_guide("mini").features(seen), expected)


def test_weights_of_a_file_tell_guides_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = timm.create_model(TINY, pretrained=False)
    file = tmp_path / "tiny.safetensors"
    save_file({name: tensor + 0.01 for name, tensor in module.state_dict().items()}, file)  # its classifier with it
    random, loaded = create_guide(f"{TINY}@random"), create_guide(f"{TINY}@{file}")
    assert random.weights_id == create_guide(f"{TINY}@random").weights_id != loaded.weights_id
    assert (random.features(pixels(64, 64)) - loaded.features(pixels(64, 64))).abs().max() > 1e-3
    monkeypatch.setenv("HOME", str(tmp_path))
    assert create_guide(f"{TINY}@~/{file.name}").weights_id == loaded.weights_id  # a shell leaves this ~ as it is
    save_file({"cls_token": torch.zeros(1, 1, 96)}, file)
    with pytest.raises(ModelError, match=rf"does not hold the weights of the guide {TINY}, as it lacks "):
        create_guide(f"{TINY}@{file}")


def test_what_cannot_be_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UnknownNameError, match=r"^unknown guide 'dinov2-z': did you mean dinov2-"):
        create_guide("dinov2-z")
    with pytest.raises(UnknownNameError, match=r"^unknown guide 'test_vit3\.r161_in1k': did you mean test_vit3\.r160"):
        create_guide("test_vit3.r161_in1k@random")
    with pytest.raises(MissingWeightsError) as error:
        create_guide("dino-b8")
    assert "https://huggingface.co/timm/vit_base_patch8_224.dino" in str(error.value)
    assert str(error.value).endswith("or give a file of weights with --guide dino-b8@FILE")
    with pytest.raises(MissingWeightsError, match="expected a file of weights, found none at /nowhere"):
        create_guide("dino-s16@/nowhere/dino.safetensors")

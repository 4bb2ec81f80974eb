"""Folders of transformers' `save_pretrained`: the same embeddings as transformers', and one line for all else."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch.nn import functional as F

from cliploc.errors import ModelError, UsageError
from cliploc.find.recipes import recipe_of
from cliploc.images.geometry import Frame
from cliploc.localizer import Localizer
from cliploc.towers import _weights, create
from cliploc.towers.tower import Needs
from tests.tiny import seeded
from tests.tolerances import assert_rounded
from tests.towers.seam import refusing

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install 'cliploc[sam]'")
WORDS = ["a", "cat", "photo", "of", "the", "dog", "##s", "猫", "图", "片"]
TEXTS = ["a photo of a cat.", "the DOG", "cats 猫的图片", "a " * 40]
VISION = {
    "hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
TEXT = {
    "hidden_size": 24, "intermediate_size": 50, "num_hidden_layers": 2, "num_attention_heads": 3,
    "max_position_embeddings": 12,
}  # fmt: skip


def byte_pairs():
    """CLIP's tokenizer with single bytes as words' parts."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return transformers.CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])


def sentence_pieces():
    """As SigLIP's: lower case, "</s>" at the end and as padding."""
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0), *((f"▁{word}", -3.0) for word in WORDS)]
    pieces += [(letter, -5.0) for letter in "abcdefghijklmnopqrstuvwxyz."]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="</s>", eos_token="</s>", unk_token="<unk>", model_max_length=12
    )


def word_pieces(folder):
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "."]), "utf-8")
    return transformers.BertTokenizer.from_pretrained(folder)


def siglip_text():
    return {**TEXT, "vocab_size": 60, "projection_size": 32, "bos_token_id": 1, "eos_token_id": 1}


def model_of(kind):
    if kind in ("clip", "clip-old"):
        size = len(byte_pairs())
        text = {**TEXT, "vocab_size": size, "bos_token_id": 0, "eos_token_id": 1 if kind == "clip" else 2}
        config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=20)
        return transformers.CLIPModel(config)
    if kind == "siglip":
        return transformers.SiglipModel(transformers.SiglipConfig(text_config=siglip_text(), vision_config=VISION))
    if kind == "siglip2":
        config = transformers.Siglip2Config(text_config=siglip_text(), vision_config={**VISION, "num_patches": 16})
        return transformers.Siglip2Model(config)
    text = {**TEXT, "vocab_size": 40, "max_position_embeddings": 16}
    config = transformers.ChineseCLIPConfig(text_config=text, vision_config=VISION, projection_dim=20)
    return transformers.ChineseCLIPModel(config)


KINDS = ("clip", "siglip", "siglip2", "chinese")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Kind → transformers' model in eval mode and the folder that it was saved in with its tokenizer."""
    made = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        model = seeded(lambda kind=kind: shaken(model_of(kind)), 3)
        model.save_pretrained(folder)
        tokenizer = word_pieces(folder) if kind == "chinese" else byte_pairs() if kind == "clip" else sentence_pieces()
        tokenizer.save_pretrained(folder)
        made[kind] = model, transformers.AutoTokenizer.from_pretrained(folder), folder
    return made


@torch.no_grad()
def shaken(model):
    """Weights large enough that a swapped or forgotten tensor shows."""
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@torch.no_grad()
def embedded(model, tokenizer, pictures, kind):
    """transformers' own embeddings of pictures and texts."""
    settings = {"padding": True, "max_length": 16} if kind == "chinese" else {"padding": "max_length", "max_length": 12}
    tokens = tokenizer(TEXTS, truncation=True, return_tensors="pt", **settings)
    if kind.startswith("siglip"):
        tokens = {"input_ids": tokens["input_ids"]}  # it reads the padding
    tokens = {name: value for name, value in tokens.items() if name in ("input_ids", "attention_mask")}
    if kind == "siglip2":  # pictures as rows of patches
        rows = pictures.reshape(len(pictures), 3, 4, 8, 4, 8).permute(0, 2, 4, 3, 5, 1).reshape(len(pictures), 16, -1)
        mask, shapes = torch.ones(len(pictures), 16, dtype=torch.long), torch.tensor([[4, 4]] * len(pictures))
        seen = model.get_image_features(pixel_values=rows, pixel_attention_mask=mask, spatial_shapes=shapes)
    else:
        seen = model.get_image_features(pixel_values=pictures)
    return [F.normalize(one.pooler_output, dim=-1) for one in (seen, model.get_text_features(**tokens))]


def pictures():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_those_of_transformers(saved, kind):
    model, tokenizer, folder = saved[kind]
    images, texts = embedded(model, tokenizer, pictures(), kind)
    backbone = create(f"local-dir:{folder}")
    assert_rounded(backbone.encode_image(pictures()), images, backbone)
    assert_rounded(backbone.encode_text(TEXTS), texts, backbone)
    assert backbone.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()), rel=1e-5)
    assert backbone.input_hw == (32, 32)
    assert recipe_of(f"local-dir:{folder}") == recipe_of(backbone)
    assert recipe_of(backbone).method == ("legrad" if kind.startswith("siglip") else "naclip")
    if kind == "clip":  # no other kind says where it looks
        model.set_attn_implementation("eager")
        theirs = model.vision_model(pixel_values=pictures(), output_attentions=True).attentions
        for back, weights in backbone.trace(pictures(), Needs(attention="all")).attention.items():
            assert_rounded(weights, theirs[back].detach(), backbone)
    assert len({tuple(row.tolist()) for row in texts}) == len(TEXTS), "the tokenizer told the texts apart"
    assert not any(p.requires_grad for p in backbone.parameters())
    found = Localizer(backbone, text_cache=False)(torch.zeros(40, 30, 3, dtype=torch.uint8).numpy(), ["cat"])
    assert found.maps.shape[0] == 1


def copied(saved, kind, tmp_path):
    return shutil.copytree(saved[kind][2], tmp_path / kind)


def changed(folder, name="config.json", **changes):
    environment = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(environment | changes))


def test_other_files_of_the_same_weights(saved, tmp_path):
    """A pickle of tensors, shards, and Chinese-CLIP's list of words instead of tokenizer.json."""
    folder = copied(saved, "chinese", tmp_path)
    expected = create(f"local-dir:{folder}")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors | {"text_model.embeddings.position_ids": torch.arange(16)}, folder / "pytorch_model.bin")
    (folder / "tokenizer.json").unlink()
    assert torch.equal(create(f"local-dir:{folder}").encode_text(TEXTS), expected.encode_text(TEXTS))
    names = sorted(tensors)
    for number, part in enumerate((names[:20], names[20:])):
        save_file({name: tensors[name] for name in part}, folder / f"model-{number}.safetensors")
    index = {"metadata": {}, "weight_map": {name: f"model-{int(name in names[20:])}.safetensors" for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    sharded = create(f"local-dir:{folder}")
    assert torch.equal(sharded.encode_image(pictures()), expected.encode_image(pictures()))
    assert sharded.weights_id == expected.weights_id
    (folder / "model-1.safetensors").unlink()
    refused(folder, "model-1.safetensors")


def test_pictures_are_prepared_as_the_folder_says(saved, tmp_path):
    assert create(f"local-dir:{saved['clip'][2]}").resize_policy == "crop-floor"
    folder = copied(saved, "siglip", tmp_path)
    plain = create(f"local-dir:{folder}")
    assert (plain.resize_policy, plain.interpolation) == ("squash", "bicubic")
    assert plain.mean.flatten().tolist() == plain.std.flatten().tolist() == [0.5, 0.5, 0.5]
    settings = {
        "size": {"shortest_edge": 32},
        "resample": 2,
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.4, 0.5, 0.6],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    other = create(f"local-dir:{folder}")
    assert (other.resize_policy, other.interpolation) == ("crop-floor", "bilinear")
    assert other.std.flatten().tolist() == pytest.approx([0.4, 0.5, 0.6])
    changed(folder, "preprocessor_config.json", resample=0)
    refused(folder, "resizes with PIL's filter 0: expected 2 (bilinear) or 3 (bicubic)")


@pytest.mark.parametrize("hw", [(32, 43), (45, 32), (32, 40), (32, 32)])
def test_the_middle_is_cut_out_where_transformers_does(saved, hw):
    """Half a pixel: torchvision rounds it to even. Nothing is resized here, as its backends resize differently."""
    backbone = create(f"local-dir:{saved['clip'][2]}")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*hw, 3), dtype=np.uint8))
    side = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = transformers.CLIPImageProcessor(**side, do_rescale=False, do_normalize=False)
    theirs = processor(picture, return_tensors="np")["pixel_values"][0]  # [3, 32, 32]
    ours = np.asarray(Frame.fit(backbone.resize_policy, hw, backbone.input_hw).apply(picture))
    np.testing.assert_array_equal(ours, theirs.transpose(1, 2, 0))


# ------------------------------------------------------------------------------------------------------------ refusals
def refused(folder, *fragments):
    with refusing(*fragments):
        create(f"local-dir:{folder}")


def test_what_transformers_refuses_is_one_line(saved, tmp_path):
    folder = copied(saved, "clip", tmp_path)
    changed(folder, model_type="blip")
    refused(folder, "a transformers model of the type 'blip', which is not supported: expected one of CLIPModel, Sigl")
    changed(folder, model_type="clip", vision_config={**VISION, "intermediate_size": 80})
    refused(folder, "(the weights have other shapes of ")
    changed(folder, vision_config={**VISION, "num_hidden_layers": 4})
    refused(folder, "(the weights lack 16 tensors, such as ")
    (folder / "config.json").write_text("{")
    refused(folder, f"{folder / 'config.json'} cannot be read")
    (folder / "model.safetensors").unlink()
    shutil.copy(saved["clip"][2] / "config.json", folder / "config.json")
    refused(folder, "expected weights in", "put model.safetensors there")


def test_without_transformers_the_extra_is_named(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    refused(saved["clip"][2], "needs transformers: pip install 'cliploc[sam]'")


def test_hints_lead_to_the_folder(saved):
    """A file of it, the folder, and the bundled model, wrongly given: each line says what works."""
    folder = saved["clip"][2]
    with pytest.raises(UsageError, match=f"got the folder {folder}: write local-dir:{folder}"):
        Localizer(str(folder))
    with pytest.warns(), pytest.raises(ModelError, match=f"use --model local-dir:{folder} without"):
        create("ViT-B-32", str(folder / "model.safetensors"))
    with pytest.raises(ModelError, match=f"got the folder .* or local-dir:{folder} as --model"):
        create("ViT-B-32", str(folder))


def test_a_repository_of_transformers_in_the_hubs_cache(saved, tmp_path, monkeypatch):
    """Offline, only a complete one is used."""
    snapshot = tmp_path / "models--org--name" / "snapshots" / "c0ffee"
    shutil.copytree(saved["siglip"][2], snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("c0ffee")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert _weights.hub_folder("org/name") == snapshot
    assert create("hf-hub:org/name").name == "hf-hub:org/name"
    assert recipe_of("hf-hub:org/name").method == "legrad"
    (snapshot / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="the files of hf-hub:org/name are not on this machine and HF_HUB_OFFLINE"):
        _weights.hub_folder("org/name")

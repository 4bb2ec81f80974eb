"""open_clip's models by name: which weights, which activation, which precision, and what cannot be built."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from cliploc.errors import CliplocWarning, ModelError, UnknownNameError, UsageError
from cliploc.find.recipes import recipe_of
from cliploc.localizer import Localizer
from cliploc.towers import _layers, _weights, create, models
from cliploc.towers import open_clip as builder
from cliploc.towers._catalogue import NOT_OPEN_CLIPS
from cliploc.towers.open_clip import Plan, build, plan_model
from cliploc.towers.tower import Backbone
from tests.commands import check_refusal
from tests.tolerances import assert_rounded
from tests.towers.seam import pictures
from tests.towers.small_clip import SIDE, TEXTS, save_folder, small_clip, tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model as open_clip saves it: configuration and weights in one folder."""
    path = save_folder(
        tmp_path_factory.mktemp("small"), mean=[0.1, 0.2, 0.3], std=[0.5, 0.5, 0.5], resize_mode="squash"
    )
    save_file(small_clip(seed=5).state_dict(), path / "open_clip_model.safetensors")
    return path


def text_of(model):
    with torch.no_grad():
        return model.encode_text(tokenizer()(TEXTS), normalize=True)


# -------------------------------------------------------------------------------------------------------- preprocessing
def assert_sees_as_open_clip(backbone: Any, preprocess: Any) -> None:
    """The pixels that reach the tower are, level by level, those of open_clip's own transform."""
    seen = []
    trace = backbone.trace

    def noting(images: torch.Tensor, needs: Any) -> Any:
        seen.append(images)
        return trace(images, needs)

    backbone.trace = noting
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (333, 517, 3), dtype=np.uint8))
    # Without the bank of names: a whole text tower reads it in half a minute.
    options = {"recipe": "fast", "min_presence": 0, "second_look": False, "text_cache": False}
    Localizer(backbone, resize=backbone.resize_policy, **options)(photo, ["cat"])
    levels = [((one * backbone.std + backbone.mean) * 255).round() for one in (seen[0][0], preprocess(photo))]
    assert torch.equal(*levels)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("mode", ["squash", "shortest"])
def test_a_folder_sees_pictures_as_open_clip_shows_them(tmp_path, interpolation, mode):
    folder = save_folder(tmp_path, interpolation=interpolation, resize_mode=mode, mean=[0.4, 0.5, 0.6])
    save_file(small_clip(seed=5).state_dict(), folder / "open_clip_model.safetensors")
    backbone = create(f"local-dir:{folder}")
    assert backbone.interpolation == interpolation
    assert_sees_as_open_clip(backbone, open_clip.create_model_and_transforms(f"local-dir:{folder}")[2])


# ------------------------------------------------------------------------------------------------------------ building
def test_folder_of_open_clip(folder):
    backbone = create(f"local-dir:{folder}")
    model = small_clip(seed=5)
    with torch.no_grad():
        expected = F.normalize(model.visual(pictures(SIDE, SIDE)), dim=-1)
    assert isinstance(backbone, Backbone)
    assert recipe_of(f"local-dir:{folder}") == recipe_of(backbone)
    assert_rounded(backbone.encode_image(pictures(SIDE, SIDE)), expected, backbone)
    assert_rounded(backbone.encode_text(TEXTS), text_of(model), backbone)
    assert backbone.resize_policy == "squash"
    assert backbone.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(module.training for module in backbone.modules())


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A folder with weights that tell nothing, and a file of them with OpenAI's numbers beside."""
    plain, state = save_folder(tmp_path_factory.mktemp("plain")), small_clip(seed=5).state_dict()
    save_file(state, plain / "w.safetensors")
    torch.save({**state, "input_resolution": torch.tensor(64)}, plain / "RN.pt")
    return plain, plain / "RN.pt"


def test_openais_weights_and_tags_trained_with_quick_gelu_get_it(reported):
    """The architecture's name says nothing of it; plain GELU gives other embeddings that could go unnoticed."""
    plain, archive = reported
    config, references = f"local-dir:{plain}", {}
    for quick in (True, False):
        plan = Plan("x", config, config, lambda: plain / "w.safetensors", quick_gelu=quick)
        tagged = build(plan, "cpu", "fp32")
        assert_rounded(tagged.encode_text(TEXTS), text_of(small_clip(quick_gelu=quick, seed=5)), tagged)
        model = small_clip(quick_gelu=quick, seed=6)
        _weights.load_into(model, _weights.read_checkpoint(archive), "small")
        references[quick] = text_of(model)
    backbone = build(Plan("RN", config, config, lambda: archive), "cpu", "fp32")
    found = backbone.encode_text(TEXTS)
    assert_rounded(found, references[True], backbone)
    assert (found - references[False]).abs().max() > 1e-4


def remarks(config: str, weights: Path, **plan: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        build(Plan("RN", config, config, lambda: weights, **plan), "cpu", "fp32")
    return [str(warning.message) for warning in caught if warning.category is CliplocWarning]


def test_a_file_that_does_not_tell_its_gelu_is_remarked_on(reported, tmp_path):
    (plain, archive), twin = reported, "RN-quickgelu"
    config = f"local-dir:{plain}"
    (line,) = remarks(config, plain / "w.safetensors", quick_twin=twin)
    check_refusal(line, f"{plain}/w.safetensors", "--model RN-quickgelu")
    assert remarks(config, archive, quick_twin=twin) == remarks(config, plain / "w.safetensors") == []
    file = str(tmp_path / "w.safetensors")
    twins = {name: plan_model(name, file).quick_twin for name in ("ViT-B-16", "ViT-B-16-quickgelu", "ViT-B-16-SigLIP")}
    assert twins == {"ViT-B-16": "ViT-B-16-quickgelu", "ViT-B-16-quickgelu": None, "ViT-B-16-SigLIP": None}
    assert plan_model("ViT-B-16", "laion2b_s34b_b88k").quick_twin is plan_model("RN50", "random").quick_twin is None


def test_a_file_that_does_not_tell_its_preprocessing_is_remarked_on_where_published_weights_differ(reported):
    (plain, archive), tags = reported, ("openai", "laion")
    config = f"local-dir:{plain}"
    (line,) = remarks(config, plain / "w.safetensors", may_be_like=tags)
    check_refusal(line, f"{plain}/w.safetensors", "--pretrained FILE@TAG with the tag openai or laion")
    assert remarks(config, archive, may_be_like=tags) == []
    names = ("ViT-L-14", "ViT-H-14", "ViT-H-14-quickgelu", "ViT-B-16")
    alike = [("openai", "laion2b_s32b_b82k"), ("laion2b_s32b_b79k", "dfn5b"), ("metaclip_fullcc", "dfn5b"), ()]
    assert [plan_model(name, "w.safetensors").may_be_like for name in names] == alike


def test_a_file_like_the_weights_of_a_tag_takes_their_preprocessing_and_gelu(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = plan_model("ViT-L-14", "mine.pt@laion2b_s32b_b82k")
    assert (plan.label, plan.weights()) == ("ViT-L-14:mine.pt@laion2b_s32b_b82k", Path("mine.pt"))
    assert (plan.preprocessing["mean"], plan.preprocessing["resize_mode"]) == ((0.5, 0.5, 0.5), "shortest")
    assert (plan.quick_gelu, plan.quick_twin, plan.may_be_like) == (False, None, ())
    assert plan_model("ViT-H-14", "folder/mine@dfn5b").preprocessing["resize_mode"] == "squash"
    assert plan_model("ViT-L-14", "mine.pt@openai").quick_gelu
    with pytest.raises(UnknownNameError, match="unknown weights of ViT-L-14 'dfn5b': did you mean dfn2b"):
        plan_model("ViT-L-14", "mine.pt@dfn5b")
    for name in ("a@b/w.pt", "w@openai.pt"):  # an @ of the path's own
        assert plan_model("ViT-L-14", name).weights() == Path(name)
    (tmp_path / "w.pt@openai").write_bytes(b"x")
    assert plan_model("ViT-L-14", "w.pt@openai").weights() == Path("w.pt@openai")
    assert plan_model("RN50", "openai").weights.func is _weights.tag_file


def test_random_weights_say_so_and_are_the_same_every_time(folder):
    before = torch.get_rng_state()
    plan = Plan(plan_model("RN50", "random").label, f"local-dir:{folder}", f"local-dir:{folder}", None)
    first = build(plan, "cpu", "fp32")
    torch.rand(1)
    second = build(plan, "cpu", "fp32")
    assert first.name == "RN50:random"
    assert first.weights_file is None, "nothing worth keeping"
    assert torch.equal(first.encode_text(TEXTS), second.encode_text(TEXTS))
    torch.set_rng_state(before)
    build(plan, "cpu", "fp32")
    assert torch.equal(before, torch.get_rng_state()), "building must not move the caller's random numbers"


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_precision(folder, precision, dtype):
    exact = create(f"local-dir:{folder}")
    backbone = create(f"local-dir:{folder}", precision=precision)
    pixels = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    assert backbone.dtype == dtype
    assert torch.equal(backbone.mean, exact.mean), "pixels are normalised in float32"
    image, text = backbone.encode_image(backbone.normalize(pixels)), backbone.encode_text(TEXTS)
    assert image.dtype == text.dtype == torch.float32
    assert (image * exact.encode_image(exact.normalize(pixels))).sum(dim=-1).min() > 0.999
    assert (text * exact.encode_text(TEXTS)).sum(dim=-1).min() > 0.999


def test_auto_precision_asks_the_machine(monkeypatch):
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(_layers, "native_bf16", lambda device, native=native: native)
        assert _layers.resolve_precision("auto", "cpu") == dtype
    with pytest.raises(UsageError, match="expected precision to be one of fp32, bf16, fp16, auto, got 'int8'"):
        create("mini", precision="int8")


# --------------------------------------------------------------------------------------------------------------- plans
def test_what_pretrained_means(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_bytes(b"x")
    assert plan_model("RN50", None).label == "RN50:openai"
    assert plan_model("ViT-bigG-14-quickgelu", None).label == "ViT-bigG-14-quickgelu:metaclip_fullcc"
    for path in ("weights.pt", "folder/weights", "mine"):
        plan = plan_model("RN50", path)
        assert plan.label == f"RN50:{Path(path).name}"
        assert plan.weights() == Path(path)
    assert plan_model("RN50", "random").weights is None
    with pytest.raises(UnknownNameError, match="unknown weights of RN50 'opnai': did you mean openai"):
        plan_model("RN50", "opnai")
    with pytest.raises(UsageError, match="weights for ViT-H-14, got none: add --pretrained with one of laion2b"):
        plan_model("ViT-H-14", None)
    with pytest.raises(UsageError, match="ViT-S-16, got none: add --pretrained with a file of weights, or 'random'"):
        plan_model("ViT-S-16", None)


def test_preprocessing_comes_with_the_weights():
    siglip = plan_model("ViT-B-16-SigLIP", "webli").preprocessing
    assert siglip["mean"] == (0.5, 0.5, 0.5)
    assert siglip["resize_mode"] == "squash"
    assert plan_model("ViT-B-16-SigLIP", "file.safetensors").preprocessing == siglip, "all its weights agree"
    assert plan_model("RN50", "openai").preprocessing["mean"] == pytest.approx((0.48145466, 0.4578275, 0.40821073))


def test_towers_that_cannot_be_taken_apart(folder, monkeypatch):
    class Swin(nn.Module):
        pass

    monkeypatch.setattr(open_clip, "create_model", lambda *a, **k: type("Model", (), {"visual": Swin()})())
    with pytest.raises(ModelError, match=r"\(Swin\) is not supported: expected CLIP's ResNet, a ViT, EVA"):
        create(f"local-dir:{folder}")


def test_missing_tokenizers(monkeypatch):
    monkeypatch.setattr(_weights.hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(_weights, "_in_hub_cache", lambda repository, names: None)
    with pytest.raises(ModelError) as error:
        create("ViT-B-16-SigLIP", "random")
    check_refusal(str(error.value), "ViT-B-16-SigLIP:random", "https://huggingface.co/timm/ViT-B-16-SigLIP")

    def no_transformers(name):
        raise ImportError("transformers")

    monkeypatch.setattr(open_clip, "get_tokenizer", no_transformers)
    with pytest.raises(ModelError, match="needs another package: pip install transformers"):
        create("RN50", "random")


def test_a_configuration_open_clip_cannot_build(tmp_path):
    (tmp_path / "open_clip_config.json").write_text(
        '{"model_cfg": {"embed_dim": 8, "vision_cfg": {"no": 1}, "text_cfg": {}}}'
    )
    save_file({"x": torch.zeros(1)}, tmp_path / "open_clip_model.safetensors")
    with pytest.raises(ModelError, match="open_clip cannot build local-dir:") as error:
        create(f"local-dir:{tmp_path}")
    assert "\n" not in str(error.value)
    for damaged in ("{", "[]", '{"embed_dim": 8}'):
        (tmp_path / "open_clip_config.json").write_text(damaged)
        with pytest.raises(ModelError, match=r"open_clip_config\.json is damaged, or not open_clip's"):
            create(f"local-dir:{tmp_path}")


# ------------------------------------------------------------------------------------------------------------ catalogue
def test_all_of_open_clip_is_listed_without_being_built(monkeypatch):
    monkeypatch.setattr(open_clip, "create_model", lambda *a, **k: pytest.fail("a model was built"))
    not_open_clips = set(NOT_OPEN_CLIPS)
    assert set(open_clip.list_models()) | not_open_clips == set(models.names())
    for entry in models:
        if entry.name not in not_open_clips:
            assert entry.weights == tuple(open_clip.list_pretrained_tags_by_model(entry.name))
            builder._entry(entry.name)


def test_what_cannot_be_used_is_marked():
    marked = {entry.name for entry in models if "cannot be used here" in entry.about}
    assert marked == {"swin_base_patch4_window7_224", "vit_relpos_medium_patch16_cls_224"}


def test_a_folder_cannot_ask_for_its_tokenizers_code(tmp_path, monkeypatch):
    """open_clip hands `tokenizer_kwargs` of a configuration to transformers."""
    transformers = pytest.importorskip("transformers")
    config = open_clip.get_model_config("ViT-S-32-alt")
    config["text_cfg"] |= {"hf_tokenizer_name": str(tmp_path), "tokenizer_kwargs": {"trust_remote_code": True}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    requested = []
    monkeypatch.setattr(builder._weights, "unreachable", lambda *_: False)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **how: requested.append(how) or 1 / 0)
    with pytest.raises(ModelError):
        build(Plan("x", f"local-dir:{tmp_path}", f"local-dir:{tmp_path}", None), "cpu", "fp32")
    assert [how["trust_remote_code"] for how in requested] == [False]

"""Weights: every format round trip, one line for everything that can be wrong with them, and what tells them apart."""

import hashlib
import io
import os
import shutil
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from cliploc.errors import MissingWeightsError, ModelError, UnknownNameError, UsageError
from cliploc.towers import _weights, create, create_guide, guides
from cliploc.towers._weights import load_into, read_checkpoint
from cliploc.towers.tower import Guide, Needs
from tests.commands import CAT, cliploc_
from tests.towers.seam import refusing
from tests.towers.small_clip import SIDE, save_folder, small_clip


@pytest.fixture(scope="module")
def model():
    return small_clip(seed=5)


@pytest.fixture(scope="module")
def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def torchscript(path, model):
    """OpenAI's format: a traced model in fp16, with the three numbers they put beside it."""
    model.register_buffer("input_resolution", torch.tensor(SIDE))
    del model.context_length, model.vocab_size
    model.register_buffer("context_length", torch.tensor(16))
    model.register_buffer("vocab_size", torch.tensor(49408))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, (torch.zeros(1, 3, SIDE, SIDE), torch.zeros(1, 16, dtype=torch.long)))
        torch.jit.save(traced.half(), str(path))
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return torchscript(tmp_path_factory.mktemp("openai") / "RN.pt", small_clip(seed=5))


def fails(path, *fragments):
    with refusing(str(path), *fragments):
        read_checkpoint(path)


# ------------------------------------------------------------------------------------------------------------ formats
def as_half(state):
    return {name: value.half() if value.is_floating_point() else value for name, value in state.items()}


SAVERS = {
    "w.safetensors": lambda state, path: save_file(state, path),
    "half.safetensors": lambda state, path: save_file(as_half(state), path),
    "w.pt": lambda state, path: torch.save(state, path),
    "old.pth": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "w.bin": lambda state, path: torch.save({"model": OrderedDict(state)}, path),
    "epoch_3.pt": lambda state, path: torch.save(
        {"epoch": 3, "name": "a run", "state_dict": {f"module.{name}": value for name, value in state.items()}}, path
    ),
}


@pytest.mark.parametrize("name", SAVERS)
def test_round_trip(tmp_path, state, name):
    path = tmp_path / name
    SAVERS[name](state, path)
    checkpoint = read_checkpoint(path)
    assert not checkpoint.from_openai
    other, half = small_clip(seed=6), name.startswith("half")
    load_into(other, checkpoint, "small")
    for key, value in other.state_dict().items():
        assert value.dtype == state[key].dtype
        torch.testing.assert_close(value, state[key], rtol=1e-3 if half else 0, atol=1e-4 if half else 0)


def test_a_torchscript_archive_is_opened_only_if_openai_published_it(archive, state, monkeypatch):
    """It is a program: torch.jit.load may run what it holds."""
    with monkeypatch.context() as patched:
        patched.setattr("torch.jit.load", lambda *a, **k: pytest.fail("a program was opened"))
        fails(archive, "is refused: it is a TorchScript program", "save its state_dict() as safetensors")
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762" in _weights.published_by_openai()
    monkeypatch.setattr(_weights, "published_by_openai", lambda: {sha256})
    checkpoint = read_checkpoint(archive)
    assert checkpoint.from_openai
    assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {torch.float16, torch.int64}
    assert not {"input_resolution", "context_length", "vocab_size"} & checkpoint.tensors.keys()
    other = small_clip(seed=6)
    load_into(other, checkpoint, "small")
    for key, value in other.state_dict().items():
        expected = state[key].half().float() if state[key].is_floating_point() else state[key]
        assert torch.equal(value, expected), key


# ------------------------------------------------------------------------------------------------------ hostile files
class Attack:
    """Runs a command when a careless reader opens it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("old", [True, False])
def test_pickle_that_runs_code_is_refused(tmp_path, state, protocol, old):
    path, marker = tmp_path / "w.pt", tmp_path / "executed"
    torch.save(state | {"x": Attack(marker)}, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not old)
    fails(path, "is refused", "could run code")
    assert not marker.exists()


# ------------------------------------------------------------------------------------------------------ damaged files
def cut(path, share=0.6):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def test_truncated(tmp_path, state, archive):
    for name in ("w.safetensors", "w.pt", "old.pth"):
        SAVERS[name](state, tmp_path / name)
        cut(tmp_path / name)
        fails(tmp_path / name, "damaged")
    shutil.copy(archive, tmp_path / "RN50.pt")
    cut(tmp_path / "RN50.pt")
    fails(tmp_path / "RN50.pt", "is cut short or damaged", "download it again")


@pytest.mark.parametrize("content", [b"", b"just a text", bytes(range(256)) * 20])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ""])
def test_files_that_are_no_weights(tmp_path, content, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    fails(path, "damaged")


def test_other_things_than_state_dicts(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    fails(tmp_path / "list.pt", "holds list, not a state dict")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    fails(tmp_path / "none.pt", "holds no tensors")
    fails(tmp_path / "there-is-none.pt", "found none at", "check the path")
    fails(tmp_path, "got the folder", "give the file in it")


# --------------------------------------------------------------------------------------------------- another's weights
def refusal(model, tensors, name="small"):
    with pytest.raises(ModelError) as error:
        load_into(model, _weights.Checkpoint(Path("w.pt"), tensors), name)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_unexpected_and_misshapen(state):
    model = small_clip(seed=6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    left_out = {name: value for name, value in state.items() if name != "ln_final.bias"}
    assert refusal(model, left_out) == (
        "w.pt does not hold weights of small: of its tensors 1 missing (ln_final.bias …); check model and file"
    )
    assert "2 unexpected (a …)" in refusal(model, state | {"a": torch.zeros(1), "b": torch.zeros(1)})
    other = refusal(model, state | {"ln_final.bias": torch.zeros(3)})
    assert "1 of another shape (ln_final.bias …)" in other
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items()), "half loaded"


def test_what_is_derived_may_be_missing_or_left_over(state):
    model = small_clip(seed=6)
    lean = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    lean["logit_scale"] = lean["logit_scale"].reshape(1)
    lean["transformer.attn_mask"] = torch.zeros(16, 16)
    load_into(model, _weights.Checkpoint(Path("w.pt"), lean), "small")
    assert torch.equal(model.visual.conv1.weight, state["visual.conv1.weight"])
    assert model.logit_scale.shape == ()


# ------------------------------------------------------------------------------------------------------------- fetching
@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home and an empty Hugging Face cache."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.file_download, "HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    return tmp_path


def in_hub_cache(home, repository, name, content, blob=None):
    """A file as huggingface_hub leaves it: a link from the snapshot to a blob called by its checksum."""
    folder = home / "hub" / f"models--{repository.replace('/', '--')}"
    blob_path = folder / "blobs" / (blob or hashlib.sha256(content).hexdigest())
    for path in (blob_path, folder / "refs" / "main", folder / "snapshots" / "c0ffee" / name):
        path.parent.mkdir(parents=True, exist_ok=True)
    blob_path.write_bytes(content)
    (folder / "refs" / "main").write_text("c0ffee")
    link = folder / "snapshots" / "c0ffee" / name
    link.symlink_to(blob_path)
    return link


def tag_fails(*fragments, model="RN50", tag="openai"):
    with refusing(*fragments):
        _weights.tag_file(model, tag)


def test_a_cached_tag_needs_no_network_and_is_the_published_file(home, state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content, name = buffer.getvalue(), "open_clip_pytorch_model.bin"
    link = in_hub_cache(home, "timm/resnet50_clip.openai", name, content)
    assert _weights.tag_file("RN50", "openai") == link
    assert read_checkpoint(link).tensors.keys() == state.keys()
    link = in_hub_cache(home, "timm/x", name, content, blob="a" * 64)
    fails(link, "is damaged: its SHA-256 is", "instead of the published aaaaaaaaaaaa…: delete ", "blobs/aaaa")


def test_openais_file_serves_if_its_checksum_is_right(home, monkeypatch):
    original = home / "home" / ".cache" / "clip" / "RN50.pt"
    original.parent.mkdir(parents=True)
    original.write_bytes(b"not what OpenAI published")
    tag_fails("is damaged", str(original), "afeb0e10f9e5")
    sha256 = hashlib.sha256(original.read_bytes()).hexdigest()
    monkeypatch.setattr(_weights, "published_sha256", lambda url: sha256)
    assert _weights.tag_file("RN50", "openai") == original


def test_folder_checkpoint(tmp_path):
    with pytest.raises(ModelError, match="which is not a folder"):
        _weights.folder_checkpoint(tmp_path / "none")
    with pytest.raises(ModelError, match=r"expected open_clip_config\.json or transformers\' config\.json in"):
        _weights.folder_checkpoint(tmp_path)
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {}}')
    with pytest.raises(ModelError, match=r"expected weights in .* put open_clip_model\.safetensors there"):
        _weights.folder_checkpoint(tmp_path)
    for name in ("epoch_9.pt", "open_clip_pytorch_model.bin", "open_clip_model.safetensors"):  # each better than before
        (tmp_path / name).touch()
        assert _weights.folder_checkpoint(tmp_path).name == name


# ---------------------------------------------------------------------------------------------- what tells models apart
def folder_model(folder, seed, form, quick_gelu=False):
    """A folder of open_clip, whose image tower is drawn by the seed, and whose text tower is always the same."""
    save_folder(folder, quick_gelu=quick_gelu)
    image, text = small_clip(seed=seed).state_dict(), small_clip(seed=5).state_dict()
    state = {name: (image if name.startswith("visual.") else text)[name].clone() for name in text}
    if form == "pt":
        torch.save(state, folder / "open_clip_model.pt")
    else:
        save_file(state, folder / "open_clip_model.safetensors")
    return create(f"local-dir:{folder}")


def test_a_text_tower_is_the_same_in_files_of_other_forms_and_beside_other_image_towers(tmp_path):
    one, same, tuned = (
        folder_model(tmp_path / n, *how) for n, how in (("a", (5, "pt")), ("b", (5, "st")), ("c", (6, "st")))
    )
    assert one.weights_id == same.weights_id != tuned.weights_id
    assert one.text_id == same.text_id == tuned.text_id
    quick = folder_model(tmp_path / "d", 5, "st", quick_gelu=True)  # the same tensors
    assert len({quick.weights_id, quick.text_id, one.weights_id, one.text_id}) == 4


def test_comparison_names_are_embedded_and_announced_once_for_a_text_tower(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPLOC_CACHE", str(tmp_path / "cache"))
    announced = []
    for folder, seed, form in (("a", 5, "pt"), ("b", 6, "st")):
        folder_model(tmp_path / folder, seed, form)
        ran = cliploc_("localize", CAT, "-p", "cat", "--model", f"local-dir:{tmp_path / folder}", "--json")
        assert ran.code == 0, ran.err
        announced.append("comparison names, once for this text tower" in ran.err)
    assert announced == [True, False]


# Guides by name: towers of timm with random weights against timm's own answers, and where weights come from
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

"""Weights: every format round trip, one line for everything that can be wrong with them, and what tells them apart."""

import hashlib
import io
import os
import shutil
import warnings
from collections import OrderedDict
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from cliploc.errors import ModelError
from cliploc.towers import _weights, create
from cliploc.towers._weights import load_into, read_checkpoint
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

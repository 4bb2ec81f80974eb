"""Weights: every format round trip, and one line for everything that can be wrong with them."""

import hashlib
import io
import json
import os
import pickle
import random
import shutil
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from cliploc import backbones
from cliploc.backbones import _checkpoints, _weights
from cliploc.backbones._checkpoints import load_into, looks_like, read_checkpoint
from cliploc.errors import CliplocError, ModelError
from tests.backbones.seam import refusing
from tests.backbones.small_clip import SIDE, small_clip
from tests.hub.server import Hub


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
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    other, half = small_clip(seed=6), name.startswith("half")
    load_into(other, checkpoint, "small")
    for key, value in other.state_dict().items():
        assert value.dtype == state[key].dtype
        torch.testing.assert_close(value, state[key], rtol=1e-3 if half else 0, atol=1e-4 if half else 0)


def test_torchscript_archive_round_trip(archive, state, monkeypatch):
    """Read without torch.jit, which would compile the programs inside, and without torch.load."""
    for loader in ("torch.jit.load", "torch.load"):
        monkeypatch.setattr(loader, lambda *a, **k: pytest.fail("the archive was handed to torch"))
    checkpoint = read_checkpoint(archive)
    assert checkpoint.from_openai
    assert {tensor.dtype for tensor in checkpoint.tensors.values()} == {torch.float16, torch.int64}
    assert not {"input_resolution", "context_length", "vocab_size"} & checkpoint.tensors.keys()
    other = small_clip(seed=6)
    load_into(other, checkpoint, "small")
    for key, value in other.state_dict().items():
        expected = state[key].half().float() if state[key].is_floating_point() else state[key]
        assert torch.equal(value, expected), key


def test_state_dict_with_openais_numbers_is_openais(tmp_path, state):
    torch.save(state | {"input_resolution": torch.tensor(SIDE)}, tmp_path / "w.pt")
    checkpoint = read_checkpoint(tmp_path / "w.pt")
    assert checkpoint.from_openai
    assert "input_resolution" not in checkpoint.tensors


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


def rewritten(archive, target, change, compression=zipfile.ZIP_STORED):
    """A copy of the archive with entries changed: `change(name, content)` → new content, or None to leave it out."""
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(target, "w", compression) as copy:
        for entry in source.infolist():
            content = change(entry.filename.partition("/")[2], source.read(entry))
            if content is not None:
                copy.writestr(entry.filename, content)
    return target


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_torchscript_that_runs_code_is_refused(archive, tmp_path, protocol):
    marker = tmp_path / "executed"
    evil = pickle.dumps(Attack(marker), protocol=protocol)
    path = rewritten(archive, tmp_path / "w.pt", lambda name, old: evil if name == "data.pkl" else old)
    fails(path, "is refused", "mkdir, which could run code")
    assert not marker.exists()
    pickle.loads(evil)
    assert marker.exists(), "the attack itself must work, or this test shows nothing"


def module_pickle(attributes: bytes) -> bytes:
    """A module as torch writes it, with attributes given as the pickle of a table."""
    return b"\x80\x02c__torch__\nM\n)\x81" + attributes + b"b."


REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n("
TENSOR = REBUILD + (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    b"X\x03\x00\x00\x00cpuK\x04tQK%b(K%bt(K%bt\x89ccollections\nOrderedDict\n)RtR"
)  # four floats, seen from offset, size and stride


STORAGE = TENSOR[TENSOR.index(b"((") + 1 : TENSOR.index(b"Q") + 1]
# A list of twice a list of twice a list …: a few hundred bytes whose text would have 2 ** 60 parts.
DOUBLING = b"]K\x01a" + b"".join(b"q%c0](h%ch%ce" % (i, i, i) for i in range(1, 61))


def weights(value: bytes) -> bytes:
    """A module with one attribute."""
    return module_pickle(b"}X\x01\x00\x00\x00w" + value + b"s")


def four(offset: int, size: int, stride: int) -> bytes:
    return TENSOR % (bytes([offset]), bytes([size]), bytes([stride]))


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        (weights(four(0, 4, 1)), None),
        (weights(four(1, 4, 1)), "a tensor of shape (4,) in a storage of 4"),
        (weights(four(0, 3, 2)), "a tensor of shape (3,) in a storage of 4"),
        (weights(four(0, 255, 0)), "a tensor of shape (255,) in a storage of 4"),
        (weights(four(0, 4, 1).replace(b"K\x04tQ", b"K\x05tQ")), "storage 0 of 5"),
        (weights(four(0, 4, 1))[:-30], "cannot be read (pickle data was truncated)"),
        (weights(b"cos\nsystem\n"), "the function os.system"),
        (weights(b"cbuiltins\neval\n(X\x01\x00\x00\x001tR"), "the function builtins.eval"),
        (module_pickle(b"]"), "a module whose state is not a table"),
        (weights(REBUILD[:-1] + b"}b"), "an attempt to change the reader"),
        (weights(four(0, 4, 1) + b"}b"), "an attempt to change a tensor"),
        (b"\x80\x02}.", "something other than a tree of modules"),
        (b"\x80\x02c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00wh\x00sb.", "or modules that hold themselves"),
        (
            b"\x80\x02c__torch__\nM\n)\x81q\x00}("
            + b"".join(b"X\x05\x00\x00\x00a%04dh\x00" % number for number in range(5_000))
            + b"ub.",
            "or modules that hold themselves",
        ),  # five thousand times: they would be waited for faster than they are counted
        (weights(DOUBLING + b"Q"), "a storage described by list"),
        (weights(REBUILD + STORAGE + b"K\x00" + DOUBLING + b"]tR"), "a tensor without a storage"),
        (weights(REBUILD + STORAGE + b"K\x00" + DOUBLING + b"]K\x01aK\x01atR"), "a tensor whose shape is none"),
        (b"", "cannot be read (Ran out of input)"),
        (b"\x80\x02\xff", "cannot be read (invalid load key"),
        (b"\x80\x02\x8a\xff", "cannot be read (pickle data was truncated)"),
    ],
)
def test_torchscript_descriptions(tmp_path, description, reason):
    """The bytes a hostile or damaged description could hold, each refused for its own reason; the first is sound."""
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", description)
        archive.writestr("w/constants.pkl", b"\x80\x02).")
        archive.writestr("w/data/0", torch.arange(4, dtype=torch.float32).numpy().tobytes())
    if reason is None:
        assert read_checkpoint(path).tensors["w"].tolist() == [0, 1, 2, 3]
    else:
        fails(path, "is refused", reason)


def test_compressed_archives_are_refused(archive, tmp_path):
    """A small file must not become a huge one in memory: a megabyte of zeros in a kilobyte."""
    torch.save({"w": torch.zeros(2**18)}, tmp_path / "plain.pt")
    for plain, reason in ((archive, "no bytes for storage 0"), (tmp_path / "plain.pt", "it is compressed, which")):
        path = rewritten(plain, tmp_path / "w.pt", lambda _, old: old, zipfile.ZIP_DEFLATED)
        fails(path, "is refused", reason)


def test_nothing_set_by_one_archive_outlives_it(archive, tmp_path):
    """A description may set attributes on the classes it is given; they are its own."""
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w") as hostile:
        hostile.writestr("w/data.pkl", b"\x80\x02c__torch__\nM\n}X\x0a\x00\x00\x00attributes}sb.")
        hostile.writestr("w/constants.pkl", b"\x80\x02).")
    fails(path, "is refused")
    assert len(read_checkpoint(archive).tensors) > 100


@pytest.mark.parametrize("old", [True, False])
def test_a_state_dict_that_holds_itself_is_refused(tmp_path, state, old):
    held = dict(state)
    held["model"] = held
    torch.save(held, tmp_path / "w.pt", _use_new_zipfile_serialization=not old)
    fails(tmp_path / "w.pt", "is refused: its state dict is wrapped more than 8 times or holds itself")
    torch.save({"state_dict": {"state_dict": {"state_dict": state}}}, tmp_path / "w.pt")
    assert read_checkpoint(tmp_path / "w.pt").tensors.keys() == state.keys()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(3).to_sparse(),
        torch.eye(3).to_sparse_csr(),
        torch.zeros(3, device="meta"),
        torch.zeros(3, dtype=torch.complex64),
        torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
        torch.zeros(1).expand(10**12),
    ],
    ids=["sparse", "csr", "meta", "complex", "quantised", "endless"],
)
def test_tensors_that_are_no_plain_numbers_are_refused(tmp_path, state, tensor):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, on quantisation and CSR
        torch.save(state | {"logit_scale": tensor}, tmp_path / "w.pt")
        fails(tmp_path / "w.pt", "holds logit_scale, which is sparse, quantised, complex or without data")


def safetensors_of(header: bytes, data=b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


@pytest.mark.parametrize(
    "content",
    [
        safetensors_of(b"{"),
        safetensors_of(b"{" * 100_000),
        (2**60).to_bytes(8, "little") + b"{}",
        safetensors_of(b'{"w":{"dtype":"F32","shape":[4000000000,4000000000],"data_offsets":[0,4]}}', bytes(4)),
        safetensors_of(b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4000000000]}}', bytes(4)),
        safetensors_of(b'{"w":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', bytes(4)),
        safetensors_of(b'{"w":7}'),
        safetensors_of(b'{"__metadata__":{"a":"b"}}'),
    ],
    ids=["cut", "nested", "huge header", "huge shape", "huge offset", "unknown type", "no table", "no tensors"],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_hostile_safetensors(tmp_path, content, suffix):
    (tmp_path / f"w{suffix}").write_bytes(content)
    fails(tmp_path / f"w{suffix}")


@pytest.mark.parametrize("old", [False, True])
def test_tuples_in_tuples_without_end_are_refused_before_they_are_hashed(tmp_path, old):
    """300 bytes that would keep torch's own reader busy for centuries: a key of a dict."""
    key = b")q\x00" + b"".join(b"h%c\x86q%c" % (i, i + 1) for i in range(60))
    content, path = b"\x80\x02}" + key + b"K\x01s.", tmp_path / "w.pt"
    if old:
        system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
        start = [pickle.dumps(one, 2) for one in (0x1950A86A20F9469CFC6C, 1001, system)]  # as torch begins a file
        path.write_bytes(b"".join(start) + content)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in (("data.pkl", content), ("version", b"3\n"), ("byteorder", b"little")):
                archive.writestr(f"archive/{name}", data)
    fails(path, "tuples in tuples without end")


def test_junk_anywhere_in_openais_archive_is_a_model_error_or_still_weights(tmp_path, archive):
    """Bytes overwritten, mostly in the description, and the end cut off; tests/fuzz does so to the other formats."""
    path, sound, draw = tmp_path / "w.pt", archive.read_bytes(), random.Random(0)
    description = sound.find(b"torch")
    for _ in range(20):
        damaged = bytearray(sound)
        for _ in range(draw.randint(1, 5)):
            at = draw.choice([draw.randrange(len(sound)), description + draw.randrange(400)])
            damaged[at] = draw.randrange(256)
        path.write_bytes(damaged[: draw.randint(1, len(sound))] if draw.random() < 0.3 else damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                assert read_checkpoint(path).tensors
            except ModelError as error:
                assert "\n" not in str(error), str(error)  # noqa: PT017


@pytest.mark.parametrize("name", ["..", "../", ".", "/", "~", "\0"])
def test_a_place_that_is_no_file_of_weights(name):
    with pytest.raises(CliplocError) as error:
        backbones.create("RN50", name, "cpu")
    assert "\n" not in str(error.value)


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


def test_one_wrong_byte_in_an_archive(archive, tmp_path):
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as source:
        entry = max(source.infolist(), key=lambda one: one.file_size)
        content[entry.header_offset + 4096] ^= 0xFF
    (tmp_path / "w.pt").write_bytes(content)
    fails(tmp_path / "w.pt", "is refused", "Bad CRC-32")


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"", "is empty: download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "is a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>404</html>", "is a web page, not weights"),
        (b"just a text", "damaged"),
        (bytes(range(256)) * 20, "damaged"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ""])
def test_files_that_are_no_weights(tmp_path, content, fragment, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    fails(path, fragment)


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
        load_into(model, _checkpoints.Checkpoint(Path("w.pt"), "", tensors, False), name)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_unexpected_and_misshapen(state):
    model = small_clip(seed=6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    left_out = {name: value for name, value in state.items() if name != "ln_final.bias"}
    assert refusal(model, left_out) == (
        "w.pt does not hold weights of small: 1 tensors missing (ln_final.bias); check model and file"
    )
    assert "2 unexpected (a, …)" in refusal(model, state | {"a": torch.zeros(1), "b": torch.zeros(1)})
    other = refusal(model, state | {"ln_final.bias": torch.zeros(3)})
    assert "1 of another shape (ln_final.bias: [3], expected [16])" in other
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items()), "half loaded"


def test_what_is_derived_may_be_missing_or_left_over(state):
    model = small_clip(seed=6)
    lean = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    lean["logit_scale"] = lean["logit_scale"].reshape(1)
    lean["transformer.attn_mask"] = torch.zeros(16, 16)
    load_into(model, _checkpoints.Checkpoint(Path("w.pt"), "", lean, False), "small")
    assert torch.equal(model.visual.conv1.weight, state["visual.conv1.weight"])
    assert model.logit_scale.shape == ()


@pytest.mark.parametrize("name", ["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B-32", "ViT-B-16", "ViT-L-14"])
def test_architecture_is_told_from_the_tensors(name):
    with torch.device("meta"):
        tensors = open_clip.CLIP(**open_clip.get_model_config(name)).state_dict()
    assert looks_like(tensors)[0] == name
    assert f"they look like {name} or" in refusal(small_clip(), tensors)


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
    assert read_checkpoint(link).sha256 == hashlib.sha256(content).hexdigest()
    link = in_hub_cache(home, "timm/x", name, content, blob="a" * 64)
    fails(link, "is damaged: its SHA-256 is", "instead of the published aaaaaaaaaaaa…: delete ", "blobs/aaaa")


def test_openais_own_file_serves_if_its_checksum_is_right(home, monkeypatch):
    original = home / "home" / ".cache" / "clip" / "RN50.pt"
    original.parent.mkdir(parents=True)
    original.write_bytes(b"not what OpenAI published")
    tag_fails("is damaged", str(original), "afeb0e10f9e5")
    sha256 = hashlib.sha256(original.read_bytes()).hexdigest()
    monkeypatch.setattr(_weights, "published_sha256", lambda url: sha256)
    assert _weights.tag_file("RN50", "openai") == original


def test_published_checksums():
    assert _weights.published_sha256(open_clip.get_pretrained_url("RN50", "openai")).startswith("afeb0e10f9e5a86d")
    assert _weights.published_sha256(open_clip.get_pretrained_url("RN50", "yfcc15m")) == "455df137"
    assert _weights.published_sha256("https://example.org/x-12345678.pt") == ""


def test_offline(home):
    tag_fails(
        "the weights 'openai' of RN50 are not on this machine and HF_HUB_OFFLINE forbids the network",
        "download them from https://huggingface.co/timm/resnet50_clip.openai",
        "save https://openaipublic.azureedge.net/clip/models/afeb0e10",
        f"as {home}/home/.cache/clip/RN50.pt",
        "--pretrained FILE",
    )


def test_no_network(home, monkeypatch):
    monkeypatch.setattr(_weights.hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_weights.hub, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a: pytest.fail("it would try for half a minute"))
    tag_fails("are not on this machine and 127.0.0.1:9 cannot be reached", "--pretrained FILE")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (LocalEntryNotFoundError("no connection"), "huggingface.co cannot be reached"),
        (RuntimeError("a proxy in the way\nwith details"), "could not be downloaded (a proxy in the way)"),
    ],
)
def test_download_errors(home, monkeypatch, error, said):
    """Those that tests/hub does not rehearse."""

    def download(repository, name):
        raise error

    monkeypatch.setattr(_weights.hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(_weights, "hub_reachable", lambda: True)
    monkeypatch.setattr(_weights, "fetch_blob", lambda repository, name: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    tag_fails(said)


def test_a_download_by_url(home, monkeypatch):
    """It goes on where a stopped one ended; the file gets its name only when it is whole and its checksum right."""
    content = bytes(range(256)) * 100
    sha256 = hashlib.sha256(content).hexdigest()
    monkeypatch.setattr(_weights.hub, "HF_HUB_OFFLINE", False)
    with Hub({"mlfoundations/x": {f"m-{sha256[:8]}.pt": content, "m-0123abcd.pt": content}}) as served:
        address, folder = f"{served.url}/cdn/mlfoundations/x", home / "clip"
        with pytest.raises(ModelError, match=r"came damaged: the SHA-256 of m-0123abcd.pt is"):
            _weights._download_url(f"{address}/m-0123abcd.pt", folder / "m-0123abcd.pt", "the weights")
        assert not [path for path in folder.iterdir() if path.suffix != ".lock"]
        target = folder / f"m-{sha256[:8]}.pt"
        for part in (content[:5000], content + b"more"):
            target.unlink(missing_ok=True)
            target.with_name(f"{target.name}.incomplete").write_bytes(part)
            assert _weights._download_url(f"{address}/{target.name}", target, "the weights").read_bytes() == content
        assert served.downloads("mlfoundations/x") == ["", "bytes=5000-", f"bytes={len(content) + 4}-", ""]
        with pytest.raises(ModelError, match=r"could not be downloaded .*fetch http://.* and save it as"):
            _weights._download_url(f"{address}/none.pt", folder / "none.pt", "the weights")


def test_hub_folder(home):
    with pytest.raises(ModelError, match="the files of hf-hub:org/name are not on this machine and HF_HUB_OFFLINE"):
        _weights.hub_folder("org/name")
    config = in_hub_cache(home, "org/name", "open_clip_config.json", json.dumps({}).encode())
    with pytest.raises(ModelError, match="the files of hf-hub:org/name are not on this machine"):
        _weights.hub_folder("org/name")
    in_hub_cache(home, "org/name", "open_clip_model.safetensors", b"x")
    assert _weights.hub_folder("org/name") == config.parent
    with pytest.raises(ModelError, match="expected a repository as ORG/NAME after hf-hub:, got 'a/b/c/d'"):
        _weights.hub_folder("a/b/c/d")


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

"""Files: read, written and locked; documents of others, and damaged ones."""

import builtins
import errno
import io
import json
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from cliploc.errors import CliplocError, UsageError
from cliploc.evaluate.data import open_dataset, open_labelled
from cliploc.evaluate.tasks.evaluate import read_map
from cliploc.evaluate.tasks.rows import arrow
from cliploc.find.calibration import load_calibration, package_calibration
from cliploc.find.heads import read_config
from cliploc.find.learnt import load_learnt
from cliploc.images.reading import load
from cliploc.label.corrections import read_corrections
from cliploc.runs.engine import failure_reason
from cliploc.support.files import (
    DocumentError,
    locked,
    parse_json,
    read_text,
    write_atomic,
    write_atomic_folder,
)
from cliploc.support.process import OTHER_WAIT_VARIABLES, PASSIVE, out_of_memory
from cliploc.towers._weights import read_checkpoint
from tests.commands import CAT, begun, cliploc_, python, refused
from tests.evaluate.data import folders, labelled


def half(path: Path) -> None:
    path.write_bytes(b"half")
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_a_file_is_there_as_a_whole_or_as_it_was(tmp_path):
    path = tmp_path / ("long " * 50 + ".txt")  # 254 bytes
    write_atomic(path, lambda temporary: temporary.write_text("one"))
    with pytest.raises(OSError, match="No space left") as failed:
        write_atomic(path, half)
    assert failed.value.filename == str(path)
    assert path.read_text() == "one"
    write_atomic(path, lambda temporary: temporary.write_text("two"), durable=False)
    assert path.read_text() == "two"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_there_as_a_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "yolo"
    write_atomic_folder(path, lambda folder: (folder / "a").write_text("one"))
    with pytest.raises(OSError, match="No space left"):
        write_atomic_folder(path, lambda folder: half(folder / "a"))
    assert (path / "a").read_text() == "one"
    rename = Path.rename

    def refuse(self, target):
        if target == path and (self / "a").read_text() == "two":
            raise PermissionError(errno.EACCES, "in use by another program")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        with pytest.raises(PermissionError):
            write_atomic_folder(path, lambda folder: (folder / "a").write_text("two"))
    assert (path / "a").read_text() == "one"
    write_atomic_folder(path, lambda folder: (folder / "b").write_text("two"))
    assert [one.name for one in path.iterdir()] == ["b"]
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path):
    names = (".cliploc-0123456789abcdef.tmp", ".cliploc-1123456789abcdef.tmp", ".cliploc-2123456789abcdef.tmp")
    half, folder, link = (tmp_path / name for name in names)
    (tmp_path / "mine").mkdir()
    others = [tmp_path / name for name in (".bashrc.old", ".cliploc-mine.tmp", f"{half.name}.bak", "mine/a")]
    for path in (half, *others):
        path.write_text("some")
    folder.mkdir()
    (folder / "a").write_text("half")
    link.symlink_to(tmp_path / "mine")
    with locked(tmp_path):
        pass
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(others)


@pytest.mark.parametrize(
    "words",
    [
        ("localize", CAT, "-p", "cat", "--recipe", "fast"),
        ("compare", CAT, "-p", "cat", "--method", "cam"),
        ("explain", CAT, "-p", "cat", "--method", "cam"),
        ("demo",),
    ],
    ids=lambda words: words[0],
)
def test_commands_with_out_say_that_another_run_writes_there(words, tmp_path):
    with locked(tmp_path):
        message = refused(*words, "--out", tmp_path)
    assert f"another run is writing into {tmp_path}: wait until it ends, or choose another --out" in message
    assert list(tmp_path.iterdir()) == []


def hold(path, connection):
    with locked(path):
        connection.send("locked")
        time.sleep(600)


def test_a_killed_run_locks_nobody_out(tmp_path):
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = begun(hold, tmp_path, sender)
    assert receiver.poll(60)
    with pytest.raises(UsageError, match="another run is writing"), locked(tmp_path):
        pass
    child.kill()
    child.join()
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------- documents of others
def test_a_file_is_read_and_lines_end_alike(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert read_text(tmp_path / "a") == "one\ntwo\nthree\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"), ("[" * 10**5, "nested too deeply"), ('{"a":' * 10**5, "nested too deeply"),
        ("1" * 5000, "Exceeds the limit"), ("[NaN]", "NaN is no number"), ("-Infinity", "-Infinity is no number"),
        (b"\xff", "codec can't decode"),
    ],
)  # fmt: skip
def test_what_is_no_json_is_one_line(text, message):
    with pytest.raises(DocumentError, match=message) as caught:
        parse_json(text)
    assert len(str(caught.value)) < 200


# -------------------------------------------------------------------------------------------------------- damaged files
def written(save: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


def corrected(path: Path) -> object:
    return read_corrections(path, {"a.jpg": (40, 30)}, ["cat"])


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))
TENSORS = {"a": torch.arange(600.0)}
CVAT = '<annotations><image name="a.jpg" width="40" height="30"><box label="cat" xtl="1" ytl="2" xbr="9" ybr="8"/>'
FILES: dict[str, tuple[Callable[[], bytes], Callable[[Path], Any]]] = {
    "a.jpg": (lambda: written(lambda to: NOISE.save(to, "jpeg")), load),
    "a.png": (lambda: written(lambda to: NOISE.save(to, "png")), load),
    "w.safetensors": (lambda: save(TENSORS), read_checkpoint),
    "w.pt": (lambda: written(lambda to: torch.save(TENSORS, to)), read_checkpoint),
    "head.safetensors": (lambda: save(TENSORS), read_config),
    "learnt.safetensors": (lambda: save(TENSORS), load_learnt),
    "calibration.json": (lambda: json.dumps(package_calibration("mini").document()).encode(), load_calibration),
    "map.npy": (lambda: written(lambda to: np.save(to, np.ones((224, 224)))), lambda path: read_map(path, "exact")),
    "cvat.xml": (lambda: f"{CVAT}</image></annotations>".encode(), corrected),
    "coco.json": (lambda: json.dumps(folders.COCO).encode(), corrected),
    "data.yaml": (lambda: b"names: [cat, {a: b}, 'dog']", lambda path: open_dataset("yolo", path.parent)),
    "annotations/instances_val2017.json": (
        lambda: json.dumps(folders.COCO).encode(), lambda path: open_dataset("coco", path.parents[1])
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", ["cut", "noise"])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_one_line(name: str, damage: str, tmp_path: Path) -> None:
    make, read = FILES[name]
    folders.coco(tmp_path)
    whole, path = make(), tmp_path / name
    path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else bytes(range(256)) * 4)
    with pytest.raises(CliplocError) as error:
        read(path)
    assert "\n" not in str(error.value)
    assert path.name in str(error.value)


def test_a_cut_file_of_matlab_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    path = labelled.imagenet_seg(tmp_path) / "gtsegs_ijcv.mat"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:3000])
    with pytest.raises(CliplocError, match=r"^[^\n]*gtsegs_ijcv\.mat[^\n]*$"):
        open_labelled("imagenet_seg", tmp_path)


# -------------------------------------------------------------------------------------------------------------- process
WAITING = (*PASSIVE, *OTHER_WAIT_VARIABLES)
# Every command that runs a model, with what it cannot do without; those that would take long end at an unknown model.
COMMANDS: dict[str, tuple[object, ...]] = {
    "localize": (CAT, "-p", "cat", "--recipe", "fast"),
    "serve": ("--pretrained", "nothing"),
    "train": ("tscam", "--root", "nowhere", "--out", "head.safetensors"),
}


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def printed(code: str, *arguments: str, env: dict[str, str] | None = None) -> str:
    """What a new process prints: a change to a process cannot be undone."""
    return python("-c", code, *arguments, env=env).stdout


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' OpenMP describes itself otherwise")
def test_threads_of_the_command_sleep_while_they_wait():
    """As torch's OpenMP says itself what it took from the environment, when it is loaded."""
    inherited = {name: value for name, value in os.environ.items() if name not in WAITING}
    done = python("-m", "cliploc", "methods", env={**inherited, "OMP_DISPLAY_ENV": "verbose"})
    seen = dict(re.findall(r"(\w+) = '(\w+)'", done.stderr))
    assert (seen["OMP_WAIT_POLICY"], seen["GOMP_SPINCOUNT"]) == ("PASSIVE", "0")


@pytest.mark.parametrize("own", [{}, *({name: "1"} for name in WAITING)], ids=lambda own: next(iter(own), "none"))
def test_a_variable_of_the_user_leaves_all_others_alone(own):
    code = "import os, sys; from cliploc.support.process import wait_passively; "
    code += "print(wait_passively(), *(os.environ.get(n) for n in sys.argv[1:]))"
    inherited = {name: value for name, value in os.environ.items() if name not in WAITING}
    expected = own or PASSIVE
    words = [str(not own), *(expected.get(name, "None") for name in WAITING)]
    assert printed(code, *WAITING, env=inherited | own).split() == words


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_computes_with_the_threads_asked_for(command):
    if command == "serve":
        pytest.importorskip("starlette")  # without it, nothing is begun
    cliploc_(command, "--threads", 3, *COMMANDS[command])
    assert torch.get_num_threads() == 3


TOO_LITTLE = [
    MemoryError(),
    torch.OutOfMemoryError("no more"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.0 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried …"),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    RuntimeError("OpenCV(4.8.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 8 bytes"),
    OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
]


@pytest.mark.parametrize("error", TOO_LITTLE, ids=repr)
def test_too_little_memory_is_known_however_it_is_said(error: Exception) -> None:
    assert out_of_memory(error)
    if not isinstance(error, OSError):
        assert failure_reason(error).startswith("not enough memory for a single picture: use")


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ValueError("memory"), OSError(2, "No such file")])
def test_other_errors_are_no_lack_of_memory(error: Exception) -> None:
    assert not out_of_memory(error)


def test_an_import_that_fails_for_lack_of_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that a package should be installed which is there."""
    true = builtins.__import__

    def fail(name: str, *arguments: Any) -> Any:
        if name == "pyarrow.parquet":
            raise ImportError("libparquet.so: failed to map segment from shared object")
        return true(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", fail)
    with pytest.raises(UsageError, match=r"^not enough memory to load a library: close other programs \(libparquet"):
        arrow()

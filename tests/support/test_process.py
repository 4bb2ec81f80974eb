"""The process: how many threads compute and how they wait, and what lack of memory is."""

import builtins
import errno
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from cliploc.errors import UsageError
from cliploc.evaluate.tasks.rows import arrow
from cliploc.runs.engine import failure_reason
from cliploc.support.process import OTHER_WAIT_VARIABLES, PASSIVE, out_of_memory
from tests.commands import CAT, cliploc_, python

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

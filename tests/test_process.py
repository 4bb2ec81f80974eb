"""The process: how many threads compute and how they wait, whether freed memory stays, and what lack of memory is."""

import builtins
import errno
import multiprocessing
import os
import platform
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest
import torch

from cliploc._process import OTHER_WAIT_VARIABLES, PASSIVE, give_way, out_of_memory, wait_passively
from cliploc.errors import ModelError, UsageError
from cliploc.jobs.engine import failure_reason
from cliploc.jobs.rows import arrow
from tests.commands import CAT, cliploc_, python, refused

WAITING = (*PASSIVE, *OTHER_WAIT_VARIABLES)
# Every command that runs a model, with what it cannot do without; those that would take long end at an unknown model.
COMMANDS: dict[str, tuple[object, ...]] = {
    "localize": (CAT, "-p", "cat", "--recipe", "fast"),
    "segment": (CAT, "-p", "cat", "-p", "cup", "--window", "0"),
    "classify": (CAT, "-p", "cat"),
    "demo": ("--pretrained", "nothing"),
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
    code = (
        "import os, sys, cliploc._process as p; print(p.wait_passively(), *(os.environ.get(n) for n in sys.argv[1:]))"
    )
    inherited = {name: value for name, value in os.environ.items() if name not in WAITING}
    expected = own or PASSIVE
    words = [str(not own), *(expected.get(name, "None") for name in WAITING)]
    assert printed(code, *WAITING, env=inherited | own).split() == words


def test_nothing_is_changed_once_torch_is_loaded():
    before = dict(os.environ)
    assert not wait_passively()
    assert dict(os.environ) == before


def test_threads_take_shorter_turns_than_python_gives_them():
    code = (
        "import sys, cliploc._process as p; before = sys.getswitchinterval(); p.take_short_turns(); "
        "print(sys.getswitchinterval() < before)"
    )
    assert printed(code) == "True\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_computes_with_the_threads_asked_for(command):
    if command == "serve":
        pytest.importorskip("starlette")  # without it, nothing is begun
    cliploc_(command, "--threads", 3, *COMMANDS[command])
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("command", [*COMMANDS, "annotate", "benchmark"])
def test_threads_outside_the_range_are_refused(command):
    for threads in (0, 1025):
        said = refused(command, "--threads", threads, *COMMANDS.get(command, ()))
        assert said == f"cliploc: expected --threads from 1 to 1024, got {threads}\n"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no nice values")
def test_a_helping_process_gives_way_to_its_parent():
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), give_way) as helper:
        assert helper.submit(os.nice, 0).result(timeout=60) == min(os.nice(0) + 5, 19)


COLLECTED = """
import gc, sys, cliploc._process as p

usual = gc.get_threshold()
p.collect_late()
made = [[] for _ in range(int(sys.argv[1]))]
print(gc.get_freeze_count() > 0, gc.get_threshold() == usual, len(gc.callbacks))
"""


def test_the_collector_begins_after_what_imports_make_and_leaves_that_alone():
    assert printed(COLLECTED, "100000") == "False False 1\n"
    assert printed(COLLECTED, "300000") == "True True 0\n"


PAGE_FAULTS = """
import resource, sys
import numpy as np
from cliploc._process import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()
for _ in range(3):
    np.ones(2**23)  # 64 MiB, 16,384 pages
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(2**23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc's")
def test_large_blocks_are_not_given_back_and_asked_for_again():
    kept, by_default = (int(printed(PAGE_FAULTS, how)) for how in ("kept", "by default"))
    assert kept < 100
    assert by_default > kept


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


def test_a_models_failure_is_its_own_reason_and_a_mistake_is_raised() -> None:
    assert failure_reason(ModelError("NaN: use a higher precision")) == "NaN: use a higher precision"
    with pytest.raises(RuntimeError, match="shape mismatch"):
        failure_reason(RuntimeError("shape mismatch"))


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

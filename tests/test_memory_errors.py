"""One place tells errors about not enough memory from others, and says what a long run writes down of them."""

from __future__ import annotations

import builtins
import errno
import os
from typing import Any

import pytest
import torch

from cliploc._process import out_of_memory
from cliploc.errors import ModelError, UsageError
from cliploc.jobs.failures import failure_reason
from cliploc.jobs.rows import arrow

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

"""Reads OpenAI's TorchScript archives with an unpickler of five allowed things; no code in a file is run."""

import io
import math
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

MAX_ATTRIBUTES = 1_000_000  # of all modules; CLIP's largest has some ten thousand
MAX_NAME = 1_000  # characters of a tensor's dotted name
MAX_AXES = 8  # of a tensor
MAX_LENGTH = 1 << 48  # of an axis
MAX_DESCRIPTION = 64 << 20  # bytes of data.pkl; CLIP's largest has under one megabyte

MAX_TUPLES = 10_000  # entries of a tuple and of the tuples in it, counted as often as they occur
LEGACY_PICKLES = 4  # pickles at the start of a file in torch's old format: a number, a version, the system, the content

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class ArchiveError(Exception):
    """The archive holds something other than a tree of tensors, or is damaged; the text says what."""


class _Module:
    """Replaces every `__torch__.…` class: holds its attributes and has no methods."""

    __slots__ = ("attributes",)

    attributes: dict[str, Any]

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise ArchiveError("a module whose state is not a table of attributes")
        self.attributes = state


class _Held:
    """Wraps a tensor inside the description, where a bare tensor's `__setstate__` could be called."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __setstate__(self, state: Any) -> None:
        raise ArchiveError("an attempt to change a tensor")


class _Known:
    """Wraps a function that the description may call. Unlike a plain function's, its state cannot be set."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise ArchiveError("an attempt to change the reader")


class _Unpickler(pickle.Unpickler):
    """Builds the tree. Only `find_class` gives access to code, and only for the five allowed things."""

    def __init__(self, description: bytes, read_storage: Callable[[str, torch.dtype, int], Tensor]) -> None:
        super().__init__(io.BytesIO(description))
        self._read_storage = read_storage
        # A new class for each archive, so that nothing set on it remains after reading.
        self._module = type("Module", (_Module,), {"__slots__": ()})
        self._known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): _Known(OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2"): _Known(_view),
            ("torch._utils", "_rebuild_parameter"): _Known(lambda data, *_: data),
            ("torch.jit._pickle", "restore_type_tag"): _Known(lambda value, *_: value),
            **{("torch.jit._pickle", f"build_{kind}list"): _Known(list) for kind in ("int", "bool", "double")},
            **{("torch", name): _Known(_nothing) for name in _DTYPES},
        }
        self._dtypes = {id(self._known["torch", name]): dtype for name, dtype in _DTYPES.items()}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return self._module
        try:
            return self._known[module, name]
        except KeyError:
            raise ArchiveError(f"the function {module}.{name}, which could run code") from None

    def persistent_load(self, pid: Any) -> _Held:
        match pid:
            case ("storage", kind, str(key), str(), int(count)) if id(kind) in self._dtypes:
                return _Held(self._read_storage(key, self._dtypes[id(kind)], count))
        raise ArchiveError(f"a storage described by {type(pid).__name__}")  # its text could be endless


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a TorchScript archive by dotted name, in their stored precision, on the CPU."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
            if "data.pkl" not in entries:
                raise ArchiveError("no data.pkl")
            if "byteorder" in entries and archive.read(entries["byteorder"]).strip() not in (b"little", b""):
                raise ArchiveError("tensors of a big-endian machine")
            storages: dict[str, Tensor] = {}

            def read_storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
                entry = entries.get(f"data/{key}")
                if entry is None or entry.compress_type != zipfile.ZIP_STORED:
                    raise ArchiveError(f"no bytes for storage {key[:20]}")
                if count < 0 or count * dtype.itemsize > entry.file_size:
                    raise ArchiveError(f"storage {key[:20]} of {count} numbers in {entry.file_size} bytes")
                if count == 0:
                    return torch.empty(0, dtype=dtype)
                if key not in storages:
                    storages[key] = torch.frombuffer(bytearray(archive.read(entry)), dtype=torch.uint8)
                return storages[key][: count * dtype.itemsize].view(dtype)

            description = entries["data.pkl"]
            if description.file_size > MAX_DESCRIPTION:
                raise ArchiveError(f"a description of {description.file_size >> 20} MB")
            return _tensors(_Unpickler(archive.read(description), read_storage).load())
    except (ArchiveError, OSError):
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ArchiveError(f"an entry that cannot be read ({reason})") from None


def _nothing(*_: Any) -> Any:
    raise ArchiveError("a storage outside a tensor")


def _view(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Held:
    """`torch._utils._rebuild_tensor_v2`, with every number checked against the storage."""
    if not isinstance(storage, _Held) or len(size) != len(stride):
        raise ArchiveError("a tensor without a storage")
    numbers = (offset, *size, *stride)
    if len(size) > MAX_AXES or not all(type(number) is int and 0 <= number < MAX_LENGTH for number in numbers):
        raise ArchiveError(f"a tensor whose shape is none, or of more than {MAX_AXES} axes")
    there = storage.tensor.numel()
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    count = math.prod(size)
    if count and (last >= there or count > there):  # strides of 0 could make much of little
        raise ArchiveError(f"a tensor of shape {tuple(size)} in a storage of {there} numbers")
    return _Held(torch.as_strided(storage.tensor, tuple(size), tuple(stride), offset if count else 0))


def _tensors(root: Any) -> dict[str, Tensor]:
    """The tensors in a tree of modules, by dotted name."""
    tensors: dict[str, Tensor] = {}
    waiting = [("", root)]
    left = MAX_ATTRIBUTES
    while waiting:
        prefix, node = waiting.pop()
        if not isinstance(node, _Module):
            raise ArchiveError("something other than a tree of modules")
        attributes = getattr(node, "attributes", {})
        left -= 1 + len(attributes)
        if left < 0 or len(prefix) > MAX_NAME:
            raise ArchiveError(f"more than {MAX_ATTRIBUTES:,} attributes, or modules that hold themselves")
        for name, value in attributes.items():
            if isinstance(value, _Held):
                tensors[f"{prefix}{name}"] = value.tensor
            elif isinstance(value, _Module):
                waiting.append((f"{prefix}{name}.", value))
    return tensors


# ------------------------------------------------------------------------------------------------ before torch reads
def refuse_endless(path: Path) -> None:
    """Refuses tuples that hold one twice, and so on: to hash one, as a key, takes 2^n steps for n lines."""
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            for _ in range(LEGACY_PICKLES):
                if not _checked(file):
                    return
            return
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith("data.pkl"):
                    with archive.open(entry) as content:
                        _checked(content)  # type: ignore[arg-type]


def _checked(file: BinaryIO) -> bool:
    """Goes through one pickle; False if it is damaged, which torch's reader reports."""
    stack: list[int] = []  # how many steps hashing takes, for each value on the pickle's stack
    marks: list[int] = []
    memo: dict[int, int] = {}
    try:
        for code, argument, _ in pickletools.genops(file):
            name = code.name
            if name == "MARK":
                marks.append(len(stack))
            elif "GET" in name:
                stack.append(memo.get(int(argument or 0), 0))
            elif "PUT" in name or name == "MEMOIZE":
                memo[len(memo) if argument is None else int(argument)] = stack[-1]
            elif name not in ("PROTO", "FRAME", "STOP"):
                takes = code.stack_before
                start = marks.pop() if pickletools.markobject in takes else len(stack) - len(takes)
                if pickletools.markobject in takes:
                    start -= takes.index(pickletools.markobject)  # a list or dict that lies below the mark
                size = 1 + sum(stack[max(start, 0) :])
                del stack[max(start, 0) :]
                if "TUPLE" in name and size > MAX_TUPLES:
                    raise ArchiveError("tuples in tuples without end")
                stack += [size if "TUPLE" in name or name in ("REDUCE", "NEWOBJ", "BUILD") else 1] * len(
                    code.stack_after
                )
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, zipfile.BadZipFile, EOFError):
        return False
    return True

"""Inspects a pickle before torch reads it: torch runs no code of it, but a small pickle can keep it busy for ever."""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import BinaryIO

from cliploc.backbones._torchscript import RefusedError

MOST = 10_000  # entries of a tuple and of the tuples in it, counted as often as they occur
LEGACY = 4  # pickles at the start of a file in torch's old format: a number, a version, the system, the content


def refuse_endless(path: Path) -> None:
    """Refuses a file of torch in which a tuple holds another tuple twice, which again holds one twice, and so on.

    The key of a dict is hashed, and hashing such a tuple visits all of it: 2^n steps for n lines of a pickle.
    """
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            for _ in range(LEGACY):
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
                if "TUPLE" in name and size > MOST:
                    raise RefusedError("tuples in tuples without end")
                stack += [size if "TUPLE" in name or name in ("REDUCE", "NEWOBJ", "BUILD") else 1] * len(
                    code.stack_after
                )
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, zipfile.BadZipFile, EOFError):
        return False
    return True

"""The one reader of files that are small enough for the memory: regular files only, of a limited size.

A JSON document passes the schema of its kind, a `msgspec.Struct`, before anything else looks at it. Keys that a schema
does not name are free.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

import msgspec

MOST_TEXT = 64 * 2**20  # bytes of a list of names, files or rows
MOST_WHOLE = 2**53  # of a whole number in a text
MOST_DOCUMENT = 2**30  # bytes of a JSON document; that of all instances of COCO's training pictures has 450 million
NO_FILE = "a device or a pipe, expected a file"


class DocumentError(ValueError):
    """A document that is not as its kind of file is written; the text says where."""


def read_bytes(path: str | os.PathLike[str], most: int = MOST_DOCUMENT) -> bytes:
    """All of a regular file.

    Example:
        >>> read_bytes("/dev/null")
        Traceback (most recent call last):
        OSError: [Errno 22] a device or a pipe, expected a file: '/dev/null'
    """
    name = os.fspath(path)
    refuse_other(name)
    # Opened without waiting for somebody who writes; what was opened is asked, as the name may have a new file by now.
    with open(name, "rb", opener=_without_waiting) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, NO_FILE, name)
        if status.st_size > most:
            raise OSError(errno.EFBIG, f"{status.st_size / 1e6:,.0f} MB, expected at most {most / 1e6:,.0f}", name)
        content = file.read(status.st_size + 1)  # not `most`: so many bytes would be set aside
        if len(content) > status.st_size:  # files of /proc say that they are empty
            content += file.read(most + 1 - len(content))
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most / 1e6:,.0f} MB", name)
    return content


def refuse_other(path: str | os.PathLike[str]) -> None:
    """Refuses what is no regular file, before a library opens it that would wait for a pipe's writer."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, NO_FILE, os.fspath(path))


def read_text(path: str | os.PathLike[str], most: int = MOST_TEXT, encoding: str = "utf-8-sig") -> str:
    """All of a text file, with `\\n` at the end of each line.

    Raises:
        OSError: as in `read_bytes`.
        UnicodeDecodeError: it is no such text.
    """
    return read_bytes(path, most).decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | os.PathLike[str], kind: Any = Any, most: int = MOST_DOCUMENT) -> Any:
    """A JSON document in a file; see `parse_json`."""
    return parse_json(read_bytes(path, most), kind)


def parse_json(content: bytes | str, kind: Any = Any) -> Any:
    """A JSON document, as plain values.

    Args:
        kind: the schema that it must pass: a type as `msgspec` knows them.

    Example:
        >>> parse_json('{"a": [1, 2]}', dict[str, list[int]])
        {'a': [1, 2]}
        >>> parse_json('{"a": [1, true]}', dict[str, list[int]])
        Traceback (most recent call last):
        cliploc._documents.DocumentError: Expected `int`, got `bool` - at `$[...][1]`
    """
    try:
        read = json.loads(content, parse_constant=_no_number)
    except RecursionError:
        raise DocumentError("nested too deeply") from None
    except ValueError as error:
        raise DocumentError(str(error).partition(";")[0]) from None
    return checked(read, kind)


def checked(value: Any, kind: Any) -> Any:
    """Plain values that pass a schema; they are returned as they are."""
    try:
        msgspec.convert(value, kind)
    except (msgspec.ValidationError, ValueError) as error:
        raise DocumentError(str(error)) from None
    except RecursionError:
        raise DocumentError("nested too deeply") from None
    return value


def finite(text: str) -> float:
    """A number that a document has as text.

    Example:
        >>> finite(" 1.5 ")
        1.5
        >>> finite("1e999")
        Traceback (most recent call last):
        cliploc._documents.DocumentError: expected a number, got '1e999'
    """
    with suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    raise DocumentError(f"expected a number, got {_shown(text)}")


def whole(text: str) -> int:
    """A whole number that a document has as text, such as 500 or 500.0."""
    value = finite(text)
    if value % 1 or abs(value) > MOST_WHOLE:
        raise DocumentError(f"expected a whole number, got {_shown(text)}")
    return int(value)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 24 else f"{text[:20]}…")


def read_xml(path: str | os.PathLike[str], most: int = MOST_DOCUMENT) -> ElementTree.Element:
    """The root of an XML document that defines no entities: a few of them, one in the other, expand to gigabytes."""
    content = read_bytes(path, most)
    try:
        # Other encodings than ASCII's kin spell the word with other bytes.
        if b"<!" in content or b"\0" in content[:4] or content.startswith((b"\xfe\xff", b"\xff\xfe")):
            declarations = expat.ParserCreate()
            declarations.EntityDeclHandler = _no_entity
            declarations.Parse(content, True)
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, expat.ExpatError, LookupError, ValueError) as error:  # or of an unknown encoding
        raise DocumentError(str(error)) from None


def _no_entity(*_: object) -> None:
    raise DocumentError("it defines entities")


def _without_waiting(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def lines_of(path: str | Path, most: int = MOST_TEXT) -> list[str]:
    """The lines of a text file; errors as in `read_text`."""
    return read_text(path, most).splitlines()

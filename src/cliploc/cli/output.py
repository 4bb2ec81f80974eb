"""What all commands share that needs no rich: exit codes, stdout, and files."""

import json
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from cliploc import CliplocError, UsageError
from cliploc.support.files import write_output

DONE, SOME_FAILED, NOTHING_DONE, INTERRUPTED, NO_READER = 0, 1, 2, 130, 141


# ------------------------------------------------------------------------------------------------------------ printed
def complain(line: str) -> None:
    """Prints an error in one line."""
    with suppress(OSError):  # there is no stderr either
        print(f"cliploc: {printable(line)}", file=sys.stderr)


class OutputError(CliplocError):
    """What was found cannot be written to stdout, such as to a full disk."""


def write_out(text: str = "") -> None:
    """Writes to stdout, and whatever waits there, at once: who reads along sees each picture when it is done."""
    try:
        # Under PYTHONUNBUFFERED a write is cut off without an error, and the next one fails: also an empty one.
        sys.stdout.writelines([*text.splitlines(keepends=True), ""])
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write to stdout: {error.strerror}: free space, or redirect it elsewhere") from error


def printable(text: str) -> str:
    """Control characters written out: a file's name must not move the cursor or break a line in two."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def print_document(document: Mapping[str, Any]) -> None:
    """Prints the one JSON document of `--json`."""
    write_out(json_text(document) + "\n")


def json_text(document: Mapping[str, Any]) -> str:
    """Results as indented JSON."""
    return json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False)


LOCALIZE = ("cliploc", "localize", "photo.jpg", "-p", "cat")  # an example, to which options are added


def box_text(xyxy: Iterable[float]) -> str:
    """A box in whole pixels."""
    return " ".join(f"{value:.0f}" for value in xyxy)


# ------------------------------------------------------------------------------------------------------------ written
def writable(folder: Path) -> Path:
    """Makes the folder and checks that it can be written to, before anything is computed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot write to {folder}: {reason}: choose another folder with --out") from error
    return folder


def file_writable(path: Path) -> None:
    """The same for a file: checks its folder, which it makes, and that the path is not a folder itself."""
    if path.is_dir():
        raise UsageError(f"expected --out as a file, got the folder {path}: add the file's name")
    writable(path.resolve().parent)


write = partial(write_output, option="--out")

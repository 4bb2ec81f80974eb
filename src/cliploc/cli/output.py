"""What commands print and write alike, and the codes they end with."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.text import Text

from cliploc._files import write_whole
from cliploc._terminal import Terminal, printable, write_out
from cliploc.errors import UsageError

DONE, SOME_FAILED, NOTHING_DONE, INTERRUPTED, NO_READER = 0, 1, 2, 130, 141
SHOWN_FAILURES, SHOWN_PROBLEMS = 20, 3  # one by one, before a number stands for them


# ------------------------------------------------------------------------------------------------------------ printed
def complain(line: str) -> None:
    """An error, in one line."""
    with suppress(OSError):  # nobody can be told
        print(f"cliploc: {printable(line)}", file=sys.stderr)


def print_document(document: Mapping[str, Any]) -> None:
    """The one JSON document of `--json`."""
    write_out(json_text(document) + "\n")


def json_text(document: Mapping[str, Any]) -> str:
    """Results as people and programs read them."""
    return json.dumps(document, ensure_ascii=False, indent=1, allow_nan=False)


def say_failures(terminal: Terminal, failed: Mapping[str, str]) -> None:
    """The first of what failed, with the reason of each."""
    for name, reason in list(failed.items())[:SHOWN_FAILURES]:
        terminal.say(f"failed: {name}: {reason}", style="red")


def title_row(*titles: str) -> list[Text]:
    """The first row of a table."""
    return [Text(title, style="bold") for title in titles]


def box_text(xyxy: Iterable[float]) -> str:
    """A box in whole pixels."""
    return " ".join(f"{value:.0f}" for value in xyxy)


# ------------------------------------------------------------------------------------------------------------ written
def writable(folder: Path) -> Path:
    """Makes the folder and tries it, before anything is computed for it.

    Raises:
        UsageError: it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot write to {folder}: {reason}: choose another folder with --out") from error
    return folder


def make_folder(folder: Path) -> None:
    """Makes a folder of results, where it is not there.

    Raises:
        UsageError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror}: choose another --out") from error


def write(path: Path, content: bytes) -> None:
    """A file of results; a link of its name is replaced, and what it leads to stays.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        write_whole(path, lambda temporary: temporary.write_bytes(content))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}: free space or choose another --out") from error

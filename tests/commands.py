"""Runs the command line in this process, as `cliploc.cli.main` does it, with each model loaded once."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import cliploc.localizer  # noqa: F401 - before `create` is replaced
from cliploc import backbones
from cliploc.cli import main

PHOTOS = Path(backbones.__file__).parents[1] / "demo_photos"
CAT, COFFEE = PHOTOS / "cat.jpg", PHOTOS / "coffee.jpg"
create_once = functools.cache(backbones.create)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def cliploc_(*arguments: object) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(backbones, "create", create_once),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = main([str(argument) for argument in arguments])
    return Outcome(code, out.getvalue(), err.getvalue())


def process(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cliploc", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, **options)  # type: ignore[call-overload]


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """As a user whom file permissions bind; root is bound by none. Needs what it uses to be imported already."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)

"""Runs the command line, as `cliploc.cli.main` does it.

`cliploc_` is the quickest: in this process, with each model loaded once. `forked` has a process of its own, but one in
which torch is imported already. `process` is what a user does; its imports take seconds.
"""

import contextlib
import functools
import io
import json
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TextIO, TypeVar
from unittest import mock

from cliploc import towers
from cliploc.cli import main
from cliploc.find.memory import Memory
from cliploc.localizer import Localizer  # before `create` is replaced

PHOTOS = Path(towers.__file__).parents[1] / "demo_photos"
CAT, COFFEE = PHOTOS / "cat.jpg", PHOTOS / "coffee.jpg"
seen = functools.cache(Memory)
Answer = TypeVar("Answer")
_made = functools.cache(towers.create)


def create_once(
    model: str = "mini", pretrained: str | None = None, device: str = "cpu", *, precision: str = "fp32"
) -> Any:
    """Each model is made once, however it is asked for."""
    return _made(model, pretrained, device, precision=precision)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def cliploc_(*arguments: object, stdout: TextIO | None = None) -> Outcome:
    """What the command says, and its exit code; without what it writes to `stdout`, where one is given."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with (
        mock.patch.object(towers, "create", create_once),
        contextlib.redirect_stdout(stdout or out),
        contextlib.redirect_stderr(err),
    ):
        code = main([str(argument) for argument in arguments])
    return Outcome(code, *(stream.buffer.getvalue().decode() for stream in (out, err)))  # type: ignore[attr-defined]


def refused(*arguments: object) -> str:
    """The one line with which a command ends that does nothing."""
    ran = cliploc_(*arguments)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1), ran
    return ran.err


# What an error tells the user to do, or the choices that there are.
ADVICE = re.compile(
    r"\b(expected|did you mean|use|choose|leave|add|write|check|see|give|ask|name|pip install|needs|move|there are"
    r"|listed by|download|press|upload|start|reload|change|make|send|try|set|run it)\b", re.IGNORECASE
)  # fmt: skip


def check_refusal(line: str, *names: object) -> str:
    """That a refusal is one line that names what came and says what to do; returns it."""
    assert line.strip().count("\n") == 0, line
    assert ADVICE.search(line), f"no advice: {line}"
    for name in names:
        assert str(name) in line, f"{name!r} is not named: {line}"
    return line


def refused_in_one_line(arguments: Sequence[object], *names: object) -> str:
    """The line with which a command refuses these arguments; it names what came and says what to do."""
    return check_refusal(refused(*arguments), *names)


def succeeded(*arguments: object) -> Outcome:
    """What a command says that ends with code 0."""
    ran = cliploc_(*arguments)
    assert ran.code == 0, ran.err
    return ran


def document_of(*arguments: object) -> dict[str, Any]:
    """What a command that succeeds prints with `--json`."""
    found: dict[str, Any] = json.loads(succeeded(*arguments, "--json").out)
    return found


def localizer_of(model: str, **options: Any) -> Localizer:
    """A localizer to compare with; what its tower saw of a picture is there for the next one."""
    return Localizer(create_once(model), memory=seen(), **options)


def begun(function: Callable[..., object], *arguments: object) -> BaseProcess:
    """A new process that calls a function of a module, forked from one that has imported torch and our own modules."""
    context = multiprocessing.get_context("forkserver")
    # Read when the first process starts. A list of all models needs open_clip, which takes seconds to import.
    context.set_forkserver_preload(["tests.commands", "cliploc.evaluate.tasks.worker", "open_clip"])
    child = context.Process(target=function, args=arguments)
    child.start()
    return child


def forked(*arguments: object, path: Sequence[Path] = (), cwd: Path | None = None) -> Outcome:
    """The command line in a new process that has imported torch and our own modules, but looked up no plugin."""
    return elsewhere(cliploc_, *map(str, arguments), path=path, cwd=cwd)


def elsewhere(
    function: Callable[..., Answer], *arguments: object, path: Sequence[Path] = (), cwd: Path | None = None
) -> Answer:
    """What a function of a module returns in such a process, in which packages are looked for in `path` first."""
    answer, told = multiprocessing.Pipe(duplex=False)
    child = begun(_tell, told, function, arguments, [str(one) for one in path], cwd or Path.cwd())
    told.close()  # so that a child that dies ends the wait
    try:
        assert answer.poll(240), "the process has not ended"
        return answer.recv()
    finally:
        child.kill()
        child.join()


def _tell(
    told: Connection, function: Callable[..., object], arguments: Sequence[object], path: list[str], cwd: Path
) -> None:
    sys.path[:0] = path
    os.chdir(cwd)
    told.send(function(*arguments))


def python(*arguments: object, check: bool = True, **options: object) -> subprocess.CompletedProcess[str]:
    """A new process of Python with these arguments."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=check, **options)  # type: ignore[call-overload]


def process(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    return python("-m", "cliploc", *arguments, check=False, **options)


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

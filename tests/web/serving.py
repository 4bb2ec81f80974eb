"""A server of the page as a process of its own, as a user starts it."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def served(
    *arguments: str, log: Path | None = None, open_files: int | None = None, **environment: str
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`cliploc serve --port 0`, whose errors go to `log` → its address and its process; interrupted at the end."""
    command = [sys.executable, "-m", "cliploc", "serve", "--port", "0", *arguments]
    if open_files is not None:
        command = ["sh", "-c", f'ulimit -n {open_files}; exec "$@"', "sh", *command]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with (
        contextlib.ExitStack() as stack,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if log is None else stack.enter_context(log.open("wb")),
            text=True,
            env=variables,
        ) as process,
    ):
        try:
            address = process.stdout.readline().strip()
            if not address:
                raise AssertionError(process.stderr.read() if log is None else log.read_text())
            yield address, process
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()

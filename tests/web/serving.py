"""A server of the page as a process of its own, as a user starts it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def serving(*arguments: str, **environment: str) -> Iterator[str]:
    """`cliploc serve --port 0` → its address; interrupted at the end."""
    command = [sys.executable, "-m", "cliploc", "serve", "--port", "0", *arguments]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables) as process:
        try:
            address = process.stdout.readline().strip()
            if not address:
                raise AssertionError(process.stderr.read())
            yield address
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()

"""Memory that is freed stays with the process: in a process of its own, as it cannot be undone."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import numpy as np
from cliploc._process import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()
for _ in range(3):
    np.ones(2**23)  # 64 MiB, 16,384 pages
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.ones(2**23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc's")
def test_large_blocks_are_not_given_back_and_asked_for_again():
    assert page_faults("kept") < 100
    assert page_faults("by default") > page_faults("kept")

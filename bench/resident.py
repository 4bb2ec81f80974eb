"""How much memory a process holds now, and has held at most; in MiB."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_mib() -> float:
    """The peak of this process.

    Not `ru_maxrss` where the system tells more: on Linux a new process begins with that of the one that started it,
    which may be larger.
    """
    return _of_status("VmHWM") or _max_rss_mib()


def resident_mib(pid: int | None = None) -> float:
    """What a process holds now; None for this one. Of this one it is the peak where the system does not tell."""
    return _of_status("VmRSS", pid) or _max_rss_mib()


def _of_status(name: str, pid: int | None = None) -> float:
    """A line of Linux' /proc/PID/status, in MiB; 0 on other systems."""
    status = Path(f"/proc/{pid or 'self'}/status")
    return int(status.read_text().partition(f"{name}:")[2].split()[0]) / 2**10 if status.exists() else 0


def _max_rss_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)

"""What the folders of runs have in common: JSON files, and what is said of each session."""

import errno
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cliploc._files import write_whole

LIBRARIES = ("torch", "torchvision", "timm", "open_clip_torch", "numpy", "opencv-python-headless", "pillow", "pyarrow")
OTHER_SAMPLES = "the set's pictures, their sizes or their truth are not those that it was computed with"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically."""
    text = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False)
    # A byte of a file name that is not UTF-8 becomes a \udcff, which JSON reads back.
    write_whole(path, lambda temporary: temporary.write_bytes(text.encode("utf-8", "backslashreplace")))


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they are read back from JSON: tuples become lists, paths become texts."""
    read: dict[str, Any] = json.loads(json.dumps(values, default=str, allow_nan=False))
    return read


def session() -> dict[str, Any]:
    """An entry of a run's sessions: when, where and with which versions a run was started or resumed."""
    versions = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "command": sys.argv,
        "versions": {"python": platform.python_version(), **versions},
        "machine": {
            "node": platform.node(),
            "system": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
        },
    }


def _commit() -> str | None:
    """The commit of the git checkout that this package is in; None if it is not in one."""
    folder = Path(__file__).resolve().parent
    try:
        asked = ["git", "-C", str(folder), "ls-files", "--error-unmatch", Path(__file__).name]
        if subprocess.run(asked, capture_output=True, timeout=10, check=False).returncode:
            return None  # installed in a folder that is inside another project's checkout
        asked = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        described = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return described or None

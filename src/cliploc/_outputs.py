"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

from cliploc.errors import UsageError


def write_whole(path: Path, content: bytes, option: str) -> None:
    """Writes a file so that a kill at any moment leaves the old one or the new one.

    Args:
        path: the file; its folder is made.
        content: all of it.
        option: which option chooses another place, for the error.

    Raises:
        UsageError: no room, or no permission.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()
        reason = error.strerror or str(error)
        raise UsageError(f"cannot write {path}: {reason}: make room or choose another place with {option}") from error

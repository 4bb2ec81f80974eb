"""Puts what a tool has measured into a page: between `<!-- NAME: … -->` and the next `<!-- end -->`."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def put(page: Path, name: str, text: str) -> None:
    """Replaces what stands there; the prose around it is written by hand."""
    pattern = re.compile(rf"(<!-- {re.escape(name)}:[^\n]*-->\n).*?(<!-- end -->)", re.DOTALL)
    found, count = pattern.subn(
        lambda match: f"{match[1]}\n{text.strip()}\n\n{match[2]}", page.read_text(encoding="utf-8")
    )
    if count != 1:
        sys.exit(f"expected one <!-- {name}: … --> … <!-- end --> in {page}, found {count}")
    page.write_text(found, encoding="utf-8")

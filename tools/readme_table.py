"""Writes the README's table of methods from the registry: `python tools/readme_table.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
table = subprocess.run(
    [sys.executable, "-m", "cliploc", "methods", "--markdown"], check=True, capture_output=True, text=True
).stdout.strip()
head, rest = README.read_text().split("<!-- methods:", 1)
comment, rest = rest.split("-->", 1)
README.write_text(f"{head}<!-- methods:{comment}-->\n{table}\n<!-- end -->{rest.split('<!-- end -->', 1)[1]}")

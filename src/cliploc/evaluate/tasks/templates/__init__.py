"""The templates of the tasks' pages."""

from pathlib import Path

from cliploc.draw.html import Templates

TEMPLATES = Templates(Path(__file__).parent)

"""HTML pages: the templates in `templates/`, filled by Jinja2. Every value is escaped; a missing one is an error."""

from __future__ import annotations

import html
import io
from base64 import b64encode
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).with_name("templates")
# The colours of every page and its figures: CSS variables in base.html, a matplotlib style in benchmark_figures.py.
LIGHT = {
    "paper": "#fff", "ink": "#16181d", "soft": "#555c68", "line": "#d9dde4", "card": "#f5f6f8", "link": "#0b57d0",
    "right": "#0a6b3d", "wrong": "#a8320a",
}  # fmt: skip
DARK = {
    "paper": "#14161a", "ink": "#eceef2", "soft": "#a9b1bd", "line": "#343a44", "card": "#1d2026", "link": "#8ab4f8",
    "right": "#6fd19b", "wrong": "#ff9c73",
}  # fmt: skip


def render(template: str, **values: Any) -> str:
    """A page as text, from a template and the values that it names."""
    return _environment().get_template(template).render(values)


def render_to(file: IO[str], template: str, **values: Any) -> None:
    """Writes a page piece by piece, so that values given as iterators need not be in memory at once."""
    file.writelines(_environment().get_template(template).generate(values))


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # here: only what writes a page needs it

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(count=count, decimal=decimal)
    environment.globals.update(asset=_asset, light=LIGHT, dark=DARK)
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return environment


def _asset(name: str) -> str:
    """A style sheet or script, as it is."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def data_uri(data: bytes, kind: str) -> str:
    """Bytes of a media type as an address that needs no network."""
    return f"data:{kind};base64,{b64encode(data).decode('ascii')}"


def jpeg_uri(image: Image.Image, **options: Any) -> str:
    """A picture as an address that needs no network."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return data_uri(buffer.getvalue(), "image/jpeg")


def escape(value: object) -> str:
    """Any value as text in HTML, also within quotes; for HTML that no template writes."""
    return html.escape(str(value), quote=True)


def decimal(value: Any, decimals: int) -> str:
    """A number, or a dash where there is none."""
    return "–" if value is None or not np.isfinite(value) else f"{value:.{decimals}f}"


def count(amount: int, noun: str) -> str:
    """1 photo, 2 photos."""
    return f"{amount:,} {noun}" if amount == 1 else f"{amount:,} {noun}s"

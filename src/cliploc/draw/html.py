"""HTML from Jinja2 templates. Every value is escaped; a missing value is an error."""

from base64 import b64encode
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from cliploc.images.reading import picture_bytes


# The colours of every page and its figures: CSS variables in base.html, a matplotlib style in figures.py.
class Theme(NamedTuple):
    """Colours of a page, by what they are for."""

    paper: str
    ink: str
    soft: str
    line: str
    card: str
    link: str
    right: str
    wrong: str


LIGHT = Theme("#fff", "#16181d", "#555c68", "#d9dde4", "#f5f6f8", "#0b57d0", "#0a6b3d", "#a8320a")
DARK = Theme("#14161a", "#eceef2", "#a9b1bd", "#343a44", "#1d2026", "#8ab4f8", "#6fd19b", "#ff9c73")


class Templates:
    """The templates in some folders, after which those of all pages are looked up."""

    def __init__(self, *folders: Path) -> None:
        self.folders = (*folders, Path(__file__).with_name("templates"))

    def render(self, template: str, **values: Any) -> str:
        """Returns a template filled with these values."""
        return self._environment.get_template(template).render(values)

    def asset(self, name: str) -> str:
        """Returns a style sheet or script unchanged."""
        path = next(folder / name for folder in self.folders if (folder / name).is_file())
        return path.read_text(encoding="utf-8")

    @cached_property
    def _environment(self) -> Environment:
        environment = Environment(loader=FileSystemLoader(self.folders), autoescape=True, undefined=StrictUndefined)
        environment.trim_blocks = environment.lstrip_blocks = environment.keep_trailing_newline = True
        environment.filters.update(count=count, decimal=decimal)
        environment.globals.update(asset=self.asset, light=LIGHT._asdict(), dark=DARK._asdict())
        environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
        return environment


TEMPLATES = Templates()


def data_uri(data: bytes, kind: str) -> str:
    """Bytes of this media type as a data URI."""
    return f"data:{kind};base64,{b64encode(data).decode('ascii')}"


def embedded(image: Image.Image, alt: str, **options: Any) -> dict[str, Any]:
    """A picture as the macro `picture` shows it: data URI, size and alternative text; the options are Pillow's."""
    uri = data_uri(picture_bytes(image, "JPEG", **options), "image/jpeg")
    return {"uri": uri, "width": image.width, "height": image.height, "alt": alt}


def decimal(value: Any, decimals: int) -> str:
    """A number with this many decimals, or a dash for None, NaN and infinity."""
    return "–" if value is None or not np.isfinite(value) else f"{value:.{decimals}f}"


def count(amount: int, noun: str, plural: str = "") -> str:
    """A number with its noun: "1 photo", "2,000 photos", and "2 boxes" with a plural."""
    return f"{amount:,} {noun if amount == 1 else plural or noun + 's'}"

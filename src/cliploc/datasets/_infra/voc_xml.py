"""Reads one picture's annotation in Pascal VOC's XML format, which ILSVRC uses too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from cliploc._documents import MOST_TEXT, finite, read_xml, whole
from cliploc.datasets._infra.candidates import Box
from cliploc.errors import InputError


@dataclass(frozen=True)
class Thing:
    """An `<object>` of the file: its box is xmin, ymin, xmax, ymax, unchanged."""

    name: str
    box: Box
    difficult: bool


@dataclass(frozen=True)
class Annotation:
    """The annotation of a picture: its size (None if the file has none) and its objects."""

    size_wh: tuple[int, int] | None
    things: tuple[Thing, ...]


def read_annotation(path: Path) -> Annotation:
    """Reads one annotation file."""
    try:
        root = read_xml(path, MOST_TEXT)
        size = root.find("size")
        wh = None if size is None else (whole(_text(size, "width")), whole(_text(size, "height")))
        things = []
        for one in root.iter("object"):
            box = one.find("bndbox")
            if box is None:
                raise ValueError("an object without its bndbox")
            corners = [finite(_text(box, tag)) for tag in ("xmin", "ymin", "xmax", "ymax")]
            difficult = (one.findtext("difficult") or "0").strip() == "1"
            things.append(Thing(_text(one, "name"), (corners[0], corners[1], corners[2], corners[3]), difficult))
    except FileNotFoundError:
        raise InputError(f"expected an annotation at {path}, found none: left out") from None
    except (ValueError, OSError) as error:
        raise InputError(f"{path} is not an annotation that can be read ({error}): left out") from None
    return Annotation(None if wh is not None and min(wh) < 1 else wh, tuple(things))


def _text(element: ElementTree.Element, tag: str) -> str:
    text = (element.findtext(tag) or "").strip()
    if not text:
        raise ValueError(f"no {tag} in <{element.tag}>")
    return text

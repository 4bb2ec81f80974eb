"""Reads a project's labelling interface: which tags take boxes or polygons of which labels on which picture."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cliploc.errors import UsageError
from cliploc.find import prompts
from cliploc.formats.labelstudio import KINDS, Kind
from cliploc.label.label_studio.task_pictures import short

TAGS = "RectangleLabels or PolygonLabels"


@dataclass(frozen=True)
class Control:
    """A tag that has labels."""

    kind: Kind  # what it draws, its tag in small letters
    name: str  # its name
    # the name of each picture's tag that it draws on → the key of the picture in a task's data
    pictures: Mapping[str, str]
    labels: Mapping[int, str]  # index of a name to look for → the label that a shape of it gets


@dataclass(frozen=True)
class Labelling:
    """What a project looks for."""

    entries: tuple[str, ...]  # names to look for, with synonyms: "cat|kitten"
    controls: tuple[Control, ...]  # the tags that take what is found


def read_labelling(config: str) -> Labelling:
    """Reads a labelling interface."""
    try:
        root = ET.fromstring(config)
    except (ET.ParseError, ValueError) as error:
        raise UsageError(f"expected the labelling interface as XML, got something else ({error})") from None
    tags = [(tag.tag.lower(), tag) for tag in root.iter()]
    images = {tag.get("name", ""): tag.get("value", "") for kind, tag in tags if kind == "image"}
    words: dict[str, dict[str, None]] = {}  # what a label is called → all that it is looked for by, in order
    index: dict[str, int] = {}  # what a label is called → its place among them
    controls: list[Control] = []
    for kind, tag in ((kind, tag) for name, tag in tags for kind in KINDS if kind == name):
        targets = [name.strip() for name in tag.get("toName", "").split(",")]
        pictures = {to: _key(images[to], to) for to in targets if to in images}
        name, to_name = tag.get("name", ""), short(tag.get("toName", ""))
        if not pictures:
            raise UsageError(f"expected {tag.tag} {short(name)!r} to name an Image in toName, got {to_name!r}")
        labels: dict[int, str] = {}
        for label in _labels(tag):
            if names := _words(label):
                words.setdefault(names[0], {}).update(dict.fromkeys(names))
                place = index.setdefault(names[0], len(index))
                labels[place] = label.get("alias") or label.get("value") or names[0]
        controls.append(Control(kind, name, pictures, labels))
    if not controls:
        raise UsageError(f"expected {TAGS} on an Image in the labelling interface, found none: add one")
    if not words:
        raise UsageError(f'expected labels such as <Label value="cat"/> in {TAGS}, found none: add some')
    entries = tuple("|".join(sorted(some, key=lambda word: prompts.CONTRAST in word)) for some in words.values())
    prompts.parse(entries)
    return Labelling(entries, tuple(controls))


def _labels(tag: ET.Element) -> Iterator[Mapping[str, str]]:
    """The labels of a tag; one belongs to the nearest tag around it."""
    for child in tag:
        if child.tag.lower() == "label":
            yield child.attrib
        if child.tag.lower() not in KINDS:
            yield from _labels(child)


def _key(value: str, name: str) -> str:
    """`$photo` → `photo`."""
    if not re.fullmatch(r"\$\w[\w .-]*", value):
        raise UsageError(
            f"expected the value of Image {short(name)!r} as a variable such as $image, got {short(value)!r}"
        )
    return value[1:]


def _words(label: Mapping[str, str]) -> list[str]:
    """The words that a label is looked for by, each once, its value first."""
    separators = (("value", r"\|"), ("alias", r"[|,]"), ("predicted_values", r"[|,]"))
    words = [word for key, separator in separators for word in re.split(separator, label.get(key, ""))]
    return list(dict.fromkeys(" ".join(word.split()) for word in words if word.strip()))

"""Reads a project's labelling interface: which tags take boxes, masks or polygons of which labels on which picture."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from cliploc.errors import UsageError
from cliploc.find import prompts
from cliploc.formats.labelstudio import Kind

KINDS: tuple[Kind, ...] = get_args(Kind)
TAGS = "RectangleLabels, BrushLabels or PolygonLabels"
MOST_CONFIG = 1_000_000  # characters
MOST_LABELS = 1_000  # each is a name to look for in every picture
MOST_WORDS = 10_000  # labels and synonyms; each costs the text tower as much as a label
MOST_ENDS = 100  # pairs of a tag and a picture's; each gets every shape once more
SHOWN = 80  # characters of a piece of it in a message


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
    """What a project asks for."""

    entries: tuple[str, ...]  # names to look for, with synonyms: "cat|kitten"
    controls: tuple[Control, ...]  # the tags that take what is found


def read_labelling(config: str) -> Labelling:
    """Reads a labelling interface."""
    images, tags = _read(config)
    words: dict[str, dict[str, None]] = {}  # what a label is called → all that it is looked for by, in order
    index: dict[str, int] = {}  # what a label is called → its place among them
    controls: list[Control] = []
    for tag in tags:
        targets = [name.strip() for name in tag.to.split(",")]
        pictures = {to: _key(images[to], to) for to in targets if to in images}
        if not pictures:
            raise UsageError(f"expected {tag.name} {_shown(tag.own)} to name an Image in toName, got {_shown(tag.to)}")
        labels: dict[int, str] = {}
        for label in tag.labels:
            asked = _words(label)
            if not asked:
                continue
            first = asked[0]
            words.setdefault(first, {}).update(dict.fromkeys(asked))
            labels[index.setdefault(first, len(index))] = label.get("alias") or label.get("value") or first
        controls.append(Control(tag.kind, tag.own, pictures, labels))
    if sum(len(control.pictures) for control in controls) > MOST_ENDS:
        raise UsageError(f"expected {TAGS} on at most {MOST_ENDS} images in all, got more: make several projects")
    if len(words) > MOST_LABELS or sum(map(len, words.values())) > MOST_WORDS:
        raise UsageError(
            f"expected at most {MOST_LABELS:,} labels, and {MOST_WORDS:,} with their synonyms, got more: make several "
            "projects"
        )
    if not controls:
        raise UsageError(f"expected {TAGS} on an Image in the labelling interface, found none: add one")
    if not words:
        raise UsageError(f'expected labels such as <Label value="cat"/> in {TAGS}, found none: add some')
    entries = tuple("|".join(sorted(some, key=lambda word: prompts.CONTRAST in word)) for some in words.values())
    prompts.parse(entries)
    return Labelling(entries, tuple(controls))


@dataclass(frozen=True)
class _Tag:
    """A tag that has labels, as it is written."""

    kind: Kind
    name: str  # of the tag, as it is spelt
    own: str  # the attribute name
    to: str
    labels: list[Mapping[str, str]]  # the attributes of each


def _read(config: str) -> tuple[dict[str, str], list[_Tag]]:
    """The values of the pictures' tags by their names, and the tags that have labels, in their order."""
    if len(config) > MOST_CONFIG:
        raise UsageError(f"expected a labelling interface of at most {MOST_CONFIG:,} characters, got {len(config):,}")
    if "<!DOCTYPE" in config.upper() or "<!ENTITY" in config.upper():  # entities may grow without bound
        raise UsageError("expected a labelling interface without DOCTYPE and entities: remove them")
    try:
        waiting: list[tuple[ET.Element, _Tag | None]] = [(ET.fromstring(config), None)]
    except (ET.ParseError, ValueError) as error:
        raise UsageError(f"expected the labelling interface as XML, got something else ({error})") from None
    images, controls = dict[str, str](), list[_Tag]()
    while waiting:
        element, nearest = waiting.pop()  # and the nearest tag around it that has labels
        small, attributes = element.tag.lower(), element.attrib
        if small == "image":
            images[attributes.get("name", "")] = attributes.get("value", "")
        elif small == "label" and nearest is not None:
            nearest.labels.append(attributes)
        elif kind := next((kind_name for kind_name in KINDS if kind_name == small), None):
            nearest = _Tag(kind, element.tag, attributes.get("name", ""), attributes.get("toName", ""), [])
            controls.append(nearest)
        waiting += [(child, nearest) for child in reversed(element)]
    return images, controls


def _shown(text: str) -> str:
    """A piece of the interface in a message, in one line."""
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}…")


def _key(value: str, name: str) -> str:
    """`$photo` → `photo`."""
    if not re.fullmatch(r"\$\w[\w .-]*", value):
        raise UsageError(
            f"expected the value of Image {_shown(name)} as a variable such as $image, got {_shown(value)}"
        )
    return value[1:]


def _words(label: Mapping[str, str]) -> list[str]:
    """The words that a label is looked for by, each once, its value first."""
    separators = (("value", r"\|"), ("alias", r"[|,]"), ("predicted_values", r"[|,]"))
    words = [word for key, separator in separators for word in re.split(separator, label.get(key, ""))]
    return list(dict.fromkeys(" ".join(word.split()) for word in words if word.strip()))

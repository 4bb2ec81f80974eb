"""Reads a project's labelling interface: which tags take boxes, masks or polygons of which labels on which picture."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import get_args

from cliploc import prompts
from cliploc.errors import UsageError
from cliploc.report.exports.labelstudio import Kind

KINDS: tuple[Kind, ...] = get_args(Kind)
TAGS = "RectangleLabels, BrushLabels or PolygonLabels"
MOST_CONFIG = 1_000_000  # characters
MOST_LABELS = 1_000  # each is a name to look for in every picture


@dataclass(frozen=True)
class Control:
    """A tag that has labels.

    Attributes:
        kind: what it draws, its tag in small letters.
        name: its name.
        pictures: the name of each picture's tag that it draws on → the key of the picture in a task's data.
        labels: index of a name to look for → the label that a shape of it gets.
    """

    kind: Kind
    name: str
    pictures: Mapping[str, str]
    labels: Mapping[int, str]


@dataclass(frozen=True)
class Labelling:
    """What a project asks for.

    Attributes:
        entries: names to look for, with synonyms: "cat|kitten".
        controls: the tags that take what is found.
    """

    entries: tuple[str, ...]
    controls: tuple[Control, ...]


def read_labelling(config: str) -> Labelling:
    """Reads a labelling interface.

    A label is looked for by its `value`, and by synonyms in `alias` and `predicted_values`, separated by commas or
    `|`. A shape gets the label's alias where it has one, as Label Studio itself stores it.

    Raises:
        UsageError: it is not XML, or has no tag that takes shapes on a picture, or no label to look for.

    Example:
        >>> image = '<Image name="image" value="$photo"/>'
        >>> tag = '<RectangleLabels name="box" toName="image"><Label value="cat" alias="kitten"/></RectangleLabels>'
        >>> read = read_labelling(f"<View>{image}{tag}</View>")
        >>> read.entries, read.controls[0].pictures, read.controls[0].labels
        (('cat|kitten',), {'image': 'photo'}, {0: 'kitten'})
    """
    root = _parsed(config)
    images = {one.get("name", ""): one.get("value", "") for one in root.iter() if one.tag.lower() == "image"}
    words: dict[str, list[str]] = {}  # what a label is called → all that it is looked for by
    controls: list[Control] = []
    for tag in root.iter():
        kind = next((one for one in KINDS if one == tag.tag.lower()), None)
        if kind is None:
            continue
        name = tag.get("name", "")
        pictures = {to: _key(images[to], to) for to in re.split(r"\s*,\s*", tag.get("toName", "")) if to in images}
        if not pictures:
            raise UsageError(f"expected {tag.tag} {name!r} to name an Image in toName, got {tag.get('toName')!r}")
        labels: dict[int, str] = {}
        for label in tag.iter():
            asked = _words(label) if label.tag.lower() == "label" else []
            if not asked:
                continue
            first = asked[0]
            found = words.setdefault(first, [])
            found += [one for one in asked if one not in found]
            labels[list(words).index(first)] = label.get("alias") or label.get("value") or first
        controls.append(Control(kind, name, pictures, labels))
    if not controls:
        raise UsageError(f"expected {TAGS} on an Image in the labelling interface, found none: add one")
    if not words:
        raise UsageError(f'expected labels such as <Label value="cat"/> in {TAGS}, found none: add some')
    if len(words) > MOST_LABELS:
        raise UsageError(f"expected at most {MOST_LABELS:,} labels, got {len(words):,}: make several projects")
    entries = tuple("|".join(some) for some in words.values())
    prompts.parse(entries)
    return Labelling(entries, tuple(controls))


def _parsed(config: str) -> ET.Element:
    if len(config) > MOST_CONFIG:
        raise UsageError(f"expected a labelling interface of at most {MOST_CONFIG:,} characters, got {len(config):,}")
    if "<!DOCTYPE" in config.upper() or "<!ENTITY" in config.upper():  # entities may grow without bound
        raise UsageError("expected a labelling interface without DOCTYPE and entities: remove them")
    try:
        return ET.fromstring(config)
    except (ET.ParseError, ValueError) as error:
        raise UsageError(f"expected the labelling interface as XML, got something else ({error})") from None


def _key(value: str, name: str) -> str:
    """`$photo` → `photo`."""
    if not re.fullmatch(r"\$\w[\w .-]*", value):
        raise UsageError(f"expected the value of Image {name!r} as a variable such as $image, got {value!r}")
    return value[1:]


def _words(label: ET.Element) -> list[str]:
    """The words that a label is looked for by, its value first."""
    return list(dict.fromkeys(_split(label)))


def _split(label: ET.Element) -> Iterator[str]:
    for key, separator in (("value", r"\|"), ("alias", r"[|,]"), ("predicted_values", r"[|,]")):
        for word in re.split(separator, label.get(key, "")):
            if word.strip():
                yield " ".join(word.split())

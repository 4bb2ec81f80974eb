"""The one reader of files that fit the memory, of a limited size; JSON passes its kind's `msgspec.Struct`."""

from __future__ import annotations

import errno
import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal
from xml.etree import ElementTree
from xml.parsers import expat

import msgspec
from msgspec import Meta, Struct

MOST_TEXT = 64 * 2**20  # bytes of a list of names, files or rows
MOST_WHOLE = 2**53  # of a whole number in a text
MOST_YAML = 4 * 2**20  # bytes of a YAML document
MOST_DOCUMENT = 2**30  # bytes of a JSON document; that of all instances of COCO's training pictures has 450 million


class DocumentError(ValueError):
    """A document that is not as its kind of file is written; the text says where."""


def read_bytes(path: str | os.PathLike[str], most: int = MOST_DOCUMENT) -> bytes:
    """All of a file of a limited size."""
    size = os.stat(path).st_size
    if size > most:
        reason = f"{size / 1e6:,.0f} MB, expected at most {most / 1e6:,.0f}"
        raise OSError(errno.EFBIG, reason, os.fspath(path))
    return Path(path).read_bytes()


def read_text(path: str | os.PathLike[str], most: int = MOST_TEXT, encoding: str = "utf-8-sig") -> str:
    """All of a text file, with `\\n` at the end of each line."""
    return read_bytes(path, most).decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: str | os.PathLike[str], kind: Any = Any, most: int = MOST_DOCUMENT) -> Any:
    """A JSON document in a file; see `parse_json`."""
    return parse_json(read_bytes(path, most), kind)


def parse_json(content: bytes | str, kind: Any = Any) -> Any:
    """A JSON document, as plain values that pass a schema: `kind`, a type as `msgspec` knows them."""
    try:
        read = json.loads(content, parse_constant=_no_number)
    except RecursionError:
        raise DocumentError("nested too deeply") from None
    except ValueError as error:
        raise DocumentError(str(error).partition(";")[0]) from None
    return checked(read, kind)


def checked(value: Any, kind: Any) -> Any:
    """Plain values that pass a schema; they are returned as they are."""
    try:
        msgspec.convert(value, kind)
    except (msgspec.ValidationError, ValueError) as error:
        raise DocumentError(str(error)) from None
    return value


def finite(text: str) -> float:
    """A number that a document has as text."""
    with suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    raise DocumentError(f"expected a number, got {_shown(text)}")


def whole(text: str) -> int:
    """A whole number that a document has as text, such as 500 or 500.0."""
    value = finite(text)
    if value % 1 or abs(value) > MOST_WHOLE:
        raise DocumentError(f"expected a whole number, got {_shown(text)}")
    return int(value)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 24 else f"{text[:20]}…")


def read_xml(path: str | os.PathLike[str], most: int = MOST_DOCUMENT) -> ElementTree.Element:
    """The root of an XML document that defines no entities: a few of them, one in the other, expand to gigabytes."""
    content = read_bytes(path, most)

    def refuse(*_: object) -> None:
        raise DocumentError("it defines entities")

    try:
        # Other encodings than ASCII's kin spell the word with other bytes.
        if b"<!" in content or b"\0" in content[:4] or content.startswith((b"\xfe\xff", b"\xff\xfe")):
            declarations = expat.ParserCreate()
            declarations.EntityDeclHandler = refuse
            declarations.Parse(content, True)
        return ElementTree.fromstring(content)
    except (ElementTree.ParseError, expat.ExpatError, LookupError, ValueError) as error:  # or of an unknown encoding
        raise DocumentError(str(error)) from None


def read_yaml(path: Path) -> Any:
    """A YAML document of lists, mappings and texts: yaml's base loader, so that a class named "no" stays a text."""
    import yaml

    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # that in C is much faster, but not in every build
    try:
        return yaml.load(read_text(path, MOST_YAML), loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path.name} is not YAML: {' '.join(str(error).split())}") from None


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def lines_of(path: str | Path) -> list[str]:
    """The lines of a text file; errors as in `read_text`."""
    return read_text(path).splitlines()


# ------------------------------------------------------------------------------------------------------------- schemas
# Of the JSON files that cliploc writes and reads back, and of transformers'. A schema names the keys that are used.
# `__post_init__` compares values that belong together, such as a score for each box.
Count = Annotated[int, Meta(ge=0, le=2**53)]
Width = Annotated[int, Meta(ge=1, le=2**20)]  # of a layer
Share = Annotated[float, Meta(ge=0, le=1)]


# -------------------------------------------------------------------------------------------- folders of transformers
Mean = Annotated[float, Meta(ge=-1000, le=1000)]
Deviation = Annotated[float, Meta(ge=1e-6, le=1000)]


class OpenClipPreprocessing(Struct):  # of open_clip_config.json
    mode: Literal["RGB"] | None = None
    mean: tuple[Mean, Mean, Mean] | None = None
    std: tuple[Deviation, Deviation, Deviation] | None = None
    interpolation: Literal["bicubic", "bilinear", "random"] | None = None
    resize_mode: Literal["shortest", "longest", "squash"] | None = None


class OpenClipConfig(Struct):  # open_clip_config.json
    model_cfg: dict[str, Any]
    preprocess_cfg: OpenClipPreprocessing | None = None


class WeightIndex(Struct):  # model.safetensors.index.json
    weight_map: dict[str, str]


# ---------------------------------------------------------------------------------------------------------- annotation


ReviewStatus = Literal["none", "reviewed", "unsure", "skipped"]


Ring = Annotated[list[float], Meta(min_length=6, max_length=20_000)]  # x, y, x, y …
Polygon = Annotated[list[Ring], Meta(min_length=1, max_length=1_000)]  # the outline, then its holes


class ReviewedBox(Struct, forbid_unknown_fields=True):
    """A box as the editor saves it: with its old mask, or with polygons if a person changed it."""

    xyxy: tuple[float, float, float, float]
    label: Count
    draft: Count | None = None
    mask: Annotated[str, Meta(max_length=2**20)] | None = None
    polygons: Annotated[list[Polygon], Meta(min_length=1, max_length=1_000)] | None = None


class ReviewedPicture(Struct, forbid_unknown_fields=True):
    """A picture as the editor saves it, and the revision that the person saw."""

    revision: Count
    status: ReviewStatus
    boxes: Annotated[list[ReviewedBox], Meta(max_length=20_000)]  # as many as a corrected set may have
    drawn: Annotated[str, Meta(max_length=64)] | None = None  # which drafts the person saw; None: those of now


class SavedReview(Struct):  # what review.html saves
    kind: Literal["cliploc review"]
    run: str
    pictures: dict[str, ReviewedPicture]


class SuggestionWish(Struct, forbid_unknown_fields=True):
    """What the editor asks the model: a name, and the threshold and place of a click where a box is wanted."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    threshold: Annotated[float, Meta(ge=0, lt=1)] | None = None
    at: tuple[float, float] | None = None

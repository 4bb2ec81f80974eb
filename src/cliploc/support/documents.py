"""The one reader of files that fit the memory; errors are one line, and JSON passes its kind's `msgspec.Struct`."""

import errno
import json
import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from xml.etree import ElementTree

import msgspec
from msgspec import Meta, Struct

T = TypeVar("T")
MOST_BYTES = 2**30  # of a document; that of all instances of COCO's training pictures has 450 million
MOST_INTEGER = 2**53  # in a text


class DocumentError(ValueError):
    """A document that is not as its kind of file is written; the text says where."""


def read_bytes(path: str | os.PathLike[str], most: int = MOST_BYTES) -> bytes:
    """The content of a file of a limited size."""
    size = os.stat(path).st_size
    if size > most:
        reason = f"{size / 1e6:,.0f} MB, expected at most {most / 1e6:,.0f}"
        raise OSError(errno.EFBIG, reason, os.fspath(path))
    return Path(path).read_bytes()


def read_text(path: str | os.PathLike[str]) -> str:
    """The content of a text file, with "\\n" at the end of each line."""
    return read_bytes(path).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def lines_of(path: str | Path) -> list[str]:
    """The lines of a text file; errors as in `read_text`."""
    return read_text(path).splitlines()


def read_json(path: str | os.PathLike[str], kind: Any = Any) -> Any:
    """A JSON document in a file; see `parse_json`."""
    return parse_json(read_bytes(path), kind)


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
    convert(value, kind)
    return value


def convert(value: Any, kind: type[T]) -> T:
    """Plain values as an object of a schema."""
    try:
        return msgspec.convert(value, kind)
    except (msgspec.ValidationError, ValueError) as error:
        raise DocumentError(str(error)) from None


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def finite(text: str) -> float:
    """A number that a document has as text."""
    with suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    raise DocumentError(f"expected a number, got {text[:24]!r}")


def integer(text: str) -> int:
    """An integer that a document has as text, such as 500 or 500.0."""
    value = finite(text)
    if value % 1 or abs(value) > MOST_INTEGER:
        raise DocumentError(f"expected a whole number, got {text[:24]!r}")
    return int(value)


def read_xml(path: str | os.PathLike[str]) -> ElementTree.Element:
    """The root of an XML document; expat limits what entities expand to."""
    return parse_xml(read_bytes(path), comments=False)


def parse_xml(content: bytes, comments: bool = True) -> ElementTree.Element:
    """The root of an XML document, with comments or without."""
    builder = ElementTree.TreeBuilder(insert_comments=comments, insert_pis=comments)
    try:
        return ElementTree.fromstring(content, ElementTree.XMLParser(target=builder))
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # or of an unknown encoding
        raise DocumentError(str(error)) from None


def xml_again(root: ElementTree.Element, before: bytes) -> bytes:
    """An XML document that was changed, in UTF-8, with a declaration where it had one."""
    text: bytes = ElementTree.tostring(root, "utf-8", xml_declaration=False)
    return (b'<?xml version="1.0" encoding="utf-8"?>\n' if before.lstrip().startswith(b"<?xml") else b"") + text


def read_yaml(path: Path) -> Any:
    """A YAML document of lists, mappings and texts: yaml's base loader, so that a class named "no" stays a text."""
    import yaml

    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)  # that in C is much faster, but not in every build
    try:
        return yaml.load(read_text(path), loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path.name} is not YAML: {' '.join(str(error).split())}") from None


# ------------------------------------------------------------------------------------------- folders of transformers
Width = Annotated[int, Meta(ge=1, le=2**20)]  # of a layer

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

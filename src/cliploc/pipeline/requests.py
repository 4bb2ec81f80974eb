"""What a caller asks for, and what comes back under the same id."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cliploc.errors import InputError
from cliploc.images import ImageLike
from cliploc.localization import Localization


@dataclass(frozen=True)
class Request:
    """Names to look for in one picture.

    Attributes:
        id: the caller's own; the result carries it.
        image: a path, a PIL image or an array.
        names: what to look for ("cat|kitten": synonyms).
        source: what errors call the picture; None: its path, or "image" with its id.
    """

    id: Hashable
    image: ImageLike
    names: Sequence[str]
    source: str | None = None


@dataclass(frozen=True)
class Result:
    """What came of a request: localizations, or an error.

    Attributes:
        id: the request's.
        found: for each method, under the text it was asked for, where the names are; empty after an error.
        error: why the picture could not be used; None where it could.
    """

    id: Hashable
    found: Mapping[str, Localization] = field(default_factory=dict)
    error: InputError | None = None


def _nothing(*_: Any) -> None:
    return None


@dataclass(frozen=True)
class Reporter:
    """What long work tells its caller while it goes on. Each part is a function; those left out are not called.

    Attributes:
        start: work begins, or goes on: how many pictures are to be done, and how many there are in all.
        images: so many pictures are done.
        masked: so many masked pictures are done, and about so many are left for this batch (the Score-CAM family).
        failed: a picture cannot be used: its name and the error.
        halved: there was too little memory for a batch of so many pictures, which is done in two halves.
        note: a remark on the run.
        phase: what the run is doing now, such as the name of a file that is written.
    """

    start: Callable[[int, int], None] = _nothing
    images: Callable[[int], None] = _nothing
    masked: Callable[[int, int], None] = _nothing
    failed: Callable[[str, InputError], None] = _nothing
    halved: Callable[[int], None] = _nothing
    note: Callable[[str], None] = _nothing
    phase: Callable[[str], None] = _nothing


SILENT = Reporter()

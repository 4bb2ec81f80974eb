"""What a caller asks for, and what comes back under the same id."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

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
        source: the picture's name in errors and results; None: its path, or "image" with its id.
    """

    id: Hashable
    image: ImageLike
    names: Sequence[str]
    source: str | None = None


@dataclass(frozen=True)
class Result:
    """The result of a request: localizations, or an error.

    Attributes:
        id: the request's.
        found: method, as it was asked for → where the names are; empty after an error.
        error: why the picture could not be used; None where it could.
    """

    id: Hashable
    found: Mapping[str, Localization] = field(default_factory=dict)
    error: InputError | None = None

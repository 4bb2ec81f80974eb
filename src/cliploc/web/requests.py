"""Checks the body of a request before gradio sees it.

Before gradio calls a function of the page, it fetches every address and copies every file that is anywhere in a body as
`{"path": …, "meta": …}`. So the body is parsed here first, and passed on only in the form that the page itself sends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote

MAX_BODY = 256_000  # bytes of a JSON request; photographs are uploaded by another route
MAX_DEPTH = 8  # of nested objects and lists
MAX_ID = 128  # characters of the id of a session or an event
FILE_KEYS = frozenset({"path", "url", "meta"})  # gradio treats an object with these keys as a file
NO_FUNCTION = "There is no such function here."
NOT_UPLOADED = "This file was not uploaded here: upload the photograph."

ROUTE = re.compile(
    r"/gradio_api/(?:(?P<fixed>queue/join|cancel|reset)|(?P<way>call/v2|call|run|api)/(?P<name>[^/]+))/?"
)
Slot = Literal["photograph", "value"] | range


class RefusedError(Exception):
    """A request is refused.

    Args:
        status: the HTTP status.
        sentence: what was expected, for the client.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class Endpoint:
    """A function that a request may call.

    Attributes:
        name: its name in an address.
        slots: the kind of each argument; a range allows the numbers in it.
        parameters: the arguments' names; empty for a function without a name.
        optional: how many of the last ones may be left out.
    """

    name: str
    slots: tuple[Slot, ...]
    parameters: tuple[str, ...] = ()
    optional: int = 0


class Requests:
    """Checks the bodies of requests.

    Args:
        endpoints: the functions by their number.
        is_ours: whether a path is a file that was uploaded here, or an example's.

    Example:
        >>> requests = Requests({0: Endpoint("locate", ("photograph", "value"))}, lambda path: path == "/up/cat.jpg")
        >>> requests.checked("/gradio_api/call/locate", b'{"data": [{"path": "/up/cat.jpg"}, "cat"]}')[1]
        b'{"data": [{"path": "/up/cat.jpg", "meta": {"_type": "gradio.FileData"}}, "cat"]}'
        >>> requests.checked("/gradio_api/call/locate", b'{"data": [null, {"path": "http://example.org"}]}')
        Traceback (most recent call last):
        cliploc.web.requests.RefusedError: expected a file only as the photograph or exemplar, got one elsewhere
    """

    def __init__(self, endpoints: Mapping[int, Endpoint], is_ours: Callable[[str], bool]) -> None:
        self._endpoints = endpoints
        self._is_ours = is_ours

    def checked(self, path: str, body: bytes) -> tuple[str, bytes]:
        """Returns the path and body to pass on; the body holds only what the page uses.

        Raises:
            RefusedError: the path takes no JSON, or the body cannot be used.
        """
        route = ROUTE.fullmatch(path)
        if route is None:
            raise RefusedError(404, "There is no such address here.")
        given = parsed(body)
        if route["fixed"] in ("cancel", "reset"):
            return path, _written(_known(given, ("session_hash", "event_id"), ("fn_index",)))
        if route["way"] == "call/v2":  # arguments by name: passed on as a list
            endpoint = self._named(route["name"])
            arguments = self._arguments(endpoint, _in_order(endpoint, given))
            return f"/gradio_api/call/{endpoint.name}", _written({"data": arguments})
        kept = _known(
            given, ("session_hash",), ("trigger_id",) if route["way"] == "call" else ("trigger_id", "fn_index")
        )
        endpoint = self._numbered(kept["fn_index"]) if "fn_index" in kept else self._named(route["name"] or "")
        return path, _written(kept | {"data": self._arguments(endpoint, given.get("data"))})

    def _numbered(self, number: int) -> Endpoint:
        if number not in self._endpoints:
            raise RefusedError(404, NO_FUNCTION)
        return self._endpoints[number]

    def _named(self, name: str) -> Endpoint:
        for endpoint in self._endpoints.values():
            if endpoint.name == name:
                return endpoint
        raise RefusedError(404, NO_FUNCTION)

    def _arguments(self, endpoint: Endpoint, data: Any) -> list[Any]:
        most = len(endpoint.slots)
        if isinstance(data, list) and 0 < most - len(data) <= endpoint.optional:
            data = [*data, *[None] * (most - len(data))]
        if not isinstance(data, list) or len(data) != most:
            raise RefusedError(422, f'expected "data" as a list of {most} arguments')
        return [self._argument(slot, value) for slot, value in zip(endpoint.slots, data, strict=True)]

    def _argument(self, slot: Slot, value: Any) -> Any:
        if slot == "photograph" and value is not None:
            return self._photograph(value)
        if isinstance(slot, range) and not (type(value) is int and value in slot):
            raise RefusedError(422, f"expected a number from 0 to {len(slot) - 1}")
        _refuse_files(value)
        return value

    def _photograph(self, value: Any) -> dict[str, Any]:
        path = value.get("path") if isinstance(value, dict) else None
        if not isinstance(path, str) or not self._is_ours(path):
            raise RefusedError(422, NOT_UPLOADED)
        url = value.get("url")  # a browser also sends this server's own address of the file
        if url and not (isinstance(url, str) and unquote(url).endswith(f"/file={path}")):
            raise RefusedError(422, "expected an uploaded photograph, got an address: upload the photograph")
        return {"path": path, "meta": {"_type": "gradio.FileData"}}


def _in_order(endpoint: Endpoint, given: Mapping[str, Any]) -> list[Any]:
    """Arguments that are given by name as a list; None for those that are missing."""
    for key in given:
        if key not in endpoint.parameters:
            raise RefusedError(422, f"expected arguments of {', '.join(endpoint.parameters)}, got {key[:40]!r}")
    return [given.get(key) for key in endpoint.parameters]


def parsed(body: bytes) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
        RefusedError: the body is something else, or nested too deep.
    """
    try:
        value = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError):  # ValueError also for invalid UTF-8 and for numbers of thousands of digits
        raise RefusedError(422, "expected a request in JSON") from None
    if _depth_exceeds(value, MAX_DEPTH):
        raise RefusedError(422, f"expected objects and lists nested at most {MAX_DEPTH} deep")
    if not isinstance(value, dict):
        raise RefusedError(422, "expected a JSON object")
    return value


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")


def _depth_exceeds(value: Any, most: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return most == 0 or any(_depth_exceeds(one, most - 1) for one in inner)


def _refuse_files(value: Any) -> None:
    if isinstance(value, dict) and not FILE_KEYS.isdisjoint(value):
        raise RefusedError(422, "expected a file only as the photograph or exemplar, got one elsewhere")
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            _refuse_files(one)


def _known(given: Mapping[str, Any], texts: Sequence[str], numbers: Sequence[str]) -> dict[str, Any]:
    """The entries with these names; texts must be short, numbers whole."""
    found = {key: given[key] for key in (*texts, *numbers) if given.get(key) is not None}
    for key, value in found.items():
        fits = isinstance(value, str) and len(value) <= MAX_ID if key in texts else type(value) is int
        if not fits:
            raise RefusedError(422, f"expected {key} as a {'short text' if key in texts else 'whole number'}")
    return found


def _written(value: Mapping[str, Any]) -> bytes:
    """Serialises the checked value, so that gradio parses exactly what was checked."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:  # infinite numbers and lone surrogates
        raise RefusedError(422, "expected finite numbers and whole characters") from None

"""A request that is refused in a sentence, and the JSON that a request may hold."""

import json
from typing import Any

MAX_BODY = 256_000  # bytes of a JSON request; photographs are sent in forms
MAX_DEPTH = 8  # of nested objects and lists


class RefusedError(Exception):
    """A request is refused."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def parsed(body: bytes) -> dict[str, Any]:
    """The JSON object of a body."""
    try:
        value = json.loads(body, parse_constant=_no_number)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # no infinite number, no half of a character
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

"""What a request of the page or of a program asks for: a form with pictures, or JSON that names them by their ids."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from cliploc.web.clients import RefusedError
from cliploc.web.settings import Settings, from_mapping
from cliploc.web.store import Store

PICTURES = ("picture", "exemplar")  # the fields that hold a picture, or the id of one
SWITCHES = ("overlay", "search")
VISITOR = re.compile("[0-9a-f]{32}")  # the page's name for itself, which nobody can guess
MOST_FIELDS = 40
MOST_FIELD_BYTES = 40_000  # of a field that is no file
NO_VISITOR = "expected visitor as 32 hexadecimal digits: reload the page"
MAX_DEPTH = 8  # of nested objects and lists

Given = str | UploadFile  # the id of a picture, or a picture


@dataclass(frozen=True)
class Question:
    """What a request asks for."""

    ids: Mapping[str, str]  # field of `PICTURES` → id of the picture that it holds, which is stored
    picture: str | None  # the photograph's file; None where there is none
    exemplar: str | None  # the same of the picture that stands for a name
    visitor: str  # the page's name for itself; "" of a program
    switches: frozenset[str]  # those of `SWITCHES` that are on
    settings: Settings  # the fields that are left


async def question_in(request: Request, store: Store) -> Question:
    """Reads a request, and stores its pictures."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return await run_in_threadpool(_question, _parsed(await request.body()), store)
    if kind != "multipart/form-data":
        raise RefusedError(415, "expected multipart/form-data or application/json")
    try:
        reading = request.form(max_files=len(PICTURES), max_fields=MOST_FIELDS, max_part_size=MOST_FIELD_BYTES)
        async with reading as form:
            given = dict(form.multi_items())
            if len(given) < len(form.multi_items()):
                raise RefusedError(422, "expected each field once: write names as cat, dog")
            return await run_in_threadpool(_question, given, store)
    except HTTPException as error:
        raise RefusedError(422, f"expected a form: {error.detail}") from None


def _question(given: Mapping[str, Any], store: Store) -> Question:
    """The fields of a form, or the keys of a JSON object, by what they are."""
    settings = dict(given)
    pictures = {field: one for field in PICTURES if not _is_empty(one := settings.pop(field, None))}
    for field, one in pictures.items():
        if not isinstance(one, Given):
            raise RefusedError(422, f"expected {field} as a file or as the id of one")
    for key, value in settings.items():
        if isinstance(value, UploadFile):
            raise RefusedError(422, f"expected a file only as {' or '.join(PICTURES)}, got one as {key[:40]!r}")
    visitor = settings.pop("visitor", "")
    if visitor != "" and not (isinstance(visitor, str) and VISITOR.fullmatch(visitor)):
        raise RefusedError(422, NO_VISITOR)
    switches = frozenset(name for name in SWITCHES if _is_on(name, settings.pop(name, None)))
    ids = {field: one if isinstance(one, str) else store.keep(one.file, one.filename or "")
           for field, one in pictures.items()}  # fmt: skip
    files = {field: str(store.picture(number)) for field, number in ids.items()}
    exemplar = files.get("exemplar")
    wanted = from_mapping(settings).with_exemplar(exemplar)
    return Question(ids, files.get("picture"), exemplar, visitor, switches, wanted)


def _is_on(name: str, value: Any) -> bool:
    text = str(value or "false").lower()
    if text not in ("true", "false"):
        raise RefusedError(422, f"expected {name} as true or false, got {text[:40]!r}")
    return text == "true"


def _is_empty(one: Any) -> bool:
    """Whether a field has no picture: null, an empty text, or what a browser sends where no file was chosen."""
    return one in (None, "") or (isinstance(one, UploadFile) and not one.filename and not one.size)


def _parsed(body: bytes) -> dict[str, Any]:
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

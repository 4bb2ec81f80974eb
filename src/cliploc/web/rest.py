"""`POST /api/localize`: a photograph, names and settings in one request; the answer is the document of `--json`.

It is for programs. The page's own functions, in `api`, go through gradio's queue, which takes most of the time of a
cheap answer. Both call the same `Service.look`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import secrets
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, BinaryIO

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from cliploc._files import new_token
from cliploc.errors import CliplocError
from cliploc.report import draw_overlay
from cliploc.report.html import jpeg_uri
from cliploc.reporter import Reporter
from cliploc.tower import Backbone
from cliploc.web import downloads
from cliploc.web.events import explain
from cliploc.web.requests import RefusedError, parsed
from cliploc.web.runs import StoppedError
from cliploc.web.service import Service
from cliploc.web.settings import from_mapping
from cliploc.web.turns import Turns

PICTURES = ("picture", "exemplar")  # the fields that hold a picture, or the id of one
MOST_FIELDS = 40
MOST_FIELD_BYTES = 40_000  # of a field that is no file
JPEG_QUALITY = 90  # of an overlay
UNKNOWN_ID = "There is no picture with this id, or no longer: upload it."

Given = str | UploadFile  # the id of a picture, or a picture


@dataclass(frozen=True)
class Question:
    """What a request asks for.

    Attributes:
        pictures: field → picture, or its id.
        overlay: whether the answer holds the overlay.
        settings: the fields that are left, by the names of `Settings`.
    """

    pictures: Mapping[str, Given]
    overlay: bool
    settings: Mapping[str, Any]


class PictureStore:
    """Uploaded pictures by their id, in the folder of uploads, whose old files are removed.

    An id can be neither guessed nor computed from a picture, so only who uploaded a picture can name it.

    Args:
        folder: the folder.

    Example:
        >>> import io, tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     store = PictureStore(Path(name))
        ...     place = store.path(store.keep(io.BytesIO(b"..."), "/home/me/cat.jpg"))
        ...     place.name, place.read_bytes()
        ('cat.jpg', b'...')
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = secrets.token_bytes(32)

    def keep(self, file: BinaryIO, name: str) -> str:
        """Stores a picture and returns its id, which is the same for the same picture and name."""
        name = _plain(name)
        file.seek(0)
        digest = hashlib.blake2b(name.encode(), key=self._key, digest_size=20)
        with NamedTemporaryFile(dir=self._folder, delete=False) as stored:
            while part := file.read(2**20):
                digest.update(part)
                stored.write(part)
        found = digest.hexdigest()
        (self._folder / found).mkdir(exist_ok=True)
        Path(stored.name).replace(self._folder / found / name)
        return found

    def path(self, number: str) -> Path:
        """The file of a picture.

        Raises:
            RefusedError: there is no such picture.
        """
        files: list[Path] = []
        if re.fullmatch("[0-9a-f]{40}", number):
            with contextlib.suppress(OSError):
                files = list((self._folder / number).iterdir())
        if not files:
            raise RefusedError(404, UNKNOWN_ID)
        return files[0]


class Rest:
    """Answers `POST /api/localize`; the guard before it has checked host, client and size.

    Args:
        service: the models.
        pictures: where pictures are kept.
        turns: those of the requests that run a model.
        debug: as for `page.build`.
    """

    def __init__(self, service: Service, pictures: PictureStore, turns: Turns, debug: bool) -> None:
        self._service, self._pictures = service, pictures
        self._turns, self._debug = turns, debug

    async def answer(self, request: Request) -> Response:
        """Answers one request; a mistake is a sentence under "error"."""
        try:
            return JSONResponse(await self._answered(request))
        except RefusedError as refusal:
            return _problem(refusal.status, str(refusal))
        except ClientDisconnect:  # the guard says so, if anybody still listens
            return _problem(408, "")

    async def _answered(self, request: Request) -> dict[str, Any]:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "application/json":
            return await self._looked(request, _question(parsed(await request.body())))
        if kind != "multipart/form-data":
            raise RefusedError(415, "expected multipart/form-data or application/json")
        async with contextlib.AsyncExitStack() as stack:
            try:
                form = request.form(max_files=len(PICTURES), max_fields=MOST_FIELDS, max_part_size=MOST_FIELD_BYTES)
                fields = (await stack.enter_async_context(form)).multi_items()
            except Exception as error:  # starlette makes its own of the parser's
                if isinstance(error, MultiPartException) or getattr(error, "status_code", 0) == 400:
                    raise RefusedError(422, f"expected a form: {getattr(error, 'detail', error)}") from None
                raise
            given = dict(fields)
            if len(given) < len(fields):
                raise RefusedError(422, "expected each field once: write names as cat, dog")
            return await self._looked(request, _question(given))

    async def _looked(self, request: Request, question: Question) -> dict[str, Any]:
        """Waits for its turn, and for the answer; a program that leaves is not waited for."""
        answer = asyncio.ensure_future(self._in_turn(question))
        left = asyncio.ensure_future(request.receive())
        try:
            await asyncio.wait((answer, left), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ClientDisconnect
            return answer.result()
        finally:
            for one in (answer, left):
                one.cancel()

    async def _in_turn(self, question: Question) -> dict[str, Any]:
        try:
            async with self._turns.turn(self._model(question)):
                run = self._service.runs.begin(new_token(), lambda reporter: self._look(question, reporter))
                try:
                    return await asyncio.to_thread(run.result)
                finally:
                    run.stop()
        except StoppedError as error:
            raise RefusedError(503, str(error)) from None
        except CliplocError as error:
            raise RefusedError(422, str(error)) from None
        except RefusedError:
            raise
        except Exception as error:
            raise RefusedError(500, explain(error, self._debug)) from None

    def _model(self, question: Question) -> Future[Backbone] | None:
        """The model that is asked for; None where `_look` will refuse the settings."""
        try:
            return self._service.load(from_mapping(question.settings).model)
        except CliplocError:
            return None

    def _look(self, question: Question, reporter: Reporter) -> dict[str, Any]:
        ids = {field: self._id(given) for field, given in question.pictures.items()}
        path, exemplar = (str(self._pictures.path(ids[field])) if field in ids else None for field in PICTURES)
        settings = from_mapping(question.settings).with_exemplar(exemplar)
        look = self._service.look(path, settings, None, reporter, exemplar)
        results = look.cut(settings)
        document = downloads.document(results, settings, look.ran(settings))
        if question.overlay:
            for entry, one in zip(document["pictures"], results.values(), strict=True):
                drawn = draw_overlay(one, opacity=settings.opacity, masks=settings.masks)
                entry["overlay"] = jpeg_uri(drawn.convert("RGB"), quality=JPEG_QUALITY)
        return {**document, "ids": ids}

    def _id(self, given: Given) -> str:
        if isinstance(given, str):
            return given
        return self._pictures.keep(given.file, given.filename or "")


def _question(given: Mapping[str, Any]) -> Question:
    """The fields of a form, or the keys of a JSON object, by what they are.

    Raises:
        RefusedError: a field of another kind than expected.
    """
    settings = dict(given)
    pictures = {field: one for field in PICTURES if not _is_empty(one := settings.pop(field, None))}
    for field, one in pictures.items():
        if not isinstance(one, str | UploadFile):
            raise RefusedError(422, f"expected {field} as a file or as the id of one")
    if "picture" not in pictures:
        raise RefusedError(422, "expected a picture, got none: send a file, or the id of one, as picture")
    switched = str(settings.pop("overlay", None) or "false").lower()
    if switched not in ("true", "false"):
        raise RefusedError(422, f"expected overlay as true or false, got {switched[:40]!r}")
    for key, value in settings.items():
        if isinstance(value, UploadFile):
            raise RefusedError(422, f"expected a file only as {' or '.join(PICTURES)}, got one as {key[:40]!r}")
    return Question(pictures, switched == "true", settings)


def _is_empty(one: Any) -> bool:
    """Whether a field has no picture: null, an empty text, or what a browser sends where no file was chosen."""
    return one in (None, "") or (isinstance(one, UploadFile) and not one.filename and not one.size)


def _problem(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"error": sentence}, status)


def _plain(name: str) -> str:
    """The name of a file without folders and without what a file system may not take, short enough for all of them."""
    kept = re.sub(r"[^\w. -]+", "_", re.split(r"[/\\]", name)[-1]).strip(". ")[-60:]
    return kept or "picture"

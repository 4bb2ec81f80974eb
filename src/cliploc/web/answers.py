"""Questions and answers: `/api/show` and `/api/menu` for the page, `/api/localize` for programs, `/api/files` for both.

A question is a form with pictures, or JSON that names them by their ids. With a picture it is a search; without one it
is about the visitor's last search, by other sliders.
"""

import asyncio
import json
import re
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from cliploc import CliplocError, Localization, Reporter, UsageError
from cliploc.find.memory import LruCache
from cliploc.support.process import out_of_memory
from cliploc.web import downloads, view
from cliploc.web.guard import RefusedError
from cliploc.web.runs import Run, StoppedError
from cliploc.web.service import SearchResult, Service
from cliploc.web.settings import Settings, command_lines, from_mapping, from_query, python_lines, to_query
from cliploc.web.uploads import MAX_AGE, Store

EVERY = 0.5  # seconds between two status lines
LOOK_BYTES = 128 * 2**20  # of all visitors' last results; a search for 120 heatmaps has 49 MB of them
NO_PICTURE = "expected a picture, got none: send a file, or the id of one, as picture"
STREAMED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # a proxy must not hold lines back
PICTURES = ("picture", "exemplar")  # the fields that hold a picture, or the id of one
VISITOR = re.compile("[0-9a-f]{32}")  # the page's name for itself, which nobody can guess
MOST_FIELDS = 40
MOST_FIELD_BYTES = 40_000  # of a field that is no file
NO_VISITOR = "expected visitor as 32 hexadecimal digits: reload the page"

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
Answer = dict[str, Any]
Maker = Callable[[SearchResult, Settings, Reporter], Answer]


@dataclass(frozen=True)
class Question:
    """A request, read."""

    ids: Mapping[str, str]  # field of `PICTURES` → id of the picture that it holds, which is stored
    picture: str | None  # the photograph's file; None where there is none
    exemplar: str | None  # the same of the picture that stands for a name
    visitor: str  # the page's name for itself; "" of a program
    settings: Settings  # the other fields


class Answers:
    """Answers requests; the gate before it has checked host, password and size."""

    def __init__(self, service: Service, store: Store, debug: bool) -> None:
        self._service, self._store, self._debug = service, store, debug
        self.looks = LruCache[SearchResult](LOOK_BYTES, MAX_AGE)  # each visitor's last one

    def answering(self, handler: Handler) -> Handler:
        """A handler whose errors are answers: a status, and a sentence under "error"."""

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except ClientDisconnect:  # nobody reads an answer
                return JSONResponse({"error": ""}, 408)
            except Exception as error:
                refusal = self._refusal(error)
                return JSONResponse({"error": str(refusal)}, refusal.status)

        return answer

    def _refusal(self, error: Exception) -> RefusedError:
        """An error as a status and one sentence for the visitor."""
        if isinstance(error, RefusedError):
            return error
        if isinstance(error, CliplocError):
            return RefusedError(503 if isinstance(error, StoppedError) else 422, str(error))
        if self._debug:
            traceback.print_exception(error, file=sys.stderr)
        if out_of_memory(error):
            return RefusedError(500, "not enough memory on the server: use a smaller picture, fewer names or scales")
        name = type(error).__name__
        return RefusedError(500, f"an error in cliploc ({name}): start the server with --debug to see it there")

    # ----------------------------------------------------------------------------------------------------- addresses
    async def localize(self, request: Request) -> Response:
        """The document of `--json`."""
        return JSONResponse(await self._computed(request, self._document))

    async def files(self, request: Request) -> Response:
        """Writes the files to download."""
        return JSONResponse(await self._computed(request, self._files))

    async def show(self, request: Request) -> Response:
        """Lines of JSON: status every half second, at last what the page shows."""
        question, run = await self._begun(request, self._drawn)
        return StreamingResponse(self._lines(question, run), media_type="application/x-ndjson", headers=STREAMED)

    async def menu(self, request: Request) -> Response:
        """What the page offers for the settings of an address, and the values of its controls."""
        settings = from_query(request.url.query)
        if settings.model in self._service.offers:
            await self._loaded(settings)
        return JSONResponse(await asyncio.to_thread(view.menu_of, self._service, settings))

    # ---------------------------------------------------------------------------------------------------------- runs
    async def _begun(self, request: Request, make: Maker) -> tuple[Question, Run[Answer]]:
        """Reads a question, and starts its work."""
        question = await _question_in(request, self._store)
        if question.picture is None and not question.visitor:
            raise RefusedError(422, NO_PICTURE)
        if question.picture is not None:
            await self._loaded(question.settings)

        def work(reporter: Reporter) -> Answer:
            look, settings = self._look(question, reporter)
            return make(look, settings, reporter) | {"ids": question.ids}

        runs = self._service.redraws if question.picture is None else self._service.searches
        return question, runs.begin(question.visitor, work)

    async def _loaded(self, settings: Settings) -> None:
        """Waits for the model; who leaves does not end it for the others."""
        await asyncio.shield(asyncio.wrap_future(self._service.load(settings.model)))

    async def _computed(self, request: Request, make: Maker) -> Answer:
        """Waits for the work; that of a client that leaves is stopped."""
        _, run = await self._begun(request, make)
        answer, left = asyncio.wrap_future(run.future), asyncio.ensure_future(request.receive())
        try:
            await asyncio.wait((answer, left), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ClientDisconnect
            return answer.result()
        finally:
            run.stop()
            left.cancel()

    async def _lines(self, question: Question, run: Run[Answer]) -> AsyncIterator[bytes]:
        """The lines of an answer. A visitor who leaves, or presses Stop, ends them, and with them the work."""
        answer = asyncio.wrap_future(run.future)
        try:
            while not (await asyncio.wait((answer,), timeout=EVERY))[0]:
                seconds = None if run.began is None else time.monotonic() - run.began
                yield _line({"status": view.searching(run.steps, run.bank, seconds)})
            last = answer.result()
        except Exception as error:
            last = {"status": view.status(str(self._refusal(error)), "problem"), "ids": question.ids}
        finally:
            run.stop()
        yield _line({"done": True, **last})

    def _look(self, question: Question, reporter: Reporter) -> tuple[SearchResult, Settings]:
        """A search, or the visitor's last one; and the settings of its boxes."""
        settings, last = question.settings, self.looks.get(question.visitor)
        if question.picture is not None:
            look = self._service.look(question.picture, settings, last, reporter, question.exemplar)
            if question.visitor:
                self.looks.keep(question.visitor, look, look.size)
            return look, settings
        if last is None:
            raise UsageError("There are no results any longer: press Find.")
        if any(getattr(settings, key) != getattr(last.settings, key) for key in ("model", "compare", "refine")) or (
            (settings.method or last.settings.method) != last.settings.method
        ):  # the sliders are not of the methods that ran
            raise UsageError("Press Find to search with these settings.")
        return last, last.settings.with_live(settings)

    # ------------------------------------------------------------------------------------------------------- answers
    def _document(self, look: SearchResult, settings: Settings, _: Reporter) -> Answer:
        results = look.cut(settings)
        return downloads.document(self._full_size(look, results), settings, look.ran(settings))

    def _files(self, look: SearchResult, settings: Settings, reporter: Reporter) -> Answer:
        folder = self._store.new_folder()
        results = self._full_size(look, look.cut(settings))
        paths = downloads.write_files(folder, results, settings, look.offer.label, reporter, look.ran(settings))
        files = [
            {"name": path.name, "address": f"/files/{folder.name}/{quote(path.name)}", "bytes": path.stat().st_size}
            for path in paths
        ]
        return {"files": files}

    def _full_size(self, look: SearchResult, results: Mapping[str, Localization]) -> dict[str, Localization]:
        """Results with the photograph at its own size, for masks and what is drawn in it."""
        photograph = self._service.read(look.path).image
        return {method: replace(result, image=photograph) for method, result in results.items()}

    def _drawn(self, look: SearchResult, settings: Settings, _: Reporter) -> Answer:
        """A search's results with the boxes of these settings, and the script, command and link that give the same."""
        results, ran = look.cut(settings), look.ran(settings)
        file = next(iter(results.values())).source
        rules = [(look.offer.arguments_of(method), round(tau, 4)) for method, tau in look.rules(settings)]
        lines = (settings, file, look.offer.arguments, rules, Path(look.exemplar).name)
        linked = replace(  # without what the page would choose by itself
            settings,
            model="" if settings.model == next(iter(self._service.offers)) else settings.model,
            method=None if settings.method == self._service.menu(settings.model).default else settings.method,
        )
        pictures = downloads.document(results, replace(settings, masks=False), ran)["pictures"]
        return {
            "status": view.status(view.summary(results)),
            "figures": view.results_html(results, settings.opacity, ran, settings.masks),
            "json": json.dumps(pictures, ensure_ascii=False, indent=1, allow_nan=False),
            "python": python_lines(*lines),
            "command": command_lines(*lines),
            "address": f"?{to_query(linked)}",
        }


def _line(value: dict[str, Any]) -> bytes:
    return msgspec.json.encode(value) + b"\n"


# ------------------------------------------------------------------------------------------------------- questions
async def _question_in(request: Request, store: Store) -> Question:
    """Reads a request, and stores its pictures."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        try:
            fields = msgspec.json.decode(await request.body(), type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError) as error:
            raise RefusedError(422, f"expected a request as a JSON object: {error}") from None
        return await run_in_threadpool(_question, fields, store)
    if kind != "multipart/form-data":
        raise RefusedError(415, "expected multipart/form-data or application/json")
    try:
        reading = request.form(max_files=len(PICTURES), max_fields=MOST_FIELDS, max_part_size=MOST_FIELD_BYTES)
        async with reading as form:
            fields = dict(form.multi_items())
            if len(fields) < len(form.multi_items()):
                raise RefusedError(422, "expected each field once: write names as cat, dog")
            return await run_in_threadpool(_question, fields, store)
    except HTTPException as error:
        raise RefusedError(422, f"expected a form: {error.detail}") from None


def _question(fields: dict[str, Any], store: Store) -> Question:
    """The fields of a form, or the keys of a JSON object, by what they are."""
    pictures: dict[str, str | UploadFile] = {}
    for field in PICTURES:
        sent = fields.pop(field, None)
        if sent in (None, "") or (isinstance(sent, UploadFile) and not sent.filename and not sent.size):
            continue  # null, an empty text, or what a browser sends where no file was chosen
        if not isinstance(sent, str | UploadFile):
            raise RefusedError(422, f"expected {field} as a file or as the id of one")
        pictures[field] = sent
    visitor = fields.pop("visitor", "")
    if visitor != "" and not (isinstance(visitor, str) and VISITOR.fullmatch(visitor)):
        raise RefusedError(422, NO_VISITOR)
    settings = from_mapping(fields)  # before a file is stored
    ids = {
        field: sent if isinstance(sent, str) else store.keep(sent.file, sent.filename or "")
        for field, sent in pictures.items()
    }
    files = {field: str(store.picture(number)) for field, number in ids.items()}
    exemplar = files.get("exemplar")
    return Question(ids, files.get("picture"), exemplar, visitor, settings.with_exemplar(exemplar))

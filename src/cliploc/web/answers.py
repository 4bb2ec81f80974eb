"""Questions and answers: `/api/show` and `/api/menu` for the page, `/api/localize` for programs, `/api/files` for both.

A question is a form with pictures, or JSON that names them by their ids.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import sys
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from cliploc.draw.html import jpeg_uri
from cliploc.errors import CliplocError, UsageError
from cliploc.find.memory import LruCache
from cliploc.localization import Localization
from cliploc.localizer import Localizer
from cliploc.support.process import give_back_memory, out_of_memory
from cliploc.support.reporter import Reporter
from cliploc.web import downloads, view
from cliploc.web.guard import RefusedError
from cliploc.web.runs import MAX_SECONDS, Run, StoppedError, Work
from cliploc.web.service import SearchResult, Service
from cliploc.web.settings import Settings, command_lines, from_mapping, from_query, python_lines, to_query
from cliploc.web.uploads import Store

JPEG_QUALITY = 90  # of an overlay
EVERY = 0.5  # seconds between two status lines
UNSEARCHED = "Press Find to search with these settings."
NO_PICTURE = "expected a picture, got none: send a file, or the id of one, as picture"
STREAMED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # a proxy must not hold lines back

PICTURES = ("picture", "exemplar")  # the fields that hold a picture, or the id of one
SWITCHES = ("overlay", "search")
VISITOR = re.compile("[0-9a-f]{32}")  # the page's name for itself, which nobody can guess
MOST_FIELDS = 40
MOST_FIELD_BYTES = 40_000  # of a field that is no file
NO_VISITOR = "expected visitor as 32 hexadecimal digits: reload the page"

T = TypeVar("T")
Turn = AbstractAsyncContextManager[None]
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class Answers:
    """Answers requests; the gate before it has checked host, password and size."""

    def __init__(self, service: Service, looks: LruCache[SearchResult], store: Store, queue: int, debug: bool) -> None:
        self._service, self._looks, self._store, self._debug = service, looks, store, debug
        self._searches, self._redraws, self._menus = Turns(queue), Turns(queue), Turns(queue)

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

    # -------------------------------------------------------------------------------------------------- for programs
    async def localize(self, request: Request) -> Response:
        """A photograph, names and settings in one request; the answer is the document of `--json`."""
        question = await question_in(request, self._store)
        if question.picture is None:
            raise RefusedError(422, NO_PICTURE)

        def document(reporter: Reporter) -> dict[str, Any]:
            settings, overlay = question.settings, "overlay" in question.switches
            look = self._look(question, reporter)
            results = self._cut(look, settings)
            if settings.masks or overlay:
                results = self._full_size(look, results)
            answer = downloads.document(results, settings, look.ran(settings))
            for entry, result in zip(answer["pictures"], results.values(), strict=True) if overlay else ():
                drawn = downloads.overlay(result, settings)
                entry["overlay"] = jpeg_uri(drawn.convert("RGB"), quality=JPEG_QUALITY)
            return {**answer, "ids": question.ids}

        return JSONResponse(await self._computed(request, self._search_turn(question), document))

    async def files(self, request: Request) -> Response:
        """Writes the files to download: of a photograph, as `localize` takes it, or of what the page shows."""
        question = await question_in(request, self._store)
        if question.picture is None and not question.visitor:
            raise RefusedError(422, NO_PICTURE)

        def written(reporter: Reporter) -> list[dict[str, Any]]:
            settings = question.settings
            if question.picture is None:
                if (last := self._looks.get(question.visitor)) is None:
                    raise UsageError("There are no results to download, or no longer: press Find first.")
                if not _ran(last, settings):
                    raise UsageError(UNSEARCHED)
                look, settings = last, last.unset(last.settings.with_live(settings))
            else:
                look = self._look(question, reporter, files=True)
            results = self._full_size(look, self._cut(look, settings, files=True))
            folder = self._store.new_folder()
            paths = downloads.write_files(folder, results, settings, look.offer.label, reporter, look.ran(settings))
            return [
                {"name": path.name, "address": f"/files/{folder.name}/{quote(path.name)}", "bytes": path.stat().st_size}
                for path in paths
            ]

        turn = self._search_turn(question) if question.picture else self._redraws.turn()
        return JSONResponse({"files": await self._computed(request, turn, written), "ids": question.ids})

    async def _computed(self, request: Request, turn: Turn, work: Work[T]) -> T:
        """Waits for a turn, and for the work; that of a client that leaves is stopped."""

        async def in_turn() -> T:
            async with turn:
                run: Run[T] = self._service.runs.begin(secrets.token_hex(8), work)
                try:
                    return await asyncio.to_thread(run.result)
                finally:
                    run.stop()

        answer = asyncio.ensure_future(in_turn())
        left = asyncio.ensure_future(request.receive())
        try:
            await asyncio.wait((answer, left), return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ClientDisconnect
            return answer.result()
        finally:
            for future in (answer, left):
                future.cancel()

    def _search_turn(self, question: Question) -> Turn:
        return self._searches.turn(self._model(question.settings))

    def _model(self, settings: Settings) -> Future[Localizer] | None:
        """The model, which the turn waits for; None where the menu does not have it."""
        try:
            return self._service.load(settings.model)
        except UsageError:
            return None

    def _look(
        self, question: Question, reporter: Reporter, last: SearchResult | None = None, files: bool = False
    ) -> SearchResult:
        if question.picture is not None:
            question.settings.check_work(self._service.read(question.picture).image.size, files)
        return self._service.look(question.picture, question.settings, last, reporter, question.exemplar)

    def _cut(self, look: SearchResult, settings: Settings, files: bool = False) -> dict[str, Localization]:
        """The results with boxes; also of an earlier search, which may have been for less."""
        height, width = next(iter(look.results.values())).frame.original_hw
        settings.check_work((width, height), files)
        return look.cut(settings)

    def _full_size(self, look: SearchResult, results: Mapping[str, Localization]) -> dict[str, Localization]:
        """Results with the photograph at its own size, for what is drawn in it."""
        photograph = self._service.read(look.path).image
        return {method: replace(result, image=photograph) for method, result in results.items()}

    # -------------------------------------------------------------------------------------------------- for the page
    async def menu(self, request: Request) -> Response:
        """What the page offers for the settings of an address, and the values of its controls."""
        settings = from_query(request.url.query)
        async with self._menus.turn(self._model(settings)):
            return JSONResponse(await asyncio.to_thread(view.menu_of, self._service, settings))

    async def show(self, request: Request) -> Response:
        """A search's lines of JSON: status every half second, at last what is drawn, also by other sliders."""
        question = await question_in(request, self._store)
        if not question.visitor:
            raise RefusedError(422, NO_VISITOR)
        return StreamingResponse(self._lines(question), media_type="application/x-ndjson", headers=STREAMED)

    async def _lines(self, question: Question) -> AsyncIterator[bytes]:
        """The lines of the answer. A visitor who leaves, or presses Stop, ends them, and with them the search."""
        search = "search" in question.switches
        turns, work = (self._searches, self._found) if search else (self._redraws, self._redrawn)
        try:
            async with AsyncExitStack() as stack:
                turn = self._search_turn(question) if search else turns.turn()
                entering = asyncio.ensure_future(stack.enter_async_context(turn))
                try:  # a proxy may close what says nothing for a minute
                    while not (await asyncio.wait((entering,), timeout=EVERY))[0]:
                        yield _line({"status": view.waiting(turns.waiting - 1)})
                finally:
                    entering.cancel()
                    await asyncio.wait((entering,))
                entering.result()
                run = self._service.runs.begin(
                    question.visitor, lambda reporter: work(question, reporter), alone=search
                )
                began = time.monotonic()
                try:
                    while not await asyncio.to_thread(run.wait, EVERY):
                        yield _line({"status": view.searching(*run.steps, time.monotonic() - began, run.bank)})
                finally:
                    run.stop()
            last = run.result()
        except Exception as error:
            last = {"status": view.status(str(self._refusal(error)), "problem")}
        yield _line({"done": True, **last, "ids": question.ids})

    def _found(self, question: Question, reporter: Reporter) -> dict[str, Any]:
        look = self._look(question, reporter, self._looks.get(question.visitor))
        self._looks.keep(question.visitor, look, look.size)
        return self._drawn(look, question.settings)

    def _redrawn(self, question: Question, _: Reporter) -> dict[str, Any]:
        last = self._looks.get(question.visitor)
        if last is None:
            return {"status": view.status("These results are not kept any longer: press Find.", "problem")}
        if not _ran(last, question.settings):
            return {"status": view.status(UNSEARCHED)}
        return self._drawn(last, last.settings.with_live(question.settings))

    def _drawn(self, look: SearchResult, settings: Settings) -> dict[str, Any]:
        """A search's results with the boxes of these settings, and the script, command and link that give the same."""
        settings = look.unset(settings)
        results, ran = self._cut(look, settings), look.ran(settings)
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


def _ran(last: SearchResult, now: Settings) -> bool:
    """Whether the thresholds of these settings are of the methods that ran."""
    return all(getattr(now, key) == getattr(last.settings, key) for key in ("model", "method", "compare", "refine"))


def _line(value: dict[str, Any]) -> bytes:
    return msgspec.json.encode(value) + b"\n"


QUEUE_FULL = "Too many requests are waiting: try again in a minute."
AT_ONCE = 2  # all models run in one thread: while one request has it, another's picture is read or drawn


class Turns:
    """Gives requests their turns, in order; who would wait longer than these seconds is refused."""

    def __init__(self, queue: int, seconds: float = MAX_SECONDS) -> None:
        self.waiting = 0
        self._queue, self._seconds = queue, seconds
        self._free = asyncio.Semaphore(AT_ONCE)

    @asynccontextmanager
    async def turn(self, model: Future[Any] | None = None) -> AsyncIterator[None]:
        """Waits for the model, which keeps nobody from a turn, and for a turn, which lasts as long as the block."""
        if model is not None:
            await asyncio.shield(asyncio.wrap_future(model))  # who leaves does not end it for the others
        if self._free.locked() and self.waiting >= self._queue:
            raise RefusedError(503, QUEUE_FULL)
        self.waiting += 1
        try:
            async with asyncio.timeout(self._seconds):
                await self._free.acquire()
        except TimeoutError:
            raise RefusedError(503, QUEUE_FULL) from None
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self._free.release()
            await run_in_threadpool(give_back_memory)


# ------------------------------------------------------------------------------------------------------- questions
@dataclass(frozen=True)
class Question:
    """A request, read."""

    ids: Mapping[str, str]  # field of `PICTURES` → id of the picture that it holds, which is stored
    picture: str | None  # the photograph's file; None where there is none
    exemplar: str | None  # the same of the picture that stands for a name
    visitor: str  # the page's name for itself; "" of a program
    switches: frozenset[str]  # those of `SWITCHES` that are on
    settings: Settings  # the other fields


async def question_in(request: Request, store: Store) -> Question:
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


def _question(fields: Mapping[str, Any], store: Store) -> Question:
    """The fields of a form, or the keys of a JSON object, by what they are."""
    settings = dict(fields)
    pictures: dict[str, str | UploadFile] = {}
    for field in PICTURES:
        sent = settings.pop(field, None)
        if sent in (None, "") or (isinstance(sent, UploadFile) and not sent.filename and not sent.size):
            continue  # null, an empty text, or what a browser sends where no file was chosen
        if not isinstance(sent, str | UploadFile):
            raise RefusedError(422, f"expected {field} as a file or as the id of one")
        pictures[field] = sent
    for key, value in settings.items():
        if isinstance(value, UploadFile):
            raise RefusedError(422, f"expected a file only as {' or '.join(PICTURES)}, got one as {key[:40]!r}")
    visitor = settings.pop("visitor", "")
    if visitor != "" and not (isinstance(visitor, str) and VISITOR.fullmatch(visitor)):
        raise RefusedError(422, NO_VISITOR)
    switches = []
    for name in SWITCHES:
        text = str(settings.pop(name, None) or "false").lower()
        if text not in ("true", "false"):
            raise RefusedError(422, f"expected {name} as true or false, got {text[:40]!r}")
        switches += [name] if text == "true" else []
    ids = {
        field: sent if isinstance(sent, str) else store.keep(sent.file, sent.filename or "")
        for field, sent in pictures.items()
    }
    files = {field: str(store.picture(number)) for field, number in ids.items()}
    exemplar = files.get("exemplar")
    read = from_mapping(settings).with_exemplar(exemplar)
    return Question(ids, files.get("picture"), exemplar, visitor, frozenset(switches), read)

"""`POST /api/show`: all that the page shows of a search, in one request; Find and the sliders ask it.

The page does not ask through gradio's queue, which takes longer than a cheap answer. The answer is lines of JSON: while
a search goes on, every half second its status line, and at last what is shown.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from cliploc.reporter import Reporter
from cliploc.web import view
from cliploc.web.events import explain
from cliploc.web.looks import Looks
from cliploc.web.requests import NOT_UPLOADED, RefusedError, parsed
from cliploc.web.service import Look, Service
from cliploc.web.settings import Settings, command_lines, from_page, python_lines, to_query
from cliploc.web.turns import Turns

VISITOR = re.compile("[0-9a-f]{32}")  # the page's name for itself, which nobody can guess
EVERY = 0.5  # seconds between two status lines
SEARCH_FIRST = "Press Find to search with these settings."
NOT_KEPT = "These results are not kept any longer: press Find."
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # a proxy must not hold lines back

Shown = dict[str, str]  # output of the page → what it shows; the others stay as they are


@dataclass(frozen=True)
class Wish:
    """What the page asks for.

    Attributes:
        visitor: the page's name for itself.
        search: whether Find was pressed; else a slider was moved.
        photo: the photograph's file, uploaded or an example's; None where there is none.
        exemplar: the same of the picture that stands for a name.
        settings: the values of the page's components.
    """

    visitor: str
    search: bool
    photo: str | None
    exemplar: str | None
    settings: Mapping[str, Any]


class Show:
    """Answers `POST /api/show`; the guard before it has checked host, client, password and size.

    Args:
        service: the models.
        looks: the visitors' last looks.
        turns: those of the requests that run a model.
        sliders: those of the others, which do not wait for a model.
        is_ours: whether a path is a file that was uploaded here, or an example's.
        debug: as for `page.build`.
    """

    def __init__(
        self,
        service: Service,
        looks: Looks,
        turns: Turns,
        sliders: Turns,
        is_ours: Callable[[str], bool],
        debug: bool,
    ) -> None:
        self._service, self._looks = service, looks
        self._turns, self._sliders = turns, sliders
        self._is_ours, self._debug = is_ours, debug

    async def answer(self, request: Request) -> Response:
        """Answers one request; what is no wish of the page is refused with a sentence under "error"."""
        try:
            wish = self._wish(parsed(await request.body()))
        except RefusedError as refusal:
            return JSONResponse({"error": str(refusal)}, refusal.status)
        except ClientDisconnect:  # the guard says so, if anybody still listens
            return JSONResponse({"error": ""}, 408)
        return StreamingResponse(self._lines(wish), media_type="application/x-ndjson", headers=HEADERS)

    def _wish(self, given: Mapping[str, Any]) -> Wish:
        visitor, settings = given.get("visitor"), given.get("settings")
        if not isinstance(visitor, str) or not VISITOR.fullmatch(visitor):
            raise RefusedError(422, "expected visitor as 32 hexadecimal digits: reload the page")
        if not isinstance(settings, dict):
            raise RefusedError(422, "expected the settings as an object")
        photo, exemplar = self._file(given.get("photo")), self._file(given.get("exemplar"))
        return Wish(visitor, bool(given.get("search")), photo, exemplar, settings)

    def _file(self, path: Any) -> str | None:
        if path is None:
            return None
        if not isinstance(path, str) or not self._is_ours(path):
            raise RefusedError(422, NOT_UPLOADED)
        return path

    async def _lines(self, wish: Wish) -> AsyncIterator[str]:
        """The lines of the answer. A visitor who leaves, or presses Stop, ends them, and with them the search."""
        try:
            async with self._turn(wish):
                run = self._service.runs.begin(
                    wish.visitor, lambda reporter: self._shown(wish, reporter), alone=wish.search
                )
                began = time.monotonic()
                try:
                    while not await asyncio.to_thread(run.wait, EVERY):
                        yield _line({"status": view.searching(*run.steps, time.monotonic() - began, run.bank)})
                finally:
                    run.stop()
            last = run.result()
        except Exception as error:
            last = {"status": view.problem(self._explained(error))}
        yield _line(last, done=True)

    def _turn(self, wish: Wish) -> AbstractAsyncContextManager[None]:
        """A search waits until its model is loaded; what the sliders change needs none."""
        if not wish.search:
            return self._sliders.turn()
        return self._turns.turn(self._service.load(from_page(wish.settings).model))

    def _explained(self, error: Exception) -> str:
        return str(error) if isinstance(error, RefusedError) else explain(error, self._debug)

    def _shown(self, wish: Wish, reporter: Reporter) -> Shown:
        """What a search finds, or what the last one found with the sliders' new values."""
        last, settings = self._looks.last(wish.visitor), from_page(wish.settings)
        if wish.search:
            settings = settings.with_exemplar(wish.exemplar)
            look = self._service.look(wish.photo, settings, last, reporter, wish.exemplar).slim(view.SHOWN_SIDE)
            self._looks.keep(wish.visitor, look)
            return self._results(look, settings)
        if last is None:
            return {"status": view.problem(NOT_KEPT)}
        if _needs_search(settings, last.settings):  # the thresholds are those of methods that did not run yet
            return {"status": view.status(SEARCH_FIRST)}
        return self._results(last, last.settings.with_live(settings))

    def _results(self, look: Look, settings: Settings) -> Shown:
        """A search's results with the boxes of these settings, and the script, command and link that give the same."""
        settings = look.unset(settings)
        found = look.cut(settings)
        file = next(iter(found.values())).source
        exemplar = Path(look.exemplar).name if look.exemplar else ""
        rules = [(look.offer.arguments_of(method), round(tau, 4)) for method, tau in look.rules(settings)]
        return {
            "status": view.status(view.summary(found)),
            "figures": view.results_html(found, settings.opacity, look.ran(settings), settings.masks),
            "python": python_lines(settings, file, look.offer.arguments, rules, exemplar),
            "command": command_lines(settings, file, look.offer.arguments, rules, exemplar),
            "address": f"?{to_query(_without_defaults(settings, self._service))}",
        }


def _line(shown: Shown, *, done: bool = False) -> str:
    return json.dumps({"done": done, "shown": shown}) + "\n"


def _needs_search(now: Settings, shown: Settings) -> bool:
    """Whether another model, method, recipe or refinement is chosen than that of the heatmaps that are shown."""
    return any(getattr(now, key) != getattr(shown, key) for key in ("model", "method", "compare", "refine"))


def _without_defaults(settings: Settings, service: Service) -> Settings:
    """The settings for an address: those that the page would choose by itself are left out."""
    return replace(
        settings,
        model="" if settings.model == next(iter(service.offers)) else settings.model,
        method="" if settings.method == service.menu(settings.model).own else settings.method,
    )

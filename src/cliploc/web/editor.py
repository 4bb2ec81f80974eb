"""`cliploc review`: the editor of an annotation's boxes, for one person on this machine.

A request names a picture by its number in this run, never by a path. Bodies are checked against a schema. What is saved
is on the disk before the answer is sent. The gate before it refuses foreign hosts and pages, as for `cliploc serve`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cliploc._documents import DocumentError, ReviewedPicture, SuggestionWish, parse_json
from cliploc._files import new_token
from cliploc._imports import install, not_installed
from cliploc.errors import CliplocError
from cliploc.jobs.correction_masks import UnusableError
from cliploc.jobs.folder import NO_ROOM
from cliploc.jobs.review_folder import ReviewFolder, StaleReviewError
from cliploc.jobs.suggest import Suggester
from cliploc.report.html import REPORT_TEMPLATES, data_uri
from cliploc.report.review_page import polygons_of, served_page
from cliploc.web.guard import POLICY, Gate
from cliploc.web.hosts import Hosts
from cliploc.web.refusals import RefusedError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
DECODED_AT_ONCE = 2  # pictures
ADVICE = "open it as http://127.0.0.1 or http://localhost, at its port"


class ReviewServer:
    """Answers the editor."""

    def __init__(self, folder: ReviewFolder, suggester: Suggester) -> None:
        self._folder, self._suggester = folder, suggester
        self._version = new_token()  # in the addresses of pictures
        self._decoding = threading.Semaphore(DECODED_AT_ONCE)

    def page(self) -> str:
        """The page."""
        facts = {**self._folder.facts(), "version": self._version}
        return served_page(facts, len(self._folder.pictures), self._folder.writable)

    def entries(self) -> list[dict[str, Any]]:
        """What the list shows."""
        return self._folder.entries()

    def state(self, number: int) -> dict[str, Any]:
        """One picture's boxes."""
        self._check(number)
        return self._folder.state(number)

    def jpeg(self, number: int, small: bool) -> bytes:
        """One picture."""
        self._check(number)
        with self._decoding:
            try:
                return self._folder.thumbnail(number) if small else self._folder.picture(number)
            except CliplocError as error:
                raise RefusedError(410, str(error)) from None

    def save(self, number: int, body: bytes) -> dict[str, Any]:
        """Saves the boxes of one picture."""
        self._check(number)
        saved = _parsed(body, ReviewedPicture)
        try:
            return {"revision": self._folder.save(number, saved)}
        except StaleReviewError as error:
            raise RefusedError(409, str(error)) from None
        except UnusableError as error:
            raise RefusedError(422, str(error)) from None
        except OSError as error:
            raise RefusedError(507, self._no_writing(error)) from None

    def suggest(self, number: int, body: bytes) -> dict[str, Any]:
        """The heat of a name in one picture, or the box around a click."""
        self._check(number)
        wish = _parsed(body, SuggestionWish)
        try:
            with self._decoding:
                image = self._folder.upright(number)
            name, at = wish["name"], wish.get("at")
            if at is None:
                heat = self._suggester.heat(image, number, name)
                return {"heat": data_uri(heat.png, "image/png"), "threshold": heat.threshold, "said": heat.said}
            box, mask = self._suggester.box(image, number, name, wish.get("threshold"), (float(at[0]), float(at[1])))
        except CliplocError as error:
            raise RefusedError(422, str(error)) from None
        if not self._folder.masks:
            return {"xyxy": box}
        return {"xyxy": box, "mask": mask, "polygons": polygons_of(mask, image.size)}

    def write_exports(self) -> dict[str, Any]:
        """Writes the exports again."""
        try:
            result = self._folder.write_exports()
        except CliplocError as error:
            raise RefusedError(409, str(error)) from None
        except OSError as error:
            raise RefusedError(507, self._no_writing(error)) from None
        files = [one for names in result.files.values() for one in names]
        return {"files": files, "boxes": sum(result.boxes.values()), "folder": str(self._folder.out)}

    def _no_writing(self, error: OSError) -> str:
        """Why nothing can be written, and what to do."""
        cure = "make room on the disk" if error.errno in NO_ROOM else "make the folder writable"
        return f"{self._folder.out} cannot be written: {error.strerror or error}: {cure}"

    def _check(self, number: int) -> None:
        if number >= len(self._folder.pictures):
            raise RefusedError(
                404, f"expected the number of a picture below {len(self._folder.pictures)}, got {number}"
            )


def _parsed(body: bytes, kind: type) -> dict[str, Any]:
    try:
        found: dict[str, Any] = parse_json(body, kind)
    except DocumentError as error:
        raise RefusedError(422, f"expected what the editor sends, got something else ({error})") from None
    return found


def application(folder: ReviewFolder, suggester: Suggester) -> Gate:
    """The editor as an ASGI application."""
    try:
        from starlette.applications import Starlette
        from starlette.concurrency import run_in_threadpool
        from starlette.responses import HTMLResponse, JSONResponse
        from starlette.responses import Response as Answer
        from starlette.routing import Route
    except ImportError as error:
        raise not_installed(error, install("web", "review", "starlette", "uvicorn")) from None
    from cliploc.web.assets import asset_routes

    server = ReviewServer(folder, suggester)

    def number(request: Request) -> int:
        return int(request.path_params["number"])

    def page(_: Request) -> Response:
        return HTMLResponse(server.page(), headers={"Cache-Control": "no-store"})

    def entries(_: Request) -> Response:
        return JSONResponse(server.entries(), headers={"Cache-Control": "no-store"})

    def state(request: Request) -> Response:
        return JSONResponse(server.state(number(request)), headers={"Cache-Control": "no-store"})

    def showing(small: bool) -> Callable[[Request], Response]:
        def jpeg(request: Request) -> Response:
            headers = {"Cache-Control": "private, max-age=600", "Cross-Origin-Resource-Policy": "same-origin"}
            return Answer(server.jpeg(number(request), small), media_type="image/jpeg", headers=headers)

        return jpeg

    def answering(work: Callable[[int, bytes], dict[str, Any]]) -> Any:
        async def answer(request: Request) -> Response:
            return JSONResponse(await run_in_threadpool(work, number(request), await request.body()))

        return answer

    async def write(_: Request) -> Response:
        return JSONResponse(await run_in_threadpool(server.write_exports))

    async def refused(_: Request, error: Exception) -> Response:
        status = error.status if isinstance(error, RefusedError) else 500
        return JSONResponse({"error": str(error)}, status)

    async def unknown(_: Request, __: Exception) -> Response:
        return JSONResponse({"error": "There is no such address here."}, 404)

    routes = [
        Route("/", page),
        Route("/pictures", entries),
        Route("/pictures/{number:int}", state, methods=["GET"]),
        Route("/pictures/{number:int}", answering(server.save), methods=["POST"]),
        Route("/pictures/{number:int}/suggestion", answering(server.suggest), methods=["POST"]),
        *asset_routes(REPORT_TEMPLATES, ["annotorious.css", "annotorious.js", "review.css", "review.js"]),
        Route("/exports", write, methods=["POST"]),
        Route("/images/{number:int}.jpg", showing(small=False)),
        Route("/thumbnails/{number:int}.jpg", showing(small=True)),
    ]
    app = Starlette(routes=routes, exception_handlers={RefusedError: refused, 404: unknown})
    policy = f"{POLICY}; style-src-attr 'unsafe-inline'"  # annotorious sets some
    return Gate(app, Hosts(HOST, advice=ADVICE), policy=policy)


def serve_review(
    folder: ReviewFolder, suggester: Suggester, port: int = 7861, *, on_ready: Callable[[str], None] = print
) -> None:
    """Serves the editor on this machine until it is interrupted."""
    app = application(folder, suggester)
    from cliploc.web.server import listen, run

    with listen(HOST, port) as listening:
        run(app, HOST, listening, on_ready)

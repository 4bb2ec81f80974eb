"""`cliploc review`: pictures by number, bodies by schema, saves on the disk before the answer, one gate before all."""

import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from cliploc.draw.html import data_uri
from cliploc.errors import CliplocError
from cliploc.label.correction_masks import UnusableError
from cliploc.label.editor.page import TEMPLATES, polygons_of, served_page
from cliploc.label.editor.review_folder import ReviewFolder
from cliploc.label.editor.suggest import Suggester
from cliploc.runs.labelling import StaleReviewError
from cliploc.runs.store import FULL, DiskFullError
from cliploc.support.documents import DocumentError, ReviewedPicture, SuggestionWish, parse_json
from cliploc.web.guard import POLICY, Gate, Hosts, RefusedError
from cliploc.web.server import asset_routes, unknown

HOST = "127.0.0.1"
DECODED_AT_ONCE = 2  # pictures


def application(folder: ReviewFolder, suggester: Suggester) -> Gate:
    """The editor as an ASGI application."""
    decoding = threading.Semaphore(DECODED_AT_ONCE)

    def of_this_folder(request: Request) -> None:
        if request.query_params.get("of", folder.identity) != folder.identity:
            raise RefusedError(409, "this page shows another folder, or other pictures than are in it now: reload it")

    def number_in(request: Request) -> int:
        of_this_folder(request)
        number = int(request.path_params["number"])
        if number >= len(folder.pictures):
            raise RefusedError(404, f"expected the number of a picture below {len(folder.pictures)}, got {number}")
        return number

    def page(_: Request) -> Response:
        facts = {**folder.facts(), "folder": folder.identity, "learns": folder.learning.possible}
        text = served_page(facts, len(folder.pictures), folder.writable)
        return HTMLResponse(text, headers={"Cache-Control": "no-store"})

    def entries(request: Request) -> Response:
        of_this_folder(request)
        return JSONResponse(folder.entries(), headers={"Cache-Control": "no-store"})

    def state(request: Request) -> Response:
        return JSONResponse(folder.state(number_in(request)), headers={"Cache-Control": "no-store"})

    def showing(jpeg: Callable[[int], bytes]) -> Callable[[Request], Response]:
        @_refusing(410)
        def show(request: Request) -> Response:
            number = number_in(request)
            with decoding:
                content = jpeg(number)
            headers = {"Cache-Control": "private, max-age=600", "Cross-Origin-Resource-Policy": "same-origin"}
            return Response(content, media_type="image/jpeg", headers=headers)

        return show

    @_refusing(422)
    def suggested(number: int, body: bytes) -> dict[str, Any]:
        """The heat of a name in one picture, or the box around a click."""
        wish = _parsed(body, SuggestionWish)
        name, at = wish["name"], wish.get("at")
        label = folder.label_of(name)
        with decoding:
            image = folder.upright(number)
        if at is None:
            png, threshold, said = suggester.heat(image, number, name)
            return {"heat": data_uri(png, "image/png"), "threshold": threshold, "said": said}
        box, mask = suggester.box(image, number, name, wish.get("threshold"), (float(at[0]), float(at[1])))
        shape = {"mask": mask, "polygons": polygons_of(mask, image.size)} if folder.masks else {}
        return {"xyxy": box, "label": label, **shape}

    @_refusing(422, folder)
    def saved(number: int, body: bytes) -> dict[str, Any]:
        return {"revision": folder.save(number, _parsed(body, ReviewedPicture))}

    def answering(work: Callable[[int, bytes], dict[str, Any]]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            number, body = number_in(request), await request.body()
            return JSONResponse(await run_in_threadpool(work, number, body))

        return answer

    @_refusing(409, folder)
    def write(request: Request) -> Response:
        of_this_folder(request)
        result = folder.write_exports()
        files = [file for names in result.files.values() for file in names]
        return JSONResponse({"files": files, "boxes": sum(result.boxes.values()), "folder": str(folder.out)})

    def learning(request: Request) -> Response:
        of_this_folder(request)
        return JSONResponse(folder.learning.state(), headers={"Cache-Control": "no-store"})

    def telling(change: Callable[[], None]) -> Callable[[Request], Response]:
        @_refusing(409, folder)
        def tell(request: Request) -> Response:
            of_this_folder(request)
            change()
            return learning(request)

        return tell

    async def refused(_: Request, error: Exception) -> Response:
        status = error.status if isinstance(error, RefusedError) else 500
        return JSONResponse({"error": str(error)}, status)

    routes = [
        Route("/", page),
        Route("/pictures", entries),
        Route("/pictures/{number:int}", state, methods=["GET"]),
        Route("/pictures/{number:int}", answering(saved), methods=["POST"]),
        Route("/pictures/{number:int}/suggestion", answering(suggested), methods=["POST"]),
        *asset_routes(TEMPLATES, ["annotorious.css", "annotorious.js", "review.css", "review.js"]),
        Route("/exports", write, methods=["POST"]),
        Route("/learning", learning, methods=["GET"]),
        Route("/learning", telling(folder.learning.now), methods=["POST"]),
        Route("/learning/undo", telling(folder.learning.undo), methods=["POST"]),
        Route("/images/{number:int}.jpg", showing(folder.picture)),
        Route("/thumbnails/{number:int}.jpg", showing(folder.thumbnail)),
    ]
    app = Starlette(routes=routes, exception_handlers={RefusedError: refused, 404: unknown})
    policy = f"{POLICY}; style-src-attr 'unsafe-inline'"  # annotorious sets some
    hosts = Hosts(HOST, advice="open it as http://127.0.0.1 or http://localhost, at its port")
    return Gate(app, hosts, policy=policy)


def _parsed(body: bytes, kind: type) -> dict[str, Any]:
    try:
        message: dict[str, Any] = parse_json(body, kind)
    except DocumentError as error:
        raise RefusedError(422, f"expected what the editor sends, got something else ({error})") from None
    return message


@contextmanager
def _refusing(status: int, written: ReviewFolder | None = None) -> Iterator[None]:
    """Errors inside are refusals, with this status where what was asked cannot be done; `written`: what is saved to."""
    try:
        yield
    except StaleReviewError as error:
        raise RefusedError(409, str(error)) from None
    except DiskFullError as error:
        raise RefusedError(507, str(error)) from None
    except (CliplocError, UnusableError) as error:
        raise RefusedError(status if written is None or written.writable else 507, str(error)) from None
    except OSError as error:
        if written is None:
            raise
        cure = "make room on the disk" if error.errno in FULL else "make the folder writable"
        said = f"{written.out} cannot be written: {error.strerror or error}: {cure}"
        raise RefusedError(507, said) from None

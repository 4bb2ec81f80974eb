"""`cliploc review`: pictures by number, bodies by schema, saves on the disk before the answer, one gate before all."""

import threading
from collections.abc import Callable
from typing import Annotated, Any

from msgspec import Meta, Struct
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from cliploc.draw.html import data_uri
from cliploc.errors import CliplocError
from cliploc.label.corrections import ReviewedPicture, UnusableError
from cliploc.label.editor.page import TEMPLATES, polygons_of
from cliploc.label.editor.review_folder import ReviewFolder, Suggester
from cliploc.runs.label_store import StaleReviewError
from cliploc.runs.store import FULL, DiskFullError
from cliploc.web.server import POLICY, Gate, Hosts, RefusedError, asset_routes, body_of, unknown

HOST = "127.0.0.1"
DECODED_AT_ONCE = 2  # pictures
SENT = "what the editor sends"


class SuggestionRequest(Struct, forbid_unknown_fields=True):
    """What the editor asks the model: a name, the threshold and place of a click, or the box that is to be split."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    threshold: Annotated[float, Meta(ge=0, lt=1)] | None = None
    at: tuple[float, float] | None = None
    split: tuple[float, float, float, float] | None = None


class Renaming(Struct, forbid_unknown_fields=True):
    """`name` is called `to`, which may be another label; without `name`, `to` is new; without `to`, `name` goes."""

    name: str | None
    to: Annotated[str, Meta(max_length=200)] | None


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
        shown: dict[str, Any] = {"facts": facts, "writable": folder.writable, "total": len(folder.pictures)}
        text = TEMPLATES.render("review.html", title="Review of boxes", **shown)
        return HTMLResponse(text, headers={"Cache-Control": "no-store"})

    def entries(request: Request) -> Response:
        of_this_folder(request)
        return JSONResponse(folder.entries(), headers={"Cache-Control": "no-store"})

    def state(request: Request) -> Response:
        return JSONResponse(folder.state(number_in(request)), headers={"Cache-Control": "no-store"})

    def image_route(jpeg: Callable[[int], bytes]) -> Callable[[Request], Response]:
        def image(request: Request) -> Response:
            number = number_in(request)
            with decoding:
                content = jpeg(number)
            headers = {"Cache-Control": "private, max-age=600", "Cross-Origin-Resource-Policy": "same-origin"}
            return Response(content, media_type="image/jpeg", headers=headers)

        return image

    def suggestion(number: int, wanted: SuggestionRequest) -> dict[str, Any]:
        """The heat of a name in one picture, or the box around a click."""
        label = folder.label_of(wanted.name)
        with decoding:
            image = folder.upright(number)
        if wanted.split is not None:
            axis, line = suggester.cut(image, number, wanted.name, wanted.split)
            return {"axis": axis, "line": line}
        if wanted.at is None:
            png, threshold, message = suggester.heat(image, number, wanted.name)
            return {"heat": data_uri(png, "image/png"), "threshold": threshold, "said": message}
        box, mask = suggester.box(image, number, wanted.name, wanted.threshold, wanted.at)
        shape = {"mask": mask, "polygons": polygons_of(mask, image.size)} if folder.masks else {}
        return {"xyxy": box, "label": label, **shape}

    async def suggest(request: Request) -> Response:
        number, wanted = number_in(request), await body_of(request, SuggestionRequest, SENT)
        return JSONResponse(await run_in_threadpool(suggestion, number, wanted))

    async def save(request: Request) -> Response:
        number, picture = number_in(request), await body_of(request, ReviewedPicture, SENT)
        return JSONResponse({"revision": await run_in_threadpool(folder.save, number, picture)})

    async def rename(request: Request) -> Response:
        of_this_folder(request)
        wanted = await body_of(request, Renaming, SENT)
        await run_in_threadpool(folder.rename, wanted.name, wanted.to)
        return JSONResponse({})

    def write(request: Request) -> Response:
        of_this_folder(request)
        return JSONResponse({"files": folder.write_exports(), "folder": str(folder.out)})

    async def like(request: Request) -> Response:
        number, wanted = number_in(request), await body_of(request, SuggestionRequest, SENT)
        await run_in_threadpool(folder.learning.find_like, number, folder.label_of(wanted.name))
        return JSONResponse(folder.learning.state())

    def learning_route(change: Callable[[], None] = lambda: None) -> Callable[[Request], Response]:
        def learning(request: Request) -> Response:
            of_this_folder(request)
            change()
            return JSONResponse(folder.learning.state(), headers={"Cache-Control": "no-store"})

        return learning

    async def refused(request: Request, error: Exception) -> Response:
        status, message = 409, str(error)
        if isinstance(error, RefusedError):
            status = error.status
        elif isinstance(error, OSError):
            cure = "make room on the disk" if error.errno in FULL else "make the folder writable"
            status, message = 507, f"{folder.out} cannot be written: {error.strerror or error}: {cure}"
        elif isinstance(error, DiskFullError) or (request.method == "POST" and not folder.writable):
            status = 507
        elif isinstance(error, UnusableError):
            status = 422
        return JSONResponse({"error": message}, status)

    routes = [
        Route("/", page),
        Route("/pictures", entries),
        Route("/pictures/{number:int}", state, methods=["GET"]),
        Route("/pictures/{number:int}", save, methods=["POST"]),
        Route("/pictures/{number:int}/suggestion", suggest, methods=["POST"]),
        Route("/pictures/{number:int}/like", like, methods=["POST"]),
        *asset_routes(TEMPLATES, ["annotorious.css", "annotorious.js", "review.css", "review.js"]),
        Route("/names", rename, methods=["POST"]),
        Route("/exports", write, methods=["POST"]),
        Route("/learning", learning_route(), methods=["GET"]),
        Route("/learning", learning_route(folder.learning.now), methods=["POST"]),
        Route("/learning/undo", learning_route(folder.learning.undo), methods=["POST"]),
        Route("/images/{number:int}.jpg", image_route(folder.picture)),
        Route("/thumbnails/{number:int}.jpg", image_route(folder.thumbnail)),
    ]
    errors = (CliplocError, UnusableError, StaleReviewError, OSError, RefusedError)
    app = Starlette(routes=routes, exception_handlers={**dict.fromkeys(errors, refused), 404: unknown})
    policy = f"{POLICY}; style-src-attr 'unsafe-inline'"  # annotorious sets some
    hosts = Hosts(HOST, advice="open it as http://127.0.0.1 or http://localhost, at its port")
    return Gate(app, hosts, policy=policy)

"""The find page: its addresses behind the gate, and the process that serves it."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route

from cliploc.find.prompts import TEMPLATE_SETS
from cliploc.images.demo import demo_photos
from cliploc.options import POLICIES
from cliploc.web.server import Gate, Hosts, RefusedError, asset_routes, listen, run, unknown
from cliploc.web.service import Service
from cliploc.web.settings import MOST_LETTERS, SCALES, WINDOWS, Settings
from cliploc.web.uploads import Store
from cliploc.web.view import TEMPLATES, Answers, menu_of

MAX_JSON = 256_000  # bytes of a request without files
FORM_BYTES = 16_000  # of an upload besides the file itself
SWEPT_SECONDS = 300.0  # time between two searches for what is old
ASSETS = ["find.css", "find.js", "ask.js", "controls.js", "picture.js", "stage.js", "icon.svg"]
EXAMPLES = ("cat", "bee", "otters", "osprey", "fig", "drum", "bridge", "astronaut")  # on each, a name is found


def application(
    service: Service,
    folder: Path,
    *,
    auth: tuple[str, str] | None = None,
    max_bytes: int = 20_000_000,
    hosts: Hosts | None = None,
    debug: bool = False,
) -> Gate:
    """Page and API as an ASGI application; `auth` None: everybody may ask."""
    examples = {photo.path.name: photo for photo in demo_photos()}
    store = Store(folder, {name: photo.path for name, photo in examples.items()})
    answers = Answers(service, store, debug)
    text = TEMPLATES.render(
        "find.html",
        title="cliploc",
        menu=menu_of(service, Settings()),
        models=list(service.offers),
        examples={f"{name}.jpg": examples[f"{name}.jpg"] for name in EXAMPLES},
        resize=POLICIES,
        scales=SCALES,
        windows=WINDOWS,
        templates=list(TEMPLATE_SETS),
        most_letters=MOST_LETTERS,
    )

    def page(_: Request) -> Response:
        return HTMLResponse(text, headers={"Cache-Control": "no-cache"})

    async def example(request: Request) -> Response:  # never an upload, which may be HTML or a script as well
        if (photo := examples.get(request.path_params["name"])) is None:
            raise RefusedError(404, "There is no such example.")
        return FileResponse(photo.path, headers={"Cache-Control": "private, max-age=3600"})

    async def download(request: Request) -> Response:
        path = store.download(request.path_params["folder"], request.path_params["name"])
        headers = {"Cache-Control": "private, no-store", "Content-Security-Policy": "sandbox; default-src 'none'"}
        return FileResponse(path, filename=path.name, headers=headers)

    @asynccontextmanager
    async def sweeping(_: Starlette) -> AsyncIterator[None]:
        async def sweep() -> None:
            while True:
                await asyncio.sleep(SWEPT_SECONDS)
                await asyncio.to_thread(store.sweep)
                answers.looks.forget_old()
                service.pictures.forget_old()

        task = asyncio.create_task(sweep())
        yield
        task.cancel()

    routes = [
        Route("/", page),
        *asset_routes(TEMPLATES, ASSETS),
        Route("/examples/{name}", answers.answering(example)),
        Route("/files/{folder}/{name}", answers.answering(download)),
        Route("/api/menu", answers.answering(answers.menu)),
        Route("/api/show", answers.answering(answers.show), methods=["POST"]),
        Route("/api/localize", answers.answering(answers.localize), methods=["POST"]),
        Route("/api/files", answers.answering(answers.files), methods=["POST"]),
    ]
    app = Starlette(routes=routes, exception_handlers={404: unknown, 405: unknown}, lifespan=sweeping)
    return Gate(app, hosts or Hosts(), auth=auth, max_body=MAX_JSON, max_upload=max_bytes + FORM_BYTES)


def serve(
    service: Service,
    host: str,
    port: int,
    *,
    allow_hosts: Sequence[str],
    on_ready: Callable[[str], None],
    **options: Any,
) -> None:
    """Serves until it is interrupted, and ends the process then with exit code 0."""
    with (
        listen(host, port) as listening,
        TemporaryDirectory(prefix="cliploc-serve-", ignore_cleanup_errors=True) as folder,
        suppress(KeyboardInterrupt),
    ):
        app = application(service, Path(folder), hosts=Hosts(host, allow_hosts), **options)
        run(app, host, listening, on_ready, service.end)
    with suppress(OSError):  # nobody reads it
        sys.stdout.flush()
    os._exit(0)  # a model that still computes, or loads, is not waited for

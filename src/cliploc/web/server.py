"""The web server of the page: its limits and its folder of files."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cliploc._imports import install, not_installed
from cliploc.errors import UsageError
from cliploc.web.guard import LOCALIZE, SHOW, Guard, Receive, Scope, Send
from cliploc.web.hosts import Hosts
from cliploc.web.requests import Requests
from cliploc.web.service import KEPT_SECONDS, Service
from cliploc.web.uploads import Uploads

if TYPE_CHECKING:
    import uvicorn

KEPT_SESSIONS = 64  # of gradio, each with a copy of the settings of the page's components
RATE = 600  # requests a minute of one client
MAX_UPLOADS = 2_000_000_000  # bytes of all uploads and downloads together
# gradio's own settings. By default it keeps a record of each of the last 10,000 requests, and makes a table of them all
# after every request: memory and the time of a request would grow with the number of requests.
GRADIO = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_ANALYTICS_MAX_EVENTS": "1",
    "GRADIO_ANALYTICS_CACHE_FREQUENCY": str(10**9),
    "MPLBACKEND": "agg",  # else the first request waits while gradio has matplotlib look for a window system
}
END_SECONDS = 2.5  # from the signal to the end of the process, whatever still runs


def application(
    service: Service,
    *,
    auth: tuple[str, str] | None = None,
    queue: int = 32,
    max_bytes: int = 20_000_000,
    hosts: Hosts | None = None,
    rate: float = RATE,
    debug: bool = False,
) -> Guard:
    """Page and API as an ASGI application. Set `GRADIO_TEMP_DIR` to the folder for uploads before the call.

    Args:
        service: the models behind it.
        auth: user and password; None to let everybody in.
        queue: how many requests may wait; more are refused.
        max_bytes: the largest upload.
        hosts: the names by which the server may be reached; by default this machine's own.
        rate: requests a minute of one client on another machine; 0 for no limit.
        debug: as for `page.build`.

    Raises:
        UsageError: gradio is not installed.
        ModelError: the first model cannot be loaded.
    """
    try:
        import fastapi
        import gradio as gr
        from starlette.routing import Mount, Route
    except ImportError as error:
        raise not_installed(error, install("web", "serve")) from None
    from cliploc.web import components, page, view
    from cliploc.web.looks import Looks
    from cliploc.web.rest import PictureStore, Rest
    from cliploc.web.show import Show
    from cliploc.web.turns import Turns

    looks = Looks()
    blocks = page.build(service, looks, debug=debug)
    blocks.queue(max_size=queue, default_concurrency_limit=4, api_open=False)  # open, requests could skip the queue
    blocks.state_session_capacity = KEPT_SESSIONS
    for component in blocks.blocks.values():  # else they would hold the names of all uploads for ever
        component.temp_files = Forgotten()
    blocks.upload_file_set = Forgotten()
    blocks.has_launched = True  # gradio does not set it when mounted; unset, requests may name any file

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    turns = Turns(queue)
    rest = Rest(service, PictureStore(Path(components.upload_folder())), turns, debug)
    show = Show(service, looks, turns, Turns(queue), components.is_ours, debug)
    for address, answer in ((LOCALIZE, rest.answer), (SHOW, show.answer)):
        app.router.routes.append(Route(address, answer, methods=["POST"]))  # gradio takes every address after them
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        auth=auth,
        allowed_paths=[str(components.example_folder())],
        max_file_size=max_bytes,
        footer_links=["api"],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        show_error=True,
        theme=gr.themes.Base(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")).set(
            button_primary_background_fill="*primary_600",  # dark enough for white text
            button_primary_background_fill_hover="*primary_700",
        ),
        css=view.TEMPLATES.asset("page.css"),
    )
    inner: Any = next(route.app for route in app.routes if isinstance(route, Mount))

    def end() -> None:
        service.runs.end()  # else the process would wait for the longest run
        inner.stop_event.set()  # else open pages are cut off, each with a traceback in the log

    def forget() -> None:
        looks.forget_old()
        service.pictures.forget_old()

    requests = Requests(components.endpoints(blocks), components.is_ours)
    uploads = Uploads(Path(components.upload_folder()), MAX_UPLOADS, KEPT_SECONDS, forget)
    return Guard(app, hosts or Hosts(), requests, uploads, max_bytes, end, service.runs.stop, auth, rate)


class Forgotten(set[str]):
    """A set that stays empty. gradio notes uploads in such sets, to remove old files; here `Uploads` removes them."""

    def add(self, _: str) -> None:
        """Notes nothing."""

    def update(self, *_: Iterable[str]) -> None:
        """Notes nothing."""


class Ending(Protocol):
    """An application that can be told to end what it does."""

    def end(self) -> None:
        """Ends what still runs."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""


def listener(app: Ending, on_shutdown: Callable[[], None] | None = None, **config: Any) -> uvicorn.Server:
    """A uvicorn server that ends the application's runs first when it shuts down.

    Args:
        app: the application.
        on_shutdown: called before that.
        config: further settings of `uvicorn.Config`.
    """
    import uvicorn

    from cliploc.web.connections import BACKLOG, KEEP_ALIVE_SECONDS, limited, most_connections

    class Listener(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            if on_shutdown is not None:
                on_shutdown()
            app.end()
            # An answer that is cut off now is no error.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            await super().shutdown(sockets)

    settings: dict[str, Any] = {
        "http": limited(most_connections()),
        "ws": "none",  # gradio needs no WebSockets, and the guard handles none
        "backlog": BACKLOG,
        "timeout_keep_alive": KEEP_ALIVE_SECONDS,
        "timeout_graceful_shutdown": 1,
        "log_level": "error",  # uvicorn warns of every malformed request, and anybody can send those
    }
    return Listener(uvicorn.Config(app, **settings | config))


def serve(
    service: Service,
    host: str = "127.0.0.1",
    port: int = 7860,
    *,
    auth: tuple[str, str] | None = None,
    queue: int = 32,
    max_bytes: int = 20_000_000,
    allow_hosts: Sequence[str] = (),
    rate: float = RATE,
    debug: bool = False,
    on_ready: Callable[[str], None] = print,
    own_process: bool = False,
) -> None:
    """Serves until it is interrupted. Uploads are in a temporary folder, which is removed at the end.

    Args:
        service: the models behind it.
        host: the address to listen on.
        port: 0 for any free one.
        auth: as for `application`.
        queue: as for `application`.
        max_bytes: as for `application`.
        allow_hosts: names by which the server may be reached, besides this machine's own and `host`.
        rate: as for `application`.
        debug: as for `application`.
        on_ready: called with the page's address once the server accepts connections.
        own_process: whether the process has no other purpose: then it ends with the server, at once, with exit code 0.

    Raises:
        UsageError: gradio is not installed, or the server cannot listen on the address.
        ModelError: the first model cannot be loaded.
    """
    listening = listen(host, port)
    try:
        with (
            listening,
            tempfile.TemporaryDirectory(prefix="cliploc-serve-") as folder,
            _environment(GRADIO_TEMP_DIR=folder, **GRADIO),
        ):
            hosts = Hosts(host, allow_hosts)
            app = application(service, auth=auth, queue=queue, max_bytes=max_bytes, hosts=hosts, rate=rate, debug=debug)
            end_by_signal()  # else the folder would not be removed
            server = listener(app, (lambda: _end_soon(folder)) if own_process else None)
            on_ready(address_of(host, listening))
            server.run(sockets=[listening])
    except KeyboardInterrupt:
        if not own_process:
            raise
    if own_process:
        _end_process()


def _end_soon(folder: str) -> None:
    """Ends the process after `END_SECONDS`, as a step of a model that cannot be stopped would take longer."""

    def end() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        _end_process()

    timer = threading.Timer(END_SECONDS, end)
    timer.daemon = True
    timer.start()


def _end_process() -> None:
    """Ends the process without dismantling the interpreter, which takes seconds on a busy machine and saves nothing."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # nobody reads it, or it is closed
            stream.flush()
    os._exit(0)


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Environment variables that hold within the block only."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def end_by_signal() -> None:
    """Lets a SIGTERM end this process as an interrupt does."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def address_of(host: str, listening: socket.socket) -> str:
    """The address of a server on a host, for a browser."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listening.getsockname()[1]}"


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections.

    Raises:
        UsageError: the address is taken, or is not one of this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot listen on {host}, port {port}: {reason}: choose another --host or --port") from None
    return listening

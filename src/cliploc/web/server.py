"""How every server of this package listens and ends, and what all its pages load."""

import logging
import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from cliploc import UsageError
from cliploc.draw.colours import NAME_COLOURS, as_hex, text_colour
from cliploc.draw.html import TEMPLATES, Templates

TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
BASE = "base.css"  # every page's
LIMITS: dict[str, Any] = {  # of uvicorn
    "http": "h11",  # the parser that has a limit for a request's head
    "h11_max_incomplete_event_size": 2**17,  # bytes of it: the page's links hold names
    "ws": "none",  # the pages need no WebSockets
    "limit_concurrency": 500,  # connections; a system usually allows a process 1,024 open files
    "timeout_keep_alive": 5,  # seconds for which a connection may wait for its next request
    "timeout_graceful_shutdown": 1,
    "log_level": "error",  # uvicorn warns of every malformed request, and anybody can send those
}


class Listener(uvicorn.Server):
    """A server that ends the application's work first when it shuts down."""

    def __init__(self, app: ASGIApp, on_end: Callable[[], None] | None = None, **config: Any) -> None:
        super().__init__(uvicorn.Config(app, **LIMITS | config))
        self._on_end = on_end

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends."""
        if self._on_end is not None:
            self._on_end()
        # An answer that is cut off now is no error.
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


def run(
    app: ASGIApp,
    host: str,
    listening: socket.socket,
    on_ready: Callable[[str], None],
    on_end: Callable[[], None] | None = None,
) -> None:
    """Serves an application until SIGINT or SIGTERM, as a KeyboardInterrupt."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = Listener(app, on_end)
    name = f"[{host}]" if ":" in host else host
    on_ready(f"http://{name}:{listening.getsockname()[1]}")
    server.run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A socket that accepts connections."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot listen on {host}, port {port}: {reason}: choose another --port") from None
    return listening


def asset_routes(templates: Templates, names: list[str]) -> list[Route]:
    """Routes to the style sheets and scripts of a page and to `BASE`, as /static/NAME; read once."""

    def giving(name: str, text: str) -> Route:
        def give(_: Request) -> Response:
            return Response(text, media_type=TYPES[name.rpartition(".")[2]], headers={"Cache-Control": "no-cache"})

        return Route(f"/static/{name}", give)

    # The colours of pages, of names in legends, and what all pages share.
    chips = "".join(
        f".name-{place} {{ --name: {as_hex(one)}; background: {as_hex(one)}; color: {as_hex(text_colour(one))}; }}\n"
        for place, one in enumerate(NAME_COLOURS)
    )
    base = TEMPLATES.render("colours.css") + TEMPLATES.asset(BASE) + chips
    return [giving(BASE, base), *(giving(name, templates.asset(name)) for name in names)]


async def unknown(_: Request, __: Exception) -> Response:
    """The answer for an address that a server does not have."""
    return JSONResponse({"error": "There is no such address here."}, 404)

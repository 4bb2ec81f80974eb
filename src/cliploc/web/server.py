"""How every server of this package listens and ends, the limits of its connections, and what all its pages load.

Limits for connections: how many there are, of one client and of all, and how long one may be idle.
"""

import asyncio
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
from uvicorn.protocols.http.h11_impl import H11Protocol

from cliploc.errors import UsageError
from cliploc.report.colours import NAME_COLOURS, as_hex
from cliploc.report.html import REPORT_TEMPLATES, Templates
from cliploc.web.clients import client_of, is_loopback
from cliploc.web.guard import Gate

TYPES = {"css": "text/css", "js": "text/javascript"}
BASE = "base.css"  # every page's
HEADER_SECONDS = 15.0  # time for a request line and its headers to arrive
HEAD_BYTES = 2**17  # of a request line with its headers in pieces: longer than the guard allows, so that it can say so
KEEP_ALIVE_SECONDS = 5  # time that a connection may wait for its next request
BACKLOG = 128  # connections that may be accepted at once; twice as many open files are kept in reserve
MOST = 1000  # connections, where the system allows enough open files
SHARE = 4  # one client on another machine may have this part of them


class Connection(H11Protocol):
    """One connection. It is closed if no request arrives in time; of too many, the one that was silent longest is."""

    most = MOST

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Registers the connection, and closes the one that has been silent longest where there are too many."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._heard = self.loop.time()  # when the client last sent something, or took something
        self._patience: asyncio.TimerHandle | None = self.loop.call_later(HEADER_SECONDS, self._give_up)
        host = self.client[0] if self.client else ""
        self._visitor = "" if is_loopback(host) else client_of(host)
        others = [connection for connection in self.connections if isinstance(connection, Connection)]
        mine = [connection for connection in others if connection._visitor == self._visitor] if self._visitor else []
        crowd = mine if len(mine) > self.most // SHARE else others if len(others) > self.most else []
        if crowd:
            silent = [connection for connection in crowd if connection.waits and connection is not self]
            leaving = min(silent, key=lambda connection: connection._heard, default=self)
            leaving.transport.abort()
            leaving.connections.discard(leaving)

    @property
    def idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def waits(self) -> bool:
        """Whether it is the client's turn: to ask, to send the rest of a body, or to take an answer."""
        return self.idle or self.cycle.more_body or self.flow.write_paused

    def data_received(self, data: bytes) -> None:
        """Stops the timer when a request has arrived, and starts it for an incomplete one."""
        self._heard = self.loop.time()
        super().data_received(data)
        if not self.idle:
            self._stop_waiting()
        elif self._patience is None:
            self._patience = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def pause_writing(self) -> None:
        """Notes the time: from now on the client has something to take."""
        self._heard = self.loop.time()
        super().pause_writing()

    def on_response_complete(self) -> None:
        """Notes the time: the connection is idle from now on."""
        self._heard = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancels the timer."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        self._patience = None
        if self.idle:
            self.transport.abort()


def listener(app: Gate, on_shutdown: Callable[[], None] | None = None, **config: Any) -> uvicorn.Server:
    """A uvicorn server that ends the application's runs first when it shuts down."""

    class Listener(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            if on_shutdown is not None:
                on_shutdown()
            app.end()
            # An answer that is cut off now is no error.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            await super().shutdown(sockets)

    try:
        import resource
    except ImportError:  # not on Windows
        most = MOST // 2
    else:  # half the open files that the system allows, as each request may need a file
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = MOST if allowed == resource.RLIM_INFINITY else max(16, min(MOST, (allowed - 2 * BACKLOG) // 2))
    settings: dict[str, Any] = {
        "http": type("LimitedConnection", (Connection,), {"most": most}),
        "ws": "none",  # the pages need no WebSockets, and the guard handles none
        "backlog": BACKLOG,
        "timeout_keep_alive": KEEP_ALIVE_SECONDS,
        "h11_max_incomplete_event_size": HEAD_BYTES,
        "timeout_graceful_shutdown": 1,
        "log_level": "error",  # uvicorn warns of every malformed request, and anybody can send those
    }
    return Listener(uvicorn.Config(app, **settings | config))


def run(
    app: Gate,
    host: str,
    listening: socket.socket,
    on_ready: Callable[[str], None],
    on_shutdown: Callable[[], None] | None = None,
) -> None:
    """Serves an application until SIGINT or SIGTERM, as a KeyboardInterrupt."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = listener(app, on_shutdown)
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
        raise UsageError(f"cannot listen on {host}, port {port}: {reason}: choose another --host or --port") from None
    return listening


def asset_routes(templates: Templates, names: list[str]) -> list[Route]:
    """Routes to the style sheets and scripts of a page and to `BASE`, as /static/NAME; read once."""

    def giving(name: str, text: str) -> Route:
        def give(_: Request) -> Response:
            return Response(text, media_type=TYPES[name.rpartition(".")[2]], headers={"Cache-Control": "no-cache"})

        return Route(f"/static/{name}", give)

    # The colours of pages, of names in legends, and what all pages share.
    chips = "".join(f".name-{place} {{ background: {as_hex(colour)}; }}\n" for place, colour in enumerate(NAME_COLOURS))
    base = REPORT_TEMPLATES.render("colours.css") + REPORT_TEMPLATES.asset(BASE) + chips
    return [giving(BASE, base), *(giving(name, templates.asset(name)) for name in names)]


async def unknown(_: Request, __: Exception) -> Response:
    """The answer for an address that a server does not have."""
    return JSONResponse({"error": "There is no such address here."}, 404)

"""How every server of this package listens, which limits its connections have, and how it ends."""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from cliploc.errors import UsageError
from cliploc.web.guard import Receive, Scope, Send

if TYPE_CHECKING:
    import uvicorn


class Ending(Protocol):
    """An application that can be told to end what it does."""

    def end(self) -> None:
        """Ends what still runs."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""


def listener(app: Ending, on_shutdown: Callable[[], None] | None = None, **config: Any) -> uvicorn.Server:
    """A uvicorn server that ends the application's runs first when it shuts down."""
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
        "ws": "none",  # the pages need no WebSockets, and the guard handles none
        "backlog": BACKLOG,
        "timeout_keep_alive": KEEP_ALIVE_SECONDS,
        "timeout_graceful_shutdown": 1,
        "log_level": "error",  # uvicorn warns of every malformed request, and anybody can send those
    }
    return Listener(uvicorn.Config(app, **settings | config))


def run(
    app: Ending,
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

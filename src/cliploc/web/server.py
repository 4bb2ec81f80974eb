"""The web server: how it listens, what limits its connections have, and how it ends."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cliploc.errors import UsageError
from cliploc.web.find import RATE, application
from cliploc.web.guard import Receive, Scope, Send
from cliploc.web.hosts import Hosts
from cliploc.web.service import Service

if TYPE_CHECKING:
    import uvicorn

END_SECONDS = 2.5  # from the signal to the end of the process, whatever still runs


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
        "ws": "none",  # the pages need no WebSockets, and the guard handles none
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
        UsageError: starlette is not installed, or the server cannot listen on the address.
        ModelError: the first model cannot be loaded.
    """
    listening = listen(host, port)
    try:
        with listening, tempfile.TemporaryDirectory(prefix="cliploc-serve-") as folder:
            limits: dict[str, Any] = {"queue": queue, "max_bytes": max_bytes, "rate": rate}
            hosts = Hosts(host, allow_hosts)
            app = application(service, Path(folder), auth=auth, hosts=hosts, debug=debug, **limits)
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

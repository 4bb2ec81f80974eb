"""Every server of this package: how it listens and ends, what its pages load, and the gate that says who may ask."""

import base64
import hmac
import logging
import re
import signal
import socket
import threading
from asyncio import to_thread
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
import uvicorn
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cliploc import UsageError
from cliploc.draw.colours import NAME_COLOURS, as_hex, text_colour
from cliploc.draw.html import TEMPLATES, Templates

T = TypeVar("T")
# Tells the browser to load nothing from other servers, and to run no script and use no style that stands in a page.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
MAX_BODY = 4_000_000  # bytes of a request that uploads nothing, such as one picture's boxes and masks
PLACE = re.compile(r"(\[[0-9a-f:.]+\]|[\w.-]+)(:[1-9]\d{0,4})?", re.ASCII | re.IGNORECASE)  # host, port


class RefusedError(Exception):
    """A request is refused, in a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


async def body_of(request: Request, kind: type[T], expected: str) -> T:
    """The JSON of a request; read off the event loop, which would else answer nobody meanwhile."""
    try:
        return await to_thread(msgspec.json.decode, await request.body(), type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RefusedError(422, f"expected {expected}, got something else ({error})") from None


class Hosts:
    """The host names of the server: foreign ones are refused (DNS rebinding), and other websites' pages."""

    def __init__(
        self, host: str = "127.0.0.1", allowed: Iterable[str] = (), advice: str = "start it with --allow-host NAME"
    ) -> None:
        self._advice = advice
        self._allowed = frozenset(_plain(name) for name in allowed)
        self._names = self._allowed | {"localhost", "127.0.0.1", "::1", _plain(host)}

    def check(self, host: str, origin: str | None, address: str) -> None:
        """Refuses a request for another host, or from another website by its Origin, which programs do not send."""
        # No website can have the connection's local address, which may have a zone: fe80::1%eth0.
        if _name(host) not in self._names | {_plain(address.partition("%")[0])}:
            raise RefusedError(421, f"This server does not have that host name: {self._advice}.")
        if origin is None:
            return
        scheme, _, place = origin.partition("://")
        if scheme not in ("http", "https") or (place.lower() != host.lower() and _name(place) not in self._allowed):
            raise RefusedError(403, f"Requests from another website are refused: {self._advice}.")


def _name(place: str) -> str | None:
    """The host of `host:port`; None if the text is something else."""
    match = PLACE.fullmatch(place)
    return None if match is None or int((match[2] or ":1")[1:]) > 65_535 else _plain(match[1])


def _plain(name: str) -> str:
    """A name in lower case; of an address that IPv6 only maps, the one of IPv4."""
    return name.strip("[]").rstrip(".").lower().removeprefix("::ffff:")


class Gate:
    """An ASGI application that wraps another: it checks host, page, password and length of a request."""

    def __init__(
        self,
        app: ASGIApp,
        hosts: Hosts,
        policy: str = POLICY,
        auth: tuple[str, str] | None = None,  # user and password; None: everybody may ask
        max_body: int = MAX_BODY,
        max_upload: int | None = None,  # bytes of a form with files; None: as `max_body`
    ) -> None:
        self._app, self._hosts = app, hosts
        self._auth = None if auth is None else b"Basic " + base64.b64encode(":".join(auth).encode())
        self._max_body, self._max_upload = max_body, max_body if max_upload is None else max_upload
        self._headers = {
            "content-security-policy": policy, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"
        }  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)  # the application may have a stricter one
            await send(message)

        answer = self._app
        if scope["type"] == "http":
            try:
                self._check(scope, Headers(scope=scope))
            except RefusedError as refusal:
                answer = refused(refusal)
        with suppress(ClientDisconnect):  # nobody reads an answer
            await answer(scope, receive, sending)

    def _check(self, scope: Scope, headers: Headers) -> None:
        address = (scope.get("server") or ("",))[0] or ""
        self._hosts.check(headers.get("host", ""), headers.get("origin"), address)
        if self._auth is not None and not hmac.compare_digest(headers.get("authorization", "").encode(), self._auth):
            raise RefusedError(401, "This server asks for a user and a password (Basic authentication).")
        if scope["method"] != "POST":
            return
        length = headers.get("content-length", "")
        # The parser sees to it that a body has the length of its header.
        if not length.isdecimal() or "transfer-encoding" in headers:
            raise RefusedError(411, "expected the header Content-Length alone, got a body of unknown length")
        upload = headers.get("content-type", "").lower().startswith("multipart/")
        most = self._max_upload if upload else self._max_body
        if int(length) > most:
            raise RefusedError(413, f"expected at most {most / 1e6:g} million bytes, got {length}: send less")


def refused(refusal: RefusedError) -> JSONResponse:
    """The answer to a request that is refused."""
    asking = {"www-authenticate": 'Basic realm="cliploc", charset="UTF-8"'} if refusal.status == 401 else None
    return JSONResponse({"error": str(refusal)}, refusal.status, asking)


# -------------------------------------------------------------------------------------------------------------- servers
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


async def unknown(_: Request, error: Any) -> Response:
    """The answer for an address that a server does not have, or not by this method."""
    text = "There is no such address here." if error.status_code == 404 else "expected another method, such as POST"
    return JSONResponse({"error": text}, error.status_code)

"""A wrapper around a whole application: it refuses requests before the application sees them, and adds headers."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from cliploc.web.hosts import Hosts
from cliploc.web.passwords import Passwords
from cliploc.web.rates import Rate, again, is_loopback
from cliploc.web.refusals import MAX_BODY, RefusedError
from cliploc.web.uploads import Uploads

# Tells the browser to load nothing from other servers, and to run no script and use no style that stands in a page.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
API = "/api/"  # what asks the server to compute
LOCALIZE = "/api/localize"
SHOW = "/api/show"
FILES = "/api/files"
FORM_BYTES = 16_000  # of an upload besides the file itself
MAX_REVIEW = 4_000_000  # bytes of one picture's boxes and masks
BODY_SECONDS = 30.0  # time for the body of a JSON request to arrive
UPLOAD_SECONDS = 300.0  # the same for an upload
UPLOADS_AT_ONCE = 32
SWEPT_SECONDS = 300.0  # time between two searches for old files
NOT_IN_TIME = "The request did not arrive completely in time."
DRAINED_SECONDS = 5.0  # time to read the rest of a refused body: many clients read no answer before they sent it all

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Gate:
    """An ASGI application that wraps another, and refuses requests for a foreign host or from a foreign page.

    Args:
        app: the wrapped application.
        hosts: the names by which the server may be reached.
        max_body: the largest body of a request, in bytes.
        policy: the content security policy of the answers.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        hosts: Hosts,
        max_body: int = MAX_REVIEW,
        policy: str = POLICY,
    ) -> None:
        self._app = app
        self._headers = ((b"content-security-policy", policy.encode()), *HEADERS)
        self._hosts = hosts
        self._max_body = max_body
        self._ended = False

    def end(self) -> None:
        """Shuts down."""
        self._ended = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] == "lifespan":
            self._begin()
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            incoming, send = Incoming(receive), with_headers(send, self._headers)
            try:
                headers = headers_of(scope)
                address = (scope.get("server") or ("",))[0] or ""
                self._hosts.check(headers.get("host", ""), headers.get("origin"), address)
                await self._answer(scope, incoming, send, headers)
            except RefusedError as refusal:
                await refuse(refusal, scope, incoming, send)

    def _begin(self) -> None:
        """Called when the server starts."""

    async def _answer(self, scope: Scope, incoming: Incoming, send: Send, headers: MutableMapping[str, str]) -> None:
        if scope["method"] not in ("GET", "HEAD", "POST"):
            raise RefusedError(405, "expected GET or POST")
        if scope["method"] == "POST":
            length_of(headers, self._max_body)
            incoming.put_back(await incoming.read(BODY_SECONDS))
        await self._hand_on(scope, incoming, send)

    async def _hand_on(self, scope: Scope, incoming: Incoming, send: Send) -> None:
        """Lets the application answer. Errors because a visitor left or the server shuts down are not reported."""
        started = False

        async def noting_the_start(message: Message) -> None:
            nonlocal started
            if incoming.left and not started:  # the application's answer to half a body is useless
                return
            started = True
            await send(message)

        try:
            await self._app(scope, incoming, noting_the_start)
        except asyncio.CancelledError:
            if not self._ended:  # at shutdown open pages are cancelled, which needs no traceback
                raise
        except Exception as error:
            if started and _is_refusal(error.__cause__):  # a visitor's mistake, found after the answer had begun
                await send({"type": "http.response.body", "body": b""})
            elif not incoming.left:
                raise
        if incoming.left and not started:
            raise RefusedError(408, NOT_IN_TIME)


class Guard(Gate):
    """The gate before the find page: it also asks for the password, and limits clients and uploads.

    Args:
        app: the wrapped application.
        hosts: the names by which the server may be reached.
        uploads: the folder of photographs.
        max_bytes: the largest upload.
        on_end: called when the server shuts down; ends what still runs or waits in the application.
        auth: user and password; None to let everybody in.
        rate: requests a minute of one client, and as many at once; 0 for no limit.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        hosts: Hosts,
        uploads: Uploads,
        max_bytes: int,
        on_end: Callable[[], None],
        auth: tuple[str, str] | None = None,
        rate: float = 0,
    ) -> None:
        super().__init__(app, hosts, MAX_BODY)
        self._uploads = uploads
        self._max_bytes = max_bytes
        self._on_end = on_end
        self._rate = Rate(rate, rate) if rate else None
        self._passwords = Passwords(auth)
        self._arriving: set[Incoming] = set()  # uploads that are being answered

    def end(self) -> None:
        """Shuts down: stops watching the uploads, and ends what still runs."""
        super().end()
        self._uploads.end()
        self._on_end()

    def _begin(self) -> None:
        self._uploads.watch(SWEPT_SECONDS)

    async def _answer(self, scope: Scope, incoming: Incoming, send: Send, headers: MutableMapping[str, str]) -> None:
        client = client_in(scope)
        if scope["path"].startswith(API):
            self._refuse_haste(client)
        self._passwords.check(client, headers.get("authorization", ""))
        if scope["method"] == "POST" and headers.get("content-type", "").lower().startswith("multipart/"):
            await self._upload(scope, incoming, send, length_of(headers, self._max_bytes + FORM_BYTES))
        else:
            await super()._answer(scope, incoming, send, headers)

    def _refuse_haste(self, client: str) -> None:
        """Refuses a client that asks too often, unless it is on this machine: a proxy's visitors all seem to be."""
        if self._rate is not None and not is_loopback(client) and (seconds := self._rate.take(client)):
            raise RefusedError(429, f"Too many requests from this address: {again(seconds)}.")

    async def _upload(self, scope: Scope, incoming: Incoming, send: Send, length: int) -> None:
        if sum(not one.whole for one in self._arriving) >= UPLOADS_AT_ONCE:
            raise RefusedError(503, "Too many photographs are being uploaded: try again in a minute.")
        self._arriving.add(incoming)
        try:
            await asyncio.to_thread(self._uploads.make_room, length)
            incoming.limit(UPLOAD_SECONDS)
            await self._hand_on(scope, incoming, send)
        finally:
            self._arriving.remove(incoming)


class Incoming:
    """The body of a request, as the application receives it.

    Attributes:
        whole: whether the complete body has arrived.
        left: whether the visitor has disconnected, or was too slow.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._until: float | None = None
        self._waiting: list[Message] = []
        self.whole = False
        self.left = False

    def limit(self, seconds: float) -> None:
        """Sets the time within which the rest of the body must arrive."""
        self._until = asyncio.get_running_loop().time() + seconds

    def put_back(self, body: bytes) -> None:
        """Makes this body the next message."""
        self._waiting.append({"type": "http.request", "body": body, "more_body": False})

    async def read(self, seconds: float, *, keep: bool = True) -> bytes:
        """Reads the complete body.

        Args:
            seconds: the time limit.
            keep: whether the body is returned; b"" if not.

        Raises:
            RefusedError: it did not arrive in time.
        """
        self.limit(seconds)
        parts = []
        while not self.whole:
            body = (await self()).get("body", b"")
            if self.left:
                raise RefusedError(408, NOT_IN_TIME)
            if keep:
                parts.append(body)
        return b"".join(parts)

    async def __call__(self) -> Message:
        """Returns the next message, as ASGI defines it."""
        if self._waiting:
            return self._waiting.pop()
        if self.whole or self._until is None:
            message = await self._receive()
        else:
            left = self._until - asyncio.get_running_loop().time()
            try:
                message = await asyncio.wait_for(self._receive(), max(0.0, left))
            except TimeoutError:
                message = {"type": "http.disconnect"}
        if message["type"] == "http.disconnect":
            self.left = True
        else:
            self.whole = not message.get("more_body")
        return message


def _is_refusal(error: BaseException | None) -> bool:
    """Whether an error is the application's answer to a wrong request, such as for an unknown session."""
    return 400 <= getattr(error, "status_code", 0) < 500


def client_in(scope: Scope) -> str:
    """The address of the client."""
    return str((scope.get("client") or ("",))[0])


def headers_of(scope: Scope) -> dict[str, str]:
    """The headers by name; values of a repeated header are joined, so that a check sees all of them."""
    found: dict[str, str] = {}
    for key, value in scope["headers"]:
        name, text = key.decode("latin-1").lower(), value.decode("latin-1")
        found[name] = f"{found[name]}, {text}" if name in found else text
    return found


def length_of(headers: MutableMapping[str, str], most: int) -> int:
    """The length of the body, from its header."""
    text = headers.get("content-length", "")
    if not text.isascii() or not text.isdigit():
        raise RefusedError(411, "expected the header Content-Length")
    if len(text) > 18 or int(text) > most:
        raise RefusedError(413, f"expected at most {most / 1e6:g} million bytes, got {text[:18]}: send less")
    return int(text)


def with_headers(send: Send, headers: Iterable[tuple[bytes, bytes]]) -> Send:
    """Sends every answer with these headers too."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *headers]
        await send(message)

    return sending


async def refuse(refusal: RefusedError, scope: Scope, incoming: Incoming, send: Send) -> None:
    """Answers with one sentence: as JSON to programs and scripts, else as plain text."""
    if scope["method"] == "POST" and "expect" not in headers_of(scope):  # else the client waits before it sends
        with contextlib.suppress(RefusedError):
            await incoming.read(DRAINED_SECONDS, keep=False)
    in_json = scope["path"].startswith(API) or scope["method"] == "POST"
    body = (json.dumps({"error": str(refusal)}) if in_json else str(refusal)).encode()
    kind = b"application/json" if in_json else b"text/plain; charset=utf-8"
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b'Basic realm="cliploc", charset="UTF-8"'))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

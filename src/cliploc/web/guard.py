"""Around the whole application: what is refused before gradio sees it, and the headers of every answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from cliploc.web.hosts import Hosts
from cliploc.web.requests import MAX_BODY, RefusedError, Requests
from cliploc.web.uploads import Uploads

# The browser itself refuses whatever is not ours, should a part of the page ask for it.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; media-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
# What gradio has and the page does not need: it fetches addresses, keeps names on the disk, or is for developers.
CLOSED = re.compile(
    r"(/gradio_api)?/(proxy=|file[=/]https?:|deep_link|dev/|monitoring|stream/|vibe-|run-history|profiling|custom_comp)"
)
UPLOAD = "/gradio_api/upload"
LOGIN = re.compile(r"/login/?")
MAX_LOGIN = 8_000  # bytes
FORM_BYTES = 16_000  # around the file in an upload
BODY_SECONDS = 30.0  # in which a request in JSON must have come
UPLOAD_SECONDS = 300.0  # and an upload
UPLOADS_AT_ONCE = 32
SWEPT_SECONDS = 300.0  # how often old files are looked for
NOT_IN_TIME = "The request did not come whole in time."
DRAINED_SECONDS = 5.0  # that the rest of a refused body is read for, as many clients read no answer before

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Guard:
    """An ASGI application around another.

    Args:
        app: what it stands around.
        hosts: the server's names.
        requests: checks what is sent to its functions.
        uploads: where photographs lie.
        max_bytes: of an upload.
        on_end: makes whatever still runs or waits in it end.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        hosts: Hosts,
        requests: Requests,
        uploads: Uploads,
        max_bytes: int,
        on_end: Callable[[], None],
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._requests = requests
        self._uploads = uploads
        self._max_bytes = max_bytes
        self._on_end = on_end
        self._uploading = 0
        self._ended = False

    def end(self) -> None:
        """The server ends: nobody is answered any more."""
        self._ended = True
        self._uploads.end()
        self._on_end()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            self._uploads.watch(SWEPT_SECONDS)
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            incoming, send = Incoming(receive), _with_headers(send)
            try:
                await self._answer(scope, incoming, send)
            except RefusedError as refusal:
                await _refuse(refusal, scope, incoming, send)

    async def _answer(self, scope: Scope, incoming: Incoming, send: Send) -> None:
        headers = _headers(scope)
        self._hosts.check(headers.get("host", ""), headers.get("origin"), (scope.get("server") or ("",))[0] or "")
        if CLOSED.match(scope["path"].lower()) or b"deep_link" in parse_qs(scope["query_string"]):
            raise RefusedError(403, "This server does not offer that, and fetches no addresses.")
        if scope["method"] != "POST":
            if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
                raise RefusedError(405, "expected GET or POST")
            await self._hand_on(scope, incoming, send)
        elif scope["path"] == UPLOAD:
            await self._upload(scope, incoming, send, _length(headers, self._max_bytes + FORM_BYTES))
        else:
            login = LOGIN.fullmatch(scope["path"])
            _length(headers, MAX_LOGIN if login else MAX_BODY)
            body = await incoming.read(BODY_SECONDS)
            if not login:
                path, body = self._requests.checked(scope["path"], body)
                others = [(key, value) for key, value in scope["headers"] if key.lower() != b"content-length"]
                given = [*others, (b"content-length", str(len(body)).encode())]
                scope = {**scope, "path": path, "raw_path": path.encode(), "headers": given}
            incoming.put_back(body)
            await self._hand_on(scope, incoming, send)

    async def _upload(self, scope: Scope, incoming: Incoming, send: Send, length: int) -> None:
        if self._uploading >= UPLOADS_AT_ONCE:
            raise RefusedError(503, "Too many photographs are being uploaded: try again in a minute.")
        self._uploading += 1
        try:
            await asyncio.to_thread(self._uploads.sweep, length)
            incoming.limit(UPLOAD_SECONDS)
            await self._hand_on(scope, incoming, send)
        finally:
            self._uploading -= 1

    async def _hand_on(self, scope: Scope, incoming: Incoming, send: Send) -> None:
        """Lets the application answer. That a visitor has left, or that the server ends, is no mistake of its own."""
        started = False

        async def noting_the_start(message: Message) -> None:
            nonlocal started
            if incoming.left and not started:  # what the application makes of half a body is of no use
                return
            started = True
            await send(message)

        try:
            await self._app(scope, incoming, noting_the_start)
        except asyncio.CancelledError:
            if not self._ended:  # else a page that was open: no news, and no reason for a traceback
                raise
        except Exception:
            if not incoming.left:
                raise
        if incoming.left and not started:
            raise RefusedError(408, NOT_IN_TIME)


class Incoming:
    """What a visitor sends.

    Attributes:
        whole: whether all of the body has come.
        left: whether he has gone, or was too slow.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._until: float | None = None
        self._waiting: list[Message] = []
        self.whole = False
        self.left = False

    def limit(self, seconds: float) -> None:
        """The rest of the body must come within so many seconds from now."""
        self._until = asyncio.get_running_loop().time() + seconds

    def put_back(self, body: bytes) -> None:
        """Makes this body the next that is given."""
        self._waiting.append({"type": "http.request", "body": body, "more_body": False})

    async def read(self, seconds: float, *, keep: bool = True) -> bytes:
        """The whole body, or nothing of it."""
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
        """The next message, as an application of ASGI asks for it."""
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


def _headers(scope: Scope) -> dict[str, str]:
    """The headers, those that come twice joined, so that neither is taken for the only one."""
    found: dict[str, str] = {}
    for key, value in scope["headers"]:
        name, text = key.decode("latin-1").lower(), value.decode("latin-1")
        found[name] = f"{found[name]}, {text}" if name in found else text
    return found


def _length(headers: MutableMapping[str, str], most: int) -> int:
    """How many bytes follow."""
    text = headers.get("content-length", "")
    if not text.isascii() or not text.isdigit():
        raise RefusedError(411, "expected the header Content-Length")
    if len(text) > 18 or int(text) > most:
        raise RefusedError(413, f"expected at most {most / 1e6:g} million bytes, got {text[:18]}: send less")
    return int(text)


def _with_headers(send: Send) -> Send:
    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *HEADERS]
        await send(message)

    return guarded


async def _refuse(refusal: RefusedError, scope: Scope, incoming: Incoming, send: Send) -> None:
    """One line: in gradio's form where a program or the page's script reads it, else as plain text."""
    if scope["method"] == "POST" and "expect" not in _headers(scope):  # else nothing comes before the client has leave
        with contextlib.suppress(RefusedError):
            await incoming.read(DRAINED_SECONDS, keep=False)
    in_json = scope["method"] == "POST" and scope["path"] != UPLOAD
    body = (_in_json(refusal) if in_json else str(refusal)).encode()
    kind = b"application/json" if in_json else b"text/plain; charset=utf-8"
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _in_json(refusal: RefusedError) -> str:
    """As gradio's clients read it: those show the sentence of a 422 in this form only."""
    sentence = str(refusal)
    problem = {"__type__": "validate", "is_valid": False, "parameter_name": "request", "message": sentence}
    return json.dumps({"error": sentence, "detail": [problem] if refusal.status == 422 else sentence})

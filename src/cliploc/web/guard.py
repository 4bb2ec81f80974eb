"""A wrapper around a whole application: it refuses requests before the application sees them, and adds headers."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import unquote_to_bytes

from cliploc.web.clients import Hosts, Passwords, Rate, RefusedError, again, client_of, is_loopback
from cliploc.web.store import Uploads

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
MAX_BODY = 256_000  # bytes of a JSON request; photographs are sent in forms
FORM_BYTES = 16_000  # of an upload besides the file itself
MAX_REVIEW = 4_000_000  # bytes of one picture's boxes and masks
MAX_TARGET = 2_000  # characters of an address; Python reads no number of more than 4,300 digits
MAX_LINK = 60_000  # the same for the page, whose links hold names
BODY_SECONDS = 30.0  # time for the body of a JSON request to arrive
UPLOAD_SECONDS = 300.0  # the same for an upload
SLOWEST = 4_000.0  # bytes a second of any body
LAG_SECONDS = 10.0  # a client may be so far behind SLOWEST, or send nothing for so long
FIRST_BYTES = 65_536  # or all of a shorter upload: only what has sent them counts as one of so many
UPLOADS_AT_ONCE = 64
UPLOADS_OF_ONE = 8  # of one client on another machine
# Where as many arrive as may, a new upload takes the place of the slowest that is older and slower than this.
CROWDED_SECONDS = 1.0
CROWDED_SLOWEST = 50_000.0  # bytes a second
SWEPT_SECONDS = 300.0  # time between two searches for old files
UPLOADS_FULL = "Too many pictures are being uploaded: try again in a minute."
# The rest of a refused body is read and dropped, as many clients read no answer before they sent it all.
DRAINED_SECONDS = 5.0
DRAINED_BYTES = 64_000_000

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Gate:
    """An ASGI application that wraps another, and refuses requests for a foreign host or from a foreign page."""

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        hosts: Hosts,
        max_body: int = MAX_REVIEW,
        max_target: int = MAX_TARGET,
        policy: str = POLICY,
    ) -> None:
        self._app = app
        self._headers = ((b"content-security-policy", policy.encode()), *HEADERS)
        self._hosts = hosts
        self._max_body = max_body
        self._max_target = max_target
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
            headers: dict[str, str] = {}
            for key, value in scope["headers"]:  # a repeated header has both values, so that a check sees all of them
                name, text = key.decode("latin-1").lower(), value.decode("latin-1")
                headers[name] = f"{headers[name]}, {text}" if name in headers else text

            async def sending(message: Message) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message.get("headers", []), *self._headers]
                await send(message)

            incoming = Incoming(receive, headers)
            try:
                self._check(scope, headers)
                await self._answer(scope, incoming, sending)
            except RefusedError as refusal:
                await refuse(refusal, scope, incoming, sending)

    def _check(self, scope: Scope, headers: Mapping[str, str]) -> None:
        """Refuses a foreign host or page, and an address that is too long or whose percent codes are no text."""
        address = (scope.get("server") or ("",))[0] or ""
        self._hosts.check(headers.get("host", ""), headers.get("origin"), address)
        path, query = scope.get("raw_path") or scope["path"].encode(), scope["query_string"]
        length, most = len(path) + len(query), self._max_target
        if length > most:
            raise RefusedError(414, f"expected an address of at most {most:,} characters, got {length:,}: shorten it")
        try:
            unquote_to_bytes(path + b"?" + query).decode()
        except UnicodeDecodeError:
            raise RefusedError(400, "expected an address in UTF-8, got other bytes as % codes") from None
        if "content-length" in headers and "transfer-encoding" in headers:  # they may disagree on the body's end
            raise RefusedError(400, "expected the header Content-Length alone, got Transfer-Encoding too")

    def _begin(self) -> None:
        """Called when the server starts."""

    async def _answer(self, scope: Scope, incoming: Incoming, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD", "POST"):
            raise RefusedError(405, "expected GET or POST")
        if scope["method"] == "POST":
            incoming.admit(self._max_body)
            await incoming.begin(BODY_SECONDS)
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
        except Exception:
            if not incoming.left:
                raise
        if incoming.refusal is not None and not started:
            raise incoming.refusal


class Guard(Gate):
    """The gate before the find page: it also asks for the password, and limits clients and uploads."""

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
        super().__init__(app, hosts, MAX_BODY, MAX_LINK)
        self._uploads = uploads
        self._max_bytes = max_bytes
        self._on_end = on_end
        self._rate = Rate(rate, rate) if rate else None
        self._passwords = Passwords(auth)
        self._arriving: dict[Incoming, str] = {}  # uploads that are being answered → their client

    def end(self) -> None:
        """Shuts down: stops watching the uploads, and ends what still runs."""
        super().end()
        self._uploads.end()
        self._on_end()

    def _begin(self) -> None:
        self._uploads.watch(SWEPT_SECONDS)

    async def _answer(self, scope: Scope, incoming: Incoming, send: Send) -> None:
        client = client_in(scope)
        # A proxy's visitors all seem to be on this machine.
        asks = scope["path"].startswith(API) and not is_loopback(client)
        if asks and self._rate is not None and (seconds := self._rate.take(client)):
            raise RefusedError(429, f"Too many requests from this address: {again(seconds)}.")
        self._passwords.check(client, incoming.headers.get("authorization", ""))
        if scope["method"] == "POST" and incoming.headers.get("content-type", "").lower().startswith("multipart/"):
            await self._upload(scope, incoming, send)
        else:
            await super()._answer(scope, incoming, send)

    async def _upload(self, scope: Scope, incoming: Incoming, send: Send) -> None:
        length = incoming.admit(self._max_bytes + FORM_BYTES)
        client = client_in(scope)
        await incoming.begin(UPLOAD_SECONDS, FIRST_BYTES)
        # Where too many arrive, of this client or of all, the slowest is ended; if none is slow, this one is refused.
        arriving = [upload for upload in self._arriving if not upload.whole and not upload.left]
        mine = (
            []
            if is_loopback(client)
            else [upload for upload in arriving if self._arriving[upload] == client_of(client)]
        )
        crowd = mine if len(mine) >= UPLOADS_OF_ONE else arriving if len(arriving) >= UPLOADS_AT_ONCE else []
        if crowd:
            slow = [upload for upload in crowd if upload.age > CROWDED_SECONDS and upload.pace < CROWDED_SLOWEST]
            if not slow:
                raise RefusedError(503, UPLOADS_FULL)
            min(slow, key=lambda upload: upload.pace).drop(RefusedError(503, UPLOADS_FULL))
        self._arriving[incoming] = client_of(client)
        try:
            await asyncio.to_thread(self._uploads.make_room, length)
            await self._hand_on(scope, incoming, send)
        finally:
            del self._arriving[incoming]


class Incoming:
    """The body of a request, as the application receives it: its bytes are counted, and it must not come too slowly."""

    def __init__(self, receive: Receive, headers: Mapping[str, str]) -> None:
        self._receive = receive
        self.headers = headers
        self._most = self._arrived = 0  # bytes
        self._began = self._now()
        self._until: float | None = None
        self._behind = 0.0  # seconds that the client has taken longer than SLOWEST allows
        self._patience: asyncio.Timeout | None = None
        self._waiting: list[Message] = []
        self.whole = False  # whether the complete body has arrived
        # Why the rest is not read: who sends it left, is slow, or sent too much.
        self.refusal: RefusedError | None = None

    @property
    def left(self) -> bool:
        """Whether no more of the body comes."""
        return self.refusal is not None

    @property
    def age(self) -> float:
        """Seconds since its time began."""
        return self._now() - self._began

    @property
    def pace(self) -> float:
        """Bytes a second since then."""
        return self._arrived / max(self.age, 1e-3)

    def admit(self, most: int) -> int:
        """Lets a body come whose header says that it has at most so many bytes; returns its length."""
        text = self.headers.get("content-length", "")
        if not text.isascii() or not text.isdigit():
            raise RefusedError(411, "expected the header Content-Length")
        if len(text) > 18 or int(text) > most:
            raise RefusedError(413, f"expected at most {most / 1e6:g} million bytes, got {text[:18]}: send less")
        self._most = int(text)
        return self._most

    def limit(self, seconds: float) -> None:
        """Sets the time within which the rest of the body must arrive."""
        self._began = self._now()
        self._until = self._began + seconds

    def drop(self, refusal: RefusedError) -> None:
        """Ends it, also where its next message is waited for."""
        self.refusal = refusal
        if self._patience is not None and not self._patience.expired():
            self._patience.reschedule(self._now())

    async def begin(self, seconds: float, size: float = math.inf) -> None:
        """Waits until so many bytes have arrived, or all; what is read is the next message."""
        self.limit(seconds)
        parts = []
        while not self.whole and self._arrived < size:
            parts.append((await self()).get("body", b""))
            if self.refusal is not None:
                raise self.refusal
        self._waiting.append({"type": "http.request", "body": b"".join(parts), "more_body": not self.whole})

    async def drain(self) -> None:
        """Reads the rest and keeps nothing of it, within limits."""
        self._most = self._arrived + DRAINED_BYTES
        self.limit(DRAINED_SECONDS)
        while not self.whole and not self.left:
            await self()

    async def __call__(self) -> Message:
        """Returns the next message, as ASGI defines it."""
        if self._waiting:
            return self._waiting.pop()
        if self.refusal is None:
            message = await self._next()
            if self.refusal is None:
                return message
        return {"type": "http.disconnect"}

    async def _next(self) -> Message:
        if self.whole or self._until is None:
            message = await self._receive()
        else:
            asked = self._now()
            until = min(self._until, asked + LAG_SECONDS - self._behind)
            message = {"type": "http.disconnect"}
            try:
                async with asyncio.timeout_at(until) as self._patience:
                    message = await self._receive()
            except TimeoutError:
                pass
            finally:
                self._patience = None
            taken = self._now() - asked
            self._behind = max(0.0, self._behind + taken - len(message.get("body", b"")) / SLOWEST)
        self._arrived += len(message.get("body", b""))
        if message["type"] == "http.disconnect":
            self.refusal = self.refusal or RefusedError(408, "The request did not arrive completely in time.")
        elif self._arrived > self._most:
            self.refusal = RefusedError(413, f"expected a body of {self._most:,} bytes, got more: send less")
        else:
            self.whole = not message.get("more_body")
        return message

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def client_in(scope: Scope) -> str:
    """The address of the client."""
    return str((scope.get("client") or ("",))[0])


async def refuse(refusal: RefusedError, scope: Scope, incoming: Incoming, send: Send) -> None:
    """Answers with one sentence: as JSON to programs and scripts, else as plain text."""
    if scope["method"] == "POST" and "expect" not in incoming.headers:  # else the client waits before it sends
        await incoming.drain()
    in_json = scope["path"].startswith(API) or scope["method"] == "POST"
    body = (json.dumps({"error": str(refusal)}) if in_json else str(refusal)).encode()
    kind = b"application/json" if in_json else b"text/plain; charset=utf-8"
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b'Basic realm="cliploc", charset="UTF-8"'))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

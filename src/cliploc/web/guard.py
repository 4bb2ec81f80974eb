"""A wrapper around the whole application: it refuses requests before gradio sees them, and adds security headers."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qs, unquote_to_bytes

from cliploc.web.hosts import Hosts
from cliploc.web.passwords import GUESSES, Passwords
from cliploc.web.rates import Rate, again, client_of, is_loopback
from cliploc.web.requests import MAX_BODY, RefusedError, Requests
from cliploc.web.uploads import Uploads

# Tells the browser to load nothing from other servers, should any part of the page ask for it.
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
# Routes of gradio that the page does not need: they fetch addresses, store names on disk, or are for developers.
CLOSED = re.compile(
    r"(/gradio_api)?/(proxy=|file[=/]https?:|deep_link|dev/|monitoring|stream/|vibe-|run-history|profiling|custom_comp"
    r"|openapi\.json)"
)
UPLOAD = "/gradio_api/upload"
LOCALIZE = "/api/localize"
SHOW = "/api/show"
LOGGED_IN = "/gradio_api/login_check"  # gradio answers 200 to whoever has its cookie, if there is a password
PRESENCE = re.compile(r"/gradio_api/heartbeat/([^/]+)/?")  # open as long as a visitor's page or program is
LOGIN = re.compile(r"/login/?")
MAX_LOGIN = 8_000  # bytes
FORM_BYTES = 16_000  # of an upload besides the file itself
MAX_REVIEW = 4_000_000  # bytes of one picture's boxes and masks
MAX_TARGET = 2_000  # characters of an address; Python reads no number of more than 4,300 digits
MAX_LINK = 60_000  # the same for the page, whose links hold names
BODY_SECONDS = 30.0  # time for the body of a JSON request to arrive
UPLOAD_SECONDS = 300.0  # the same for an upload
SLOWEST = 4_000.0  # bytes a second of any body
LAG_SECONDS = 10.0  # a client may be so far behind SLOWEST, or send nothing for so long
FIRST_BYTES = 65_536  # or all of a shorter upload: only what has sent them counts as one of so many
UPLOADS_AT_ONCE = 32
UPLOADS_OF_ONE = 8  # of one client on another machine
# Where as many arrive as may, a new upload takes the place of the slowest that is older and slower than this.
CROWDED_SECONDS = 1.0
CROWDED_SLOWEST = 50_000.0  # bytes a second
SWEPT_SECONDS = 300.0  # time between two searches for old files
NOT_IN_TIME = "The request did not arrive completely in time."
UPLOADS_FULL = "Too many photographs are being uploaded: try again in a minute."
# The rest of a refused body is read and dropped, as many clients read no answer before they sent it all.
DRAINED_SECONDS = 5.0
DRAINED_BYTES = 64_000_000

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
        max_target: the longest address, in characters.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        hosts: Hosts,
        max_body: int = MAX_REVIEW,
        max_target: int = MAX_TARGET,
    ) -> None:
        self._app = app
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
            headers = headers_of(scope)
            incoming, send = Incoming(receive, headers), with_security_headers(send)
            try:
                address = (scope.get("server") or ("",))[0] or ""
                self._hosts.check(headers.get("host", ""), headers.get("origin"), address)
                check_target(scope, self._max_target)
                if "content-length" in headers and "transfer-encoding" in headers:  # they may disagree on its end
                    raise RefusedError(400, "expected the header Content-Length alone, got Transfer-Encoding too")
                await self._answer(scope, incoming, send)
            except RefusedError as refusal:
                await refuse(refusal, scope, incoming, send)

    def _begin(self) -> None:
        """Called when the server starts."""

    async def _answer(self, scope: Scope, incoming: Incoming, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD", "POST"):
            raise RefusedError(405, "expected GET or POST")
        if scope["method"] == "POST":
            incoming.admit(self._max_body)
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
        if incoming.refusal is not None and not started:
            raise incoming.refusal


class Guard(Gate):
    """The gate before gradio's application.

    Args:
        app: the wrapped application.
        hosts: the names by which the server may be reached.
        requests: checks the bodies of requests.
        uploads: the folder of photographs.
        max_bytes: the largest upload.
        on_end: called when the server shuts down; ends what still runs or waits in the application.
        on_leave: called with the id of a visitor's session when the visitor has left.
        auth: user and password that `LOCALIZE` asks for; `SHOW` asks for gradio's cookie, and so does gradio itself.
        rate: requests a minute of one client, and as many at once; 0 for no limit.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        hosts: Hosts,
        requests: Requests,
        uploads: Uploads,
        max_bytes: int,
        on_end: Callable[[], None],
        on_leave: Callable[[str], None] = lambda _: None,
        auth: tuple[str, str] | None = None,
        rate: float = 0,
    ) -> None:
        super().__init__(app, hosts, max_target=MAX_LINK)
        self._requests = requests
        self._uploads = uploads
        self._max_bytes = max_bytes
        self._on_end = on_end
        self._on_leave = on_leave
        self._rate = Rate(rate, rate) if rate else None
        self._locked = auth is not None
        self._guesses = Rate(*GUESSES)
        self._passwords = Passwords(auth, self._guesses)
        self._arriving: dict[Incoming, str] = {}  # uploads that are being answered → their client

    def end(self) -> None:
        """Shuts down: stops watching the uploads, and ends what still runs."""
        super().end()
        self._uploads.end()
        self._on_end()

    def _begin(self) -> None:
        self._uploads.watch(SWEPT_SECONDS)

    async def _answer(self, scope: Scope, incoming: Incoming, send: Send) -> None:
        if CLOSED.match(scope["path"].lower()) or "deep_link" in parse_qs(scope["query_string"].decode("latin-1")):
            raise RefusedError(403, "This server does not offer this function, and does not fetch addresses.")
        if scope["path"] == LOCALIZE:
            await self._localize(scope, incoming, send)
        elif scope["path"] == SHOW:
            await self._show(scope, incoming, send)
        elif scope["method"] != "POST":
            if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
                raise RefusedError(405, "expected GET or POST")
            present = PRESENCE.fullmatch(scope["path"])
            try:
                await self._hand_on(scope, incoming, send)
            finally:
                if present is not None:
                    self._on_leave(present[1])
        elif LOGIN.fullmatch(scope["path"]):
            await self._login(scope, incoming, send)
        elif scope["path"] == UPLOAD:
            self._refuse_haste(client_in(scope))
            await self._upload(scope, incoming, send)
        else:
            self._refuse_haste(client_in(scope))
            incoming.admit(MAX_BODY)
            path, body = self._requests.checked(scope["path"], await incoming.read(BODY_SECONDS))
            others = [(key, value) for key, value in scope["headers"] if key.lower() != b"content-length"]
            given = [*others, (b"content-length", str(len(body)).encode())]
            incoming.put_back(body)
            await self._hand_on({**scope, "path": path, "raw_path": path.encode(), "headers": given}, incoming, send)

    async def _localize(self, scope: Scope, incoming: Incoming, send: Send) -> None:
        """Hands a program's request on: a form with pictures, or JSON."""
        if scope["method"] != "POST":
            raise RefusedError(405, "expected POST")
        self._refuse_haste(client_in(scope))
        self._passwords.check(client_in(scope), incoming.headers.get("authorization", ""))
        if incoming.headers.get("content-type", "").lower().startswith("multipart/"):
            await self._upload(scope, incoming, send)
        else:
            incoming.admit(MAX_BODY)
            incoming.put_back(await incoming.read(BODY_SECONDS))
            await self._hand_on(scope, incoming, send)

    async def _show(self, scope: Scope, incoming: Incoming, send: Send) -> None:
        """Hands the page's request on, from visitors who have logged in."""
        if scope["method"] != "POST":
            raise RefusedError(405, "expected POST")
        self._refuse_haste(client_in(scope))
        if self._locked and not await self._is_logged_in(scope):
            raise RefusedError(401, "You are not logged in, or no longer: reload the page.")
        incoming.admit(MAX_BODY)
        incoming.put_back(await incoming.read(BODY_SECONDS))
        await self._hand_on(scope, incoming, send)

    async def _is_logged_in(self, scope: Scope) -> bool:
        """Whether gradio knows the cookie of this request."""
        headers = [(key, value) for key, value in scope["headers"] if key.lower() in (b"host", b"cookie")]
        asked = {"method": "GET", "path": LOGGED_IN, "raw_path": LOGGED_IN.encode(), "query_string": b""}
        codes = []

        async def nothing() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def note(message: Message) -> None:
            codes.extend([message["status"]] if message["type"] == "http.response.start" else [])

        await self._app({**scope, **asked, "headers": headers}, nothing, note)
        return codes == [200]

    async def _login(self, scope: Scope, incoming: Incoming, send: Send) -> None:
        """Hands a password on; only wrong ones count."""
        client = client_in(scope)
        if seconds := self._guesses.take(client):
            raise RefusedError(429, f"Too many wrong passwords from this address: {again(seconds)}.")

        async def noticing(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                self._guesses.give_back(client)
            await send(message)

        incoming.admit(MAX_LOGIN)
        incoming.put_back(await incoming.read(BODY_SECONDS))
        await self._hand_on(scope, incoming, noticing)

    def _refuse_haste(self, client: str) -> None:
        """Refuses a client that asks too often, unless it is on this machine: a proxy's visitors all seem to be."""
        if self._rate is not None and not is_loopback(client) and (seconds := self._rate.take(client)):
            raise RefusedError(429, f"Too many requests from this address: {again(seconds)}.")

    async def _upload(self, scope: Scope, incoming: Incoming, send: Send) -> None:
        length = incoming.admit(self._max_bytes + FORM_BYTES)
        client = client_in(scope)
        incoming.limit(UPLOAD_SECONDS)
        await incoming.begin(FIRST_BYTES)
        self._make_place(client)
        self._arriving[incoming] = client_of(client)
        try:
            await asyncio.to_thread(self._uploads.make_room, length)
            await self._hand_on(scope, incoming, send)
        finally:
            del self._arriving[incoming]

    def _make_place(self, client: str) -> None:
        """Ends the slowest upload where too many arrive: of this client, or of all. Refuses if none is slow."""
        arriving = [one for one in self._arriving if not one.whole and not one.left]
        mine = [] if is_loopback(client) else [one for one in arriving if self._arriving[one] == client_of(client)]
        for crowd, most in ((mine, UPLOADS_OF_ONE), (arriving, UPLOADS_AT_ONCE)):
            if len(crowd) >= most:
                slow = [one for one in crowd if one.age > CROWDED_SECONDS and one.pace < CROWDED_SLOWEST]
                if not slow:
                    raise RefusedError(503, UPLOADS_FULL)
                min(slow, key=lambda one: one.pace).drop(RefusedError(503, UPLOADS_FULL))
                return


class Incoming:
    """The body of a request, as the application receives it. Its bytes are counted, and it must not arrive too slowly.

    Args:
        receive: the server's messages.
        headers: those of the request, by name.

    Attributes:
        headers: those of the request.
        whole: whether the complete body has arrived.
        refusal: why the rest is not read: the visitor has disconnected, was too slow, or sent too much.
    """

    def __init__(self, receive: Receive, headers: Mapping[str, str]) -> None:
        self._receive = receive
        self.headers = headers
        self._most = self._arrived = 0  # bytes
        self._began = self._now()
        self._until: float | None = None
        self._behind = 0.0  # seconds that the client has taken longer than SLOWEST allows
        self._patience: asyncio.Timeout | None = None
        self._waiting: list[Message] = []
        self.whole = False
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
        """Lets a body come whose header says that it has at most so many bytes; returns its length.

        Raises:
            RefusedError: it is longer, or its length is not given.
        """
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

    def put_back(self, body: bytes) -> None:
        """Makes this the next message, whose body is all that was read."""
        self._waiting.append({"type": "http.request", "body": body, "more_body": not self.whole})

    def drop(self, refusal: RefusedError) -> None:
        """Ends it, also where its next message is waited for."""
        self.refusal = refusal
        if self._patience is not None and not self._patience.expired():
            self._patience.reschedule(self._now())

    async def read(self, seconds: float) -> bytes:
        """Reads the complete body.

        Args:
            seconds: the time limit.

        Raises:
            RefusedError: it did not arrive in time, or is longer than was admitted.
        """
        self.limit(seconds)
        return await self._read(math.inf)

    async def begin(self, size: int) -> None:
        """Waits until so many bytes have arrived, or all; raises what `read` raises."""
        self.put_back(await self._read(size))

    async def _read(self, size: float) -> bytes:
        parts = []
        while not self.whole and self._arrived < size:
            parts.append((await self()).get("body", b""))
            if self.refusal is not None:
                raise self.refusal
        return b"".join(parts)

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
            self.refusal = self.refusal or RefusedError(408, NOT_IN_TIME)
        elif self._arrived > self._most:
            self.refusal = RefusedError(413, f"expected a body of {self._most:,} bytes, got more: send less")
        else:
            self.whole = not message.get("more_body")
        return message

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


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


def check_target(scope: Scope, most: int) -> None:
    """Refuses an address that is too long, or whose percent codes are no text."""
    path, query = scope.get("raw_path") or scope["path"].encode(), scope["query_string"]
    length = len(path) + len(query)
    if length > most:
        raise RefusedError(414, f"expected an address of at most {most:,} characters, got {length:,}: shorten it")
    try:
        unquote_to_bytes(path + b"?" + query).decode()
    except UnicodeDecodeError:
        raise RefusedError(400, "expected an address in UTF-8, got other bytes as % codes") from None


def with_security_headers(send: Send) -> Send:
    """Sends every answer with the security headers."""

    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *HEADERS]
        await send(message)

    return guarded


async def refuse(refusal: RefusedError, scope: Scope, incoming: Incoming, send: Send) -> None:
    """Answers with one sentence: as JSON in gradio's form where gradio's clients read it, else as plain text."""
    if scope["method"] == "POST" and "expect" not in headers_of(scope):  # else the client waits before it sends
        await incoming.drain()
    in_json = scope["path"] in (LOCALIZE, SHOW) or (scope["method"] == "POST" and scope["path"] != UPLOAD)
    body = (_in_json(refusal) if in_json else str(refusal)).encode()
    kind = b"application/json" if in_json else b"text/plain; charset=utf-8"
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _in_json(refusal: RefusedError) -> str:
    """The sentence in gradio's form: its clients show that of a status 422 in this form only."""
    sentence = str(refusal)
    problem = {"__type__": "validate", "is_valid": False, "parameter_name": "request", "message": sentence}
    return json.dumps({"error": sentence, "detail": [problem] if refusal.status == 422 else sentence})

"""The gate before an application: who may ask, by which host names, and how much; it adds headers to answers."""

import base64
import hmac
import re
from collections.abc import Iterable
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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

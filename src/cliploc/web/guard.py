"""A wrapper around a whole application: it refuses requests before the application sees them, and adds headers."""

from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cliploc.web.clients import Hosts, Password, RefusedError

# Tells the browser to load nothing from other servers, and to run no script and use no style that stands in a page.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
MAX_BODY = 4_000_000  # bytes of a request that uploads nothing, such as one picture's boxes and masks


class Gate:
    """An ASGI application that wraps another: it checks host, page, password and length of a request.

    Args:
        app: what answers.
        hosts: the server's host names.
        policy: the content security policy.
        auth: user and password; None: everybody may ask.
        max_body: bytes of a request's body.
        max_upload: bytes of a form with files; None: as `max_body`.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Hosts,
        policy: str = POLICY,
        auth: tuple[str, str] | None = None,
        max_body: int = MAX_BODY,
        max_upload: int | None = None,
    ) -> None:
        self._app, self._hosts, self._password = app, hosts, Password(auth)
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
        with suppress(ClientDisconnect):  # nobody is there to be told
            await answer(scope, receive, sending)

    def _check(self, scope: Scope, headers: Headers) -> None:
        address = (scope.get("server") or ("",))[0] or ""
        self._hosts.check(headers.get("host", ""), headers.get("origin"), address)
        self._password.check(headers.get("authorization", ""))
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

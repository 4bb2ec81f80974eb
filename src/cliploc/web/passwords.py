"""HTTP's basic authentication, with a limit for wrong passwords."""

from __future__ import annotations

import base64
import binascii
import hmac

from cliploc.web.rates import Rate, again
from cliploc.web.refusals import RefusedError

NEEDED = "This server asks for a user and a password (Basic authentication)."
GUESSES = (6, 10)  # wrong passwords of one client: a minute, and at once


class Passwords:
    """Checks user and password. Only wrong ones are counted."""

    def __init__(self, auth: tuple[str, str] | None) -> None:
        self._auth = None if auth is None else ":".join(auth).encode()
        self._guesses = Rate(*GUESSES)

    def check(self, client: str, header: str) -> None:
        """Refuses a request without the password."""
        if self._auth is None:
            return
        if not header:  # a browser asks once without it, and then asks its user
            raise RefusedError(401, NEEDED)
        if seconds := self._guesses.take(client):
            raise RefusedError(429, f"Too many wrong passwords from this address: {again(seconds)}.")
        if not hmac.compare_digest(_given(header), self._auth):
            raise RefusedError(401, NEEDED)
        self._guesses.give_back(client)


def _given(header: str) -> bytes:
    kind, _, code = header.partition(" ")
    try:
        return base64.b64decode(code, validate=True) if kind.lower() == "basic" else b""
    except (binascii.Error, ValueError):
        return b""

"""Who may ask, and how often: HTTP basic authentication, and a token bucket for each address."""

import base64
import binascii
import hmac
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

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


KNOWN = 10_000  # addresses that are remembered; of more, the one that asked longest ago is forgotten


class Rate:
    """A limit for each client: so many requests at once, and then so many a minute."""

    def __init__(self, a_minute: float, at_once: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._a_second, self._at_once, self._clock = a_minute / 60, at_once, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client → tokens left, and when

    def take(self, address: str) -> float:
        """Counts a request."""
        client, left = self._now(address)
        if left < 1:
            return (1 - left) / self._a_second
        self._keep(client, left - 1)
        return 0.0

    def give_back(self, address: str) -> None:
        """Counts one request less."""
        client, left = self._now(address)
        self._keep(client, min(self._at_once, left + 1))

    def _now(self, address: str) -> tuple[str, float]:
        client, now = client_of(address), self._clock()
        left, since = self._left.get(client, (self._at_once, now))
        return client, min(self._at_once, left + (now - since) * self._a_second)

    def _keep(self, client: str, left: float) -> None:
        self._left[client] = (left, self._clock())
        self._left.move_to_end(client)
        while len(self._left) > KNOWN:
            self._left.popitem(last=False)


def again(seconds: float) -> str:
    """When a client that asked too often may ask again, in words."""
    return f"try again in {math.ceil(seconds)} second{'s' if seconds > 1 else ''}"


def client_of(address: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 network of an IPv6 address, which a home has alone."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if found.version == 4:
        return str(found)
    return str(found.ipv4_mapped or ipaddress.ip_network((int(found) >> 64 << 64, 64)))


def is_loopback(address: str) -> bool:
    """Whether a client is on this machine: the user, or a proxy that all visitors come through."""
    try:
        found: Any = ipaddress.ip_address(address)
    except ValueError:
        return False
    return bool((getattr(found, "ipv4_mapped", None) or found).is_loopback)

"""Who may ask, by which host names, and how often: HTTP basic authentication, and a token bucket for each address."""

import base64
import binascii
import hmac
import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

NEEDED = "This server asks for a user and a password (Basic authentication)."
GUESSES = (6, 10)  # wrong passwords of one client: a minute, and at once


class RefusedError(Exception):
    """A request is refused, in a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


# ------------------------------------------------------------------------------------------------------------ addresses
def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a text is, as IPv4 where IPv6 only maps it; None for any other text."""
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(ip, "ipv4_mapped", None) or ip


def client_of(address: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 network of an IPv6 address, which a home has alone."""
    ip = _address(address)
    if ip is None or ip.version == 4:
        return str(ip or address)
    return str(ipaddress.ip_network((int(ip) >> 64 << 64, 64)))


def is_loopback(address: str) -> bool:
    """Whether a client is on this machine: the user, or a proxy that all visitors come through."""
    ip = _address(address)
    return ip is not None and ip.is_loopback


# ----------------------------------------------------------------------------------------------------------- host names
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
        if _name(host) not in self._names | {_plain(address)}:  # no website can have the connection's local address
            raise RefusedError(421, f"This server does not have that host name: {self._advice}.")
        if origin is None:
            return
        scheme, _, place = origin.partition("://")
        if scheme not in ("http", "https") or (place.lower() != host.lower() and _name(place) not in self._allowed):
            raise RefusedError(403, f"Requests from another website are refused: {self._advice}.")


def _name(place: str) -> str | None:
    """The host of `host:port`; None if the text is something else."""
    try:
        parts = urlsplit(f"//{place}")
        port_is_one = parts.port is None or parts.port > 0
    except ValueError:
        return None
    if not port_is_one or parts.netloc != place or "@" in place or not parts.hostname:
        return None
    return _plain(parts.hostname)


def _plain(name: str) -> str:
    """An address in its shortest form, or a name in lower case."""
    name = name.strip("[]").partition("%")[0].rstrip(".").lower()
    return str(_address(name) or name)


# ------------------------------------------------------------------------------------------------- passwords and rates
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
        kind, _, code = header.partition(" ")
        try:
            given = base64.b64decode(code, validate=True) if kind.lower() == "basic" else b""
        except (binascii.Error, ValueError):
            given = b""
        if not hmac.compare_digest(given, self._auth):
            raise RefusedError(401, NEEDED)
        self._guesses.give_back(client)


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

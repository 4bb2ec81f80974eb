"""Refuses foreign host names (DNS rebinding) and requests from other websites' pages."""

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from cliploc.web.refusals import RefusedError

LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Hosts:
    """The host names of the server."""

    def __init__(
        self,
        host: str = "127.0.0.1",
        allowed: Iterable[str] = (),
        advice: str = "start it with --allow-host NAME",
    ) -> None:
        self._advice = advice
        self._allowed = frozenset(_plain(name) for name in allowed)
        self._names = self._allowed | {*LOOPBACK, _plain(host)}

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
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)

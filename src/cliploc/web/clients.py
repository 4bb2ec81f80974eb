"""Who may ask, and by which host names: HTTP basic authentication, and the headers Host and Origin."""

import base64
import binascii
import hmac
import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit


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
    try:
        parts = urlsplit(f"//{place}")
        port_is_one = parts.port is None or parts.port > 0
    except ValueError:
        return None
    bracketed = place.partition("]")[2][:1] in ("", ":")  # urlsplit drops what follows a bracket
    if not port_is_one or not bracketed or parts.netloc != place or "@" in place or not parts.hostname:
        return None
    return _plain(parts.hostname)


def _plain(name: str) -> str:
    """An address in its shortest form, IPv4 where IPv6 only maps it; a name in lower case."""
    name = name.strip("[]").rstrip(".").lower()
    try:
        ip = ipaddress.ip_address(name)
    except ValueError:
        return name
    return str(getattr(ip, "ipv4_mapped", None) or ip)


class Password:
    """Checks user and password; None: everybody may ask."""

    def __init__(self, auth: tuple[str, str] | None) -> None:
        self._auth = None if auth is None else ":".join(auth).encode()

    def check(self, header: str) -> None:
        """Refuses a request without the password, by its header Authorization."""
        kind, _, code = header.partition(" ")
        try:
            given = base64.b64decode(code, validate=True) if kind.lower() == "basic" else b""
        except (binascii.Error, ValueError):
            given = b""
        if self._auth is not None and not hmac.compare_digest(given, self._auth):
            raise RefusedError(401, "This server asks for a user and a password (Basic authentication).")

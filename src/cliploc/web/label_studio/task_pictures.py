"""A task's picture, from itself, a folder, or the Label Studio named at the start, which alone gets the token."""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import re
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qs, quote, unquote, urlsplit

from cliploc.errors import InputError, UsageError

LOCAL_FILES = "/data/local-files/"
STORED = ("/data/", "/storage-data/")  # where Label Studio serves pictures
DATA = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
JWT = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+")  # a personal access token, which is exchanged for one that expires
SECONDS = 20.0  # for all that Label Studio sends for one picture, from the connection to the last byte
ALL_SECONDS = 60.0  # the same for all pictures of one request: Label Studio waits 100 seconds for its answer
AS_IS = "/%!$&'()*+,;=:@?~"  # in a path or a query; other characters are sent in percent
CHUNK = 2**16
SHOWN = 80  # characters of an address in a message


class Allowance:
    """The time that a request for predictions has left for fetching pictures."""

    def __init__(self, seconds: float = ALL_SECONDS) -> None:
        self._left = seconds

    @contextmanager
    def watch(self) -> Iterator[_Watch]:
        """Watches the fetch of one picture."""
        began = time.monotonic()
        watch = _Watch(max(0.0, min(SECONDS, self._left)))
        timer = threading.Timer(watch.seconds, watch.end)
        timer.daemon = True
        timer.start()
        try:
            yield watch
        finally:
            timer.cancel()
            self._left -= time.monotonic() - began


class PictureSource:
    """Where task pictures may come from: below `folder`, or of Label Studio's `url`, with its token."""

    def __init__(
        self, folder: Path | None = None, url: str | None = None, token: str | None = None, max_bytes: int = 20_000_000
    ) -> None:
        if folder is not None and not folder.is_dir():
            raise UsageError(f"expected --pictures as a folder, got {folder}: check the path")
        self._folder = None if folder is None else folder.resolve()
        self._studio = None if url is None else _studio(url)
        self._token, self._max_bytes = token, max_bytes
        self._opener = urllib.request.build_opener(_NoRedirects, _Http, _Https)

    @contextmanager
    def picture(self, address: str, allowance: Allowance | None = None) -> Iterator[Path]:
        """The file of a task's picture; what had to be stored for it is removed at the end."""
        if DATA.match(address):
            with self._stored(self._decoded(address)) as path:
                yield path
            return
        place = _split(address)
        local = parse_qs(place.query).get("d", [""])[0] if place.path.endswith(LOCAL_FILES) else None
        if not place.scheme and not place.netloc and local is None and not place.path.startswith("/"):
            local = address  # a plain path below the folder
        if local and self._folder is not None:
            yield self._inside(local)
        else:
            with self._stored(self._fetched(address, place, allowance or Allowance())) as path:
                yield path

    @contextmanager
    def _stored(self, content: bytes) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="cliploc-label-studio-") as folder:
            path = Path(folder, "picture")
            try:
                path.write_bytes(content)
            except OSError as error:
                raise InputError(f"cannot be stored for a moment: {error.strerror}: make room") from None
            yield path

    def _decoded(self, address: str) -> bytes:
        text = address.partition(",")[2]
        if len(text) * 3 // 4 > self._max_bytes + 3:
            raise InputError(self._too_large("its data"))
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise InputError("its data is not base64: import the picture again") from None

    def _inside(self, name: str) -> Path:
        """A file below the folder, after links and dots in its path are resolved."""
        folder = self._folder
        assert folder is not None
        try:
            path = (folder / name.lstrip("/")).resolve()
            there = path.is_file()
        except (OSError, ValueError, RuntimeError):  # the last of links in a circle
            raise InputError(f"{short(name)}: no such file below the folder of --pictures: check the path") from None
        if folder not in path.parents:
            raise InputError(f"{short(name)}: lies outside of the folder of --pictures: it is not read")
        if not there:
            raise InputError(f"{short(name)}: no such file below the folder of --pictures: check the path")
        if path.stat().st_size > self._max_bytes:
            raise InputError(self._too_large(short(name)))
        return path

    # ---------------------------------------------------------------------------------------------- over the network
    def _fetched(self, address: str, place: SplitResult, allowance: Allowance) -> bytes:
        said = short(address)
        if self._studio is None:
            raise InputError(
                f"{said}: not fetched: start with --pictures DIR for local files, or --label-studio-url for those that "
                "Label Studio has"
            )
        own = not place.scheme and not place.netloc
        if place.scheme not in ("", "http", "https") or not (own or _origin(place) == _origin(self._studio)):
            raise InputError(f"{said}: not fetched: only pictures from {self._studio.geturl()} are allowed")
        base = self._studio.path.rstrip("/")
        path = place.path if own or not base else place.path.removeprefix(base)
        plain = unquote(unquote(path))
        if (
            not plain.startswith(STORED)
            or ".." in plain.split("/")
            or "\\" in plain
            or not (address + plain).isprintable()
        ):
            raise InputError(f"{said}: not fetched: Label Studio's pictures are below {' or '.join(STORED)}")
        target = self._studio._replace(path=quote(base + path, AS_IS), query=quote(place.query, AS_IS), fragment="")
        with allowance.watch() as watch:
            try:
                content = self._get(target.geturl(), said, watch)
            except InputError:
                if not watch.over:
                    raise
        if watch.over:  # what was cut off may look complete
            raise InputError(
                f"{said}: not fetched in time: a picture has {SECONDS:g} seconds, and all of a request {ALL_SECONDS:g}"
            )
        return content

    def _get(self, target: str, said: str, watch: _Watch) -> bytes:
        headers = self._authorization(said, watch)
        try:
            with self._opener.open(_Asked(target, None, headers, watch), timeout=watch.seconds + 1) as answer:
                content = bytearray()
                while chunk := answer.read(CHUNK):
                    content += chunk
                    if len(content) > self._max_bytes:
                        raise InputError(self._too_large(said))
                return bytes(content)
        except urllib.error.HTTPError as error:
            advice = ": check the token" if error.code in (401, 403) else ""
            reason = short(str(error.reason))
            raise InputError(f"{said}: Label Studio answered with {error.code} {reason}{advice}") from None
        except (OSError, ValueError) as error:
            cause = getattr(error, "reason", None) or error
            raise InputError(f"{said}: not fetched from {self._studio_text}: {short(str(cause))}") from None
        except http.client.HTTPException as error:
            reason = short(str(error) or type(error).__name__)
            raise InputError(f"{said}: expected an answer over HTTP from {self._studio_text}, got {reason}") from None

    def _authorization(self, said: str, watch: _Watch) -> Mapping[str, str]:
        if not self._token:
            return {}
        if not JWT.fullmatch(self._token):
            return {"Authorization": f"Token {self._token}"}
        assert self._studio is not None
        target = self._studio._replace(path=f"{self._studio.path.rstrip('/')}/api/token/refresh").geturl()
        body = json.dumps({"refresh": self._token}).encode()
        asked = _Asked(target, body, {"Content-Type": "application/json"}, watch)
        try:
            with self._opener.open(asked, timeout=watch.seconds + 1) as answer:
                return {"Authorization": f"Bearer {json.loads(answer.read(CHUNK))['access']}"}
        except (OSError, ValueError, KeyError, TypeError, RecursionError, http.client.HTTPException) as error:
            raise InputError(
                f"{said}: Label Studio rejected the personal access token ({short(str(error))}): create a new one"
            ) from None

    @property
    def _studio_text(self) -> str:
        return "" if self._studio is None else self._studio.geturl()

    def _too_large(self, what: str) -> str:
        return f"{what}: more than {self._max_bytes / 1e6:g} million bytes: make it smaller, or raise --max-megabytes"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, as it may lead anywhere."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Returns None, which makes the redirect an `HTTPError`."""


class _Watch:
    """Ends the connections of one fetch when its time is over: a socket's own limit begins again with every byte."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds  # a socket's own limit is a little longer, for a connection that is not there yet
        self.over = False
        self._sockets: list[socket.socket] = []

    def take(self, connected: socket.socket) -> None:
        """Watches one more connection."""
        self._sockets.append(connected)
        if self.over:
            self.end()

    def end(self) -> None:
        """The time is over."""
        self.over = True
        for one in self._sockets:
            with suppress(OSError):  # closed already
                socket.socket.shutdown(one, socket.SHUT_RDWR)  # a TLS socket's own would pull it away from its reader


class _Asked(urllib.request.Request):
    """A request whose connection is watched."""

    def __init__(self, url: str, data: bytes | None, headers: Mapping[str, str], watch: _Watch) -> None:
        super().__init__(url, data, dict(headers))
        self.watch = watch


class _Connection(http.client.HTTPConnection):
    def __init__(self, *args: Any, watch: _Watch, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._watch = watch

    def connect(self) -> None:
        super().connect()
        self._watch.take(self.sock)


class _SecureConnection(_Connection, http.client.HTTPSConnection):
    """The same by TLS: what `_Connection` adds comes first, then what HTTPS does."""


class _Http(urllib.request.HTTPHandler):
    def http_open(self, asked: Any) -> http.client.HTTPResponse:
        return self.do_open(partial(_Connection, watch=asked.watch), asked)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, asked: Any) -> http.client.HTTPResponse:
        return self.do_open(partial(_SecureConnection, watch=asked.watch), asked)


def _studio(url: str) -> SplitResult:
    try:
        place = urlsplit(url)
        usable = place.scheme in ("http", "https") and bool(place.hostname) and place.username is None
        usable = usable and not place.query and not place.fragment and (place.port is None or place.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(f"expected --label-studio-url as an address such as http://localhost:8080, got {url!r}")
    return place


def _split(address: str) -> SplitResult:
    try:
        place = urlsplit(address)
        _ = place.port, place.hostname
    except ValueError:
        raise InputError(f"{short(address)}: not an address: check the task") from None
    return place


def _origin(place: SplitResult) -> tuple[str, str | None, int | None, str | None]:
    """Scheme, host and port; a name before the host makes it another's."""
    port = place.port or {"http": 80, "https": 443}.get(place.scheme)
    return place.scheme, place.hostname, port, place.username


def short(text: str) -> str:
    """A text from a task or an answer as it may stand in a message: in one line, and not long."""
    shown = "".join(one if one.isprintable() else "�" for one in text[: SHOWN + 1])
    return shown if len(text) <= SHOWN else f"{shown[:SHOWN]}…"

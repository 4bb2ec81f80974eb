"""A task's picture, from itself, a folder, or the Label Studio named at the start, which alone gets the token."""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import re
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
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
    def picture(self) -> Iterator[float]:
        """Fetches one picture, until the time that this gives, by `time.monotonic`."""
        began = time.monotonic()
        try:
            yield began + min(SECONDS, self._left)
        finally:
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
        self._opener = urllib.request.build_opener(_NoRedirects)

    @contextmanager
    def picture(self, address: str, allowance: Allowance | None = None) -> Iterator[Path]:
        """The file of a task's picture; what had to be stored for it is removed at the end."""
        if DATA.match(address):
            text = address.partition(",")[2]
            if len(text) * 3 // 4 > self._max_bytes + 3:
                raise InputError(self._too_large("its data"))
            try:
                content = base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError):
                raise InputError("its data is not base64: import the picture again") from None
            with self._stored(content) as path:
                yield path
            return
        if (local := self.local(address)) is not None:
            yield local
        else:
            with self._stored(self._fetched(address, _split(address), allowance or Allowance())) as path:
                yield path

    def local(self, address: str) -> Path | None:
        """The file below `folder` that an address leads to; None of other addresses."""
        place = _split(address)
        name = parse_qs(place.query).get("d", [""])[0] if place.path.endswith(LOCAL_FILES) else None
        if not place.scheme and not place.netloc and name is None and not place.path.startswith("/"):
            name = address  # a plain path below the folder
        return self._inside(name) if name and self._folder is not None else None

    @contextmanager
    def _stored(self, content: bytes) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="cliploc-label-studio-") as folder:
            path = Path(folder, "picture")
            try:
                path.write_bytes(content)
            except OSError as error:
                raise InputError(f"cannot be stored for a moment: {error.strerror}: make room") from None
            yield path

    def _inside(self, name: str) -> Path:
        """A file below the folder, after links and dots in its path are resolved."""
        folder = self._folder
        assert folder is not None
        try:
            path = (folder / name.lstrip("/")).resolve()
            there, inside = path.is_file(), folder in path.parents
        except (OSError, ValueError, RuntimeError):  # the last of links in a circle
            there, inside = False, True
        if not inside:
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
        with allowance.picture() as end:
            return self._get(target.geturl(), self._studio.geturl(), said, end)

    def _get(self, target: str, studio: str, said: str, end: float) -> bytes:
        try:
            headers = self._authorization(said, end)
            return self._answer(urllib.request.Request(target, None, headers), said, end)
        except urllib.error.HTTPError as error:
            advice = ": check the token" if error.code in (401, 403) else ""
            reason = short(str(error.reason))
            raise InputError(f"{said}: Label Studio answered with {error.code} {reason}{advice}") from None
        except (OSError, ValueError) as error:
            cause = getattr(error, "reason", None) or error
            if isinstance(cause, TimeoutError):
                raise InputError(
                    f"{said}: not fetched in time: a picture has {SECONDS:g} seconds, and all of a request "
                    f"{ALL_SECONDS:g}"
                ) from None
            raise InputError(f"{said}: not fetched from {studio}: {short(str(cause))}") from None
        except http.client.HTTPException as error:
            reason = short(str(error) or type(error).__name__)
            raise InputError(f"{said}: expected an answer over HTTP from {studio}, got {reason}") from None

    def _answer(self, request: urllib.request.Request, said: str, end: float) -> bytes:
        """What Label Studio sends; a socket's own limit begins again with every byte."""
        content, chunk = bytearray(), b""
        if (left := end - time.monotonic()) <= 0:
            raise TimeoutError
        with self._opener.open(request, timeout=left) as answer:
            while time.monotonic() < end and (chunk := answer.read1(CHUNK)):
                content += chunk
                if len(content) > self._max_bytes:
                    raise InputError(self._too_large(said))
        if time.monotonic() >= end:
            raise TimeoutError
        return bytes(content)

    def _authorization(self, said: str, end: float) -> dict[str, str]:
        if not self._token:
            return {}
        if not JWT.fullmatch(self._token):
            return {"Authorization": f"Token {self._token}"}
        assert self._studio is not None
        target = self._studio._replace(path=f"{self._studio.path.rstrip('/')}/api/token/refresh").geturl()
        body = json.dumps({"refresh": self._token}).encode()
        asked = urllib.request.Request(target, body, {"Content-Type": "application/json"})
        try:
            return {"Authorization": f"Bearer {json.loads(self._answer(asked, said, end))['access']}"}
        except (OSError, ValueError, KeyError, TypeError, RecursionError, http.client.HTTPException) as error:
            if isinstance(getattr(error, "reason", error), TimeoutError):
                raise
            raise InputError(
                f"{said}: Label Studio rejected the personal access token ({short(str(error))}): create a new one"
            ) from None

    def _too_large(self, what: str) -> str:
        return f"{what}: more than {self._max_bytes / 1e6:g} million bytes: make it smaller, or raise --max-megabytes"


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, as it may lead anywhere."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Returns None, which makes the redirect an `HTTPError`."""


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
    shown = "".join(letter if letter.isprintable() else "�" for letter in text[: SHOWN + 1])
    return shown if len(text) <= SHOWN else f"{shown[:SHOWN]}…"

"""A task's picture, from itself, a folder, or the Label Studio named at the start, which alone gets the token."""

import base64
import http.client
import json
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote

from cliploc.errors import InputError, UsageError

LOCAL_FILES = "/data/local-files/?"
STORED = ("/data/", "/storage-data/")  # where Label Studio serves pictures
DATA = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
JWT = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+")  # a personal access token, which is exchanged for one that expires
SECONDS = 20.0  # without an answer
AS_IS = "/%!$&'()*+,;=:@?~"  # in a path or a query; other characters are sent in percent
LONGEST = 80  # characters of an address in a message


class PictureSource:
    """Where task pictures may come from: below `folder`, or of Label Studio's `url`, with its token."""

    def __init__(
        self, folder: Path | None = None, url: str | None = None, token: str | None = None, max_bytes: int = 20_000_000
    ) -> None:
        if folder is not None and not folder.is_dir():
            raise UsageError(f"expected --pictures as a folder, got {folder}: check the path")
        self._folder = None if folder is None else folder.resolve()
        self._studio = None if url is None else url.rstrip("/")
        if url is not None and not re.fullmatch(r"https?://[^/?#@\s]+(/[^?#\s]*)?", url):
            raise UsageError(f"expected --label-studio-url as an address such as http://localhost:8080, got {url!r}")
        self._token, self._max_bytes = token, max_bytes
        self._opener = urllib.request.build_opener(_NoRedirects)

    @contextmanager
    def picture(self, address: str) -> Iterator[Path]:
        """The file of a task's picture; what had to be stored for it is removed at the end."""
        if DATA.match(address):
            try:
                content = base64.b64decode(address.partition(",")[2], validate=True)
            except ValueError:
                raise InputError("its data is not base64: import the picture again") from None
            self._check_size("its data", len(content))
        elif (local := self.local(address)) is not None:
            yield local
            return
        else:
            content = self._fetched(address)
        with tempfile.TemporaryDirectory(prefix="cliploc-label-studio-") as folder:
            path = Path(folder, "picture")
            try:
                path.write_bytes(content)
            except OSError as error:
                raise InputError(f"cannot be stored for a moment: {error.strerror}: make room") from None
            yield path

    def local(self, address: str) -> Path | None:
        """The file below `folder` that an address leads to; None of other addresses."""
        _, found, query = address.partition(LOCAL_FILES)
        plain = address if "://" not in address and not address.startswith("/") else ""
        name = parse_qs(query).get("d", [""])[0] if found else plain
        if not name or self._folder is None:
            return None
        try:
            path = (self._folder / name.lstrip("/")).resolve()
            exists, inside = path.is_file(), self._folder in path.parents
        except (OSError, ValueError, RuntimeError):  # the last of links in a circle
            exists, inside = False, True
        if not inside:
            raise InputError(f"{short(name)}: lies outside of the folder of --pictures: it is not read")
        if not exists:
            raise InputError(f"{short(name)}: no such file below the folder of --pictures: check the path")
        self._check_size(short(name), path.stat().st_size)
        return path

    def _check_size(self, name: str, size: int) -> None:
        if size > self._max_bytes:
            most = self._max_bytes / 1e6
            raise InputError(f"{name}: more than {most:g} million bytes: make it smaller, or raise --max-megabytes")

    def _fetched(self, address: str) -> bytes:
        name, studio = short(address), self._studio
        if studio is None:
            raise InputError(
                f"{name}: not fetched: start with --pictures DIR for local files, or --label-studio-url for those that "
                "Label Studio has"
            )
        path = address.removeprefix(studio)
        if not path.startswith(STORED) or re.search(r"\.\.|\\", unquote(unquote(path))):
            allowed = f"pictures of {studio}, below {' or '.join(STORED)}"
            raise InputError(f"{name}: not fetched: only {allowed}, are allowed")
        try:
            content = self._read(f"{studio}{quote(path, AS_IS)}", headers=self._authorization(name, studio))
        except urllib.error.HTTPError as error:
            advice = ": check the token" if error.code in (401, 403) else ""
            reason = short(str(error.reason))
            raise InputError(f"{name}: Label Studio answered with {error.code} {reason}{advice}") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = short(str(getattr(error, "reason", None) or error))
            raise InputError(f"{name}: not fetched from {studio}: {reason}") from None
        self._check_size(name, len(content))
        return content

    def _read(self, url: str, body: bytes | None = None, headers: Mapping[str, str] = {}) -> bytes:
        request = urllib.request.Request(url, body, dict(headers))
        with self._opener.open(request, timeout=SECONDS) as answer:
            content: bytes = answer.read(self._max_bytes + 1)
            return content

    def _authorization(self, name: str, studio: str) -> dict[str, str]:
        if not self._token or not JWT.fullmatch(self._token):
            return {"Authorization": f"Token {self._token}"} if self._token else {}
        body = json.dumps({"refresh": self._token}).encode()
        try:
            answer = self._read(f"{studio}/api/token/refresh", body, {"Content-Type": "application/json"})
            return {"Authorization": f"Bearer {json.loads(answer)['access']}"}
        except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException) as error:
            raise InputError(
                f"{name}: Label Studio rejected the personal access token ({short(str(error))}): create a new one"
            ) from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, as it may lead anywhere."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        """Returns None, which makes the redirect an `HTTPError`."""


def short(text: str) -> str:
    """A text from a task or an answer as it may stand in a message: in one line, and not long."""
    line = "".join(letter if letter.isprintable() else "�" for letter in text[: LONGEST + 1])
    return line if len(text) <= LONGEST else f"{line[:LONGEST]}…"

"""What every server refuses, with and without a password: the page, the editor, Label Studio's backend."""

import base64
import contextlib
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="starlette is not installed: pip install 'cliploc[web]'")

from cliploc import towers
from cliploc.label.annotate import annotate
from cliploc.label.editor import app as review_editor
from cliploc.label.editor.review_folder import ReviewFolder, Suggester
from cliploc.label.label_studio import app as backend
from cliploc.web.find import application
from cliploc.web.server import Hosts
from tests.tiny import tower
from tests.web.asking import FORM, running, service
from tests.web.test_label_studio import predictor
from tests.web.test_review_server import LABELS, OPTIONS, create

AUTH = ("me", "secret")
LOGIN = f"Authorization: Basic {base64.b64encode(b'me:secret').decode()}\r\n"
JSON = "application/json"
MAX_BYTES = 1_000_000
Posts = list[tuple[str, str]]  # what reads a body, with the type of it
PAGE = [(path, kind) for path in ("/api/show", "/api/files", "/", "/api/localize") for kind in (JSON, FORM)]
REVIEW = [("/pictures/0", JSON), ("/pictures/0/suggestion", JSON), ("/exports", JSON)]
STUDIO = [("/predict", JSON), ("/setup", JSON), ("/webhook", JSON)]


@dataclass(frozen=True)
class Door:
    """A server."""

    address: str
    posts: Posts
    password: bool

    def asked(self, text: bytes) -> tuple[int, bytes]:
        """Status and body of what is answered until the server closes."""
        with socket.create_connection(("127.0.0.1", int(self.address.rpartition(":")[2])), timeout=30) as mine:
            mine.sendall(text)
            got = b""
            with contextlib.suppress(ConnectionError):
                while more := mine.recv(65536):
                    got += more
        head, _, body = got.partition(b"\r\n\r\n")
        return int(head.split(b" ", 2)[1]), body

    def posted(
        self, path: str, kind: str, *lines: str, host: str = "localhost", body: bytes = b""
    ) -> tuple[int, bytes]:
        given = "".join(f"{line}\r\n" for line in (f"Content-Type: {kind}", "Connection: close", *lines))
        return self.asked(f"POST {path} HTTP/1.1\r\nHost: {host}\r\n{given}\r\n".encode() + body)


@contextlib.contextmanager
def page(folder: Path, auth: tuple[str, str] | None) -> Iterator[tuple[Any, Posts]]:
    yield application(service(), folder, auth=auth, max_bytes=MAX_BYTES), PAGE


@contextlib.contextmanager
def editor(folder: Path, _: None) -> Iterator[tuple[Any, Posts]]:
    (folder / "photos").mkdir()
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(folder / "photos/a.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(towers, "create", create)
        annotate(folder / "photos", LABELS, folder / "done", **OPTIONS)
        with ReviewFolder.opened(folder / "done") as opened:
            yield review_editor.application(opened, Suggester("mini", device="cpu", recipe="fast")), REVIEW


@contextlib.contextmanager
def studio(_: Path, auth: tuple[str, str] | None) -> Iterator[tuple[Any, Posts]]:
    yield backend.application(predictor(tower("gap_cnn")), Hosts(), auth, max_bytes=MAX_BYTES), STUDIO


DOORS: dict[str, tuple[Callable[..., Any], tuple[str, str] | None]] = {
    "page": (page, None), "page with a password": (page, AUTH), "review": (editor, None),
    "label-studio": (studio, None), "label-studio with a password": (studio, AUTH),
}  # fmt: skip


@pytest.fixture(scope="module", params=DOORS)
def door(request, tmp_path_factory) -> Iterator[Door]:
    kind, auth = DOORS[request.param]
    with kind(tmp_path_factory.mktemp("door"), auth) as (app, posts), running(app) as address:
        yield Door(address, posts, auth is not None)


def test_foreign_hosts_pages_and_methods_are_refused(door):
    for path, kind in door.posts:
        lines = ("Content-Length: 2", LOGIN.strip())
        assert door.posted(path, kind, *lines, host="evil.example.com", body=b"{}")[0] == 421
        assert door.posted(path, kind, *lines, "Origin: http://evil.example.com", body=b"{}")[0] == 403
        deleted = f"DELETE {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{LOGIN}\r\n"
        assert door.asked(deleted.encode())[0] == 405


def test_a_stranger_learns_nothing_where_there_is_a_password(door):
    wrong = base64.b64encode(b"me:guess").decode()
    for path, kind in door.posts if door.password else ():
        for login in ("X: y", "Authorization: Basic x", "Authorization: Digest a", f"Authorization: Basic {wrong}"):
            status, body = door.posted(path, kind, "Content-Length: 2", login, body=b"{}")
            assert (status, b"asks for a user and a password" in body) == (401, True)


def test_a_body_of_unknown_length_or_too_long_is_refused(door):
    """Also where the rest of it never comes."""
    for path, kind in door.posts:
        for lines in (["Transfer-Encoding: chunked"], ["Content-Length: 4", "Transfer-Encoding: chunked"], []):
            status, body = door.posted(
                path, kind, *lines, LOGIN.strip(), body=b"4\r\nabcd\r\n0\r\n\r\n" if lines else b""
            )
            assert (status, b"expected the header Content-Length alone" in body) == (411, True), (path, lines)
        status, body = door.posted(path, kind, "Content-Length: 9000000", LOGIN.strip())
        assert (status, b"million bytes, got 9000000: send less" in body) == (413, True), path


def test_an_address_of_bytes_that_are_no_text_is_answered(door, capfd):
    target = "/?names=%e7%8c%ab%ff%ed%a0%80&x=100%"
    asked = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{LOGIN}\r\n"
    assert door.asked(asked.encode())[0] == 200
    assert "Traceback" not in capfd.readouterr().err

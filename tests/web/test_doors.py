"""What every server refuses or outlasts, with and without a password: the page, the editor, Label Studio's backend."""

import asyncio
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

from cliploc import backbones
from cliploc.jobs.annotate import annotate
from cliploc.jobs.review_folder import ReviewFolder
from cliploc.jobs.suggest import Suggester
from cliploc.web import editor as review_editor
from cliploc.web import guard
from cliploc.web.clients import Hosts, RefusedError
from cliploc.web.find import application
from cliploc.web.guard import FILES, LOCALIZE, SHOW, Gate, Guard, Incoming
from cliploc.web.label_studio.app import LabelStudioGate
from cliploc.web.store import Uploads
from tests.tiny import tower
from tests.web.asking import DEMO, FORM, handed, running, service
from tests.web.test_label_studio import predictor
from tests.web.test_review_server import LABELS, OPTIONS, create

AUTH = ("me", "secret")
LOGIN = f"Authorization: Basic {base64.b64encode(b'me:secret').decode()}\r\n"
JSON = "application/json"
MOST = 24  # connections of a server here
MAX_BYTES = 1_000_000
PAGE = [(path, kind) for path in (SHOW, FILES, "/", LOCALIZE) for kind in (JSON, FORM)]
REVIEW = [("/pictures/0", JSON), ("/pictures/0/suggestion", JSON), ("/exports", JSON)]
STUDIO = [("/predict", JSON), ("/setup", JSON), ("/webhook", JSON)]
PART = b'--x\r\nContent-Disposition: form-data; name="picture"; filename="a.jpg"\r\n\r\n'


@dataclass(frozen=True)
class Door:
    """A server."""

    app: Gate
    address: str
    posts: list[tuple[str, str]]  # what reads a body, with the type of it

    def connected(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", int(self.address.rpartition(":")[2])), timeout=30)

    def asked(self, text: bytes) -> bytes:
        """All that is answered until the server closes."""
        with self.connected() as mine:
            mine.sendall(text)
            return rest_of(mine)

    def get(self, target: str = "/") -> bytes:
        return self.asked(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{LOGIN}\r\n".encode())

    def status(self) -> int:
        return status_of(self.get())


def rest_of(mine: socket.socket) -> bytes:
    got = b""
    with contextlib.suppress(ConnectionError):
        while more := mine.recv(65536):
            got += more
    return got


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def head(path: str, kind: str, *lines: str, login: str = LOGIN) -> bytes:
    given = "".join(f"{line}\r\n" for line in lines)
    always = f"Host: localhost\r\nConnection: close\r\nContent-Type: {kind}\r\n"
    return f"POST {path} HTTP/1.1\r\n{always}{login}{given}\r\n".encode()


@contextlib.contextmanager
def page(folder: Path, auth: tuple[str, str] | None) -> Iterator[tuple[Gate, list[tuple[str, str]]]]:
    yield application(service(), folder, auth=auth, max_bytes=MAX_BYTES), PAGE


@contextlib.contextmanager
def editor(folder: Path, _: None) -> Iterator[tuple[Gate, list[tuple[str, str]]]]:
    (folder / "photos").mkdir()
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(folder / "photos/a.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "create", create)
        annotate(folder / "photos", LABELS, folder / "done", **OPTIONS)
        with ReviewFolder.opened(folder / "done") as opened:
            yield review_editor.application(opened, Suggester("mini", device="cpu", recipe="fast")), REVIEW


@contextlib.contextmanager
def studio(_: Path, auth: tuple[str, str] | None) -> Iterator[tuple[Gate, list[tuple[str, str]]]]:
    yield LabelStudioGate(predictor(tower("gap_cnn")), Hosts(), auth, max_bytes=MAX_BYTES), STUDIO


DOORS: dict[str, tuple[Callable[..., Any], tuple[str, str] | None]] = {
    "page": (page, None),
    "page with a password": (page, AUTH),
    "review": (editor, None),
    "label-studio": (studio, None),
    "label-studio with a password": (studio, AUTH),
}


@pytest.fixture(scope="module", params=DOORS)
def door(request, tmp_path_factory) -> Iterator[Door]:
    kind, auth = DOORS[request.param]
    with kind(tmp_path_factory.mktemp("door"), auth) as (app, posts), pytest.MonkeyPatch.context() as patch:
        patch.setattr("cliploc.web.server.MOST", MOST)
        with running(app) as address:
            yield Door(app, address, posts)


# ---------------------------------------------------------------------------------------------------------- bodies
@pytest.mark.parametrize("login", [LOGIN, ""])
def test_two_lengths_of_a_body_are_refused(door, login):
    for path, kind in door.posts:
        lines = ("Content-Length: 4", "Transfer-Encoding: chunked")
        answer = door.asked(head(path, kind, *lines, login=login) + b"4\r\nabcd\r\n0\r\n\r\n")
        assert status_of(answer) == 400, (path, answer)
        assert b"expected the header Content-Length alone" in answer


def test_of_an_endless_body_little_is_taken(door, monkeypatch):
    monkeypatch.setattr(guard, "DRAINED_BYTES", 1_000_000)
    chunk, most = b"10000\r\n" + bytes(0x10000) + b"\r\n", 40_000_000
    for path, kind in door.posts:
        sent = 0
        with door.connected() as mine:
            mine.sendall(head(path, kind, "Content-Length: 4", "Transfer-Encoding: chunked"))
            with contextlib.suppress(ConnectionError):
                while sent < most:
                    mine.sendall(chunk)
                    sent += len(chunk)
        assert sent < most, path  # the rest is what the system's buffers hold


@pytest.mark.parametrize("login", [LOGIN, ""])
def test_more_than_the_header_says_is_not_read(door, login, monkeypatch):
    """Whatever server is before the application: here one that does not compare the body with its header."""
    monkeypatch.setattr(guard, "DRAINED_BYTES", 10_000)
    for path, kind in door.posts:
        read, answer = endless(door.app, path, kind, login)
        assert answer[0]["status"] in (401, 413), path
        assert read < 13_000, path
        assert b"\n" not in answer[1]["body"]


def endless(app: Gate, path: str, kind: str, login: str) -> tuple[int, list[Any]]:
    """Sends a megabyte where the header says 200 bytes → the bytes that were read, and the answer."""
    lines = head(path, kind, "Content-Length: 200", login=login).decode().split("\r\n")[1:-2]
    read = 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        body = PART if kind == FORM and not read else bytes(1_000)
        read += len(body)
        return {"type": "http.request", "body": body, "more_body": read < 1_000_000}

    answer = asyncio.run(handed(app, path, dict(line.split(": ") for line in lines), receive))
    return read, answer


def test_foreign_hosts_pages_and_methods_are_refused(door):
    for path, kind in door.posts:
        asked = head(path, kind, "Content-Length: 2") + b"{}"
        foreign = asked.replace(b"Host: localhost", b"Host: evil.example.com")
        assert status_of(door.asked(foreign)) == 421
        assert status_of(door.asked(asked.replace(b"\r\n", b"\r\nOrigin: http://evil.example.com\r\n", 1))) == 403
        assert status_of(door.asked(asked.replace(b"POST", b"DELETE", 1))) == 405


# ------------------------------------------------------------------------------------------------------ slow clients
def test_a_body_that_does_not_come_on_is_ended(door, monkeypatch):
    """The limits for a whole body stay at half a minute and more, longer than this waits for an answer."""
    monkeypatch.setattr(guard, "LAG_SECONDS", 0.2)
    for path, kind in door.posts:
        answer = door.asked(head(path, kind, "Content-Length: 900") + (PART if kind == FORM else b"{"))
        assert status_of(answer) == 408, (path, answer)
        assert b"did not arrive completely in time" in answer


def test_a_body_must_come_on_at_a_pace(monkeypatch):
    monkeypatch.setattr(guard, "LAG_SECONDS", 0.2)

    async def read(size: int) -> int:
        """So many bytes every hundredth of a second → how many were read."""
        got, total = 0, 100 * size

        async def receive() -> dict[str, Any]:
            nonlocal got
            await asyncio.sleep(0.01)
            got += size
            return {"type": "http.request", "body": bytes(size), "more_body": got < total}

        incoming = Incoming(receive, {"content-length": str(total)})
        incoming.admit(total)
        with contextlib.suppress(RefusedError):
            await incoming.begin(60)
        return got

    assert asyncio.run(read(1)) < 60  # a byte at a time is no progress
    monkeypatch.setattr(guard, "LAG_SECONDS", 10.0)  # a busy machine sleeps long
    assert asyncio.run(read(1_000)) == 100_000


SLOW = {
    "of a request's lines": lambda _: b"GET / HTTP/1.1\r\nHost: loc",
    "of a body": lambda door: head(*door.posts[0], "Content-Length: 200") + b"{",
    "of an upload": lambda door: head(*door.posts[-1], "Content-Length: 900") + PART,
    "that ask for nothing more": lambda _: f"GET /favicon.ico HTTP/1.1\r\nHost: localhost\r\n{LOGIN}\r\n".encode(),
}


@pytest.mark.parametrize("kind", SLOW)
def test_a_visitor_is_served_beside_more_slow_connections_than_there_may_be(door, kind):
    with contextlib.ExitStack() as slow:
        for _ in range(2 * MOST):
            mine = slow.enter_context(door.connected())
            with contextlib.suppress(ConnectionError):
                mine.sendall(SLOW[kind](door))
                if "nothing more" in kind:  # else they are all being answered at once
                    mine.recv(20)
        for _ in range(3):
            assert door.status() == 200


@pytest.mark.parametrize("taken", [False, True])
def test_a_visitor_is_served_beside_uploads_that_stall(door, monkeypatch, taken):
    """Before they count as uploads, and after."""
    if not isinstance(door.app, Guard):
        pytest.skip("it takes no uploads")
    monkeypatch.setattr(guard, "UPLOADS_AT_ONCE", 4)
    monkeypatch.setattr(guard, "FIRST_BYTES", 1 if taken else guard.FIRST_BYTES)
    monkeypatch.setattr(guard, "CROWDED_SECONDS", 0.0)
    cat = (DEMO / "cat.jpg").read_bytes()
    fields = "".join(f'\r\n--x\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}'
                     for key, value in (("names", "cat"), ("recipe", "fast")))  # fmt: skip
    body = PART + cat + fields.encode() + b"\r\n--x--\r\n"
    with contextlib.ExitStack() as stalled:
        for _ in range(16):
            before = [*door.app._arriving]
            stalled.enter_context(door.connected()).sendall(SLOW["of an upload"](door))
            while taken and [*door.app._arriving] == before:  # one that came late would push the visitor's out
                assert door.status() == 200
        for _ in range(6):
            answer = door.asked(head(LOCALIZE, FORM, f"Content-Length: {len(body)}") + body)
            assert status_of(answer) == 200, answer


class Streams:
    """An application whose answer at /large is more than a connection holds; that at /long never ends."""

    def end(self) -> None:
        pass

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(400 if scope["path"] == "/large" else 0):
            await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})
        while scope["path"] == "/long":
            await send({"type": "http.response.body", "body": b"-", "more_body": True})
            if (await receive())["type"] == "http.disconnect":
                return
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def streams(monkeypatch) -> Iterator[Door]:
    monkeypatch.setattr("cliploc.web.server.MOST", MOST)
    with running(Streams()) as address:
        yield Door(Streams(), address, [])


def begun(mine: socket.socket, path: str) -> None:
    """Asks for an answer, and takes its first bytes."""
    with contextlib.suppress(ConnectionError):
        mine.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        mine.recv(20)


def test_a_visitor_is_served_beside_answers_that_nobody_takes(streams):
    with contextlib.ExitStack() as slow:
        for _ in range(2 * MOST):
            begun(slow.enter_context(streams.connected()), "/large")
        for _ in range(3):
            assert streams.status() == 200


def test_one_visitor_cannot_have_all_connections(streams, monkeypatch):
    with contextlib.ExitStack() as mine:
        monkeypatch.setattr("cliploc.web.server.is_loopback", lambda host: False)
        for _ in range(2 * MOST):
            one = mine.enter_context(socket.socket())
            try:
                one.bind(("127.0.0.2", 0))
            except OSError:
                pytest.skip("this system has one loopback address")
            one.connect(("127.0.0.1", int(streams.address.rpartition(":")[2])))
            begun(one, "/long")  # an answer that goes on: it is not the client's turn
        assert streams.status() == 200


def test_one_visitor_cannot_have_all_uploads(tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "FIRST_BYTES", 1)

    async def answers() -> dict[str, list[int]]:
        got: dict[str, list[int]] = {"10.0.0.1": [], "10.0.0.2": []}

        async def app(scope: Any, receive: Any, send: Any) -> None:
            while (await receive()).get("more_body"):
                pass
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        mine = Guard(app, Hosts(), Uploads(tmp_path, 1000, 60), 100, lambda: None)

        async def upload(client: str, come: asyncio.Event) -> None:
            headers = {"Host": "localhost", "Content-Length": "2", "Content-Type": FORM}
            parts = [{"type": "http.request", "body": b"{", "more_body": True}]

            async def receive() -> Any:
                if parts:
                    return parts.pop()
                await come.wait()
                return {"type": "http.request", "body": b"}", "more_body": False}

            told = await handed(mine, LOCALIZE, headers, receive, client)
            got[client].append(told[0]["status"])

        later, now = asyncio.Event(), asyncio.Event()
        now.set()
        first = [asyncio.create_task(upload("10.0.0.1", later)) for _ in range(guard.UPLOADS_OF_ONE)]
        await asyncio.sleep(0)
        await upload("10.0.0.1", now)
        await upload("10.0.0.2", now)
        later.set()
        await asyncio.gather(*first)
        return got

    got = asyncio.run(answers())
    assert got == {"10.0.0.1": [503, *[200] * guard.UPLOADS_OF_ONE], "10.0.0.2": [200]}


# ---------------------------------------------------------------------------------------------------------- addresses
@pytest.mark.parametrize(
    ("target", "code", "said"),
    [
        ("/?names=%ff", 400, b"expected an address"),
        ("/api/menu?x=%ff", 400, b"expected an address"),
        ("/%ed%a0%80", 400, b"expected an address"),
        ("/api/menu?" + "x" * 70_000, 414, b"characters, got 70,009: shorten it"),
        ("/" + "x" * 70_000, 414, b"characters, got 70,001: shorten it"),
        ("/pictures/" + "1" * 5_000, 404, b""),
        ("/images/" + "1" * 5_000 + ".jpg", 404, b""),
        ("/?names=%e7%8c%ab&x=100%", 200, b""),
    ],
)
def test_an_address_that_cannot_be_is_a_line(door, target, code, said, capfd):
    answer = door.get(target)
    line = answer.partition(b"\r\n\r\n")[2]
    assert status_of(answer) in ((404, 414) if code == 404 else (code,)), line  # pictures have numbers in one of them
    assert said in line
    assert code == 200 or b"\n" not in line
    assert "Traceback" not in capfd.readouterr().err

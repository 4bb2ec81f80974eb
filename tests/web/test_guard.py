"""What is refused: files and addresses in requests, foreign hosts and pages, what cannot be asked, too much at once."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("starlette", reason="starlette is not installed: pip install 'cliploc[web]'")

from cliploc.web.hosts import Hosts
from cliploc.web.service import Offer, Service
from cliploc.web.settings import MOST_LETTERS, MOST_WORDS
from tests.web.asking import (
    ANNA,
    CAT,
    DEMO,
    FAST,
    FORM,
    SLOW,
    ask,
    get,
    located,
    post,
    post_json,
    service,
    started,
    uploaded,
)
from tests.web.serving import served

JSON = "application/json"


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[object]]]:
    """A server of somebody else's, and who came to it."""
    came: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)
        ended = threading.Event()

        def accept() -> None:
            while not ended.is_set():
                try:
                    connection, peer = listening.accept()
                except TimeoutError:
                    continue
                came.append(peer)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret")
                connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/secret.jpg", came
        time.sleep(0.2)  # whoever still comes
        ended.set()
        thread.join()


# --------------------------------------------------------------------------------------------- files and addresses
def test_no_address_is_fetched_wherever_it_stands(address, elsewhere):
    url, came = elsewhere
    known = {"visitor": ANNA, "picture": "cat.jpg", "exemplar": "bee.jpg", "search": True, "names": "cat", **FAST}
    for field in (*known, "settings", "photo", "url", "path"):
        for harm in (url, {"path": url, "url": url}, [url]):
            for path in ("/api/localize", "/api/show", "/api/files"):
                if not (field == "names" and harm == url):
                    assert post_json(address, {**known, field: harm}, path)[0] in (404, 422)
    assert get(f"{address}/api/menu?model={url}&picture={url}")[0] == 200
    for path in (f"files/{url}", f"examples/{url}", f"proxy={url}"):
        assert get(f"{address}/{path}")[0] == 404
    assert came == []


@pytest.mark.parametrize("named", [__file__, "/etc/passwd", "..%2f..%2fdemo.py", "../photos.json", "photos.json"])
def test_no_file_is_read_but_uploads_and_examples(address, named):
    for path in (f"/examples/{named}", f"/files/{named}", f"/static/{named}", f"/files/{'0' * 32}/{named}"):
        assert get(address + path)[0] == 404
    assert post_json(address, {"picture": named, "names": "cat"})[0] == 404


@pytest.mark.parametrize("path", ["/api/localize", "/api/show", "/api/files"])
@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        (b"{", 422, "expected a request in JSON"),
        (b"\xff\xfe", 422, "expected a request in JSON"),
        (b"[" * 100_000, 422, "expected a request in JSON"),
        (b'{"compare": ' + b"[" * 20 + b"]" * 20 + b"}", 422, "at most 8 deep"),
        (b"[1]", 422, "expected a JSON object"),
        (b'{"threshold": NaN}', 422, "expected a request in JSON"),
        (b'{"threshold": 1e999}', 422, "expected a request in JSON"),
        (b'{"names": "\\ud800"}', 422, "expected a request in JSON"),
        (b'{"names": "' + b"a|" * 300_000 + b'"}', 413, "at most 0.256 million bytes"),
    ],
)
def test_a_body_that_cannot_be_is_refused_in_a_line(address, path, body, code, said):
    answered, document = ask(address, body, path=path, content_type=JSON)
    assert (answered, said in document["error"], "\n" in document["error"]) == (code, True, False)


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/config", 404),
        ("GET", "/docs", 404),
        ("POST", "/gradio_api/upload", 404),
        ("POST", "/api/no_such", 404),
        ("POST", "/", 405),
        ("GET", "/api/show", 405),
        ("DELETE", "/", 405),
        ("OPTIONS", "/api/localize", 405),
    ],
)
def test_there_is_no_other_address(address, method, path, code):
    body = b"{}" if method == "POST" else None
    assert get(address + path, method, body, content_type=JSON)[0] == code


# ------------------------------------------------------------------------------------------------- settings and names
@pytest.mark.parametrize(
    ("names", "settings", "said"),
    [
        (["cat"], {}, "expected names as a text"),
        (3, {}, "expected names as a text"),
        ("cat", {"head": "/etc/passwd"}, "expected one of the settings"),
        ("cat", {"pretrained": "/etc/passwd"}, "expected one of the settings"),
        ("cat", {"model": "/etc/passwd"}, "expected a model of the menu"),
        ("cat", {"method": "/etc/passwd"}, "does not run on mini"),
        ("cat", {"threshold": 10**400}, "expected threshold from 0 to 1"),
        ("a" * (MOST_LETTERS + 1), {}, f"at most {MOST_LETTERS} characters"),
        ("|".join("abcde" for _ in range(MOST_WORDS + 1)), {}, f"at most {MOST_WORDS} names and synonyms"),
    ],
)
def test_what_cannot_be_asked_is_a_plain_error(address, names, settings, said):
    assert said in located(address, "cat.jpg", names, **settings)


def test_long_names_of_other_scripts_make_files(address):
    long = "猫" * 60
    code, made = post(address, ("picture", f"{long}.jpg", CAT), path="/api/files", names=f"{long}, 犬{long}", **FAST)
    assert code == 200
    names = [one["name"] for one in made["files"]]
    assert len(names) == len(set(names)) == 11
    assert all(len(name.encode()) <= 255 for name in names)
    assert {get(address + one["address"])[0] for one in made["files"]} == {200}


# ------------------------------------------------------------------------------------------------------ hosts and pages
def status(address: str, **headers: str) -> int:
    code, text, _ = get(address, **headers)
    if code != 200:
        assert "--allow-host" in text
        assert "\n" not in text
    return code


def test_a_foreign_name_and_a_foreign_page_are_turned_away(address):
    place = address.removeprefix("http://")
    port = place.rpartition(":")[2]
    for host in (place, f"localhost:{port}", "LOCALHOST", f"[::1]:{port}"):
        assert status(address, Host=host) == 200
    for host in (
        "evil.example",
        "127.0.0.1.evil.example",
        "evil.example:7860",
        "8.8.8.8",
        "localhost@evil.example",
        "",
    ):
        assert status(address, Host=host) == 421
    assert status(address, Origin=address) == 200
    for origin in ("http://evil.example", "null", "http://localhost:1", f"{address}.evil.example", "file://"):
        assert status(address, Origin=origin) == 403


def test_a_name_that_was_allowed_is_served(tmp_path):
    for address in started(service(), tmp_path, hosts=Hosts("0.0.0.0", ["page.example"])):
        assert status(address, Host="page.example") == 200
        assert status(address, Host="127.0.0.1", Origin="https://page.example") == 200
        assert status(address, Host="other.example") == 421


# ----------------------------------------------------------------------------------------------------------- too much
def test_a_request_that_takes_too_long_is_ended_and_the_next_is_served(tmp_path):
    hasty = Service([Offer("mini")], device="cpu", max_seconds=0.5)
    for address in started(hasty, tmp_path):
        code, document = post_json(address, {"picture": "cat.jpg", **SLOW, "flip": True})
        assert (code, "It took longer than 0.5 seconds" in document["error"]) == (503, True)
        hasty.runs._seconds = 60
        assert located(address, "cat.jpg", "cat", **FAST)["pictures"]


def test_old_uploads_and_downloads_go_and_examples_stay(tmp_path, monkeypatch):
    monkeypatch.setattr("cliploc.web.find.MOST_UPLOADS", 0)  # as if all of them were too old
    for address in started(service(), tmp_path):
        assert post(address, ("picture", "a.jpg", CAT), path="/api/files", names="cat", **FAST)[0] == 200
        mine = [one for one in tmp_path.rglob("*") if one.is_file()]
        assert len(mine) > 8
        uploaded(address, b"another")
        assert not any(one.is_file() for one in mine)
        assert located(address, "cat.jpg", "cat", **FAST)["pictures"]
    assert (DEMO / "cat.jpg").is_file()


def test_an_upload_of_many_files_counts_as_one(address):
    half = ("picture", "a.jpg", bytes(600_000))
    assert post(address, half, ("exemplar", *half[1:]), names="cat")[0] == 413


def test_a_body_of_unknown_length_is_refused(address):
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as mine:
        mine.sendall(
            b"POST /api/localize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        )
        assert mine.recv(100).startswith(b"HTTP/1.1 411")


def test_a_request_must_come_soon(tmp_path, monkeypatch):
    monkeypatch.setattr("cliploc.web.connections.HEADER_SECONDS", 0.3)
    monkeypatch.setattr("cliploc.web.guard.BODY_SECONDS", 0.3)
    monkeypatch.setattr("cliploc.web.guard.UPLOAD_SECONDS", 0.3)
    monkeypatch.setattr("cliploc.web.guard.DRAINED_SECONDS", 0.3)
    post = "POST /api/{} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\nContent-Type: {}\r\n\r\n-"
    sent = {
        "": b"",
        "GET / HTTP/1.1\r\nHost: loc": b"",
        "GET /api/menu HTTP/1.1\r\nHost: localhost\r\n\r\nGET /": b"HTTP/1.1 200",
        post.format("show", JSON): b"HTTP/1.1 408",
        post.format("localize", FORM): b"HTTP/1.1 408",
    }
    for address in started(service(), tmp_path):
        for text, answer in sent.items():
            with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=20) as mine:
                mine.sendall(text.encode())
                got = b""
                with contextlib.suppress(ConnectionResetError):
                    while more := mine.recv(65536):  # the server closes
                        got += more
                assert got.startswith(answer)


def test_nothing_that_is_sent_is_worth_a_traceback(address, capfd):
    port = int(address.rpartition(":")[2])
    for text in (b"\0\xff\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port)) as mine:
            mine.sendall(text)
            assert mine.recv(100).startswith((b"HTTP/1.1 400", b"HTTP/1.1 421"))
    with socket.create_connection(("127.0.0.1", port)) as mine:  # who leaves in the middle of an upload
        mine.sendall(
            b"POST /api/localize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
            b'Content-Disposition: form-data; name="picture"; filename="a.jpg"\r\n\r\nabc'
        )
        time.sleep(0.3)
    for field in ("picture", "exemplar", "visitor", "search", "names", "threshold", "compare", "masks"):
        for value in (None, 1, -1, "x", [], {}):
            known = {"visitor": ANNA, "search": True, "picture": "cat.jpg", "names": "cat", **FAST, field: value}
            for path in ("/api/localize", "/api/show", "/api/files"):
                text = get(address + path, "POST", json.dumps(known).encode(), content_type=JSON)[1]
                assert "error in cliploc" not in text
    assert "pictures" in located(address, "cat.jpg", "cat", **FAST)
    said = "".join(capfd.readouterr())
    assert "Traceback" not in said
    assert len(said) < 1000


# -------------------------------------------------------------------------------------------------- as a user starts it
def test_a_server_for_everybody_warns_outlasts_idle_connections_and_ends_by_a_signal_under_load(tmp_path):
    """One process for all of it: a start takes seconds."""
    folder, log = tmp_path / "temporary", tmp_path / "log"
    folder.mkdir()
    options = ("--host", "0.0.0.0", "--model", "mini")
    with served(*options, log=log, open_files=400, TMPDIR=str(folder)) as (said, process):
        port = said.rpartition(":")[2]
        assert said == f"http://0.0.0.0:{port}"
        address = f"http://127.0.0.1:{port}"
        assert status(address) == 200
        assert status(address, Host="other.example") == 421
        assert "warning: anyone who can reach 0.0.0.0 can use this page" in log.read_text()
        with contextlib.ExitStack() as idle:
            for _ in range(500):
                one = idle.enter_context(socket.create_connection(("127.0.0.1", int(port))))
                one.sendall(b"GET / HTTP/1.1\r\n")
            for _ in range(3):
                assert status(address) == 200
            assert located(address, CAT, "cat", **FAST)["pictures"]
        assert len(log.read_bytes()) < 1000
        names = ", ".join(f"cat {number}" for number in range(50))
        long_one = {"names": names, "method": "layer_cam", "scales": "1,1.43,2", "templates": "openai-80"}
        with ThreadPoolExecutor(5) as pool:
            asked = [pool.submit(post_json, address, {"picture": "cat.jpg", **long_one}) for _ in range(5)]
            time.sleep(1)
            assert list(folder.glob("cliploc-serve-*"))
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=20)
            for one in asked:
                with contextlib.suppress(OSError, http.client.HTTPException):  # cut off
                    one.result()
        assert process.returncode == 0
    assert "Traceback" not in log.read_text()
    assert list(folder.glob("cliploc-serve-*")) == []

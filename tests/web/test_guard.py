"""What is refused before gradio sees it: files and addresses in requests, foreign hosts and pages, too much at once."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'cliploc[web]'")
import gradio_client

from cliploc.web.hosts import Hosts
from cliploc.web.runs import StoppedError
from cliploc.web.service import Offer, Service
from cliploc.web.settings import MOST_LETTERS, MOST_WORDS
from tests.web.serving import served
from tests.web.test_server import DEMO, client, get, service, started

FILE = {"_type": "gradio.FileData"}
FAST = {"recipe": "fast"}  # sees a photograph once, the default 25 times
CAT = (DEMO / "cat.jpg").read_bytes()


@pytest.fixture(scope="module")
def uploaded(address) -> str:
    return upload(address, CAT)


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


def upload(address: str, content: bytes, name: str = "cat.jpg") -> str:
    body = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
    asked = urllib.request.Request(
        f"{address}/gradio_api/upload",
        body + content + b"\r\n--x--\r\n",
        {"Content-Type": "multipart/form-data; boundary=x"},
    )
    with urllib.request.urlopen(asked, timeout=30) as answer:
        return json.loads(answer.read())[0]


def located(address: str, *data: object, name: str = "locate") -> str:
    """The events of a call, or the refusal of it."""
    code, text, _ = get(f"{address}/gradio_api/call/{name}", {"data": list(data)})
    if code != 200:
        return text
    return get(f"{address}/gradio_api/call/{name}/{json.loads(text)['event_id']}")[1]


def functions(address: str) -> list[dict]:
    return [one for one in json.loads(get(f"{address}/config")[1])["dependencies"] if one["backend_fn"]]


# --------------------------------------------------------------------------------------------- files and addresses
def test_no_function_fetches_an_address_wherever_it_stands(address, uploaded, elsewhere, monkeypatch):
    url, came = elsewhere

    async def fetch(wanted: str, *others: object) -> str:  # gradio's own refuses this machine's addresses, no others
        came.append(wanted)
        return uploaded

    monkeypatch.setattr("gradio.processing_utils.async_ssrf_protected_download", fetch)
    named = {"path": url, "meta": FILE}
    photo = {"path": uploaded, "meta": FILE}
    places = [
        named,
        {"threshold": named},
        {"refine": [[{"a": named}]]},
        {**photo, "url": url},
        {"url": url, "meta": FILE},
    ]
    for one in functions(address):
        for place in range(len(one["inputs"])):
            for number, harm in enumerate(places):
                data: list[object] = [None] * len(one["inputs"])
                data[place] = harm
                body = {"data": data, "fn_index": one["id"], "session_hash": f"s{number}"}
                ways = ["queue/join", "run/predict", f"run/{one['api_name']}", f"call/{one['api_name']}"]
                for way in [*ways, f"api/{one['api_name']}"] if number < 2 else ways[:1]:
                    code, _, _ = get(f"{address}/gradio_api/{way}", body)
                    assert code == 422
    for key in ("path", "asked", "settings"):
        arguments = {"path": photo, "asked": "cat", "settings": {}, key: named}
        assert get(f"{address}/gradio_api/call/v2/locate", arguments)[0] == 422
    time.sleep(0.5)  # whatever waits in the queue
    assert came == []


@pytest.mark.parametrize("where", ["asked", "settings"])
def test_a_file_of_this_server_is_taken_as_the_photograph_only(address, uploaded, where):
    photo = {"path": uploaded, "meta": FILE}
    data = {"asked": [photo, photo, {}], "settings": [photo, "cat", {"names": photo}]}[where]
    assert "expected a file only as the photograph" in located(address, *data)
    foreign = {**photo, "url": "http://example.org/x.jpg"}
    assert "got an address" in located(address, foreign, "cat", {})
    own = {**photo, "url": f"{address}/gradio_api/file={uploaded}", "orig_name": "cat.jpg"}  # as a browser sends it
    assert "schema_version" in located(address, own, "cat", FAST)


def test_arguments_by_name_are_those_of_the_others(address, uploaded):
    photo = {"path": uploaded}
    code, text, _ = get(f"{address}/gradio_api/call/v2/locate", {"path": photo, "asked": "cat", "settings": FAST})
    assert code == 200
    event = json.loads(text)["event_id"]
    assert "schema_version" in get(f"{address}/gradio_api/call/v2/locate/{event}")[1]
    code, text, _ = get(f"{address}/gradio_api/call/v2/locate", {"photo": photo})
    assert (code, json.loads(text)["error"]) == (
        422,
        "expected arguments of path, asked, settings, exemplar, got 'photo'",
    )


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        (b"{", 422, "expected a request in JSON"),
        (b"\xff\xfe", 422, "expected a request in JSON"),
        (b"[" * 100_000, 422, "expected a request in JSON"),
        (b'{"data": [null, "cat", ' + b"[" * 20 + b"]" * 20 + b"]}", 422, "at most 8 deep"),
        (b"[1]", 422, "expected a JSON object"),
        (b'{"data": 1}', 422, '"data" as a list of 4 arguments'),
        (b'{"data": [null, "cat", {"threshold": NaN}]}', 422, "expected a request in JSON"),
        (b'{"data": [null, "cat", {"threshold": 1e999}]}', 422, "expected finite numbers"),
        (b'{"data": [null, "\\ud800", {}]}', 422, "whole characters"),
        (b'{"data": [null, "' + b"a|" * 300_000 + b'", {}]}', 413, "at most 0.256 million bytes"),
    ],
)
def test_a_body_that_cannot_be_is_refused_in_a_line(address, body, code, said):
    asked = urllib.request.Request(f"{address}/gradio_api/call/locate", body, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(asked, timeout=30)
    assert refused.value.code == code
    line = json.loads(refused.value.read())["error"]
    assert said in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/gradio_api/deep_link?session_hash=x", 403),
        ("GET", "/?deep_link=x", 403),
        ("GET", "/gradio_api/proxy=http://127.0.0.1:9/", 403),
        ("GET", "/gradio_api/file=HTTP://127.0.0.1:9/", 403),
        ("GET", "/monitoring", 403),
        ("GET", "/openapi.json", 403),
        ("POST", "/gradio_api/component_server", 404),
        ("POST", "/gradio_api/process_recording", 404),
        ("POST", "/gradio_api/vibe-edit", 403),
        ("POST", "/gradio_api/call/no_such", 404),
        ("DELETE", "/", 405),
    ],
)
def test_what_the_page_does_not_need_is_closed(address, method, path, code):
    body = b'{"data": []}' if method == "POST" else None
    asked = urllib.request.Request(address + path, body, {"Content-Type": "application/json"}, method=method)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(asked, timeout=30)
    assert refused.value.code == code


def test_an_unknown_session_is_no_mistake_of_the_server(address, capfd):
    code, text, _ = get(f"{address}/gradio_api/queue/data?session_hash=nobody")
    assert (code, "session_not_found" in text) == (200, True)
    assert capfd.readouterr().err == ""


def test_a_search_ends_when_its_visitor_leaves(tmp_path):
    searched = service()
    for place in started(searched, tmp_path):
        where = urlsplit(place)
        with socket.create_connection((where.hostname, where.port)) as present:
            present.sendall(f"GET /gradio_api/heartbeat/somebody HTTP/1.1\r\nHost: {where.netloc}\r\n\r\n".encode())
            assert b"200 OK" in present.recv(1000)
            path, names = upload(place, CAT), ", ".join(f"cat {number}" for number in range(50))
            settings = {"method": "score_cam", "scales": "1,1.43,2"}
            data = {"data": [{"path": path, "meta": FILE}, names, settings], "session_hash": "somebody"}
            assert get(f"{place}/gradio_api/call/locate", data)[0] == 200
            for _ in range(1000):
                if runs := list(searched.runs._runs):
                    break
                time.sleep(0.02)
        [run] = runs
        with pytest.raises(StoppedError, match="as you asked"):
            run.result()


def test_no_request_passes_by_the_queue(address, uploaded):
    for way in ("run", "api"):
        code, text, _ = get(f"{address}/gradio_api/{way}/locate", {"data": [{"path": uploaded}, "cat", {}]})
        assert code == 404
        assert "join the queue" in text


# ------------------------------------------------------------------------------------------------- settings and names
@pytest.mark.parametrize("settings", [[], [1], "", "threshold", 0, 3, True, False])
def test_settings_that_are_no_object_are_a_plain_error(address, uploaded, settings):
    answer = located(address, {"path": uploaded, "meta": FILE}, "cat", settings)
    assert "expected the settings as an object" in answer
    assert "mistake of cliploc's own" not in answer


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
def test_what_cannot_be_asked_is_a_plain_error(address, uploaded, names, settings, said):
    answer = located(address, {"path": uploaded, "meta": FILE}, names, settings)
    assert said in answer
    assert "mistake of cliploc's own" not in answer


def test_long_names_of_other_scripts_make_files(address):
    long = "猫" * 60
    path = upload(address, CAT, f"{long}.jpg")
    answer = located(address, {"path": path, "meta": FILE}, f"{long}, 犬{long}", FAST, name="files")
    assert "event: complete" in answer
    names = [Path(one["path"]).name for one in json.loads(answer.partition("data: ")[2])[0]]
    assert len(names) == len(set(names)) == 11
    assert all(len(name.encode()) <= 255 for name in names)


# ------------------------------------------------------------------------------------------------------ hosts and pages
def status(address: str, path: str = "/config", **headers: str) -> int:
    asked = urllib.request.Request(address + path, None, headers)
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        assert "--allow-host" in text
        assert "\n" not in text
        return error.code


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
        mine = client(address, tmp_path)
        photo = gradio_client.handle_file(str(DEMO / "cat.jpg"))
        slow = {"method": "score_cam", "scales": "1,1.43,2", "flip": True}
        with pytest.raises(gradio_client.exceptions.AppError, match=r"It took longer than 0\.5 seconds"):
            mine.predict(photo, "cat", slow, api_name="/locate")
        hasty.runs._seconds = 60
        assert mine.predict(photo, "cat", FAST, api_name="/locate")["pictures"]


def test_old_uploads_and_downloads_go_and_examples_stay(tmp_path, monkeypatch):
    monkeypatch.setattr("cliploc.web.server.MAX_UPLOADS", 0)  # as if all of them were too old
    for address in started(service(), tmp_path):
        examples = set(tmp_path.rglob("*.jpg"))
        assert len(examples) == len(list(DEMO.glob("*.jpg")))
        path = upload(address, (DEMO / "cat.jpg").read_bytes() + b"\0")
        assert "event: complete" in located(address, {"path": path, "meta": FILE}, "cat", FAST, name="files")
        mine = set(tmp_path.rglob("*.*")) - examples
        assert len(mine) > 8
        upload(address, b"another")
        assert {one for one in mine if one.is_file()} == set()
        assert all(one.is_file() for one in examples)


def test_an_upload_of_many_files_counts_as_one(address):
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\n' + bytes(600_000) + b"\r\n"
    asked = urllib.request.Request(
        f"{address}/gradio_api/upload", part * 2 + b"--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(asked, timeout=30)
    assert refused.value.code == 413


def test_a_body_of_unknown_length_is_refused(address):
    with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as mine:
        mine.sendall(
            b"POST /gradio_api/call/locate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        )
        assert mine.recv(100).startswith(b"HTTP/1.1 411")


def test_a_request_must_come_soon(tmp_path, monkeypatch):
    monkeypatch.setattr("cliploc.web.connections.HEADER_SECONDS", 0.3)
    monkeypatch.setattr("cliploc.web.guard.BODY_SECONDS", 0.3)
    monkeypatch.setattr("cliploc.web.guard.UPLOAD_SECONDS", 0.3)
    monkeypatch.setattr("cliploc.web.guard.DRAINED_SECONDS", 0.3)
    post = "POST /gradio_api/{} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\nContent-Type: {}\r\n\r\n-"
    sent = {
        "": b"",
        "GET / HTTP/1.1\r\nHost: loc": b"",
        "GET /config HTTP/1.1\r\nHost: localhost\r\n\r\nGET /": b"HTTP/1.1 200",
        post.format("call/locate", "application/json"): b"HTTP/1.1 408",
        post.format("upload", "multipart/form-data; boundary=x"): b"HTTP/1.1 408",
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


def test_nothing_that_is_sent_is_worth_a_traceback(address, uploaded, capfd):
    port = int(address.rpartition(":")[2])
    for text in (b"\0\xff\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port)) as mine:
            mine.sendall(text)
            assert mine.recv(100).startswith((b"HTTP/1.1 400", b"HTTP/1.1 421"))
    with socket.create_connection(("127.0.0.1", port)) as mine:  # who leaves in the middle of an upload
        mine.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
            b'Content-Disposition: form-data; name="files"; filename="a.jpg"\r\n\r\nabc'
        )
        time.sleep(0.3)
    for one in functions(address):
        for value in (None, 1, -1, "x", [], {}):
            data = [value] * len(one["inputs"])
            assert "mistake of cliploc" not in located(address, *data, name=one["api_name"])
    for body in ({"data": []}, {"data": [1], "fn_index": 10**6}, {"data": [], "fn_index": "x", "session_hash": 1}):
        for way in ("queue/join", "run/locate", "call/locate", "cancel", "reset", "upload"):
            assert get(f"{address}/gradio_api/{way}", body)[0] >= 400
    assert "schema_version" in located(address, {"path": uploaded, "meta": FILE}, "cat", FAST)
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
            path = upload(address, CAT)
            assert "schema_version" in located(address, {"path": path, "meta": FILE}, "cat", FAST)
        assert len(log.read_bytes()) < 1000
        names = ", ".join(f"cat {number}" for number in range(50))
        settings = {"method": "layer_cam", "scales": "1,1.43,2", "flip": True, "templates": "openai-80"}
        for _ in range(5):
            data = [{"path": path, "meta": FILE}, names, settings]
            assert get(f"{address}/gradio_api/call/locate", {"data": data})[0] == 200
        time.sleep(1)
        assert list(folder.glob("cliploc-serve-*"))
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=20)
        assert process.returncode == 0
    assert "Traceback" not in log.read_text()
    assert list(folder.glob("cliploc-serve-*")) == []

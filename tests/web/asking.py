"""Servers of the find page, and requests to them, as programs and the page send them."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cliploc
from cliploc.web.service import Offer, Service

PATIENCE = 120  # seconds: a busy machine takes long
DEMO = Path(cliploc.__file__).parent / "demo_photos"
CAT = (DEMO / "cat.jpg").read_bytes()
FORM = "multipart/form-data; boundary=x"
FAST = {"recipe": "fast"}  # sees a photograph once, the default 25 times
SLOW = {"names": "cat", "method": "score_cam", "scales": "1,1.43,2"}
ANNA, BERT = "a" * 32, "b" * 32

File = tuple[str, str, bytes]  # field, name, content


def service(**options: Any) -> Service:
    """For one server: it ends with it."""
    return Service([Offer("mini")], device="cpu", max_pixels=1_000_000, **options)


def started(service: Service, folder: Path, **options: Any) -> Iterator[str]:
    """A server of the find page in this process → its address."""
    from cliploc.web.find import application  # here: it needs the extra `web`

    with running(application(service, folder, **options), on_end=service.end) as address:
        yield address


@contextlib.contextmanager
def running(app: Any, port: int = 0, on_end: Callable[[], None] | None = None) -> Iterator[str]:
    """A server of an application in this process → its address."""
    from cliploc.web.server import Listener  # here: it needs the extra `web`

    server = Listener(app, on_end, port=port)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:  # also where a test fails: nothing may compute on
        server.should_exit = True
        thread.join(PATIENCE)
    assert not thread.is_alive()


@contextlib.contextmanager
def served(*arguments: str, log: Path | None = None, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`cliploc serve --port 0`, whose errors go to `log` → its address and its process; interrupted at the end."""
    command = [sys.executable, "-m", "cliploc", "serve", "--port", "0", *arguments]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with (
        contextlib.ExitStack() as stack,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if log is None else stack.enter_context(log.open("wb")),
            text=True,
            env=variables,
        ) as process,
    ):
        try:
            address = process.stdout.readline().strip()
            if not address:
                raise AssertionError(process.stderr.read() if log is None else log.read_text())
            yield address, process
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()


def get(url: str, method: str = "GET", body: bytes | None = None, **headers: str) -> tuple[int, str, dict[str, str]]:
    """Status, text and headers; the names of headers with _ for -."""
    where = urlsplit(url)
    connection = http.client.HTTPConnection(where.netloc, timeout=PATIENCE)
    path = f"{where.path or '/'}?{where.query}" if where.query else where.path or "/"
    connection.request(method, path, body, {key.replace("_", "-"): value for key, value in headers.items()})
    answer = connection.getresponse()
    found = {key.lower(): value for key, value in answer.getheaders()}
    text = answer.read().decode(errors="replace")
    connection.close()
    return answer.status, text, found


def sent(url: str, body: object = None, **headers: str) -> tuple[int, Any]:
    """Status and answer of JSON, which is posted, or of what is asked for; JSON is read."""
    content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
    method = "GET" if body is None else "POST"
    status, text, found = get(url, method, content, **{"Content-Type": "application/json", **headers})
    return status, json.loads(text) if found["content-type"] == "application/json" else text


def ask(
    address: str, body: bytes | None, method: str = "POST", path: str = "/api/localize", **headers: str
) -> tuple[int, Any]:
    """Status and document of the answer."""
    status, text, found = get(address + path, method, body, **headers)
    assert found["content-type"] == "application/json", text[:200]
    return status, json.loads(text)


def form(*files: File, **fields: str) -> bytes:
    """A form with these files and fields."""
    head = "--x\r\nContent-Disposition: form-data; name="
    texts = [f'{head}"{key}"\r\n\r\n{value}\r\n'.encode() for key, value in fields.items()]
    parts = [f'{head}"{key}"; filename="{name}"\r\n\r\n'.encode() + data + b"\r\n" for key, name, data in files]
    return b"".join([*texts, *parts, b"--x--\r\n"])


def post(address: str, *files: File, path: str = "/api/localize", **fields: str) -> tuple[int, Any]:
    """Sends a form."""
    return ask(address, form(*files, **fields), path=path, content_type=FORM)


def post_json(address: str, value: object, path: str = "/api/localize") -> tuple[int, Any]:
    """Sends JSON."""
    return ask(address, json.dumps(value).encode(), path=path, content_type="application/json")


def located(address: str, photo: str | bytes, names: object, **settings: Any) -> Any:
    """The document of a search in an example or in a file of the demo, or the sentence of a refusal."""
    if isinstance(photo, bytes):
        answer = post(address, ("picture", "cat.jpg", photo), names=str(names), **settings)
    else:
        answer = post_json(address, {"picture": photo, "names": names, **settings})
    return answer[1] if answer[0] == 200 else answer[1]["error"]


def uploaded(address: str, content: bytes = CAT, name: str = "cat.jpg") -> str:
    """The id of a picture, which the page has sent."""
    code, lines = show(address, form(("picture", name, content), visitor="f" * 32, names="cat"), content_type=FORM)
    assert code == 200, lines
    return str(lines[-1]["ids"]["picture"])


def show(address: str, wish: object, **headers: str) -> tuple[int, list[Any]]:
    """Status, and the lines of the answer of /api/show."""
    body = wish if isinstance(wish, bytes) else json.dumps(wish).encode()
    headers = {"content_type": "application/json", **headers}
    status, text, _ = get(f"{address}/api/show", "POST", body, **headers)
    return status, [json.loads(line) for line in text.splitlines()]

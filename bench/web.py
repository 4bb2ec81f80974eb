"""`cliploc serve` under load: how many requests, how soon, none lost; memory over 5,000 requests.

    python -m bench.web [--clients 1 4 16] [--requests 100] [--many 5000] [--out bench/results]
    python -m bench.web --clients 50 --seconds 300 --slow 5

Starts a server of `mini` as a user does, and asks it for one name in a photograph: the whole way of a request, from the
file to the document with boxes. At first every photograph is a new one, the demo's in turn with a patch of its own.
Then the demo's own photographs are asked for with names that nobody asked for before, which the server answers without
the image tower: as the page does it where Find is pressed (`POST /api/show`, with all that the page shows in the
answer), and by `POST /api/localize`, with the photograph and with its id. Clients are threads of this process, on the
same machine, so that they take processor time from the server. An answer is checked: it is of the photograph sent.

With `--seconds`, clients press Find on the page without a pause for so long, with its own recipe and each time with a
new photograph, more than the server takes: each request must end in an answer or a refusal that says so. `--slow`
further ones send their photograph a few bytes a second. At the end the server is told to stop while all still ask.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from PIL import Image

from bench.keep import headed, keep
from bench.resident import resident_mib
from bench.vit_methods import machine
from cliploc.find.prompts import imagenet_classes

NAME = "dog"  # of photographs that were not there before
PATCH = 24  # pixels
Question = tuple[Path, str]


@dataclass(frozen=True)
class Load:
    """What a number of clients saw.

    Attributes:
        clients: at once.
        requests: of all together.
        lost: without an answer, or with another photograph's.
        a_second: answers.
        p50: seconds from request to answer, the median.
        p95: 95 of 100 were no slower.
        slowest: seconds.
        server_ms: processor time of the server for a request.
        client_ms: processor time of the clients for a request.
    """

    clients: int
    requests: int
    lost: int
    a_second: float
    p50: float
    p95: float
    slowest: float
    server_ms: float
    client_ms: float


LOCALIZE, SHOW = "/api/localize", "/api/show"
PAGE = ("-m", "cliploc", "serve", "--port", "0")
FORM = "multipart/form-data; boundary=x"


@contextmanager
def server() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server's address and process."""
    command = [sys.executable, *PAGE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            if not address:
                raise SystemExit("the server did not start")
            yield address, process
        finally:
            process.terminate()
            process.wait(60)


def processor_seconds(pid: int) -> float:
    """Processor time of a process until now."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def asked(client: Client, photo: Path, name: str) -> float | None:
    """Seconds of one request; None when it is lost."""
    start = time.perf_counter()
    try:
        client.ask(photo, name)
    except Exception as error:
        print(f"lost: {type(error).__name__}: {error}", file=sys.stderr)
        return None
    return time.perf_counter() - start


class Client:
    """Asks `POST /api/localize`, over one connection, as any program can; it takes little time itself.

    Args:
        address: of the server.
        ids: of photographs that were uploaded, which are named by them; clients may share it. None: each is uploaded.
    """

    def __init__(self, address: str, ids: dict[Path, str] | None = None) -> None:
        where = urlsplit(address)
        self._connection = http.client.HTTPConnection(str(where.hostname), where.port, timeout=120)
        self._ids = ids

    def ask(self, photo: Path, name: str) -> None:
        """Asks for a name in a photograph.

        Raises:
            RuntimeError: the answer is a refusal, or of another photograph.
        """
        document = json.loads(self._sent(LOCALIZE, photo, {"names": name, "method": "cam"}))
        if self._ids is not None:
            self._ids[photo] = document["ids"]["picture"]
        if document["pictures"][0]["file"] != photo.name:
            raise RuntimeError("another photograph's answer")

    def close(self) -> None:
        """Ends the connection; the next question opens another."""
        self._connection.close()

    def _sent(self, place: str, photo: Path, fields: dict[str, Any]) -> bytes:
        """The answer to a question about a photograph, which is uploaded or named by its id."""
        if self._ids is not None and photo in self._ids:
            body, kind = json.dumps({**fields, "picture": self._ids[photo]}).encode(), "application/json"
        else:
            body, kind = form(photo, fields), FORM
        try:
            self._connection.request("POST", place, body, {"Content-Type": kind})
            answer = self._connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):
            self.close()
            raise
        if answer.status != 200:
            raise RuntimeError(f"{answer.status}: {content[:200]!r}")
        return content


class Browser(Client):
    """Presses Find, as the page does: one request for all that it shows. A new photograph is sent with it.

    Args:
        address: of the server.
        ids: of photographs that were sent; clients may share it.
        defaults: the values of the page's controls.
        method: that is chosen; "" for the page's own recipe.
    """

    def __init__(self, address: str, ids: dict[Path, str], defaults: dict[str, Any], method: str) -> None:
        super().__init__(address, ids)
        self._fields = {**defaults, **({"method": method} if method else {})}
        self._visitor = secrets.token_hex(16)

    def ask(self, photo: Path, name: str) -> None:
        """As `Client.ask`; the photograph's name stands in the pictures."""
        fields = wish_of(self._visitor, "", {**self._fields, "names": name})
        del fields["picture"]
        shown = json.loads(self._sent(SHOW, photo, fields).splitlines()[-1])
        if f"{photo.name} with the heatmap for “{name}”" not in shown.get("figures", ""):
            raise RuntimeError(shown["status"]["text"])
        assert self._ids is not None
        self._ids[photo] = shown["ids"]["picture"]


def form(photo: Path, fields: dict[str, Any]) -> bytes:
    """A form with a photograph."""
    texts = [f'--x\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{one}\r\n' for key, one in fields.items()]
    head = f'--x\r\nContent-Disposition: form-data; name="picture"; filename="{photo.name}"\r\n\r\n'
    return "".join([*texts, head]).encode() + photo.read_bytes() + b"\r\n--x--\r\n"


def wish_of(visitor: str, picture: str, settings: dict[str, Any]) -> dict[str, Any]:
    """What the page's JavaScript sends where Find is pressed; tests/web/test_browser.py compares it."""
    return {**settings, "visitor": visitor, "picture": picture, "exemplar": ""}


def page_defaults(address: str) -> dict[str, Any]:
    """The values of the page's controls when it opens, as its JavaScript sends them."""
    with urllib.request.urlopen(f"{address}/api/menu") as answer:
        values = json.load(answer)["values"]
    return {name: ",".join(value) if isinstance(value, list) else str(value) for name, value in values.items()}


class Photos:
    """The demo's photographs, and as many others as are asked for."""

    def __init__(self, folder: Path) -> None:
        self.own = sorted(Path(str(resources.files("cliploc"))).joinpath("demo_photos").glob("*.jpg"))
        self._folder, self._made = folder, itertools.count()
        names = [one.name for one in imagenet_classes() if one.name.replace(" ", "").isalpha()]
        self._rounds = ((photo, name) for name in names for photo in self.own)

    def new(self, number: int) -> list[Question]:
        """Photographs that were not there before, with one name."""
        return [(self._make(next(self._made)), NAME) for _ in range(number)]

    def again(self, number: int) -> list[Question]:
        """The demo's own, with names that they were not asked for with."""
        return list(itertools.islice(self._rounds, number))

    def _make(self, number: int) -> Path:
        photo = self.own[number % len(self.own)]
        path = self._folder / f"{photo.stem}-{number}.jpg"
        with Image.open(photo) as opened:
            other = opened.convert("RGB")
        patch = np.random.default_rng(number).integers(256, size=(3, 3, 3), dtype=np.uint8)
        other.paste(Image.fromarray(patch).resize((PATCH, PATCH), Image.Resampling.NEAREST), (0, 0))
        other.save(path, quality=90)
        return path


def load(pid: int, ready: Sequence[Client], questions: Sequence[Question], first: Question) -> Load:
    """These clients at once, each with its share of the questions one after the other; the first is not counted."""
    clients = len(ready)
    shares = [questions[i::clients] for i in range(clients)]
    asked(ready[0], *first)
    for one in ready:
        one.close()  # the server does not keep a connection for long
    start, mine, theirs = time.perf_counter(), time.process_time(), processor_seconds(pid)
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda one, share: [asked(one, *each) for each in share], ready, shares))
    passed = time.perf_counter() - start
    mine, theirs = time.process_time() - mine, processor_seconds(pid) - theirs
    seconds = [answer for share in answers for answer in share]
    good = np.array([answer for answer in seconds if answer is not None])
    p50, p95 = (float(value) for value in np.quantile(good, [0.5, 0.95]))
    each = 1000 / len(seconds)
    return Load(
        clients,
        len(seconds),
        len(seconds) - len(good),
        len(good) / passed,
        p50,
        p95,
        float(good.max()),
        theirs * each,
        mine * each,
    )


# ------------------------------------------------------------------------------------------- more than the server takes
REFUSALS = re.compile(r"\b(429|503)\b|too many|queue is full|try again", re.IGNORECASE)


@dataclass
class Crowd:
    """How requests ended while more clients asked than the server takes.

    Attributes:
        ends: "answered", "refused", "lost", and "cut off": by the stop.
        texts: of refusals and losses.
        waits: seconds of those answered.
        memory: seconds, and resident MiB then.
        slow: how the slow clients' connections ended.
        server_ms: processor time of the server for an answer.
        client_ms: processor time of the clients for an answer.
        seconds_to_stop: from SIGTERM to the end of the process; 0 where it did not end.
    """

    ends: Counter[str]
    texts: Counter[str]
    waits: list[float]
    memory: list[tuple[int, float]]
    slow: Counter[str]
    server_ms: float = 0
    client_ms: float = 0
    seconds_to_stop: float = 0


def crowd(clients: int, seconds: float, slow: int) -> Crowd:
    """Clients press Find for so many seconds; then the server is stopped under load."""
    found = Crowd(Counter(), Counter(), [], [], Counter())
    stopping, lock = threading.Event(), threading.Lock()

    def visit(client: Client, photos: Photos) -> None:
        while not stopping.is_set():
            [(photo, name)] = photos.new(1)
            start, text, end = time.perf_counter(), "", "answered"
            try:
                client.ask(photo, name)
            except Exception as error:
                text = f"{type(error).__name__}: {error}".splitlines()[0][:160]
                end = "cut off" if stopping.is_set() else "refused" if REFUSALS.search(text) else "lost"
            photo.unlink()
            with lock:
                found.ends[end] += 1
                if end == "answered":
                    found.waits.append(time.perf_counter() - start)
                elif end != "cut off":
                    found.texts[text] += 1
            if end == "refused":
                time.sleep(0.5)

    with server() as (address, process), tempfile.TemporaryDirectory() as folder:
        photos, defaults = Photos(Path(folder)), page_defaults(address)
        ready = [Browser(address, {}, defaults, "") for _ in range(clients)]
        asked(ready[0], *photos.again(1)[0])
        threads = [threading.Thread(target=visit, args=(one, photos), daemon=True) for one in ready]
        threads += [
            threading.Thread(target=trickle, args=(address, found.slow, stopping), daemon=True) for _ in range(slow)
        ]
        start, mine, theirs = time.monotonic(), time.process_time(), processor_seconds(process.pid)
        for one in threads:
            one.start()
        while (passed := time.monotonic() - start) < seconds:
            found.memory.append((round(passed), resident_mib(process.pid)))
            time.sleep(min(10.0, seconds - passed))
        found.memory.append((round(seconds), resident_mib(process.pid)))
        each = 1000 / max(1, len(found.waits))
        found.server_ms = (processor_seconds(process.pid) - theirs) * each
        found.client_ms = (time.process_time() - mine) * each
        stopping.set()
        start = time.monotonic()
        process.terminate()
        try:
            process.wait(60)
            found.seconds_to_stop = time.monotonic() - start
        except subprocess.TimeoutExpired:
            process.kill()
        for one in threads:
            one.join(10)
    return found


def trickle(address: str, ends: Counter[str], stopping: threading.Event) -> None:
    """Uploads of some bytes a second, one after the other."""
    where = urlsplit(address)
    head = (
        f"POST {LOCALIZE} HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Length: 50000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        '--x\r\nContent-Disposition: form-data; name="picture"; filename="a.jpg"\r\n\r\n'
    )
    while not stopping.is_set():
        with socket.create_connection((str(where.hostname), where.port or 80)) as connection:
            connection.settimeout(1)
            try:
                connection.sendall(head.encode())
                while not stopping.is_set():
                    connection.sendall(b"0123456789")
                    try:
                        answer = connection.recv(200)
                    except TimeoutError:
                        continue
                    line = answer.split(b"\r\n")[0].decode("latin-1")
                    ends[line or "closed"] += 1
                    break
                else:
                    ends["still sending at the stop"] += 1
            except OSError:
                ends["closed"] += 1


def said(found: Crowd) -> list[str]:
    """A table and lines."""
    waits: Any = np.array(found.waits or [np.nan])
    later = [mib for passed, mib in found.memory if 2 * passed >= found.memory[-1][0]]
    rows = [(end, found.ends[end]) for end in ("answered", "refused", "lost", "cut off")]
    return [
        "| end of a request | requests |",
        "|---|---:|",
        *(f"| {end} | {count} |" for end, count in rows),
        "",
        f"{len(found.waits) / found.memory[-1][0]:.1f} answers a second, which took {np.median(waits):.1f} s at the "
        f"median, {waits.max():.1f} s at most; processor time of an answer: server {found.server_ms:.0f} ms, clients "
        f"{found.client_ms:.0f} ms.",
        "Refusals and losses: "
        + ("; ".join(f"{count} × {text}" for text, count in found.texts.items()) or "none")
        + ".",
        "Slow clients: " + ("; ".join(f"{count} × {text}" for text, count in found.slow.items()) or "none") + ".",
        "Memory: " + ", ".join(f"{mib:.0f} MiB after {passed} s" for passed, mib in found.memory) + "; "
        f"in the second half between {min(later):.0f} and {max(later):.0f}.",
        f"SIGTERM to the end: {found.seconds_to_stop:.1f} s (0.0: it did not end).",
    ]


HEAD = [
    "| clients | requests | lost | requests/s | p50 s | p95 s | slowest s | server's ms a request | clients' ms |",
    "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
]
# Find on the page, for other names on photographs seen before: with a method, and as the page opens.
PRESSED = {"Other names on photographs seen before, on the page": "cam", "The same, with the page's recipe": ""}
Clients = dict[int, list[Client]]
Ask = Callable[[int], list[Question]]


def row(one: Load) -> str:
    """Of the table under `HEAD`."""
    return (
        f"| {one.clients} | {one.requests} | {one.lost} | {one.a_second:.1f} | {one.p50:.2f} | {one.p95:.2f} "
        f"| {one.slowest:.2f} | {one.server_ms:.0f} | {one.client_ms:.0f} |"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 4, 16], help="at once; none: memory only")
    parser.add_argument("--requests", type=int, default=96, help="of all clients together, for each number of them")
    parser.add_argument("--many", type=int, default=5000, help="requests over which memory is watched; 0 for none")
    parser.add_argument("--seconds", type=float, default=0, help="the first number of clients asks for so long instead")
    parser.add_argument("--slow", type=int, default=0, help="with --seconds: further clients that upload slowly")
    parser.add_argument("--out", type=Path, help="folder of results")
    given = parser.parse_args()
    on = machine(torch.get_num_threads())
    if given.seconds:
        found = crowd(given.clients[0], given.seconds, given.slow)
        print(headed("The page with more visitors than it takes", "", on, said(found)))
        return 1 if found.ends["lost"] or not found.seconds_to_stop else 0
    loads: dict[str, list[Load]] = {}
    memory: list[tuple[int, float]] = []
    table: list[str] = []
    lost = 0
    with tempfile.TemporaryDirectory() as folder:
        photos = Photos(Path(folder))

        def measured(title: str, process: subprocess.Popen[str], ready: Clients, ask: Ask) -> None:
            table.extend(["", f"{title}:", "", *HEAD] if ready else [])
            for clients, each in ready.items():
                one = load(process.pid, each, ask(max(given.requests, clients)), photos.again(1)[0])
                loads.setdefault(title, []).append(one)
                table.append(row(one))
                print(title, table[-1], file=sys.stderr)

        with server() as (address, process):
            ready = {clients: [Client(address) for _ in range(clients)] for clients in given.clients}
            measured("Every photograph another one, by POST /api/localize", process, ready, photos.new)
            ids: dict[Path, str] = {}
            defaults = page_defaults(address)
            for title, method in PRESSED.items():
                browsers: Clients = {
                    clients: [Browser(address, ids, defaults, method) for _ in range(clients)]
                    for clients in given.clients
                }
                for each in list(browsers.values())[:1]:  # photographs are seen
                    load(process.pid, each, photos.again(len(photos.own)), photos.again(1)[0])
                measured(title, process, browsers, photos.again)
            measured("The same with CAM, by POST /api/localize", process, ready, photos.again)
            by_id = {clients: [Client(address, ids) for _ in range(clients)] for clients in given.clients}
            measured("The same, with the photographs' ids", process, by_id, photos.again)
            if given.many:
                four = [Browser(address, ids, defaults, "cam") for _ in range(4)]
                memory.append((0, resident_mib(process.pid)))
                for done in range(given.many // 10, given.many + 1, given.many // 10):
                    new = photos.new(given.many // 10)
                    lost += load(process.pid, four, new, photos.again(1)[0]).lost
                    for path, _ in new:
                        path.unlink()
                    memory.append((done, resident_mib(process.pid)))
                    print(f"{done} requests, {memory[-1][1]:.0f} MiB", file=sys.stderr)
        lost += sum(one.lost for each in loads.values() for one in each)
        if memory:
            table += [
                "",
                "| further new photographs on the page, 4 clients | resident MiB of the server |",
                "|---:|---:|",
            ]
            table += [f"| {done} | {mib:.0f} |" for done, mib in memory]
        sizes = [one.stat().st_size // 1000 for one in photos.own]
    about = (
        f"`python -m bench.web`: `cliploc serve` with `mini` and `cam`, asked for one name by clients on the "
        f"same machine. Photographs of {min(sizes)}–{max(sizes)} kB, "
        f"uploaded each time unless they are named by an id. Lost of all requests: {lost}."
    )
    page = headed("The page under load", about, on, table)
    print(page)
    keep(
        given.out,
        "web",
        {
            "machine": on,
            "loads": {kind: [asdict(one) for one in each] for kind, each in loads.items()},
            "memory": memory,
            "lost": lost,
        },
        page,
    )
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())

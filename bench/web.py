"""`cliploc serve` under load, as gradio's own client asks: how many, how soon, none lost; memory over 1,000 requests.

    python -m bench.web [--clients 1 4 16] [--requests 100] [--many 1000] [--out bench/results]

Starts a server of `mini` as a user does, and asks it for one name in the demo's photographs in turn, each uploaded
anew: the whole way of a request, from the file to the document with boxes. Clients are threads of this process, on the
same machine, so that they take processor time from the server. An answer is checked: it is of the photograph sent.
"""

from __future__ import annotations

import argparse
import itertools
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

import gradio_client
import numpy as np
import torch

from bench.cnn_methods import machine
from bench.keep import headed, keep

NAME = "dog"


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
    """

    clients: int
    requests: int
    lost: int
    a_second: float
    p50: float
    p95: float
    slowest: float


@contextmanager
def server() -> Iterator[tuple[str, int]]:
    """A server's address and process, in processes of its own."""
    command = [sys.executable, "-m", "cliploc", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            if not address:
                raise SystemExit("the server did not start")
            yield address, process.pid
        finally:
            process.terminate()
            process.wait(60)


def resident_mib(pid: int) -> float:
    """Memory of a process now."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def asked(client: gradio_client.Client, photo: Path) -> float | None:
    """Seconds of one request; None when it is lost."""
    start = time.perf_counter()
    try:
        document = client.predict(gradio_client.handle_file(str(photo)), NAME, {}, api_name="/locate")
    except Exception as error:
        print(f"lost: {type(error).__name__}: {error}", file=sys.stderr)
        return None
    seconds = time.perf_counter() - start
    return seconds if document["pictures"][0]["file"] == photo.name else None


def visitors(address: str, number: int) -> list[gradio_client.Client]:
    """Each a session of its own."""
    return [gradio_client.Client(address, verbose=False, analytics_enabled=False) for _ in range(number)]


def load(ready: list[gradio_client.Client], photos: list[Path], requests: int) -> Load:
    """These clients at once, each with its share of the requests one after the other."""
    clients = len(ready)
    turns = itertools.cycle(photos)
    shares = [[next(turns) for _ in range(max(1, requests // clients))] for _ in range(clients)]
    for one in ready:
        asked(one, photos[0])
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda one, share: [asked(one, photo) for photo in share], ready, shares))
    passed = time.perf_counter() - start
    seconds = [answer for share in answers for answer in share]
    good = np.array([answer for answer in seconds if answer is not None])
    p50, p95 = (float(value) for value in np.quantile(good, [0.5, 0.95]))
    return Load(clients, len(seconds), len(seconds) - len(good), len(good) / passed, p50, p95, float(good.max()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16], help="at once")
    parser.add_argument("--requests", type=int, default=96, help="of all clients together, for each number of them")
    parser.add_argument("--many", type=int, default=1000, help="requests over which memory is watched; 0 for none")
    parser.add_argument("--out", type=Path, help="folder of results")
    given = parser.parse_args()
    photos = sorted(Path(str(resources.files("cliploc"))).joinpath("demo_photos").glob("*.jpg"))
    on = machine(torch.get_num_threads())
    table = [
        "| clients | requests | lost | requests/s | p50 s | p95 s | slowest s |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    loads, memory = [], []
    with server() as (address, pid):
        for clients in given.clients:
            one = load(visitors(address, clients), photos, given.requests)
            loads.append(one)
            table.append(
                f"| {one.clients} | {one.requests} | {one.lost} | {one.a_second:.1f} | {one.p50:.2f} | {one.p95:.2f} "
                f"| {one.slowest:.2f} |"
            )
            print(table[-1], file=sys.stderr)
        lost = sum(one.lost for one in loads)
        if given.many:
            four = visitors(address, 4)
            memory.append((0, resident_mib(pid)))
            for done in range(given.many // 10, given.many + 1, given.many // 10):
                lost += load(four, photos, given.many // 10).lost
                memory.append((done, resident_mib(pid)))
                print(f"{done} requests, {memory[-1][1]:.0f} MiB", file=sys.stderr)
            table += ["", "| further requests, 4 clients | resident MiB of the server |", "|---:|---:|"]
            table += [f"| {done} | {mib:.0f} |" for done, mib in memory]
    sizes = [one.stat().st_size // 1000 for one in photos]
    about = (
        f"`python -m bench.web`: `cliploc serve` with `mini` and `cam`, asked for {NAME!r} by gradio's client on the "
        f"same machine, the demo's photographs ({min(sizes)}–{max(sizes)} kB) uploaded anew each time. Lost of all "
        f"requests: {lost}."
    )
    page = headed("The page under load", about, on, table)
    print(page)
    keep(
        given.out, "web", {"machine": on, "loads": [asdict(one) for one in loads], "memory": memory, "lost": lost}, page
    )
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())

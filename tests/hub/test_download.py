"""Downloads, rehearsed against a hub on this machine: what arrives, and what a user reads when it does not."""

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from safetensors.torch import save

from tests.backbones.small_clip import save_folder, small_clip
from tests.backbones.test_transformers_folder import byte_pairs, model_of
from tests.commands import CAT
from tests.hub.server import STATUS, Hub

FAULTS = (*STATUS, "cut", "short", "damaged", "slow", "stalled")
RUNNER = """
import contextlib, errno, importlib, io, json, os, signal, sys, time, traceback
from pathlib import Path
from unittest import mock
for name in sys.argv[1:]:
    importlib.import_module(name)
from cliploc.cli import main
def full(*arguments, **settings):
    raise OSError(errno.ENOSPC, "No space left on device")
wait = time.sleep
mock.patch("time.sleep", lambda seconds: wait(min(seconds, 0.02))).start()  # between attempts at a hub that is busy
mock.patch("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 2**20).start()  # as if the file had many pieces of 10 MB
CONDITIONS = {  # what a command may begin with
    "FULL": mock.patch("huggingface_hub.file_download.http_get", full),
    "OFFLINE": mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True),  # as its variable sets it at the import
}
def carried_out(words):
    out, err = io.StringIO(), io.StringIO()
    condition = CONDITIONS.get(words[0], contextlib.nullcontext())
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), condition:
        code = main([word for word in words if word not in CONDITIONS])
    return code, out.getvalue(), err.getvalue()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those that have ended are gone
for line in sys.stdin:
    commands, answer = json.loads(line)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            half = Path(answer + ".half")
            half.write_text(json.dumps([carried_out(words) for words in commands]))
            half.rename(answer)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    print(child, flush=True)
"""


class Commands:
    """A process that carries out commands."""

    def __init__(self, pid, answer):
        self.pid, self.answer = pid, answer

    def alive(self):
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def ended(self):
        """Code, what was printed, and what was said, of each."""
        until = time.monotonic() + 240
        while self.alive() and time.monotonic() < until:
            time.sleep(0.02)
        assert self.answer.exists(), "the commands have not ended well"
        return [tuple(one) for one in json.loads(self.answer.read_text())]

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        while self.alive():
            time.sleep(0.02)


class Machine:
    """A user's machine: its environment, a home, and processes, forked from one that has imported some packages."""

    def __init__(self, home, imported=("open_clip",), **environment):
        self.home, self.count = home, 0
        home.mkdir(exist_ok=True)
        held = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        held.pop("HF_HUB_OFFLINE", None)
        held |= {"HF_HOME": str(home), "HOME": str(home), "HF_HUB_DISABLE_XET": "1", "COLUMNS": "1000"}
        held |= {"TQDM_POSITION": "-1", **environment}  # bars as on a terminal
        command = [sys.executable, "-c", RUNNER, *imported]
        self.first = subprocess.Popen(command, env=held, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.first.communicate(timeout=240)

    def start(self, *commands):
        self.count += 1
        answer = self.home / f"answer {self.count}.json"
        self.first.stdin.write(json.dumps([commands, str(answer)]) + "\n")
        self.first.stdin.flush()
        return Commands(int(self.first.stdout.readline()), answer)


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = save_folder(tmp_path_factory.mktemp("open_clip"))
    files = {
        "open_clip_config.json": (folder / "open_clip_config.json").read_bytes(),
        "open_clip_model.safetensors": save(small_clip(seed=5).state_dict()),
    }
    saved = tmp_path_factory.mktemp("transformers")
    model_of("clip").save_pretrained(saved)
    byte_pairs().save_pretrained(saved)
    theirs = {path.name: path.read_bytes() for path in saved.iterdir()}
    repositories = {f"org/{name}": files for name in ("good", "full", "spoilt", "long", *FAULTS)}
    repositories["org/clip"] = theirs
    repositories["org/blip"] = {"config.json": b'{"model_type": "blip"}'}
    repositories["org/empty"] = {"README.md": b"soon"}
    with Hub(repositories, {f"org/{name}": name for name in FAULTS}) as served:
        yield served


def download(repository):
    return ["models", "--download", f"hf-hub:{repository}"]


NAMES = ["org/good", "org/clip", "org/cut", "org/damaged", "org/short", "org/blip", "org/empty", "org/none", *(
    f"org/{name}" for name in STATUS
)]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def machine(hub, home):
    """With the hub as it is, and no proxy."""
    with Machine(home, HF_ENDPOINT=hub.url) as there:
        yield there


@pytest.fixture(scope="module")
def told(machine):
    """Repository → code, what was printed, and what was said, of a first download."""
    results = machine.start(*map(download, NAMES), ["FULL", *download("org/full")]).ended()
    return dict(zip([*NAMES, "org/full"], results, strict=True))


def snapshot(home, repository, name):
    (path,) = (home / "hub" / f"models--{repository.replace('/', '--')}" / "snapshots").glob(f"*/{name}")
    return path


@pytest.mark.parametrize(
    ("repository", "weights"), [("org/good", "open_clip_model.safetensors"), ("org/clip", "model.safetensors")]
)
def test_a_first_download_shows_its_progress(told, hub, home, repository, weights):
    code, out, err = told[repository]
    assert code == 0, err
    path = snapshot(home, repository, weights)
    assert out.strip() == f"hf-hub:{repository} is there: {path}"
    assert path.read_bytes() == hub.repositories[repository][weights]
    assert f"{weights}: 100%" in err
    assert hub.downloads(repository) == [""]


def test_a_download_that_is_cut_goes_on_where_it_ended(told, hub, home):
    code, _, err = told["org/cut"]
    assert code == 0, err
    name = "open_clip_model.safetensors"
    content = hub.repositories["org/cut"][name]
    assert snapshot(home, "org/cut", name).read_bytes() == content
    assert hub.downloads("org/cut") == ["", f"bytes={len(content) // 2 // 2**20 * 2**20}-"]


@pytest.mark.parametrize(
    ("repository", "line"),
    [
        ("org/unauthorised", "HOST has no public repository org/unauthorised: check its name, or run `hf auth login`"),
        ("org/none", "HOST has no public repository org/none: check its name"),
        ("org/token", "HOST answers 401 (Unauthorized): run `hf auth login` with a valid token"),
        ("org/gone", "HOST has no public repository org/gone"),
        ("org/gated", "the repository org/gated asks for consent: accept its terms on HOST, then run `hf auth login`"),
        ("org/forbidden", "HOST answers 403 (Forbidden): ask its owner for access, then run `hf auth login`"),
        ("org/busy", "HOST answers 429 (Too Many Requests): wait some minutes"),
        ("org/down", "HOST answers 503 (Service Unavailable): try again later"),
        ("org/empty", "the repository org/empty has none of open_clip_config.json, config.json"),
        ("org/blip", "has a transformers model of the type 'blip', which is not supported"),
        ("org/short", "could not be downloaded (Consistency check failed: file should be of size"),
        ("org/damaged", "came damaged: the SHA-256 of open_clip_model.safetensors is"),
        ("org/full", "do not fit on the disk of HOUSE/hub: free space, or set HF_HOME to a folder with more"),
    ],
)
def test_what_fails_is_one_line(told, hub, home, repository, line):
    code, out, err = told[repository]
    assert (code, out) == (2, "")
    said = [one for one in err.splitlines() if one.startswith("cliploc: ")]
    assert len(said) == 1, err
    assert "Traceback" not in err
    assert line.replace("HOST", hub.url.removeprefix("http://")).replace("HOUSE", str(home)) in said[0]


def test_a_damaged_file_does_not_stay_in_the_cache(told, home):
    folder = home / "hub" / "models--org--damaged"
    assert not [path for path in folder.rglob("*safetensors*") if path.exists()]
    assert all(path.stat().st_size < 10_000 for path in (folder / "blobs").iterdir())


def test_offline_afterwards(told, machine, hub):
    again = ["OFFLINE", "classify", str(CAT), "-p", "cat"]
    asked = {name: hub.downloads(name) for name in ("org/good", "org/clip")}
    words = [[*again, "--model", f"hf-hub:{name}"] for name in asked]
    *used, none = machine.start(*words, ["OFFLINE", *download("org/none")]).ended()
    assert {name: hub.downloads(name) for name in asked} == asked
    assert [code for code, *_ in used] == [0, 0], used
    assert none[0] == 2
    assert "hf-hub:org/none are not on this machine and HF_HUB_OFFLINE forbids the network" in none[2]


def test_a_download_through_a_proxy(hub, tmp_path):
    proxied = {"HF_ENDPOINT": "http://hub.invalid", "http_proxy": hub.url, "HTTP_PROXY": hub.url}
    with Machine(tmp_path, imported=(), **proxied) as behind:
        ((code, _, err),) = behind.start(download("org/clip")).ended()
    assert code == 0, err
    assert snapshot(tmp_path, "org/clip", "tokenizer.json").is_file()


def test_two_downloads_at_once(machine, hub, home):
    both = [machine.start(download("org/slow")) for _ in range(2)]
    results = [one for process in both for one in process.ended()]
    assert [code for code, *_ in results] == [0, 0], results
    name = "open_clip_model.safetensors"
    assert snapshot(home, "org/slow", name).read_bytes() == hub.repositories["org/slow"][name]
    assert not list((home / "hub/models--org--slow").rglob("*.incomplete"))
    assert hub.downloads("org/slow") == [""], "the second waits for the first"


def part_of(home, repository, content):
    """Where the cache has the part of a file that came before the download was stopped."""
    folder = home / "hub" / f"models--{repository.replace('/', '--')}" / "blobs"
    return folder / f"{hashlib.sha256(content).hexdigest()}.incomplete"


def test_a_download_that_is_killed_goes_on_in_another_process(machine, hub, home):
    name = "open_clip_model.safetensors"
    content = hub.repositories["org/stalled"][name]
    half = len(content) // 2 // 2**20 * 2**20  # whole pieces that were written
    part = part_of(home, "org/stalled", content)
    first = machine.start(download("org/stalled"))
    try:
        until = time.monotonic() + 240
        while not part.exists() or part.stat().st_size < half:
            assert first.alive(), "it has not waited"
            assert time.monotonic() < until
            time.sleep(0.05)
    finally:
        first.kill()
    there = part.stat().st_size
    ((code, _, err),) = machine.start(download("org/stalled")).ended()
    assert code == 0, err
    assert hub.downloads("org/stalled") == ["", f"bytes={there}-"]
    assert snapshot(home, "org/stalled", name).read_bytes() == content
    assert not part.exists()


def test_the_checksum_of_a_continued_download_is_that_of_the_whole_file(machine, hub, home):
    """Bytes that were damaged on the disk are found at the end; the next download starts anew."""
    name = "open_clip_model.safetensors"
    content = hub.repositories["org/spoilt"][name]
    part = part_of(home, "org/spoilt", content)
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(1000))
    too_long = part_of(home, "org/long", content)
    too_long.parent.mkdir(parents=True)
    too_long.write_bytes(content + b"more")
    damaged, *again = machine.start(*map(download, ("org/spoilt", "org/spoilt", "org/long"))).ended()
    assert damaged[0] == 2
    assert f"came damaged: the SHA-256 of {name} is" in damaged[2]
    assert [code for code, *_ in again] == [0, 0], again
    assert hub.downloads("org/spoilt") == ["bytes=1000-", ""]
    assert hub.downloads("org/long") == [""]
    for repository in ("org/spoilt", "org/long"):
        assert snapshot(home, repository, name).read_bytes() == content


def test_a_dead_proxy_is_named_in_one_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        proxy = f"127.0.0.1:{taken.getsockname()[1]}"
        environment = {"HF_ENDPOINT": "https://hub.invalid", "HTTPS_PROXY": f"http://me:secret@{proxy}"}
        with Machine(tmp_path, imported=(), **environment) as behind:
            ((code, out, err),) = behind.start(download("org/good")).ended()
    assert (code, out) == (2, "")
    [line] = err.strip().splitlines()
    said = (
        f"hub.invalid cannot be reached through the proxy {proxy} (HTTPS_PROXY names it): fetch it from https://hub.inv"
    )
    assert said in line
    assert "secret" not in line

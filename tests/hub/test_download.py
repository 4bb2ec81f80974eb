"""Downloads, rehearsed against a hub on this machine: what arrives, and what a user reads when it does not."""

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import save

from tests.commands import CAT
from tests.hub.server import Hub
from tests.towers.small_clip import save_folder, small_clip
from tests.towers.test_transformers_folder import byte_pairs, model_of

# Commands, one after the other in one process, whose imports take longer than they.
RUNNER = """
import contextlib, io, json, sys, time
from unittest import mock
from cliploc.cli import main
wait = time.sleep
mock.patch("time.sleep", lambda seconds: wait(min(seconds, 0.02))).start()  # between attempts at a hub that is busy
results = []
for words in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        results.append((main(words), out.getvalue(), err.getvalue()))
json.dump(results, sys.stdout)
"""


def carried_out(home, commands, **environment):
    """Code, what was printed, and what was said, of each command, on a machine with this home."""
    known = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    known.pop("HF_HUB_OFFLINE", None)
    known |= {"HF_HOME": str(home), "HOME": str(home), "HF_HUB_DISABLE_XET": "1", "COLUMNS": "1000"}
    reported = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps(commands),
        env={**known, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return [tuple(one) for one in json.loads(reported.stdout)]


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
    faults = ("gated", "down", "damaged")
    repositories = {f"org/{name}": files for name in ("good", *faults)}
    repositories["org/clip"] = {path.name: path.read_bytes() for path in saved.iterdir()}
    repositories["org/blip"] = {"config.json": b'{"model_type": "blip"}'}
    repositories["org/empty"] = {"README.md": b"soon"}
    with Hub(repositories, {f"org/{name}": name for name in faults}) as served:
        yield served


def download(repository):
    return ["models", "--download", f"hf-hub:{repository}"]


NAMES = ("org/good", "org/clip", "org/blip", "org/empty", "org/none", "org/gated", "org/down", "org/damaged")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def reported(hub, home):
    """Repository → code, what was printed, and what was said, of a first download."""
    return dict(zip(NAMES, carried_out(home, [*map(download, NAMES)], HF_ENDPOINT=hub.url), strict=True))


@pytest.mark.parametrize(
    ("repository", "weights"), [("org/good", "open_clip_model.safetensors"), ("org/clip", "model.safetensors")]
)
def test_a_first_download(reported, hub, home, repository, weights):
    code, out, err = reported[repository]
    assert code == 0, err
    (path,) = (home / "hub" / f"models--{repository.replace('/', '--')}" / "snapshots").glob(f"*/{weights}")
    assert out.strip() == f"hf-hub:{repository} is there: {path}"
    assert path.read_bytes() == hub.repositories[repository][weights]


@pytest.mark.parametrize(
    ("repository", "line"),
    [
        ("org/none", "HOST has no public repository org/none: check its name, or run `hf auth login`"),
        ("org/gated", "the repository org/gated asks for consent: accept its terms on HOST, then run `hf auth login`"),
        ("org/down", "could not be downloaded (Server error '503 Service Unavailable' for url"),
        ("org/empty", "the repository org/empty has none of open_clip_config.json, config.json"),
        ("org/blip", "has a transformers model of the type 'blip', which is not supported"),
        ("org/damaged", "is damaged: its SHA-256 is"),
    ],
)
def test_what_fails_is_one_line(reported, hub, repository, line):
    code, out, err = reported[repository]
    assert (code, out) == (2, "")
    message = [one for one in err.splitlines() if one.startswith("cliploc: ")]
    assert len(message) == 1, err
    assert "Traceback" not in err
    assert line.replace("HOST", hub.url.removeprefix("http://")) in message[0]


def test_offline_afterwards(reported, hub, home):
    before = len(hub.requested)
    words = [["classify", str(CAT), "-p", "cat", "--model", f"hf-hub:{name}"] for name in ("org/good", "org/clip")]
    *used, none = carried_out(home, [*words, download("org/other")], HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert len(hub.requested) == before
    assert [code for code, *_ in used] == [0, 0], used
    assert none[0] == 2
    assert "hf-hub:org/other are not on this machine and HF_HUB_OFFLINE forbids the network" in none[2]

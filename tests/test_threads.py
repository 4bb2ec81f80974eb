"""How many threads compute, and how they wait: what OpenMP is told before torch loads it; the user's own word wins."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from cliploc._threads import OTHER_WAIT_VARIABLES, PASSIVE, give_way, wait_passively
from tests.commands import CAT, cliploc_

WAITING = (*PASSIVE, *OTHER_WAIT_VARIABLES)
# Every command that runs a model, with what it cannot do without; those that would take long end at an unknown model.
COMMANDS: dict[str, tuple[object, ...]] = {
    "localize": (CAT, "-p", "cat"),
    "segment": (CAT, "-p", "cat", "-p", "cup", "--window", "0"),
    "classify": (CAT, "-p", "cat"),
    "demo": ("--pretrained", "nothing"),
    "serve": ("--pretrained", "nothing"),
    "train": ("tscam", "--root", "nowhere", "--out", "head.safetensors"),
    "doctor": ("--pretrained", "nothing"),
}


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def openmp(**own: str) -> dict[str, str]:
    """What torch's OpenMP took from the environment of the command, as it says itself when it is loaded."""
    inherited = {name: value for name, value in os.environ.items() if name not in WAITING}
    done = subprocess.run(
        [sys.executable, "-m", "cliploc", "methods"],
        env={**inherited, **own, "OMP_DISPLAY_ENV": "verbose"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return dict(re.findall(r"(\w+) = '(\w+)'", done.stderr))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' OpenMP describes itself otherwise")
def test_threads_of_the_command_sleep_while_they_wait():
    seen = openmp()
    assert (seen["OMP_WAIT_POLICY"], seen["GOMP_SPINCOUNT"]) == ("PASSIVE", "0")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' OpenMP describes itself otherwise")
def test_the_users_own_way_to_wait_wins():
    seen = openmp(OMP_WAIT_POLICY="active", GOMP_SPINCOUNT="1234")
    assert (seen["OMP_WAIT_POLICY"], seen["GOMP_SPINCOUNT"]) == ("ACTIVE", "1234")


@pytest.mark.parametrize("own", [{}, *({name: "1"} for name in WAITING)], ids=lambda own: next(iter(own), "none"))
def test_a_variable_of_the_user_leaves_all_others_alone(own):
    script = (
        "import os, sys, cliploc._threads as t; print(t.wait_passively(), *(os.environ.get(n) for n in sys.argv[1:]))"
    )
    inherited = {name: value for name, value in os.environ.items() if name not in WAITING}
    done = subprocess.run(
        [sys.executable, "-c", script, *WAITING], env=inherited | own, capture_output=True, text=True, check=True
    )
    expected = own or PASSIVE
    assert done.stdout.split() == [str(not own), *(expected.get(name, "None") for name in WAITING)]


def test_nothing_is_changed_once_torch_is_loaded():
    before = dict(os.environ)
    assert not wait_passively()
    assert dict(os.environ) == before


def test_threads_take_shorter_turns_than_python_gives_them():
    script = (
        "import sys, cliploc._threads as t; before = sys.getswitchinterval(); t.take_short_turns(); "
        "print(sys.getswitchinterval() < before)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_computes_with_the_threads_asked_for(command):
    if command == "serve":
        pytest.importorskip("starlette")  # without it, nothing is begun
    cliploc_(command, "--threads", 3, *COMMANDS[command])
    assert torch.get_num_threads() == 3


def test_doctor_says_how_many_threads():
    assert "(3 threads)" in cliploc_("doctor", "--threads", 3).out


@pytest.mark.parametrize("command", [*COMMANDS, "annotate", "benchmark"])
@pytest.mark.parametrize("threads", [0, -1, 1025])
def test_threads_outside_the_range_are_refused(command, threads):
    result = cliploc_(command, "--threads", threads, *COMMANDS.get(command, ()))
    assert (result.code, result.err) == (2, f"cliploc: expected --threads from 1 to 1024, got {threads}\n")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no nice values")
def test_a_helping_process_gives_way_to_its_parent():
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), give_way) as helper:
        assert helper.submit(os.nice, 0).result(timeout=60) == min(os.nice(0) + 5, 19)

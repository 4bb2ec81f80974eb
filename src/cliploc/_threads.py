"""How many threads a model computes with, what they do while they wait, and for whom they wait."""

from __future__ import annotations

import os
import sys

MAX_THREADS = 1024  # beyond what machines have; a hundred times more and the system refuses to start them
# GNU's OpenMP (torch on Linux) reads the first, LLVM's and Intel's (macOS, MKL) the second.
PASSIVE = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
OTHER_WAIT_VARIABLES = ("GOMP_SPINCOUNT", "KMP_LIBRARY")
TURN = 0.0005  # seconds after which a thread gives Python up to another one that waits for it; Python's own: 0.005


def wait_passively() -> bool:
    """Has threads sleep while they wait for each other, instead of spinning.

    By default a thread that is done with its share of a layer spins until the others are. Beside another busy program,
    whose turn keeps one of them from running, that burns whole time slices: see `bench/waiting.py`. Processes that this
    one starts inherit it. For programs of our own only: a library has no say in its host's environment.

    OpenMP reads its variables once, when torch loads it: call this before torch is imported.

    Returns:
        Whether it is so from now on; False where torch is loaded already, or the user chose how to wait.
    """
    if "torch" in sys.modules or any(name in os.environ for name in (*PASSIVE, *OTHER_WAIT_VARIABLES)):
        return False
    os.environ.update(PASSIVE)
    return True


def take_short_turns() -> None:
    """Has the threads of Python take shorter turns.

    Only one thread at a time runs Python. The tower's thread needs it for a moment after each layer, while another one
    makes boxes and rows: with Python's own turns it may wait 5 ms each time. For programs of our own only: a library
    has no say in its host's threads.
    """
    sys.setswitchinterval(TURN)


def give_way() -> None:
    """Has this process give way to the thread that runs the tower, in the process that started it.

    With equal rights that thread often waits for the processor: `bench/benchmark.py` then takes 7 % longer. The
    priority is only a little lower: beside a busy program, a process with a much lower one would hardly run.
    """
    if hasattr(os, "nice"):
        os.nice(5)
    if hasattr(os, "SCHED_BATCH"):  # does not interrupt others when it wakes up
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))

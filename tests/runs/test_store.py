"""One SQLite file: all or nothing, whoever is killed; and a line for each thing that can go wrong with a file."""

import contextlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cliploc.errors import InputError, UsageError
from cliploc.evaluate.data import label_file
from cliploc.evaluate.tasks.faithfulness.job import FaithfulnessEvaluator
from cliploc.evaluate.tasks.segmentation.job import COLUMNS, LabelMapEvaluator
from cliploc.evaluate.tasks.worker import EvaluationWorker, PictureEvaluator
from cliploc.find.segmentation.protocol import protocol_for
from cliploc.images.exemplars import Exemplar
from cliploc.options import BENCHMARK, FaithfulnessOptions
from cliploc.runs.engine import Shard
from cliploc.runs.picture_files import LabelledPicture
from cliploc.runs.plan import ModelSetup, Setting
from cliploc.runs.store import Row, Store, differences_of
from cliploc.support.reporter import SILENT, Reporter
from tests.commands import python
from tests.tiny import tower

TABLES = ["CREATE TABLE save (number INTEGER PRIMARY KEY, text TEXT NOT NULL)"]


def opened(folder, tables=TABLES, version=1):
    return Store(folder / "run.sqlite", "test", version, tables)


def test_a_transaction_is_whole_or_nothing(tmp_path):
    with opened(tmp_path) as store:
        store.insert("save", [(1, "one")])
        with contextlib.suppress(RuntimeError), store.transaction():
            store.insert("save", [(2, "two")])
            with store.transaction():  # part of the outer one
                store["state"] = "two"
            raise RuntimeError
        assert store.rows("SELECT number FROM save") == [(1,)]
        assert store.get("state") is None
    assert os.listdir(tmp_path) == ["run.sqlite"]  # no journal is left


def test_a_snapshot_stays_while_others_write(tmp_path):
    with opened(tmp_path) as store, store.snapshot() as before:
        assert before.rows("SELECT count(*) FROM save") == [(0,)]
        store.insert("save", [(1, "one")])
        assert before.rows("SELECT count(*) FROM save") == [(0,)]
        assert store.rows("SELECT count(*) FROM save") == [(1,)]


def test_threads_share_a_store(tmp_path):
    with opened(tmp_path) as store:

        def save(first):
            for number in range(first, first + 20):
                with store.transaction():
                    count = store.row("SELECT count(*) FROM save")[0]
                    store.insert("save", [(number, str(count))])

        threads = [threading.Thread(target=save, args=(20 * k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        counts = sorted(int(text) for (text,) in store.rows("SELECT text FROM save"))
    assert counts == list(range(80))  # each saw all that was committed before


SAVING = """
import sys; from pathlib import Path; from tests.runs.test_store import opened
store = opened(Path(sys.argv[1])); number = store.row("SELECT count(*) FROM save")[0]
while True:
    with store.transaction():
        store.insert("save", [(number, "x" * 500)]); store["count"] = number + 1
    number += 1; print(number, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_no_answered_save_is_lost_when_the_process_is_killed(tmp_path):
    chance = random.Random(0)
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", SAVING, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        process.stdout.readline()
        time.sleep(chance.random() / 10)
        process.send_signal(signal.SIGKILL)
        message = [int(line) for line in process.communicate()[0].split("\n")[:-1]]
        with opened(tmp_path) as store:
            count = store.row("SELECT count(*) FROM save")[0]
            assert count == store["count"] >= max(message, default=1)


def test_other_settings_are_refused_with_what_differs(tmp_path):
    with opened(tmp_path) as store:
        store.keep("settings", {"model": "mini", "rule": {"min_score": 0.2}, "scales": (1.0, 1.5)})
        store.keep("settings", {"model": "mini", "rule": {"min_score": 0.2}, "scales": (1.0, 1.5)})
        with pytest.raises(UsageError, match=r"rule.min_score: 0.2 there, 0.3 asked for; flip: only asked for\)"):
            store.keep("settings", {"model": "mini", "rule": {"min_score": 0.3}, "scales": (1.0, 1.5), "flip": True})
    for existing, requested, message in (
        ([*range(99)], [*range(1, 99), 7.5], "labels: [0] there, [7.5] asked for"),
        ([[1], "a"], ["a", [1]], 'labels: [[1], "a"] there, ["a", [1]] asked for'),
        ([1, 1], [1], "labels: [1, 1] there, [1] asked for"),
    ):
        assert differences_of({"labels": existing}, {"labels": requested}) == [message]


def test_other_files_and_versions_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"found no run\.sqlite: give the --out of a run"):
        opened(tmp_path, tables=())
    opened(tmp_path).close()
    with pytest.raises(UsageError, match=r"version 2 of its file.* got a run of test, version 1"):
        opened(tmp_path, version=2)
    (tmp_path / "run.sqlite").write_bytes(b"no database " * 1000)
    with pytest.raises(UsageError, match=r"is damaged \(file is not a database\)"):
        opened(tmp_path)


def test_a_damaged_file_gets_a_line(tmp_path):
    with opened(tmp_path) as store:
        store.insert("save", [(number, "x" * 500) for number in range(200)])
    content = bytearray((tmp_path / "run.sqlite").read_bytes())
    content[8192:20000] = os.urandom(20000 - 8192)
    (tmp_path / "run.sqlite").write_bytes(content)
    with pytest.raises(UsageError, match="is damaged"), opened(tmp_path) as store:
        store.rows("SELECT sum(length(text)), count(*) FROM save")


def test_another_process_that_writes_for_long_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("cliploc.runs.store.WAIT_S", 0.1)
    with opened(tmp_path) as store:
        other = sqlite3.connect(tmp_path / "run.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UsageError, match="is being written by another process: try again"):
            store["key"] = 1
        other.close()
        store["key"] = 1


def test_a_file_that_cannot_be_written_is_opened_to_look(tmp_path, monkeypatch):
    with opened(tmp_path) as store:
        store["key"] = 1
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anything
    with opened(tmp_path, tables=()) as store:
        assert not store.writable
        assert store["key"] == 1
        with pytest.raises(UsageError, match="cannot write"):
            store["key"] = 2


# --------------------------------------------------------------------------------------------------------------- worker
pytest.importorskip("pyarrow")
NAMES = ("red", "blue", "green")
OPTIONS = BENCHMARK.but(model=tower("gap_cnn", (8, 8)), resize="squash")
SETUPS = tuple(ModelSetup(OPTIONS.but(flip=one)) for one in (False, True))
SETTINGS = (Setting("a", 0, "cam"), Setting("b", 0, "layer_cam"), Setting("c", 1, "cam"))


class NamedMaps(PictureEvaluator):
    """Its maps are the names of their pictures; some pictures have something wrong."""

    def describe(self, setting: Setting) -> dict[str, Any]:
        return {"id": setting.id}

    def look(self, sample: Any) -> str:
        if sample.id == "cut off":
            raise InputError("cut off: damaged")
        if sample.id == "large":
            raise MemoryError
        return str(sample.id)

    def maps(self, seen: str, methods: Sequence[str], reporter: Reporter) -> dict[str, str]:
        if seen == "hard" and "layer_cam" in methods:
            raise MemoryError
        if seen == "bug":
            raise RuntimeError("a bug")
        return dict.fromkeys(methods, seen)

    def evaluate(self, seen: str, heat: str, setting: Setting, reporter: Reporter, /) -> Row:
        if seen == "odd" and setting.id == "c":
            raise InputError("odd: expected one number per pixel")
        return {"preview": heat.encode()}


def shard(index: int, *names: str) -> Shard:
    pictures = (LabelledPicture(one, Path(one), (4, 3), label_file(Path(one))) for one in names)
    return Shard(index, tuple(pictures))


def test_a_failure_costs_no_more_than_the_rows_that_it_must() -> None:
    worker = EvaluationWorker(NamedMaps, COLUMNS, Path(), SETUPS, SETTINGS)
    images: list[int] = []
    first, second = worker.stream(
        [shard(0, "good", "cut off", "hard"), shard(1, "odd", "large")], Reporter(images=images.append)
    )
    assert (first.index, second.index, sum(images)) == (0, 1, 2 * 5)
    memory = "not enough memory for a single picture: use a smaller --image-size or fewer --scales"
    message = [(row["sample"], row["setting"], row["preview"] or row["reason"]) for row in first.content]
    assert message == [
        *(("good", one, b"good") for one in "abc"),
        *(("cut off", one, "cut off: damaged") for one in "abc"),
        ("hard", "a", b"hard"), ("hard", "b", memory), ("hard", "c", b"hard"),
    ]  # fmt: skip
    assert first.notes == (f"b failed on hard: {memory}",)
    message = [(row["sample"], row["setting"], row["status"], row["reason"]) for row in second.content]
    assert message == [
        ("odd", "a", "ok", None), ("odd", "b", "ok", None),
        ("odd", "c", "failed", "odd: expected one number per pixel"),
        *(("large", one, "failed", memory) for one in "abc"),
    ]  # fmt: skip
    assert len(second.notes) == 1
    with pytest.raises(RuntimeError, match="a bug"):
        list(worker.stream([shard(0, "bug")], SILENT))


def test_processes_that_measure_maps_import_no_torch() -> None:
    """It would take each of them seconds and hundreds of megabytes."""
    code = "import sys, cliploc.evaluate.tasks.measuring; sys.exit('torch' in sys.modules)"
    assert python("-c", code, check=False).returncode == 0


@pytest.mark.parametrize(
    "evaluator_of",
    [
        partial(LabelMapEvaluator, protocol_for(NAMES), None),
        partial(FaithfulnessEvaluator, NAMES, ("deletion",), FaithfulnessOptions()),
    ],
)
def test_pictures_that_stand_for_names_make_another_run(evaluator_of: Any) -> None:
    """They change the embeddings of the names."""
    of_red = [Exemplar("red", np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)) for i in (0, 1)]
    options = [OPTIONS, *(OPTIONS.but(exemplars=[one]) for one in of_red)]
    workers = [EvaluationWorker(evaluator_of, COLUMNS, Path(), (ModelSetup(one),), SETTINGS[:1]) for one in options]
    message = [one.describe() for one in workers]
    assert all(one != other for place, one in enumerate(message) for other in message[:place])
    assert "exemplars" not in message[0][0]  # so that runs which began before they counted can be resumed

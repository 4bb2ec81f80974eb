"""Engine `ray` on a cluster of two nodes, both on this machine."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from cliploc.errors import ModelError, UsageError
from cliploc.options import BENCHMARK
from cliploc.runs.engine import Part, Shard, run_here
from cliploc.support.reporter import SILENT, Reporter
from cliploc.values import Sample

pytest.importorskip("pyarrow")
ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

import torch  # noqa: E402 - after the skips

from cliploc.evaluate.tasks.boxes.job import run_benchmark, unfit_for_setup  # noqa: E402
from cliploc.label.annotate import annotate  # noqa: E402
from cliploc.runs import ray as engine  # noqa: E402
from cliploc.runs.plan import ModelSetup, expand_grid  # noqa: E402
from tests.evaluate.samples import dataset, wsol_folder  # noqa: E402
from tests.label.labelled import held  # noqa: E402

pytestmark = pytest.mark.ray


def sample(index: int) -> Sample:
    return Sample(f"{index}", Path(f"{index}.jpg"), index, (10, 10), np.array([[0, 0, 1, index]], np.float32))


SHARDS = [Shard(index, (sample(2 * index), sample(2 * index + 1))) for index in range(12)]


class Labels:
    """A worker that needs no model: its part holds what it was given, and which process made it."""

    def __init__(self, before: Callable[[Shard], None] | None = None) -> None:
        self.before = before

    def stream(self, shards, reporter=SILENT) -> Iterator[Part]:
        for shard in shards:
            if self.before:
                self.before(shard)
            tops = [float(one.boxes_xyxy[0, 3]) for one in shard.samples]
            content = {"samples": [one.id for one in shard.samples], "tops": tops, "pid": os.getpid()}
            yield Part(shard.index, json.dumps(content).encode(), (f"note {shard.index}",))

    def close(self) -> None:
        pass


def slow(shard: Shard) -> None:
    time.sleep(0.2)


def die_once(folder: Path, shard: Shard) -> None:
    """Kills the worker at shard 5, the first time; slow enough that both nodes get some."""
    time.sleep(0.2)
    if shard.index == 5 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)


def die_always(shard: Shard) -> None:
    if shard.index == 5:
        os.kill(os.getpid(), signal.SIGKILL)


def refuse(shard: Shard) -> None:
    if shard.index == 3:
        raise ModelError("expected weights, found none: fetch them")


@pytest.fixture(scope="module")
def cluster():
    made = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


def parts_of(run, worker) -> dict[int, Part]:
    parts: dict[int, Part] = {}

    def keep(part: Part) -> None:
        assert part.index not in parts, "a part came twice"
        parts[part.index] = part

    run(SHARDS, worker, keep)
    return parts


def pid_of(part: Part) -> int:
    return int(json.loads(part.content)["pid"])


def without_pid(part: Part) -> dict[str, object]:
    return {**json.loads(part.content), "notes": part.notes, "pid": None}


def same(a: dict[int, Part], b: dict[int, Part]) -> bool:
    return a.keys() == b.keys() and all(without_pid(a[i]) == without_pid(b[i]) for i in a)


def test_two_nodes_share_the_work_and_a_killed_worker_is_replaced(cluster, tmp_path):
    pictures: list[int] = []
    run = functools.partial(engine.run, address=cluster.address, threads=1, reporter=Reporter(images=pictures.append))
    parts = parts_of(run, functools.partial(Labels, functools.partial(die_once, tmp_path)))
    assert (tmp_path / "died").exists()
    assert same(parts, parts_of(run_here, Labels))
    assert sum(pictures) == 24
    # Three if the killed one had finished a part before, which a busy machine may prevent.
    assert len(set(map(pid_of, parts.values()))) in (2, 3)
    assert not ray.is_initialized(), "the run ends what it started"


def test_a_shard_that_kills_every_worker_ends_the_run_with_a_line(cluster):
    parts: list[Part] = []
    with pytest.raises(ModelError, match=r"part 00005, from 10 on, ended its worker 4 times: .*run the same command"):
        engine.run(SHARDS, functools.partial(Labels, die_always), parts.append, address=cluster.address, threads=1)
    assert parts, "what was done before is kept"


def test_the_worker_s_own_error_comes_back_as_it_is(cluster):
    with pytest.raises(ModelError, match=r"^expected weights, found none: fetch them$"):
        engine.run(SHARDS, functools.partial(Labels, refuse), lambda part: None, address=cluster.address, threads=1)


def test_more_processors_than_a_node_has_are_refused(cluster):
    with pytest.raises(UsageError, match=r"expected a machine with 64 processors .* offers 1: use --threads 1"):
        engine.run(SHARDS, Labels, print, address=cluster.address, threads=64)


def test_a_cluster_that_does_not_start_is_said_in_one_line(monkeypatch):
    def init(**_):
        raise Exception("it timed out\nand more")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UsageError, match=r"^Ray could not start on this machine \(it timed out\): run the same"):
        engine.run(SHARDS, Labels, print, address=None, threads=1)


FULL = """
import sys
sys.path.insert(0, sys.argv[2])
import ray
from cliploc.runs import ray as engine
from tests.runs.test_ray import SHARDS, Labels

def full(part):
    raise OSError(28, "No space left on device")

try:
    engine.run(SHARDS, Labels, full, address=sys.argv[1], threads=1)
except OSError as error:
    print(error.strerror, ray.is_initialized(), flush=True)
"""


def test_what_a_part_raises_ends_the_run_and_the_cluster_is_let_go(cluster):
    """In a process of its own, which Ray would end if one of its threads were still at work."""
    command = [sys.executable, "-c", FULL, cluster.address, str(Path(__file__).parents[2])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    last = done.stdout.splitlines()[-1:]  # Ray may say before it that its actors are ended
    assert (last, done.returncode) == (["No space left on device False"], 0), done.stderr


def test_a_benchmark_gives_the_rows_of_a_local_one(cluster, tmp_path, monkeypatch):
    wsol_folder(tmp_path / "wsol", 10)
    monkeypatch.chdir(tmp_path)  # relative paths are those of the folder where the run began, for the workers too
    data = dataset(Path("wsol"))
    setups = (ModelSetup(BENCHMARK.but(batch_size=2, device="cpu")),)
    settings, _ = expand_grid(setups, ["cam", "grad_cam"], unfit_for_setup)
    same_folders(
        lambda out, using: run_benchmark(data, setups, settings, out, engine=using, workers=0, shard=4),
        cluster,
        tmp_path,
        ["rows.parquet", "summary.json"],
    )


def test_an_annotation_gives_the_bytes_of_a_local_one(cluster, tmp_path):
    pictures, labels = wsol_folder(tmp_path / "wsol", 10), ["cat", "dog @0.1", "bee"]
    options = {"batch_size": 2, "device": "cpu", "shard": 4, "formats": ["coco"]}
    same_folders(
        lambda out, using: annotate(pictures, labels, out, engine=using, **options), cluster, tmp_path, ["coco.json"]
    )
    assert held(tmp_path / "local") == held(tmp_path / "ray")


def same_folders(run, cluster, tmp_path: Path, names: Sequence[str]) -> None:
    """On the cluster these files are byte for byte those of this process."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # as the cluster's workers
        here = run(tmp_path / "local", run_here)
    finally:
        torch.set_num_threads(threads)
    existing = run(tmp_path / "ray", functools.partial(engine.run, address=cluster.address, threads=1))
    for name in names:
        assert (here.out / name).read_bytes() == (existing.out / name).read_bytes(), name


def test_no_cluster_at_the_address_is_said_in_one_line():
    with pytest.raises(UsageError, match=r"expected a Ray cluster at 127\.0\.0\.1:1, .*leave --address out"):
        engine.run(SHARDS, Labels, print, address="127.0.0.1:1", threads=1)

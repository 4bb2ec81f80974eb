"""Engine `ray`: actors that hold the models, on a cluster with the same paths; a dead worker's shard runs again."""

import contextlib
import logging
import os
import pickle
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from cliploc.errors import CliplocError, InputError, ModelError, UsageError
from cliploc.registry import import_modules, named_modules
from cliploc.runs.engine import MakeWorker, Part, Shard
from cliploc.support.imports import install, not_installed
from cliploc.support.reporter import SILENT, Reporter

ERRORS: dict[str, type[CliplocError]] = {
    "usage": UsageError,
    "model": ModelError,
    "input": InputError,
    "other": CliplocError,
}
NO_CLUSTER = (
    "expected a Ray cluster at {}, could not use it ({}): start one with `ray start --head` and give its address, "
    "set RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH if it asks for a token, or leave --address out"
)
NOT_STARTED = "Ray could not start on this machine ({}): run the same command again, or use --engine local"
ATTEMPTS = 4  # at one shard; if a shard kills every worker, for example by lack of memory, the run must end


def run(
    shards: Sequence[Shard],
    make_worker: MakeWorker,
    on_part: Callable[[Part], None],
    reporter: Reporter = SILENT,
    *,
    address: str | None = None,
    threads: int | None = None,
) -> None:
    """Runs shards on the cluster at `address` (None: Ray of this process or machine), `threads` for each worker."""
    try:
        import ray
        import ray.data
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise not_installed(error, install("ray", "engine ray")) from None
    sizes = {shard.index: len(shard.samples) for shard in shards}
    with _cluster(ray, address):
        pool, cpus, gpus = _pool(ray, threads or torch.get_num_threads())
        # On this machine, whose loss ends the run in any case.
        here: Any = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        attempts = ray.remote(num_cpus=0, scheduling_strategy=here)(_Attempts).remote()
        work = ray.data.from_items(
            [{"shard": pickle.dumps(shard)} for shard in shards], override_num_blocks=len(shards)
        ).map_batches(
            _ShardsDone,
            fn_constructor_args=(make_worker, cpus, attempts, named_modules(), os.getcwd()),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=pool, initial_size=pool),
            num_cpus=cpus,
            num_gpus=gpus,
        )
        waiting = dict(sizes)
        try:
            with _ended(lambda: work.iter_batches(batch_size=1, prefetch_batches=0, batch_format="pyarrow")) as batches:
                for batch in batches:
                    for row in batch.to_pylist():
                        if row["error"]:
                            raise ERRORS[row["error"]](row["content"].decode())
                        if waiting.pop(row["index"], None) is None:
                            continue  # sent twice, as its worker died right after sending it
                        on_part(Part(row["index"], row["content"], tuple(row["notes"])))
                        reporter.images(sizes[row["index"]])
        except ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines()
            reason = next((line.strip() for line in reversed(lines) if "Error: " in line), lines[0])[:200]
            raise ModelError(
                f"the Ray cluster failed with {len(waiting)} of {len(sizes)} shards to do ({reason}): what is done is "
                "kept; run the same command again"
            ) from error


class _ShardsDone:
    """The actor: holds a worker, and so the models, for the whole run."""

    def __init__(
        self, make_worker: MakeWorker, threads: int, attempts: Any, modules: Sequence[str], folder: str
    ) -> None:
        with contextlib.suppress(OSError):  # a machine without that folder can only read absolute paths
            os.chdir(folder)  # so that relative paths of pictures and weights mean what they do where the run began
        torch.set_num_threads(threads)  # Ray sets 1 unless a worker has the whole machine
        self.make_worker, self.attempts, self.modules = make_worker, attempts, modules
        self.worker: Any = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        import ray

        out: dict[str, list[Any]] = {"index": [], "content": [], "notes": [], "error": []}
        for packed in batch["shard"]:
            shard: Shard = pickle.loads(packed)
            try:
                if ray.get(self.attempts.begin.remote(shard.index)) > ATTEMPTS:
                    raise ModelError(
                        f"part {shard.index:05d}, from {shard.samples[0].id} on, ended its worker {ATTEMPTS} times: "
                        "what is done is kept; run the same command again, with a smaller --batch-size if memory was "
                        "short"
                    )
                # Not in the constructor: after an error there Ray would start the actor again and again.
                if self.worker is None:
                    import_modules(self.modules)
                    self.worker = self.make_worker()
                (part,) = self.worker.stream([shard])
                content, notes, error = part.content, list(part.notes), ""
            except CliplocError as raised:
                # As text: an exception with a constructor of its own cannot be sent.
                error = next(name for name, kind in ERRORS.items() if isinstance(raised, kind))
                content, notes = str(raised).encode(), []
            for values, value in zip(out.values(), (shard.index, content, notes, error), strict=True):
                values.append(value)
        return out


class _Attempts:
    """Counts how often each shard was started, for all workers, as Ray itself would restart one without a limit."""

    def __init__(self) -> None:
        self.begun: Counter[int] = Counter()

    def begin(self, shard: int) -> int:
        self.begun[shard] += 1
        return self.begun[shard]


@contextlib.contextmanager
def _cluster(ray: Any, address: str | None) -> Iterator[None]:
    """Connects to Ray, without its output; restores its former state afterwards."""
    ours = not ray.is_initialized()
    if ours:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage statistics without the user's consent
        options = {"include_dashboard": False} if address is None else {}
        host, _, port = (address or "").removeprefix("ray://").rpartition(":")
        if host and port.isdigit():  # Ray itself would try for minutes at an address that does not answer
            try:
                socket.create_connection((host, int(port)), timeout=10).close()
            except OSError as error:
                raise UsageError(NO_CLUSTER.format(address, error.strerror or error)) from error
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:  # Ray raises it itself where a node does not start in time
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise UsageError(
                NOT_STARTED.format(reason) if address is None else NO_CLUSTER.format(address, reason)
            ) from error
    context = ray.data.DataContext.get_current()
    bars, logger = context.enable_progress_bars, logging.getLogger("ray.data")
    level, context.enable_progress_bars = logger.level, False
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = bars
        logger.setLevel(level)
        if ours:
            ray.shutdown()


@contextlib.contextmanager
def _ended(make_batches: Callable[[], Any]) -> Iterator[Iterator[Any]]:
    """Yields batches and waits for their threads: a thread that runs after Ray's end would end the whole process."""
    before = set(threading.enumerate())
    batches = iter(make_batches())
    try:
        yield batches
    finally:
        if hasattr(batches, "close"):
            batches.close()
        for thread in set(threading.enumerate()) - before:
            thread.join(timeout=60 if "Executor" in thread.name else 2)


def _pool(ray: Any, threads: int) -> tuple[int, int, int]:
    """The number of workers that fit, and the processors and GPUs of each."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = sum(int(machine.get("GPU", 0)) for machine in machines)
    if gpus:
        return gpus, 1, 1  # the processor only feeds the GPU
    most = max(int(machine.get("CPU", 0)) for machine in machines)
    if most < threads:
        raise UsageError(
            f"expected a machine with {threads} processors for a worker, the largest of the cluster offers {most}: "
            f"use --threads {max(most, 1)}"
        )
    return sum(int(machine.get("CPU", 0)) // threads for machine in machines), threads, 0

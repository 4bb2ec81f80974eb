"""Engine `ray`: actors that hold the models, on a cluster with the same paths; a dead worker's shard runs again."""

import contextlib
import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from cliploc.errors import CliplocError, InputError, ModelError, UsageError
from cliploc.registry import import_modules, named_modules
from cliploc.runs.engine import MakeWorker, Part, Shard
from cliploc.support.imports import install, not_installed
from cliploc.support.reporter import SILENT, Reporter

NO_CLUSTER = (
    "expected a Ray cluster at {}, could not use it ({}): start one with `ray start --head` and give its address, "
    "set RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH if it asks for a token, or leave --address out"
)
NOT_STARTED = "Ray could not start on this machine ({1}): run the same command again, or use --engine local"
ATTEMPTS = 4  # at one shard; if a shard ends every worker, for example by lack of memory, the run must end


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
    except ImportError as error:
        raise not_installed(error, install("ray", "engine ray")) from None
    with _cluster(ray, address):
        workers, cpus, gpus = _pool(ray, threads or torch.get_num_threads())
        actor = ray.remote(num_cpus=cpus, num_gpus=gpus)(_Worker)
        waiting, attempts, left = deque(shards), Counter[int](), len(shards)

        def begin() -> None:
            new: Any = actor.remote(make_worker, cpus, named_modules(), os.getcwd())
            busy[new.ready.remote()] = (new, None)

        busy: dict[Any, tuple[Any, Shard | None]] = {}  # what an actor does now: a shard, or it starts
        try:
            for _ in range(min(workers, left)):
                begin()
            while left:
                [done], _ = ray.wait([*busy])
                worker, shard = busy.pop(done)
                try:
                    part = ray.get(done)
                except ray.exceptions.RayActorError:
                    begin()  # starts where there is room
                    if shard is None:
                        continue
                    waiting.append(shard)
                    attempts[shard.index] += 1
                    if attempts[shard.index] < ATTEMPTS:
                        continue
                    raise ModelError(
                        f"part {shard.index:05d}, from {shard.samples[0].id} on, ended its worker {ATTEMPTS} times: "
                        "what is done is kept; run the same command again, with a smaller --batch-size if memory was "
                        "short"
                    ) from None
                if isinstance(part, CliplocError):
                    raise part
                if shard is not None:
                    left -= 1
                    on_part(part)
                    reporter.images(len(shard.samples))
                if waiting:
                    following = waiting.popleft()
                    busy[worker.compute.remote(following)] = (worker, following)
        except ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines()
            reason = next((line.strip() for line in reversed(lines) if "Error: " in line), lines[0])[:200]
            raise ModelError(
                f"the Ray cluster failed with {left} of {len(shards)} shards to do ({reason}): what is done is "
                "kept; run the same command again"
            ) from error
        finally:
            for worker, _ in busy.values():
                ray.kill(worker)


class _Worker:
    """The actor: holds a worker, and so the models, for all of the run."""

    def __init__(self, make_worker: MakeWorker, threads: int, modules: Sequence[str], folder: str) -> None:
        with contextlib.suppress(OSError):  # a machine without that folder can only read absolute paths
            os.chdir(folder)  # so that relative paths of pictures and weights mean what they do where the run began
        torch.set_num_threads(threads)  # Ray sets 1 unless a worker has all of the machine
        self.make_worker, self.modules = make_worker, modules
        self.worker: Any = None

    def ready(self) -> None:
        """Answers once the actor has started."""

    def compute(self, shard: Shard) -> Part | CliplocError:
        """The part of a shard; an error is returned as one that can be sent."""
        try:
            # Not in the constructor, whose error Ray would report as its own.
            if self.worker is None:
                import_modules(self.modules)
                self.worker = self.make_worker()
            part: Part
            (part,) = self.worker.stream([shard])
        except CliplocError as error:
            kinds = (UsageError, ModelError, InputError, CliplocError)
            return next(kind for kind in kinds if isinstance(error, kind))(str(error))
        return part


@contextlib.contextmanager
def _cluster(ray: Any, address: str | None) -> Iterator[None]:
    """Connects to Ray, without its output; ends what it has started."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # no usage statistics without the user's consent
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():  # Ray itself would try for minutes at an address that does not answer
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise UsageError(NO_CLUSTER.format(address, error.strerror or error)) from error
    try:
        alone = {} if address else {"include_dashboard": False}
        ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **alone)
    except Exception as error:  # Ray raises it itself where a node does not start in time
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UsageError((NO_CLUSTER if address else NOT_STARTED).format(address, reason)) from error
    try:
        yield
    finally:
        ray.shutdown()


def _pool(ray: Any, threads: int) -> tuple[int, int, int]:
    """The number of workers that fit, and the processors and GPUs of each."""
    resources = [node.get("Resources", {}) for node in ray.nodes() if node.get("Alive")]
    gpus = sum(int(machine.get("GPU", 0)) for machine in resources)
    if gpus:
        return gpus, 1, 1  # the processor only feeds the GPU
    processors = [int(machine.get("CPU", 0)) for machine in resources]
    if max(processors) < threads:
        raise UsageError(
            f"expected a machine with {threads} processors for a worker, the largest of the cluster offers "
            f"{max(processors)}: use --threads {max(1, *processors)}"
        )
    return sum(count // threads for count in processors), threads, 0

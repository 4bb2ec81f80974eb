"""What all benchmarks share, whatever they measure: a folder, parts, resuming, replaced pictures, and an engine.

A benchmark is a `BenchmarkTask`: its kind, its worker, its shards, and how numbers are computed from its rows.
`run_task` does the rest. Its parts are tables with a row for each sample and setting, of at least the columns sample,
setting, blake2b, status and reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

from cliploc import __version__
from cliploc._files import alone_in, part_path, read_stamps, temporaries_of
from cliploc.datasets import LabelledDataset
from cliploc.errors import CliplocError
from cliploc.jobs import folder
from cliploc.jobs.engine import Engine, Part, Ready, Shard, Worker
from cliploc.jobs.folder import RunKind, plain, room_for_parts
from cliploc.jobs.notes import Notes, pictures_in_words
from cliploc.jobs.rows import arrow, check_part, read_columns, write_part
from cliploc.jobs.sources import content_digest, stamp
from cliploc.jobs.summary import Summary
from cliploc.reporter import Reporter
from cliploc.values import Dataset


class BenchmarkWorkerLike(Worker, Protocol):
    """A worker that can say what its numbers depend on."""

    def describe(self) -> list[dict[str, Any]]:
        """For each setting everything that its numbers depend on, with its `id`, as plain values for JSON."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on the models and the dataset's names."""
        ...


@dataclass(frozen=True)
class BenchmarkTask:
    """A benchmark, whatever it measures."""

    kind: RunKind  # kind of run, as its manifest has it
    make_worker: Callable[[], BenchmarkWorkerLike]  # makes the worker; picklable
    shards: tuple[Shard, ...]  # all shards of the run
    passes: int  # how often each sample is looked at, for progress: the number of setups
    dataset: Mapping[str, Any]  # the dataset's entry in the manifest
    shard_size: int  # number of samples in a shard
    facts: Mapping[str, Any]  # further entries of the manifest
    files: Sequence[str]  # names of files and folders that the run writes besides the manifest and the parts
    # computes the numbers of all parts in a folder and writes summary.json
    conclude: Callable[[Path], dict[str, Summary]]
    schema: Callable[[], Any]  # makes the `pyarrow.Schema` of its parts


@dataclass(frozen=True)
class TaskResult:
    """The result of a run."""

    out: Path  # the run's folder
    summary: dict[str, Summary]  # setting → numbers in percent
    notes: tuple[str, ...]  # remarks on the run: halved batches, unknown names, settings that failed
    failed: Mapping[str, str]  # sample → why it is not in the numbers, and for how many settings
    samples: int  # number of samples that were asked for
    computed: int  # number of parts that this call computed; the others were done before
    resumed: bool  # whether parts were done before

    def closing(self, seconds: float) -> str:
        """The line printed at the end of a run."""
        done = min((one["evaluated"] for one in self.summary.values()), default=0)
        again = ", resumed" if self.resumed else ""
        failed = f"; {len(self.failed)} failed: see summary.json" if self.failed else ""
        return (
            f"{done} of {self.samples} samples × {len(self.summary)} settings done{again}, {seconds:.1f} s{failed}; "
            f"results in {self.out}"
        )


def percent_text(numbers: Mapping[str, Any], key: str) -> str:
    """A number of a summary in a table."""
    return "–" if numbers.get(key) is None else f"{numbers[key]:.2f}"


def dataset_entry(
    dataset: Dataset | LabelledDataset, asked: Mapping[str, Any], samples_sha256: str, **more: Any
) -> dict[str, Any]:
    """A dataset's entry in a manifest, as plain values for JSON.

    Args:
        samples_sha256: of everything about its samples that the numbers depend on.
    """
    return plain(
        {
            "name": dataset.name,
            "root": dataset.root.resolve(),
            "split": dataset.split,
            "role": dataset.role,
            **asked,
            "samples": len(dataset),
            "samples_sha256": samples_sha256,
            "classes": [asdict(one) for one in dataset.classes],
            **more,
            "problems": [{"kind": one.kind, "source": one.source, "reason": one.reason} for one in dataset.problems],
        }
    )


def run_task(task: BenchmarkTask, out: Path, token: str, engine: Engine, reporter: Reporter) -> TaskResult:
    """Runs a task into a folder, or resumes it there.

    Args:
        out: an empty folder, or the folder of a run with the same settings.
        reporter: gets the phases ("benchmark", then "summary"), the numbers of pictures × setups to do and done, each
            failed sample, and each note.
    """
    arrow()
    notes, shards = Notes(reporter), task.shards
    worker = task.make_worker()  # refuses what cannot be used before anything is written
    settings = worker.describe()
    manifest = {
        "schema_version": task.kind.version,
        "kind": task.kind.name,
        "cliploc_version": __version__,
        "dataset": task.dataset,
        "settings": settings,
        "shard_size": task.shard_size,
        "shards": len(shards),
        **task.facts,
        "token": token,
    }
    notes.add(worker.notes)
    ids = [one["id"] for one in settings]

    def check(index: int, part: bytes) -> None:
        check_part(part, task.schema(), [one.id for one in shards[index].samples], ids)

    with alone_in(out):
        begun = folder.begin(out, task.kind, manifest, task.files, check)
        notes.add(begun.notes)
        changed = {index: names for index in begun.whole if (names := _changed(out, shards[index]))}
        if changed:
            pictures = pictures_in_words([name for names in changed.values() for name in names])
            again = f"{len(changed)} of {len(shards)} parts computed again"
            notes.add([f"replaced since they were computed: {pictures}; {again}"])
        there = begun.whole - changed.keys()
        todo = [shard for shard in shards if shard.index not in there]
        # Taken before any picture is read.
        stamps = {shard.index: [stamp(one) for one in shard.samples] for shard in todo}
        reporter.phase("benchmark")
        reporter.start(
            task.passes * sum(len(one.samples) for one in todo), task.passes * sum(len(one.samples) for one in shards)
        )
        done = 0

        def keep(part: Part) -> None:
            nonlocal done
            write_part(part_path(out, part.index), part.table, stamps[part.index])
            done += 1
            notes.add(part.notes)
            for sample, reason in _failed_in(part):
                reporter.failed(sample, CliplocError(f"{sample}: {reason}"))

        with temporaries_of(begun.token), room_for_parts(out, lambda: len(there) + done, len(shards)):
            folder.begin_session(out, task.kind)
            engine(todo, Ready(task.make_worker, worker), keep, reporter)
            reporter.phase("summary")
            summary = task.conclude(out)
        samples = sum(len(one.samples) for one in shards)
        return TaskResult(out, summary, notes.lines, _failures(summary), samples, done, bool(there))


def _failures(summary: Mapping[str, Summary]) -> dict[str, str]:
    """Sample → why it is not in the numbers, of all settings."""
    failed: dict[str, str] = {}
    for numbers in summary.values():
        for one in numbers["failed"]:
            failed.setdefault(one["sample"], one["reason"])
    return failed


def _failed_in(part: Part) -> list[tuple[str, str]]:
    """The failed samples of a part, each with its different reasons, for any number of settings."""
    rows = part.table.select(["sample", "status", "reason"]).to_pylist()
    return list(dict.fromkeys((row["sample"], row["reason"]) for row in rows if row["status"] != "ok"))


def _changed(out: Path, shard: Shard) -> list[str]:
    """The samples of a part whose files were replaced since it was computed."""
    path = part_path(out, shard.index)
    stamps = read_stamps(path)
    if stamps == (now := [stamp(one) for one in shard.samples]):
        return []
    rows = read_columns(path, ["sample", "blake2b"]).to_pylist()
    digests = {row["sample"]: row["blake2b"] for row in rows}
    suspects = [one for one, old, new in zip_longest(shard.samples, stamps, now) if one is not None and old != new]
    return [one.id for one in suspects if digests.get(one.id) != content_digest(one)]

"""Runs a benchmark, whatever it measures: one file that keeps its rows, resuming, replaced pictures, and an engine."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypedDict

import msgspec

from cliploc import __version__
from cliploc.errors import CliplocError, UnknownNameError, UsageError
from cliploc.evaluate.data import LabelledDataset, PromptedDataset, subsets
from cliploc.evaluate.metrics import DEFAULT, Bootstrap
from cliploc.evaluate.tasks import paired, report, rows
from cliploc.evaluate.tasks.tables import Best, Cell, number_cell, seven_digits, to_latex
from cliploc.evaluate.tasks.worker import EvaluationWorker, EvaluatorOf
from cliploc.registry import plugin_sources
from cliploc.runs import picture_files, plan, store
from cliploc.runs.engine import Engine, Notes, Part, Ready, Shard, pictures_in_words, run_here
from cliploc.runs.picture_files import LabelledPicture, PromptedPicture
from cliploc.support.files import locked, refuse_taken, write_json
from cliploc.support.reporter import SILENT, Reporter
from cliploc.values import Dataset, DatasetSplit, Sample

AnyDataset: TypeAlias = Dataset | LabelledDataset | PromptedDataset
Manifest = Mapping[str, Any]
Summary = dict[str, Any]
EXPORTS = ("manifest.json", "summary.json", "rows.parquet", "tables.tex")  # what a run writes at its end
OTHER_SAMPLES = "the set's pictures, their sizes or their truth are not those that it was computed with"


class Tally:
    """Counts the rows of one setting; this one only pictures, for runs whose rows are read by what follows them."""

    def add(self, row: Any) -> None:
        """Counts the row of a picture that did not fail, of the kind that its task reads."""

    def summary(self, counts: Mapping[str, int], bootstrap: Bootstrap) -> Summary:  # noqa: ARG002
        """The numbers, with these counts of pictures among them."""
        return dict(counts)

    def per_picture(self) -> paired.PerPicture | None:
        """What settings are compared by; None where they are not."""
        return None


@dataclass(frozen=True)
class BenchmarkTask:
    """What a benchmark measures: the columns of its rows, and what is made of them."""

    kind: str  # as its manifest has it
    version: int  # of the format of manifest and summary
    files: Sequence[str]  # names of the files of its report
    columns: Callable[[], rows.Columns]  # of the rows, one for each picture and setting
    row: Callable[[], type[rows.PictureRow]] = lambda: rows.PictureRow  # what the numbers need of a row
    # makes what counts the rows of a setting
    tally: Callable[[report.SettingEntry, report.DatasetEntry, Manifest], Tally] = lambda *_: Tally()
    # lines that explain the table; None: the meanings of its numbers
    legend: Callable[[Mapping[str, Summary], Manifest], list[str]] | None = None
    # the numbers that tables can have: key → title and meaning
    numbers: Callable[[Manifest], Mapping[str, tuple[str, str]]] = lambda _: {}
    # those of the table on the terminal: key → title; None: all
    shown: Callable[[Mapping[str, Summary], Manifest], Mapping[str, str]] | None = None
    cell: Callable[[str, float | None], Cell] = lambda _, value: number_cell(value)  # how a key's number is written
    best: Callable[[str, Manifest], Best] = lambda *_: "high"


class How(TypedDict, total=False):
    """How every task runs, besides what it measures."""

    engine: Engine
    selection: Mapping[str, Any] | None  # how the dataset was chosen (subset, limit, seed …), for the manifest
    reporter: Reporter
    columns: Sequence[str]  # keys of the numbers that will be asked for


@dataclass(frozen=True)
class BenchmarkResult:
    """The result of a benchmark run."""

    task: BenchmarkTask  # what was measured
    manifest: Manifest  # as the run was begun
    out: Path  # the run's folder
    summary: dict[str, Summary]  # setting → numbers
    notes: tuple[str, ...]  # remarks on the run: halved batches, unknown names, settings that failed
    samples: int  # number of samples that were asked for
    computed: int  # number of shards that this call computed; the others were done before
    resumed: bool  # whether shards were done before

    @property
    def failed(self) -> dict[str, str]:
        """Sample → why it is not in the numbers, of all settings."""
        failed: dict[str, str] = {}
        for numbers in self.summary.values():
            for failure in msgspec.convert(numbers["failed"], list[report.Failure]):
                failed.setdefault(failure.sample, failure.reason)
        return failed

    def document(self) -> dict[str, Any]:
        """The result as in summary.json."""
        return _document(self.task, self.summary)

    def table(self) -> list[tuple[str, ...]]:
        """The table of settings: a header, then a row for each."""
        titles = self._shown()
        return [("setting", *titles.values()), *(tuple(cell.text for cell in row) for row in self._cells(titles))]

    def latex(self, columns: Sequence[str]) -> str:
        """The table in LaTeX, with these numbers, keys of summary.json, or as on the terminal."""
        known = self.task.numbers(self.manifest)
        titles = {key: known[key][0] for key in columns} or self._shown()
        best = [self.task.best(key, self.manifest) for key in titles]
        return to_latex(["setting", *titles.values()], self._cells(titles), best)

    def _shown(self) -> Mapping[str, str]:
        """The columns of the table on the terminal that have a number: key → title."""
        every = {key: title for key, (title, _) in self.task.numbers(self.manifest).items()}
        titles = every if self.task.shown is None else self.task.shown(self.summary, self.manifest)
        there = {key for of in self.summary.values() for key, value in of.items() if value is not None}
        return {key: title for key, title in titles.items() if key in there}

    def _cells(self, keys: Iterable[str]) -> list[list[Cell]]:
        return [[Cell(name), *(self.task.cell(key, of.get(key)) for key in keys)] for name, of in self.summary.items()]

    def legend(self) -> list[str]:
        """The lines below the table that explain its numbers."""
        if self.task.legend is not None:
            return self.task.legend(self.summary, self.manifest)
        known = self.task.numbers(self.manifest)
        return [": ".join(known[key]) for key in self._shown()]

    def closing(self, seconds: float) -> str:
        """The line printed at the end of a run."""
        done = min((numbers["evaluated"] for numbers in self.summary.values()), default=0)
        again = ", resumed" if self.resumed else ""
        failed = f"; {len(self.failed)} failed: see summary.json" if self.failed else ""
        return (
            f"{done} of {self.samples} samples × {len(self.summary)} settings done{again}, {seconds:.1f} s{failed}; "
            f"results in {self.out}"
        )


def run_task(
    task: BenchmarkTask,
    evaluator_of: EvaluatorOf,
    dataset: AnyDataset,
    setups: Sequence[plan.ModelSetup],
    settings: Sequence[plan.Setting],
    out: Path,
    *,
    shard_size: int,
    entries: Mapping[str, Any] | None = None,
    folders: Sequence[str] = (),
    selection: Mapping[str, Any] | None = None,
    engine: Engine = run_here,
    reporter: Reporter = SILENT,
    columns: Sequence[str] = (),
    phase: str = "benchmark",
) -> BenchmarkResult:
    """Runs a task into a folder, or resumes it; `entries`: what the numbers depend on besides dataset and settings."""
    rows.arrow()  # refused now, not after hours
    of_rows = task.columns()
    shards = tuple(plan.shards_of(dataset.samples, shard_size))
    worker_of = partial(EvaluationWorker, evaluator_of, of_rows, dataset.root, tuple(setups))
    # Refuses what cannot be used before anything is written.
    notes, worker = Notes(reporter), worker_of(tuple(settings))
    described = worker.describe()
    about = {"name": dataset.name, "split": dataset.split, "role": dataset.role}
    manifest = {
        "schema_version": task.version,
        "kind": task.kind,
        "cliploc_version": __version__,
        **({"plugins": plugins} if (plugins := plugin_sources()) else {}),
        "dataset": {**about, **(selection or {}), "classes": [asdict(one) for one in dataset.classes]},
        "settings": {setting.id: entry for setting, entry in zip(settings, described, strict=True)},
        "shard_size": shard_size,
        **(entries or {}),
    }
    for key in columns:
        if key not in (known := task.numbers(manifest)):
            raise UnknownNameError("number", key, known)
    notes.add(worker.notes)
    of_samples, local = samples_entry(dataset), local_entry(dataset, selection or {})
    with locked(out), store.disk_errors(out), _begun(out, task, manifest, of_samples, local, folders) as run:
        stamps = dict(run.rows("SELECT sample, stamp FROM picture"))
        resumed = bool(stamps)
        changed = {shard.index: names for shard in shards if (names := _changed(run, shard, stamps))}
        if changed:
            pictures = pictures_in_words([name for names in changed.values() for name in names])
            if others := run.manifest["settings"].keys() - {setting.id for setting in settings}:
                raise UsageError(f"{out}: replaced since they were computed: {pictures}: also name {', '.join(others)}")
            again = f"the rows of {sum(len(shards[index].samples) for index in changed)} computed again"
            notes.add([f"replaced since they were computed: {pictures}; {again}"])
            with run.transaction():
                for index in changed:
                    _forget(run, shards[index], [setting.id for setting in settings])
        todo = _todo(run, shards, settings)
        pending = [sample for group in todo.values() for shard in group for sample in shard.samples]
        left = len(pending)
        # Taken before any picture is read.
        stamps |= {sample.id: picture_files.stamp(sample) for sample in pending}

        def passes(chosen: Sequence[int], samples: int) -> int:
            return samples * len({settings[i].setup for i in chosen})  # each setup looks at each sample once

        reporter.phase(phase)
        looks = sum(passes(chosen, len(shard.samples)) for chosen, group in todo.items() for shard in group)
        reporter.start(looks, passes(range(len(settings)), len(dataset.samples)))
        done = 0

        def save(part: Part) -> None:
            nonlocal done, left
            samples, found = shards[part.index].samples, msgspec.convert(part.content, list[rows.PictureRow])
            digests = {row.sample: row.blake2b for row in found}
            places = enumerate((sample.id for sample in samples), part.index * shard_size)
            with run.transaction():
                _forget(run, shards[part.index], {row.setting for row in found})
                run.insert("picture", [(place, name, digests[name], stamps[name]) for place, name in places])
                run.insert("row", rows.cells_of(part.content, of_rows))
            done, left = done + 1, left - len(samples)
            notes.add(part.notes)
            # Each sample with its different reasons, for any number of settings.
            for sample, reason in dict.fromkeys((row.sample, row.reason) for row in found if not row.ok):
                reporter.failed(sample, CliplocError(f"{sample}: {reason}"))

        run.begin_session()
        every = len(dataset.samples)
        with store.interrupt_message(out, lambda: f"{every - left:,} of {every:,} pictures"):
            for chosen, group in todo.items():
                ready = worker if len(chosen) == len(settings) else None
                engine(group, Ready(partial(worker_of, tuple(settings[i] for i in chosen)), ready), save, reporter)
        reporter.phase("summary")
        summary = conclude(out, run, task)
        return BenchmarkResult(task, store.manifest_of(run), out, summary, notes.lines, every, done, resumed)


def _begun(
    out: Path, task: BenchmarkTask, manifest: Manifest, samples: Manifest, local: Manifest, folders: Sequence[str]
) -> store.Evaluation:
    """The file of a run: new, or of the same settings and samples."""
    if not any(os.path.lexists(out / name) for name in ("manifest.json", store.FILE)):  # else `open_run` refuses it
        refuse_taken(out, (*EXPORTS, *task.files, *folders))
    run, asked = store.open_run(out, (store.PICTURE, rows.table_of(task.columns()))), manifest["settings"]
    try:
        with run.transaction():
            if stored := run.manifest:  # settings are added to those of before
                before = stored["settings"]
                run.manifest = {**stored, "settings": {**asked, **before}}
                manifest = {**manifest, "settings": {**before, **asked}}
            run.keep("manifest", manifest)
            # Compared last: it follows from others, such as a limit.
            if run.samples not in ({}, samples):
                raise UsageError(f"{out}: {OTHER_SAMPLES}: put them back, or choose another --out")
            run.samples, run.here = samples, local
            for name in manifest["settings"].keys() - asked:
                [(count,)] = run.rows("SELECT count(*) FROM row WHERE setting = ?", name)
                if count < samples["samples"]:
                    raise UsageError(f"{out}: {name} is not finished: repeat its command, then add others")
    except BaseException:
        run.close()
        raise
    return run


def conclude(out: Path, run: store.Evaluation, task: BenchmarkTask) -> dict[str, Summary]:
    """Computes the numbers of all rows, and writes them and what other programs read."""
    manifest = store.manifest_of(run)
    about = msgspec.convert(manifest, report.Manifest)
    tallies = {one.id: task.tally(one, about.dataset, manifest) for one in about.settings}
    run.summary = summary = summed_up(rows.rows_of(out, task.row()), tallies)
    write_json(out / "summary.json", _document(task, summary))
    write_json(out / "manifest.json", manifest)
    rows.write_parquet(out / "rows.parquet", store.rows_in(out), task.columns())
    return summary


def summed_up(
    found: Iterable[rows.PictureRow], tallies: Mapping[str, Tally], bootstrap: Bootstrap = DEFAULT
) -> dict[str, Summary]:
    """Computes the numbers of a run, setting → numbers; the rows may be in any order."""
    failed: dict[str, list[dict[str, str | None]]] = {name: [] for name in tallies}
    evaluated = dict.fromkeys(tallies, 0)
    image_of: dict[str, str] = {}
    for row in found:
        image_of[row.sample] = row.path or row.sample
        if row.ok:
            evaluated[row.setting] += 1
            tallies[row.setting].add(row)
        else:
            failed[row.setting].append({"sample": row.sample, "reason": row.reason})
    bootstrap = replace(bootstrap, image_of=image_of)
    per_picture = {name: values for name, tally in tallies.items() if (values := tally.per_picture()) is not None}
    compared = paired.compared(per_picture, bootstrap)
    return {
        name: {
            **tally.summary({"images": evaluated[name] + len(failed[name]), "evaluated": evaluated[name]}, bootstrap),
            **({"compared": msgspec.to_builtins(compared[name])} if name in compared else {}),
            "failed": failed[name],
        }
        for name, tally in tallies.items()
    }


def _document(task: BenchmarkTask, summary: Mapping[str, Summary]) -> dict[str, Any]:
    return {"schema_version": task.version, "settings": seven_digits(summary)}


def _todo(
    run: store.Evaluation, shards: Sequence[Shard], settings: Sequence[plan.Setting]
) -> dict[tuple[int, ...], list[Shard]]:
    """Places of settings → the shards that lack their rows; most often all settings, or those that are new."""
    done: dict[str, set[str]] = {}
    for sample, setting in run.rows("SELECT sample, row.setting FROM row JOIN picture USING (sample)"):
        done.setdefault(sample, set()).add(setting)
    todo: dict[tuple[int, ...], list[Shard]] = {}
    for shard in shards:
        in_all = set.intersection(*(done.get(sample.id, set()) for sample in shard.samples))
        if lacking := tuple(i for i, setting in enumerate(settings) if setting.id not in in_all):
            todo.setdefault(lacking, []).append(shard)
    return todo


def _forget(run: store.Store, shard: Shard, settings: Iterable[str]) -> None:
    for sample in shard.samples:
        run.write("DELETE FROM picture WHERE sample = ?", sample.id)
        for setting in settings:
            run.write("DELETE FROM row WHERE sample = ? AND setting = ?", sample.id, setting)


def _changed(run: store.Store, shard: Shard, stamps: Mapping[str, str]) -> list[str]:
    """The samples of a finished shard whose files were replaced since it was computed."""
    changed = []
    for sample in shard.samples if all(sample.id in stamps for sample in shard.samples) else ():
        [(digest,)] = run.rows("SELECT blake2b FROM picture WHERE sample = ?", sample.id)
        # A disk that failed leaves the stamps as they are.
        if (
            stamps[sample.id] != picture_files.stamp(sample) or digest == picture_files.UNREAD
        ) and digest != picture_files.content_digest(sample):
            changed.append(sample.id)
    return changed


# ---------------------------------------------------------------------------------------------------------- the dataset
def samples_entry(dataset: AnyDataset) -> dict[str, Any]:
    """The number of samples, and a digest of all about them that the numbers depend on."""
    digest = hashlib.sha256()
    for sample in dataset.samples:
        digest.update(json.dumps(_identity(sample, dataset.root)).encode() + b"\n")
    return {"samples": len(dataset), "samples_sha256": digest.hexdigest()}


def local_entry(dataset: AnyDataset, selection: Mapping[str, Any]) -> dict[str, Any]:
    """Where the dataset is, its problems, and why classes are shown in detail (WordNet id → reason)."""
    reasons = dict(subsets.get("ten-classes").reasons)
    present = {dataset.classes[sample.label].wnid for sample in dataset.samples if isinstance(sample, Sample)}
    detailed = present and (selection.get("subset") == "ten-classes" or reasons.keys() <= present)
    return {
        "root": dataset.root.resolve(),
        "reasons": reasons if detailed else {},
        "problems": [asdict(problem) for problem in dataset.problems],
    }


def _identity(sample: Sample | LabelledPicture | PromptedPicture, root: Path) -> tuple[object, ...]:
    """Id, name, size and truth of a sample; of files their names only, as rows have digests of their contents."""
    if isinstance(sample, LabelledPicture):
        return sample.id, sample.size_wh, sample.name, sample.truth.facts
    if isinstance(sample, PromptedPicture):
        truth = [(label, boxes.tolist()) for label, boxes in sorted(sample.truth.items())]
        return sample.id, sample.size_wh, sample.labels, truth
    masks = [rows.place_of(mask, root) for mask in (*sample.masks, *([sample.ignore] if sample.ignore else []))]
    return sample.id, sample.label, sample.size_wh, sample.boxes_xyxy.tolist(), len(sample.masks), masks


def class_entries(dataset: DatasetSplit[Any]) -> tuple[str, ...]:
    """Each class of a dataset as `cliploc.find.prompts.parse` takes it: label → "cat|kitten"."""
    return tuple("|".join(class_name.synonyms) for class_name in dataset.classes)

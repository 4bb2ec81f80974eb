"""`run_leaderboard`: methods × sets as benchmark runs with τ chosen on other pictures, then fixed; one signed folder.

After Choe et al. 2020: what a set may choose, it chooses on a held-out split. `cliploc help leaderboard` explains it.
"""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from cliploc import __version__
from cliploc._documents import read_json
from cliploc._files import own_temporaries, parts_in
from cliploc.config import OF_LOCALIZATION, OPTIONS, Options
from cliploc.datasets import NEGATIVES, AskedDataset, Draw, asked_pictures, open_dataset, readers
from cliploc.errors import UsageError
from cliploc.geometry import iou_matrix
from cliploc.jobs import benchmark_localization as localization
from cliploc.jobs import benchmark_presence as presence
from cliploc.jobs import folder
from cliploc.jobs.engine import Engine, run_here
from cliploc.jobs.folder import write_json
from cliploc.jobs.plan import Grid, ModelSetup, Setting, shards_of
from cliploc.jobs.rows import Row, rows_in
from cliploc.jobs.task import BenchmarkResult
from cliploc.metrics import DEFAULT, LARGEST_HITS, Bootstrap, CocoAP, Interval, MaxBoxAcc, MaxBoxAccV2, hit_at
from cliploc.report.leaderboard_page import FILE, VERSION, read_leaderboard, signature_of
from cliploc.reporter import SILENT, Reporter
from cliploc.saliency import baselines
from cliploc.values import GOOD_IOU, Dataset

HELD_OUT = {"ilsvrc": "imagenetv2"}  # sets whose thresholds are chosen on another one; the others have a split for it
TUNED = 1000  # samples of a held-out split, unless asked otherwise
STAGES = ("tune", "report", "names")  # the benchmark runs of a set; the last where its absent names are known
NO_INTERVALS = Bootstrap(replicates=0)
ROWS = (
    "sample", "setting", "path", "label", "status", "highest", LARGEST_HITS, "boxes", "box_scores", "true_boxes",
    "pointing_hit", *(f"hits_every_{percent}" for percent in (30, 50, 70)),
)  # fmt: skip
OF_BOXES = ("boxes", "box_labels", "box_scores", "labels", "path")
TOLERANCE = 0.01  # of scores and IoUs that another processor computes again
Roots: TypeAlias = Mapping[str, Path]  # a set's name, or name:split → its folder


@dataclass(frozen=True)
class Wish:
    """What a leaderboard has: everything that its numbers depend on, besides the files of the sets."""

    options: Options  # of `Localizer`, with the model; without a method
    methods: Sequence[str]
    sets: Sequence[tuple[str, str]]  # names of sets with the split reported on
    tune: int = TUNED  # samples of each held-out split
    sample: int | None = None  # drawn of each split reported on; of pictures where absent names are known; None for all
    seed: int = 0

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return folder.plain({**vars(self), "options": self.options.given()})

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Wish:
        """The wish that JSON has."""
        if unknown := document["options"].keys() - OPTIONS.keys():
            raise UsageError(
                f"expected options of cliploc, got {min(unknown)}: use the version that made the leaderboard"
            )
        sets = [(name, readers.get(name).split(split).name) for name, split in document["sets"]]
        return cls(**{**document, "options": Options(**document["options"]), "sets": sets})


@dataclass(frozen=True)
class _Opened:
    """A set's pictures."""

    tune: Dataset
    report: Dataset
    names: AskedDataset | None  # the same pictures as in `report`, asked for all names
    negatives: Mapping[str, Mapping[str, Sequence[int]]]  # POPE's kind → picture → its absent names


def parse_set(text: str) -> tuple[str, str]:
    """A set and its split, of "coco" or "lvis:val"; without one the first to report on."""
    name, _, split = text.partition(":")
    reader = readers.get(name)
    if split:
        return name, reader.split(split).name
    first = next((part.name for part in reader.splits if part.role == "report"), None)
    if first is None:
        raise UsageError(f"{name} is for choosing thresholds only: expected a set with a split to report on")
    return name, first


def held_out(name: str) -> tuple[str, str]:
    """The set and split on which a set's thresholds are chosen."""
    other = HELD_OUT.get(name, name)
    split = next((part.name for part in readers.get(other).splits if part.role == "tune"), None)
    if split is None:
        raise UsageError(f"{name} has no split to choose thresholds on: expected another set")
    return other, split


def _root(roots: Roots, name: str, split: str) -> Path:
    folder = roots.get(f"{name}:{split}", roots.get(name))
    if folder is None:
        raise UsageError(f"expected --root {name}=DIR, the folder of {name} with its split {split}: add it")
    return folder


def _opened(wish: Wish, name: str, split: str, roots: Roots) -> _Opened:
    other, tuned = held_out(name)
    tune = open_dataset(other, _root(roots, other, tuned), tuned, sample=wish.tune, seed=wish.seed)
    root, draw = _root(roots, name, split), Draw(None, wish.sample, wish.seed)
    names, negatives = None, {}
    if readers.get(name).complete:
        report = open_dataset(name, root, split)
        labels = range(len(report.classes))
        of = {kind: asked_pictures(report, kind, labels, draw) for kind in NEGATIVES}
        names = of.pop("all")
        negatives = {
            kind: {
                picture.id: [label for label in picture.labels if label not in picture.truth]
                for picture in asked.samples
            }
            for kind, asked in of.items()
        }
        paths = {sample.path for sample in names.samples}
        report = replace(report, samples=tuple(sample for sample in report.samples if sample.path in paths))
    else:
        report = open_dataset(name, root, split, sample=wish.sample, seed=wish.seed)
    tuned_on, reported_on = ({sample.path.resolve() for sample in part.samples} for part in (tune, report))
    if both := tuned_on & reported_on:
        raise UsageError(
            f"expected other pictures of {name} to choose thresholds on, got {len(both):,} of those reported on, such "
            f"as {min(both)}: give --root {other}:{tuned}=DIR, another folder"
        )
    return _Opened(tune, report, names, negatives)


def settings_of(wish: Wish) -> tuple[ModelSetup, tuple[Setting, ...], tuple[str, ...]]:
    """The setup for boxes, its settings, and what is left out."""
    usual = {key: value for key, value in OF_LOCALIZATION.items() if getattr(wish.options, key) is None}
    setup = ModelSetup(wish.options.but(**usual))
    return setup, *Grid([setup], wish.methods, baselines=baselines()).settings(localization.unfit_for_setup)


# -------------------------------------------------------------------------------------------------------------- the run
Stage: TypeAlias = Callable[..., BenchmarkResult]  # a benchmark run that is ready but for its folder


def _stages(
    wish: Wish, opened: _Opened, place: Path, judges: int | None, reporter: Reporter, engine: Engine
) -> Iterator[tuple[str, Dataset | AskedDataset, Stage]]:
    """The benchmark runs of a set in their order; each may need the results of those before it, in `place`."""
    setup, settings, _ = settings_of(wish)
    asked = {"limit": None, "sample": wish.sample, "seed": wish.seed}

    def boxes(fixed: Sequence[Setting], about: Mapping[str, Any]) -> Stage:
        return lambda data, out, **more: localization.run_benchmark(
            data, [setup], fixed, out, judges=judges, asked=about, engine=engine, reporter=reporter, **more
        )

    yield "tune", opened.tune, boxes(settings, {**asked, "sample": wish.tune})
    taus = _chosen(place / "tune")
    fixed = [
        replace(setting, threshold=None if setting.id not in taus else taus[setting.id]["threshold"])
        for setting in settings
    ]
    yield "report", opened.report, boxes(fixed, asked)
    if opened.names is not None:
        # A setup each, as a localizer has one threshold.
        own = [
            replace(setting, setup=i)
            for i, setting in enumerate(setting for setting in fixed if setting.method not in baselines())
        ]
        yield (
            "names",
            opened.names,
            lambda data, out, **more: presence.run_presence(
                data, [ModelSetup(wish.options)] * len(own), own, out, asked={**asked, "negatives": "all"},
                engine=engine, reporter=reporter, **more,
            ),
        )  # fmt: skip


def run_leaderboard(
    wish: Wish,
    roots: Roots,  # also of the sets that thresholds are chosen on
    out: Path,
    *,
    engine: Engine = run_here,
    judges: int | None = None,  # see `run_benchmark`
    reporter: Reporter = SILENT,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Runs or resumes a leaderboard in a folder; the content of leaderboard.json, and sample → why it failed."""
    failed: dict[str, str] = {}
    # Refuses before anything is written.
    opened = {name: _opened(wish, name, split, roots) for name, split in wish.sets}
    for name, of in opened.items():
        place = out / "sets" / name
        for stage, data, run in _stages(wish, of, place, judges, reporter, engine):
            failed |= run(data, place / stage).failed
        if of.negatives:
            with own_temporaries(place, folder.token_for(place / "names")):
                write_json(place / "negatives.json", of.negatives)
    document = _document(wish, out)
    with own_temporaries(out, folder.token_for(out / "sets" / wish.sets[0][0] / "report")):
        write_json(out / FILE, document)
    return document, failed


def _document(wish: Wish, out: Path) -> dict[str, Any]:
    """The signed content of leaderboard.json, of the runs in the folder."""
    sets = [_set(out / "sets" / name, name) for name, _ in wish.sets]
    about = folder.read_manifest(out / "sets" / wish.sets[0][0] / "report", localization.KIND)["settings"][0]
    document = {
        "kind": "leaderboard",
        "schema_version": VERSION,
        "cliploc_version": __version__,
        "asked": wish.document(),
        "model": about["model"],
        "weights": about["weights"],
        "versions": folder.session()["versions"],
        "sets": sets,
        "files": dict(_digests(out, [name for name, _ in wish.sets])),
    }
    return {**document, "signature": signature_of(document)}


def _digests(out: Path, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The SHA-256 of each file that numbers are made of; of manifests without what says when and where only."""
    for name in names:
        place = out / "sets" / name
        if (place / "negatives.json").exists():
            yield _named(out, place / "negatives.json")
        for stage in STAGES:
            if not (place / stage).is_dir():
                continue
            kind = presence.KIND if stage == "names" else localization.KIND
            manifest = folder.read_manifest(place / stage, kind)
            data = {key: value for key, value in manifest["dataset"].items() if f"dataset.{key}" not in kind.free}
            lasting = {**{key: value for key, value in manifest.items() if key not in folder.FREE}, "dataset": data}
            path = place / stage / "manifest.json"
            yield (
                path.relative_to(out).as_posix(),
                hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest(),
            )
            yield _named(out, place / stage / "summary.json")
            for part in parts_in(place / stage, count=manifest["shards"]):
                yield _named(out, part)


def _named(out: Path, path: Path) -> tuple[str, str]:
    try:
        with path.open("rb") as file:
            return path.relative_to(out).as_posix(), hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): run the leaderboard again") from error


# ---------------------------------------------------------------------------------------------------------- the numbers
def _by_setting(place: Path, columns: Sequence[str]) -> dict[str, list[Row]]:
    """The rows of a run by setting, those of each in the order of its samples' ids."""
    by_setting: dict[str, list[Row]] = {}
    for row in rows_in(place, columns):
        by_setting.setdefault(row["setting"], []).append(row)
    return {setting: sorted(rows, key=lambda row: str(row["sample"])) for setting, rows in by_setting.items()}


def _chosen(place: Path) -> dict[str, dict[str, Any]]:
    """Setting → the best τ of a held-out split: of GT-known, and of each IoU of V2; none where there are only masks."""
    chosen = {}
    for setting, rows in _by_setting(place, ROWS).items():
        known, v2 = MaxBoxAcc(), MaxBoxAccV2()
        for row in rows:
            if row["status"] == "ok" and row[LARGEST_HITS] is not None:
                known.add(row["sample"], row, None, None)
                v2.add(row["sample"], row, None, None)
        if len(known):
            of_ious = {f"{100 * iou:.0f}": part.compute(NO_INTERVALS).threshold for iou, part in v2.parts.items()}
            chosen[setting] = {"threshold": known.compute(NO_INTERVALS).threshold, "thresholds_v2": of_ious}
    return chosen


def _set(place: Path, name: str) -> dict[str, Any]:
    """The entry of a set: its rows with the numbers of every setting."""
    manifest = folder.read_manifest(place / "report", localization.KIND)
    tuned = folder.read_manifest(place / "tune", localization.KIND)["dataset"]
    taus, reported = _chosen(place / "tune"), _by_setting(place / "report", ROWS)
    summary = read_json(place / "report" / "summary.json", dict[str, Any])["settings"]
    of_names = list(dict.fromkeys([*presence.NUMBER_COLUMNS, *OF_BOXES]))
    named = _by_setting(place / "names", of_names) if (place / "names").is_dir() else {}
    negatives = read_json(place / "negatives.json", dict[str, dict[str, list[int]]]) if named else {}
    rows = []
    for about in manifest["settings"]:
        setting = about["id"]
        own = taus.get(setting, {})
        whole, done = reported[setting], [row for row in reported[setting] if row["status"] == "ok"]
        numbers = _numbers(done, own, summary[setting], phrases=readers.get(name).phrases)
        if setting in named:
            truth = {(row["path"], row["label"]): row["true_boxes"] for row in whole}  # of failed samples too
            numbers |= _numbers_of_names(named[setting], truth, negatives)
        rows.append(
            {
                "setting": setting,
                "method": about["method"],
                **own,
                "evaluated": len(done),
                "failed": len(whole) - len(done),
                "numbers": {key: 100 * value for key, (value, _) in numbers.items()},
                "confidence_95": {key: [100 * end for end in ends] for key, (_, ends) in numbers.items() if ends},
            }
        )
    return {
        "name": name,
        "split": manifest["dataset"]["split"],
        "samples": manifest["dataset"]["samples"],
        "tuned_on": f"{tuned['name']} {tuned['split']}",
        "tuned_samples": tuned["samples"],
        "rows": rows,
    }


Numbers: TypeAlias = dict[str, tuple[float, Interval]]  # from 0 to 1


def _numbers(rows: Sequence[Row], own: Mapping[str, Any], summary: Mapping[str, Any], *, phrases: bool) -> Numbers:
    """The numbers of the run that asks for what is there."""
    numbers: Numbers = {}
    if own and rows:
        shares = {
            "gt_known": [hit_at(row[LARGEST_HITS], row["highest"], own["threshold"]) for row in rows],
            "v2": [
                np.mean(
                    [hit_at(row[f"hits_every_{iou}"], row["highest"], t) for iou, t in own["thresholds_v2"].items()]
                )
                for row in rows
            ],
            "top_box": [
                bool(row["boxes"]) and iou_matrix(row["boxes"][:1], row["true_boxes"]).max() >= GOOD_IOU for row in rows
            ],
            "pointing": [row["pointing_hit"] for row in rows],
        }
        for key, values in shares.items():
            column = np.array(values, np.float64)
            numbers[key] = float(column.mean()), DEFAULT.of_mean(column, [row["path"] for row in rows])
        if not phrases:
            given = CocoAP()
            for row in rows:
                given.add(row["path"], row["label"], row["boxes"], row["box_scores"], row["true_boxes"])
            numbers |= _picked(_summary_of(given), {"ap": "ap_given", "ar": "ar_given"})
    return numbers | _picked(summary, {"max_box_acc_v2": "v2_oracle", "pxap": "pxap"}, of=100)


def _numbers_of_names(
    rows: Sequence[Row],
    truth: Mapping[tuple[str, int], Any],  # picture and label → true boxes
    negatives: Mapping[str, Mapping[str, Sequence[int]]],
) -> Numbers:
    """The numbers of the run that asks every picture for all names."""
    done = [row for row in rows if row["status"] == "ok"]
    metric, paths = CocoAP(), {row["path"] for row in done}
    by_name: dict[tuple[str, int], list[tuple[list[float], float]]] = {key: [] for key in truth if key[0] in paths}
    for row in done:
        for label, box, score in zip(row["box_labels"], row["boxes"], row["box_scores"], strict=True):
            by_name.setdefault((row["path"], label), []).append((box, score))
    for (path, label), boxes in by_name.items():
        here = truth.get((path, label), [])
        metric.add(path, label, [box for box, _ in boxes], [score for _, score in boxes], here)
    numbers = _picked(_summary_of(metric), {"ap": "ap", "ap50": "ap50", "ar": "ar"})
    for kind, chosen in {**negatives, "": None}.items():
        tally = presence.PresenceTally()
        for row in done:
            tally.add(row if chosen is None else _only(row, chosen[row["sample"]]))
        wanted = {"f1": f"f1_{kind}"} if kind else {"false_finds": "false_finds"}
        numbers |= _picked(tally.summary({}, DEFAULT), wanted)
    return numbers


def _only(row: Row, absent: Sequence[int]) -> Row:
    """A row as if these were the absent names that it was asked for: the chances of the others stay as they are."""
    kept = [there or label in absent for label, there in zip(row["labels"], row["there"], strict=True)]
    lists = {key: [value for value, keep in zip(row[key], kept, strict=True) if keep] for key in ("there", "verdicts")}
    return {**row, **lists, "box_scores": [], "box_right": []}


def _summary_of(metric: CocoAP) -> dict[str, Any]:
    """Its numbers as a summary has them."""
    values, intervals = metric.compute(DEFAULT)
    return {**values, "confidence_95": intervals}


def _picked(summary: Mapping[str, Any], keys: Mapping[str, str], of: float = 1) -> Numbers:
    """Those of some numbers that a summary has, its key → ours; `of` is its 100 %."""
    ends = summary.get("confidence_95") or {}
    there = {key: theirs for theirs, key in keys.items() if summary.get(theirs) is not None}
    return {
        key: (summary[theirs] / of, (ends[theirs][0] / of, ends[theirs][1] / of) if ends.get(theirs) else None)
        for key, theirs in there.items()
    }


# ------------------------------------------------------------------------------------------------------------ the check
@dataclass(frozen=True)
class Checked:
    """What was found of a leaderboard's folder."""

    files: int  # whose digests hold
    rows: int  # numbers of methods on sets that follow from the files
    same: int  # samples × settings that were computed again: equal
    close: int  # whose scores and IoUs differ by at most `TOLERANCE`
    other: tuple[str, ...]  # that differ by more: set, stage, sample and setting


def check_leaderboard(
    out: Path,
    roots: Roots,  # of sets that are elsewhere now
    *,
    samples: int = 20,  # at least so many of each run, in whole parts, which the signature draws; 0 for none
    engine: Engine = run_here,
    reporter: Reporter = SILENT,
) -> Checked:
    """Checks a leaderboard's signature, files and numbers, and computes some of its samples again."""
    document = read_leaderboard(out)
    wish = Wish.of(document["asked"])
    for path, digest in _digests(out, [name for name, _ in wish.sets]):
        if document["files"].get(path) != digest:
            raise UsageError(f"{out / path} is not the file that was signed: do not trust this leaderboard")
    ours = [_set(out / "sets" / name, name) for name, _ in wish.sets]
    if difference := _difference(folder.plain({"sets": ours})["sets"], document["sets"]):
        raise UsageError(f"{out / FILE}: its numbers do not follow from its rows ({difference}): do not trust it")
    rows: dict[str, list[str]] = {"same": [], "close": [], "other": []}
    if samples:
        if document["cliploc_version"] != __version__:
            raise UsageError(
                f"{out} was made by cliploc {document['cliploc_version']}, this is {__version__}: use that version, or "
                "--sample 0"
            )
        draw = random.Random(document["signature"])
        for name, split in wish.sets:
            place = out / "sets" / name
            # Read from where they were, unless they are elsewhere now.
            read = [folder.read_manifest(place / stage, localization.KIND)["dataset"] for stage in ("tune", "report")]
            there = {**{f"{dataset['name']}:{dataset['split']}": Path(dataset["root"]) for dataset in read}, **roots}
            for stage, data, run in _stages(wish, _opened(wish, name, split, there), place, 0, reporter, engine):
                for verdict, row in _again(place, stage, data, run, draw, samples):
                    rows[verdict].append(row)
    same, close, other = rows.values()
    return Checked(
        len(document["files"]), sum(len(dataset["rows"]) for dataset in ours), len(same), len(close), tuple(other)
    )


def _again(
    place: Path, stage: str, data: Any, run: Stage, draw: random.Random, samples: int
) -> Iterator[tuple[Literal["same", "close", "other"], str]]:
    """Computes some parts of a run again; what each row is beside that of the run, and which row it is."""
    kind = presence.KIND if stage == "names" else localization.KIND
    manifest = folder.read_manifest(place / stage, kind)
    shards = list(shards_of(data.samples, manifest["shard_size"]))
    draw.shuffle(shards)
    chosen: list[Any] = []
    while shards and len(chosen) < samples:
        chosen += shards.pop().samples  # whole parts, so that batches are as they were
    with tempfile.TemporaryDirectory(prefix="cliploc-check-") as temporary:
        run(replace(data, samples=tuple(chosen)), Path(temporary) / stage, shard=manifest["shard_size"])
        again = {(row["sample"], row["setting"]): row for row in rows_in(Path(temporary) / stage)}
    before = {key: row for row in rows_in(place / stage) if (key := (row["sample"], row["setting"])) in again}
    for key, row in again.items():
        old = before.get(key)
        close = old is not None and _close(old, row)
        yield "same" if old == row else "close" if close else "other", f"{place.name}, {stage}, {key[0]}, {key[1]}"


def _close(a: Row, b: Row) -> bool:
    """Whether two rows of a sample differ by no more than another processor's rounding."""
    exact = ("status", "blake2b", "label", "there", "true_boxes")
    near = ("score", "iou", "presence", "box_scores")
    return all(a.get(key) == b.get(key) for key in exact) and all(_near(a.get(key), b.get(key)) for key in near)


def _near(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    return np.shape(a) == np.shape(b) and bool(np.allclose(a, b, rtol=0, atol=TOLERANCE))


def _difference(a: Any, b: Any, where: str = "") -> str:
    """Where two documents differ by more than the last digits of a sum; "" for nowhere."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return next(
            (difference for key in a if (difference := _difference(a[key], b[key], f"{where} {key}".strip()))), ""
        )
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return next(
            (difference for i, (one, two) in pairs if (difference := _difference(one, two, f"{where} {i}".strip()))), ""
        )
    if isinstance(a, float) and isinstance(b, int | float):
        return "" if abs(a - b) <= 1e-9 * max(1, abs(a)) else where
    return "" if a == b else where

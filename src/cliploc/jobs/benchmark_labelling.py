"""`run_labelling`: corrections that drafts need, before and after reviews; see `cliploc help teaching`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from cliploc import __version__
from cliploc._files import alone_in, part_path, read_stamps, temporaries_of, write_part
from cliploc.config import DEFAULTS, MIN_SCORE
from cliploc.datasets import AskedDataset
from cliploc.jobs import folder
from cliploc.jobs.annotate import annotate
from cliploc.jobs.annotator import RESERVED, AnnotatorSettings
from cliploc.jobs.draft_scores import Work
from cliploc.jobs.engine import Engine, Notes, run_here
from cliploc.jobs.folder import RunKind, plain, room_for_parts
from cliploc.jobs.labels import Labels
from cliploc.jobs.picture_files import FoundPictures, PictureFile, by_path, content_digest
from cliploc.jobs.plan import ModelSetup, Setting
from cliploc.jobs.reviewer import Order, Reviewer, Walk, WorkOf
from cliploc.jobs.rows import Row, arrow, as_parquet, check_part, sample_facts, schema_of, to_table
from cliploc.jobs.task import (
    BenchmarkResult,
    BenchmarkTask,
    Manifest,
    Summary,
    Tally,
    class_entries,
    conclude,
    dataset_entry,
)
from cliploc.jobs.teach import VERSION
from cliploc.metrics import Bootstrap, ratio
from cliploc.report.labelling_page import DRAFTS, NUMBERS, OF_NAME, minutes_text, number_text
from cliploc.report.labelling_page import FILES as REPORT_FILES
from cliploc.reporter import SILENT, Reporter

KIND = RunKind("labelling", "a labelling benchmark", 1)
FILES = ("summary.json", *REPORT_FILES)
STEPS = (0, 3, 5, 10, 20, 40)  # reviewed pictures
SEEDS = 3
# Seconds. Drawn the traditional way, a box takes 25 to 35 (Su et al. 2012, "Crowdsourcing annotations for visual object
# detection": drawn once, and with checks); by clicks on its four sides 7 (Papadopoulos et al. 2017, "Extreme clicking
# for efficient object annotation"): no draft should take longer to put right, or to delete.
DRAW, CHANGE = (25.0, 35.0), 7.0
NUMBER_COLUMNS = (
    "sample", "setting", "status", "reason", "order", "seed", "place", "labels", "boxes", "untaught", "taught",
)  # fmt: skip
Floats = npt.NDArray[np.float64]


# ------------------------------------------------------------------------------------------------------------ the task
def row_schema() -> Any:
    """The columns of a row, one for each picture, setting, order and seed, as a `pyarrow.Schema`."""
    pa = arrow()
    text, i32 = pa.string(), pa.int32()
    work = pa.list_(i32, 3)  # to delete, draw, adjust
    return schema_of(
        **dict.fromkeys(("sample", "setting", "path", "blake2b"), text),
        width=i32, height=i32, status=text, reason=text, order=text, seed=i32,
        place=i32,  # which one it is among the reviewed pictures; null: it is not reviewed
        # Of each name with boxes or with something to do; taught: at each step before the picture is reviewed.
        labels=pa.list_(i32), boxes=pa.list_(i32), untaught=pa.list_(work), taught=pa.list_(pa.list_(work)),
    )  # fmt: skip


def _table(summary: Mapping[str, Summary], manifest: Manifest) -> list[tuple[str, ...]]:
    titles = ("setting", "order", "reviewed", "left", *(title for title, _ in NUMBERS.values()))
    rows: list[tuple[str, ...]] = [titles]
    for name, of_setting in summary.items():
        for order, curve in of_setting.get("curves", {}).items():
            for i, step in enumerate(manifest["reviewed"]):
                numbers = {key: values[i] for key, values in curve.items()}
                rows.append(
                    (name, order, f"{step}", f"{numbers['left']:,.0f}", *(_said(key, numbers) for key in NUMBERS))
                )
    return rows


def _said(key: str, numbers: Mapping[str, Any]) -> str:
    """One of `NUMBERS` at one step, in a table."""
    if key == "minutes":
        return minutes_text(numbers, "")
    return number_text(numbers[key], numbers["saved_error"] if key == "saved" else None)


def _legend(summary: Mapping[str, Summary], _: Manifest) -> list[str]:
    lines = [f"{title}: {about}" for title, about in NUMBERS.values()]
    for name, numbers in summary.items():
        if "boxes" in numbers:
            lines.append(
                f"{name}: {numbers['evaluated']:,} pictures, {numbers['boxes']:,} true boxes, names: "
                f"{numbers['names']:,}; without drafts {numbers['nothing']:.1f} boxes to draw for 100 pictures, "
                f"{minutes_text(numbers, 'nothing_')} minutes"
            )
    return lines


TASK = BenchmarkTask(
    KIND,
    FILES,
    row_schema,
    lambda: NUMBER_COLUMNS,
    lambda _, manifest: LabellingTally(manifest["reviewed"]),
    _table,
    _legend,
)


def run_labelling(
    dataset: AskedDataset,
    setups: Sequence[ModelSetup],
    settings: Sequence[Setting],
    out: Path,
    *,
    seeds: int = SEEDS,
    steps: Sequence[int] = STEPS,  # ascending, from 0 on
    engine: Engine = run_here,
    asked: Mapping[str, Any] | None = None,
    reporter: Reporter = SILENT,
) -> BenchmarkResult:
    """Annotates a dataset and reviews it by its true boxes, `seeds` times, to each of `steps` reviewed pictures."""
    arrow()
    labels = sorted({label for sample in dataset.samples for label in sample.labels})
    names = [class_entries(dataset)[label] for label in labels]
    jobs = [_Job(setups[setting.setup], setting, names) for setting in settings]
    notes = Notes(reporter)
    described = [job.describe() for job in jobs]
    steps = [step for step in steps if step < len(dataset.samples)]
    walks = [Walk(order, seed) for order, seed in product(get_args(Order), range(seeds))]
    manifest = {
        "schema_version": KIND.version,
        "kind": KIND.name,
        "cliploc_version": __version__,
        "dataset": dataset_entry(dataset, asked or {}),
        "settings": described,
        "shards": len(walks),
        "teaching": VERSION,
        "reviewed": steps,
        "orders": list(get_args(Order)),
        "seeds": seeds,
        "seconds": {"draw": list(DRAW), "change": CHANGE},
        "token": folder.token_for(out),
    }
    ids = [sample.id for sample in dataset.samples]

    def check(_: int, part: bytes) -> None:
        check_part(part, row_schema(), ids, [job.id for job in jobs])

    with alone_in(out):
        begun = folder.begin(out, KIND, manifest, (*FILES, DRAFTS), check)
        notes.add(begun.notes)
        with temporaries_of(begun.token):
            folder.begin_session(out, KIND)
        pictures = sorted((PictureFile(sample.id, sample.path) for sample in dataset.samples), key=by_path)
        # The folder that the pictures' ids are relative to.
        first, path = dataset.samples[0].id, dataset.samples[0].path.as_posix()
        root = Path(path.removesuffix(first)) if path.endswith(first) else dataset.root
        files = FoundPictures(root, pictures, [])
        for job in jobs:
            notes.add(job.annotate(files, out / DRAFTS / job.id, engine, replace(reporter, note=SILENT.note)))
        reviewers = [Reviewer(out / DRAFTS / job.id, dataset.samples, labels) for job in jobs]
        stamps = [reviewer.digest() for reviewer in reviewers]
        there = {index for index in begun.whole if read_stamps(part_path(out, index)) == stamps}
        facts = {sample.id: sample_facts(sample, dataset.root, content_digest(sample)) for sample in dataset.samples}
        count, done = len(dataset.samples) * len(jobs), 0
        reporter.phase("reviewing")
        reporter.start(count * (len(walks) - len(there)), count * len(walks))
        with temporaries_of(begun.token), room_for_parts(out, lambda: len(there) + done, len(walks)):
            for index, walk in enumerate(walks):
                if index in there:
                    continue
                rows: list[Row] = []
                for job, reviewer in zip(jobs, reviewers, strict=True):
                    rows += _rows(walk, steps, reviewer, facts, job.id)
                    reporter.images(len(facts))
                write_part(part_path(out, index), as_parquet(to_table(rows, row_schema())), stamps)
                done += 1
            reporter.phase("summary")
            summary = conclude(out, TASK, _failed_once)
    return BenchmarkResult(TASK, manifest, out, summary, notes.lines, len(dataset.samples), done, bool(there), {})


def _rows(
    walk: Walk, steps: Sequence[int], reviewer: Reviewer, facts: Mapping[str, Row], setting: str
) -> Iterator[Row]:
    """The rows of a walk in one setting."""
    failed, walked = reviewer.failed(), reviewer.walked(walk, steps)
    for sample, of_sample in facts.items():
        row = {**of_sample, "setting": setting, "order": walk.order, "seed": walk.seed}
        if sample in failed:
            yield {**row, "status": "failed", "reason": failed[sample]}
            continue
        in_walk, boxes, untaught = walked[sample], reviewer.boxes(sample), reviewer.untaught[sample]
        labels = sorted({label for label, count in boxes.items() if count}.union(untaught, *in_walk.taught))
        yield {
            **row,
            "status": "ok",
            "place": in_walk.place,
            "labels": labels,
            "boxes": [boxes.get(label, 0) for label in labels],
            "untaught": [_counts(untaught, label) for label in labels],
            "taught": [[_counts(work, label) for work in in_walk.taught] for label in labels],
        }


def _counts(work: WorkOf, label: int) -> list[int]:
    of_label = work.get(label, Work(0, 0, 0))
    return [of_label.delete, of_label.draw, of_label.adjust]


class _Job:
    """One setting, as `annotate` runs it."""

    def __init__(self, setup: ModelSetup, setting: Setting, names: Sequence[str]) -> None:
        given = setup.options
        if given.recipe is None:
            given = given.but(method=setting.method, method_options=dict(setting.options))
        if setting.threshold is not None:
            given = given.but(threshold=setting.threshold)
        self.id, self.setup = setting.id, setup
        self.labels = Labels(tuple(names), (None,) * len(names), tuple(given.background or ()))
        self.drafts: dict[str, Any] = {  # options that `annotate` takes itself
            "min_presence": given.min_presence,
            "min_score": MIN_SCORE if given.min_score is None else given.min_score,  # the default of `annotate`
            "max_boxes": given.max_boxes,
            "min_area": given.min_area,
        }
        self.options = given.but(**{name: getattr(DEFAULTS, name) for name in RESERVED})  # the others

    def describe(self) -> dict[str, Any]:
        """Its entry in the manifest; refuses what cannot be used."""
        area, least = self.drafts["min_area"], self.drafts["min_presence"]
        worker = AnnotatorSettings(self.labels, self.options, area, least=least, teach=True)()
        return plain({"id": self.id, **worker.describe(), **self.drafts, **self.setup.described()})

    def annotate(self, pictures: FoundPictures, out: Path, engine: Engine, reporter: Reporter) -> Sequence[str]:
        """Makes the drafts, or what is missing of them; returns remarks."""
        result = annotate(
            pictures, self.labels, out, formats=("csv",), review=0, teach=True, engine=engine,
            reporter=reporter, options=self.options, **self.drafts,
        )  # fmt: skip
        return result.notes


def _failed_once(rows: Iterator[Row]) -> Iterator[Row]:
    """The rows without those of pictures that failed in an earlier walk, too."""
    seen = set()
    for row in rows:
        which = row["sample"], row["setting"]
        if row["status"] == "ok" or which not in seen:
            yield row
        seen.add(which)


# --------------------------------------------------------------------------------------------------------- the numbers
class LabellingTally(Tally):
    """Counts the rows of one setting."""

    def __init__(self, steps: Sequence[int]) -> None:
        self._steps = steps
        self._walks: dict[tuple[str, int], dict[str, Row]] = {}

    def add(self, row: Row) -> None:
        self._walks.setdefault((row["order"], row["seed"]), {})[row["sample"]] = row

    def summary(self, counts: Mapping[str, int], bootstrap: Bootstrap) -> Summary:  # noqa: ARG002 - errors are paired
        """`NUMBERS` before any review, and `curves` at each step: means over pictures and seeds, for 100 pictures."""
        if not self._walks:
            return dict(counts)
        evaluated = len(next(iter(self._walks.values())))
        failed = counts["images"] - counts["evaluated"]
        curves, seeds = {}, {}
        for order in dict.fromkeys(order for order, _ in sorted(self._walks)):
            walks = [_walk(self._walks[key], self._steps) for key in sorted(self._walks) if key[0] == order]
            curves[order] = _curve(walks)
            seeds[order] = [_listed(_of_left(taught.sum(axis=2)[None], left[None])) for left, _, taught in walks]
        first = next(iter(self._walks.values()))
        names = {label for walk in first.values() for label in walk["labels"]}
        boxes = sum(sum(walk["boxes"]) for walk in first.values())
        start = next(iter(curves.values()))
        nothing = 100 * boxes / evaluated
        return {
            **{key: start[key][0] for key in OF_NAME},
            "nothing": nothing,
            **{f"nothing_{key}": float(minutes) for key, minutes in _minutes(np.array([0.0, nothing, 0.0])).items()},
            "boxes": boxes,
            "names": len(names),
            "curves": curves,
            "seeds": seeds,
            "per_class": {str(label): self._of_name(label) for label in sorted(names)},
            "images": evaluated + failed,
            "evaluated": evaluated,
        }

    def _of_name(self, label: int) -> dict[str, float | None]:
        """The numbers of one name, in random order."""
        of_random = [self._walks[key] for key in sorted(self._walks) if key[0] == "random"]
        numbers = _curve([_walk(walk, self._steps, label) for walk in of_random])
        pairs = [pair for row in of_random[0].values() for pair in zip(row["labels"], row["boxes"], strict=True)]
        with_boxes = [count for name, count in pairs if name == label and count]
        row: dict[str, float | None] = {"pictures": len(with_boxes), "boxes": sum(with_boxes)}
        for i, step in enumerate(self._steps):
            row |= {f"{key}_{step}": numbers[key][i] for key in OF_NAME}
        return row


# The n pictures of a walk, in a fixed order, at S steps: whether each is left (not reviewed yet) [n, S]; and what there
# is to delete, draw and adjust: untaught [n, 3], and taught [n, S, 3].
_Walk: TypeAlias = tuple[npt.NDArray[np.bool_], Floats, Floats]


def _walk(pictures: Mapping[str, Row], steps: Sequence[int], label: int | None = None) -> _Walk:
    """That of some rows, of all names or one; the order of the rows does not matter."""
    every = [pictures[picture] for picture in sorted(pictures)]
    places = np.array([np.inf if picture["place"] is None else picture["place"] for picture in every])  # [n]
    untaught, taught = np.zeros((len(every), 3)), np.zeros((len(every), len(steps), 3))
    for i, picture in enumerate(every):
        for name, before, after in zip(picture["labels"], picture["untaught"], picture["taught"], strict=True):
            if label in (None, name):
                untaught[i] += before
                # of a reviewed picture, which has fewer steps, what there was to do when it was reviewed
                taught[i] += np.array(after, np.float64)[np.minimum(np.arange(len(steps)), len(after) - 1)]
    return places[:, None] >= np.array(steps), untaught, taught


def _of_left(values: Floats, left: npt.NDArray[np.bool_]) -> Floats:
    """The mean of values `[R, n, S]` of pictures that are left → `[S]`, for 100 of them; NaN where none is."""
    return ratio(100 * (values * left).sum(axis=(0, 1)), left.sum(axis=(0, 1)))


def _listed(values: Floats) -> list[float | None]:
    """Values `[S]`, with None for those that are not known."""
    return [float(value) if np.isfinite(value) else None for value in values]


def _curve(walks: Sequence[_Walk]) -> dict[str, list[float | None]]:
    """The numbers at each step of walks in one order."""
    left, once, taught = (np.stack(part) for part in zip(*walks, strict=True))  # [R, n, S], [R, n, 3], [R, n, S, 3]
    untaught = np.repeat(once[:, :, None], left.shape[2], axis=2)  # [R, n, S, 3]
    curve: dict[str, list[float | None]] = {"left": left[0].sum(axis=0).astype(float).tolist()}

    saved = (untaught - taught).sum(axis=3)  # [R, n, S]
    curve |= {
        "untaught": _listed(_of_left(untaught.sum(axis=3), left)),
        "taught": _listed(_of_left(taught.sum(axis=3), left)),
        "saved": _listed(_of_left(saved, left)),
        "saved_error": _errors(saved, left),
        "whole": (100 * taught.sum(axis=3).mean(axis=(0, 1))).tolist(),
    }
    for key, values in (("untaught_", untaught), ("", taught)):
        kinds = np.stack([_of_left(values[..., i], left) for i in range(3)])  # [3, S]
        curve |= {f"{key}{name}": _listed(of) for name, of in zip(("delete", "draw", "adjust"), kinds, strict=True)}
        curve |= {f"{key}{name}": _listed(of) for name, of in _minutes(kinds).items()}
    return curve


def _minutes(kinds: Floats) -> dict[str, Floats]:
    """Minutes for so many corrections `[3, …]`, with the least and the greatest cost of a box."""
    delete, draw, adjust = kinds
    ends = zip(("minutes_low", "minutes_high"), DRAW, strict=True)
    return {key: (CHANGE * (delete + adjust) + cost * draw) / 60 for key, cost in ends}


def _errors(saved: Floats, left: npt.NDArray[np.bool_]) -> list[float | None]:
    """The standard error `[S]` of the mean difference, for 100 pictures: from other pictures, and from other draws."""
    errors: list[float | None] = []
    for i in range(saved.shape[2]):
        values, there = saved[..., i], left[..., i]  # [R, n]
        seen = there.any(axis=0)
        if seen.sum() < 2:
            errors.append(None)
            continue
        of_pictures = (values * there).sum(axis=0)[seen] / there.sum(axis=0)[seen]
        variance = of_pictures.var(ddof=1) / len(of_pictures)
        if len(values) > 1:
            of_draws = (values * there).sum(axis=1) / there.sum(axis=1)
            variance += of_draws.var(ddof=1) / len(of_draws)
        errors.append(float(100 * np.sqrt(variance)))
    return errors

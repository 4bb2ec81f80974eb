"""`annotate`: makes draft boxes for a folder of pictures and a list of names, in files for other tools.

A run can be stopped at any moment and resumed. `cliploc help annotate` explains the folder of results.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np

from cliploc import __version__, prompts
from cliploc._documents import DocumentError, checked, parse_json, read_json
from cliploc._extras import refuse_without
from cliploc._files import alone_in, temporaries_of
from cliploc._inputs import Inputs
from cliploc._parts import part_path, parts_in, read_part, read_stamps, remove_part, write_part
from cliploc._schemas import (
    AnnotatedRow,
    AnnotationManifest,
    AnnotationSummary,
    Decisions,
    SavedCorrections,
    SavedReview,
)
from cliploc.config import DEFAULTS, MIN_SCORE, Options
from cliploc.errors import CliplocError, UsageError
from cliploc.jobs import correction_masks, export_states, folder, local
from cliploc.jobs.annotator import RESERVED, AnnotatorSettings, BoxFilter, Groups, Row
from cliploc.jobs.corrections import Correction, Corrections, read_corrections
from cliploc.jobs.draft_scores import IOU, LabelScore, PicturePair, score_drafts
from cliploc.jobs.engine import Engine, Part, Ready, Shard
from cliploc.jobs.folder import RunKind, plain, room_for_parts, write_json
from cliploc.jobs.labels import Labels, labels_of, read_labels
from cliploc.jobs.notes import Notes, pictures_in_words
from cliploc.jobs.pictures import RUN_KIND, PictureFile, Skipped, find_pictures, skipped_document
from cliploc.jobs.plan import SHARD, shard_size
from cliploc.jobs.reviewed import UnusableReviewError, review_of
from cliploc.jobs.sources import content_digest, stamp
from cliploc.jobs.videos import FRAMES, Every, all_frames
from cliploc.report.exports import AnnotatedPicture, Export, ExportSettings, chosen_exports, exports
from cliploc.report.review import REVIEW_KIND, ReviewPicture, write_review
from cliploc.reporter import SILENT, Reporter
from cliploc.rle import Rle, uncompressed

SCHEMA_VERSION = 3  # of manifest.json, summary.json, decisions.json, corrections.json and the parts
KIND = RunKind(
    RUN_KIND, "an annotation", SCHEMA_VERSION, ".jsonl", frozenset({"root", "image_url", "every"}), AnnotationManifest
)
OWN_FILES = (
    export_states.FILE,
    "summary.json",
    "decisions.json",
    "corrections.json",
    "draft_scores.json",
)  # files that every run may write
CORRECTIONS_KIND = "cliploc corrections"
REVIEWED = 100  # default number of pictures of a review page
CACHED = 4  # number of parts whose rows are in memory while exports are written
IMAGE_URL = "/data/local-files/?d="


@dataclass(frozen=True)
class AnnotateResult:
    """The result of an annotation run.

    Attributes:
        out: the run's folder.
        pictures: number of pictures.
        boxes: label → number of its boxes.
        with_label: label → number of pictures with it.
        empty: number of pictures without boxes.
        failed: picture → why it failed.
        groups: number of boxes that seem to contain several things.
        dropped: number of boxes that a review dropped.
        reviewed: number of pictures that were reviewed.
        files: format → its files, written by this call or up to date before it.
        computed: number of pictures that this call computed; the others were done before.
        notes: remarks on the run.
        skipped: files that were left out, and why.
        run: id of the names and settings that the boxes were made with, as in review.html and decisions.json.
        decided: digest of the decisions that the files were written with; None if there are none.
        corrected: number of pictures whose boxes are those of a corrected set.
        not_applied: picture, as the corrected set of this call names it → why it was left as it is.
        draft_scores: label → how its drafts did against the corrected boxes; "" for all labels. Empty if no picture
            was corrected completely.
        scored: number of pictures that these scores are of; those that a person edited but did not mark as reviewed do
            not count.
    """

    out: Path
    pictures: int
    boxes: Mapping[str, int]
    with_label: Mapping[str, int]
    empty: int
    failed: Mapping[str, str]
    groups: int
    dropped: int
    reviewed: int
    files: Mapping[str, tuple[str, ...]]
    computed: int
    notes: tuple[str, ...]
    skipped: Sequence[Skipped] = ()
    run: str = ""
    decided: str | None = None
    corrected: int = 0
    not_applied: Mapping[str, str] = field(default_factory=dict)
    draft_scores: Mapping[str, LabelScore] = field(default_factory=dict)
    scored: int = 0

    def document(self) -> dict[str, Any]:
        """The result as in summary.json."""
        return {
            "schema_version": SCHEMA_VERSION,
            "run": self.run,
            "decisions": self.decided,
            "pictures": self.pictures,
            "labels": {name: {"boxes": self.boxes[name], "pictures": self.with_label[name]} for name in self.boxes},
            "without_boxes": self.empty,
            "failed": [{"picture": name, "reason": reason} for name, reason in self.failed.items()],
            "skipped": skipped_document(self.skipped),
            "boxes_round_several": self.groups,
            "boxes_dropped_in_review": self.dropped,
            "pictures_reviewed": self.reviewed,
            "pictures_corrected": self.corrected,
            "files": {name: list(files) for name, files in self.files.items()},
        }

    def closing(self, seconds: float) -> list[str]:
        """The lines printed at the end of a run."""
        done, boxes = self.pictures - len(self.failed), sum(self.boxes.values())
        words = [f"{done:,} of {self.pictures:,} pictures done, {self.computed:,} of them now, {seconds:.1f} s"]
        words.append(f"{boxes:,} boxes; {self.empty:,} pictures without any")
        if self.failed:
            words.append(f"{len(self.failed):,} failed: see summary.json")
        lines = ["; ".join(words)]
        if self.groups:
            lines.append(f"{self.groups:,} boxes seem to contain several things: see --groups, or review them")
        if self.dropped or self.reviewed:
            lines.append(f"{self.reviewed:,} pictures reviewed, {self.dropped:,} boxes dropped")
        if self.corrected:
            lines += self._of_scores()
        if not boxes:
            lines.append("no boxes were found: check the names, or try --min-presence 0 and --min-score 0")
        return [*lines, f"written to {self.out}: {', '.join(one for names in self.files.values() for one in names)}"]

    def _of_scores(self) -> list[str]:
        """How drafts did against corrected boxes; a line for each label that has any."""
        lines = [f"{self.corrected:,} pictures corrected"]
        if self.draft_scores:
            lines.append(f"drafts of {self.scored:,} of them compared with the corrected boxes, at IoU {IOU}:")
        for name, one in self.draft_scores.items():
            if not one.drafts and not one.true:
                continue
            words = [f"{name or 'all labels'}: {one.right} of {one.drafts} drafts right"]
            words.append(f"{one.right} of {one.true} boxes found")
            if one.min_score is not None:
                found = f"{one.kept_right} of {one.kept} right, {one.kept_right} of {one.true} found"
                words.append(f"best with --min-score {one.min_score:g} ({found})")
            lines.append("; ".join(words))
        return lines

    def table(self) -> list[tuple[str, str, str]]:
        """The table of labels: a header, then a row for each label."""
        lines = [(name, f"{self.boxes[name]:,}", f"{self.with_label[name]:,}") for name in self.boxes]
        return [("label", "boxes", "pictures"), *lines]


def annotate(
    pictures: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    labels: str | os.PathLike[str] | Sequence[str] | Labels,
    out: str | os.PathLike[str],
    *,
    formats: Sequence[str] = ("coco",),
    min_presence: float = DEFAULTS.min_presence,
    min_score: float | Literal["auto"] = MIN_SCORE,
    max_boxes: int | None = DEFAULTS.max_boxes,
    min_area: float = DEFAULTS.min_area,
    nms_across: float | None = None,
    groups: Groups = "keep",
    masks: bool = False,
    polygons: bool = False,
    copy: bool = False,
    review: int = REVIEWED,
    decisions: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    retry: bool = False,
    image_url: str | None = None,
    every: str | None = None,
    engine: Engine = local.run,
    shard: int = SHARD,
    reporter: Reporter = SILENT,
    options: Options | None = None,
    **more: Any,
) -> AnnotateResult:
    """Makes draft boxes of named things in pictures, and writes them for other tools.

    Args:
        pictures: a folder with its sub-folders, a pattern such as "photos/**/*.jpg", a .txt list, or paths.
        labels: a file of `cliploc.jobs.labels.read_labels`, its lines as a list, or `Labels`.
        out: an empty folder, or the folder of a run with the same settings, which is resumed, also with additional
            pictures.
        formats: names of `cliploc.list_exports()`; formats written before are updated too.
        min_presence: minimum presence score of a name; a label's own threshold overrides it.
        min_score: minimum score of a box: the estimated chance that it has IoU ≥ 0.5 with a thing of its name, if
            there is one. "auto": the default, but a name that is in the picture keeps its best box.
        max_boxes: maximum number of boxes of a name in a picture, best first; None for all.
        min_area: minimum area of a box's region, as a share of the picture.
        nms_across: of two boxes of different names whose IoU is above this, the one with the
            greater score × certainty stays; None to keep all.
        groups: what to do with a large box that contains several things: "keep", "split" or "drop".
        masks: whether each box has its mask, in all formats that hold masks; see `cliploc help masks`.
        polygons: whether coco.json has polygons where a mask has no hole, instead of run lengths.
        copy: whether formats that come with the pictures (yolo, voc) have copies of them, instead of links.
        review: number of pictures in review.html, the least certain first; 0 for no page.
        decisions: the file saved from a review page, or a corrected set in COCO's, YOLO's, Pascal VOC's, Label Studio's
            or CVAT's format: their boxes take the place of the drafts, also in later calls.
        limit: only this number of pictures, from the first on.
        retry: whether to try pictures again that failed before.
        image_url: prefix of a picture's path in Label Studio's file; None for the prefix used before, at first that of
            Label Studio's local files, below the folder that contains `pictures`.
        every: which frames of videos are taken: "30" for each 30th, "2s" for one in two seconds, "scene" for those that
            begin a scene, or several with commas; None: as before, at first none.
        engine: the engine that runs it.
        shard: number of pictures that are computed and written together; rounded to whole batches.
        reporter: gets the phases ("annotate", then "writing NAME" for each format that is not up to date), the numbers
            of pictures to do and done, each failed picture, and each note. An exception raised by the reporter ends the
            run, which can be resumed.
        options: options of the `Localizer`: model, method, scales, flip, batch_size …; None for the defaults. Names,
            background and filters are not among them, but arguments of this function.
        **more: single options, such as `flip=True`, which override those of `options`.

    Returns:
        What was found and written.

    Raises:
        UsageError: pictures, labels, a model or an option that cannot be used, or a folder with other settings.
        DiskFullError: no room on the disk.

    Example:
        >>> import cliploc
        >>> cliploc.annotate("photos", ["cat|kitten", "dog @0.7"], "out", formats=["coco"]).boxes  # doctest: +SKIP
        {'cat': 12, 'dog': 3}
    """
    chosen = chosen_exports(formats)
    names = labels if isinstance(labels, Labels) else _labels(labels)
    if review < 0 or (limit is not None and limit < 1):
        raise UsageError(f"expected review of at least 0 and limit of at least 1, got {review} and {limit}")
    if polygons and not masks:
        raise UsageError("expected masks with polygons, got polygons alone: add --masks, or leave --polygons out")
    model = {**({} if options is None else options.given()), **more}
    if reserved := RESERVED & model.keys():
        raise UsageError(
            f"{', '.join(sorted(reserved))}: not an option of the model here: annotate sets it, see its arguments"
        )
    options = Options.of(**model)
    options = options.but(templates=prompts.resolve_templates(options.templates))  # files are read on this machine
    box_filter = BoxFilter(min_presence, min_score, max_boxes, min_area, nms_across, groups)
    for one in chosen:
        one.check(ExportSettings(names.names, "", "", masks, polygons))
    target = Path(out).expanduser()
    every = _every_of(target) if every is None else every
    frames = None if every is None else Every.of(every)
    there = find_pictures(pictures, videos=frames is not None)
    root, found = there.root, there.pictures[:limit]
    _spare_inputs(target, [one.path for one in [*found, *there.videos]], [pictures, labels])
    if decisions is not None:
        _spare_corrections(target, Path(decisions).expanduser())
    settings = AnnotatorSettings(names, box_filter, options, masks)
    worker = settings()  # refuses what cannot be used before anything is written
    notes = Notes(reporter)
    notes.add(worker.notes)
    if note := there.skipped_note():
        notes.add([note])
    described = worker.describe()
    manifest = plain(
        {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND.name,
            "cliploc_version": __version__,
            "root": root.resolve(),
            "labels": {
                words: {"threshold": threshold}
                for words, threshold in zip(names.entries, names.thresholds, strict=True)
            },
            "settings": described,
            "token": folder.token_for(target),
            "image_url": default_image_url(root) if image_url is None else image_url,
            "every": every,
        }
    )
    files = [name for one in chosen for name in one.outputs]
    mine = [*OWN_FILES, *(["review.html"] if review else []), *([FRAMES] if there.videos else []), *files]
    if there.videos:
        refuse_without("video", "a video")
    with alone_in(target):
        begun = folder.begin(target, KIND, manifest, mine, lambda _, part: _rows_in(part, len(names.names)))
        notes.add(begun.notes)
        run = run_id(manifest)
        with temporaries_of(begun.token):
            with room_for_parts(target, lambda: len(begun.whole), len(begun.whole)):
                if image_url is not None:
                    folder.update_manifest(target, KIND, image_url=image_url)
                if every is not None:
                    folder.update_manifest(target, KIND, every=every)
                unreadable: dict[str, str] = {}
                if frames is not None and there.videos:
                    reporter.phase("taking frames")
                    for video, taken, error in all_frames(there.videos, frames, target):
                        found += taken
                        if error is not None:
                            unreadable[video.id] = str(error).removeprefix(f"{video.id}: ")
                            reporter.failed(video.id, error)
                    found = found[:limit]
                    if not found:
                        name, reason = next(iter(unreadable.items()))
                        raise UsageError(f"expected a video that can be read, got {name}: {reason}")
                if begun.damaged:
                    export_states.mark_stale(target)
                for index in begun.damaged:
                    remove_part(part_path(target, index, KIND.suffix))  # it is not known which pictures it contained
                if replaced := _drop_replaced(target, found, run):
                    notes.add(
                        [f"replaced since they were annotated, and annotated again: {pictures_in_words(replaced)}"]
                    )
            whole = {int(path.stem) for path in parts_in(target, KIND.suffix)}
            results = Results(target)
            done = results.places if not retry else {name for name, place in results.places.items() if place.ok}
            todo = [one for one in found if one.id not in done]
            size = shard_size(worker.localizer.options.batch_size, shard)
            shards = {one.index: one for one in _shards(todo, size, whole)}
            stamps = {one.id: stamp(one) for one in todo}  # taken before any picture is read
            written = 0

            def keep(part: Part) -> None:
                nonlocal written
                of_part = [stamps[one.id] for one in shards[part.index].samples]
                write_part(part_path(target, part.index, KIND.suffix), part.table, of_part)
                written += 1
                notes.add(part.notes)
                for row in map(json.loads, part.table.splitlines()):
                    if row["status"] != "ok":
                        reporter.failed(row["picture"], CliplocError(f"{row['picture']}: {row['reason']}"))

            reporter.phase("annotate")
            reporter.start(len(todo), len(found))
            with room_for_parts(target, lambda: len(whole) + written, len(whole) + len(shards)):
                given = None if decisions is None else Path(decisions).expanduser()
                of_tool = given is not None and not _is_decisions(given)
                if given is not None and not of_tool:
                    _merge_review(target, given, run, results, len(names.names))
                decided = decisions_in(target, run)
                if shards:
                    export_states.mark_stale(target)
                    folder.begin_session(target, KIND)
                    engine(list(shards.values()), Ready(settings, worker), keep, reporter)
                    results = Results(target)
                not_applied: Mapping[str, str] = {}
                if given is not None and of_tool:  # after the engine, when the sizes of all pictures are known
                    read, sources = _merge_corrections(target, given, run, results, found, names, masks)
                    not_applied = read.problems
                    if sources:
                        notes.add([correction_masks.in_words(sources)])
                    untouched = len(found) - len(read.pictures)
                    notes.add([f"{read.form}: {len(read.pictures):,} pictures corrected, {untouched:,} unchanged"])
                corrected = corrections_in(target, run)
                reviews = reviews_in(target, run)
                of_run = AnnotatedFolder(
                    target,
                    root,
                    found,
                    results,
                    decided,
                    worker.names,
                    there.skipped,
                    corrected,
                    reviews=reviews,
                    unreadable=unreadable,
                )
                how = made_by(described)
                state, before = folder.read_manifest(target, KIND), summary_of(target)
                export = ExportSettings(worker.names, how, state.get("image_url", IMAGE_URL), masks, polygons, copy)
                kept = [one for one in exports if _is_there(target, one, state["files"], before)]
                wanted = list(dict.fromkeys([*kept, *chosen]))
                done_now = conclude(of_run, before, wanted, export, review, run, len(todo), notes.lines, reporter)
                return replace(done_now, not_applied=not_applied)


def default_image_url(root: Path) -> str:
    """The prefix for Label Studio's local files: it serves folders below its document root, not the root itself."""
    folder_name = root.resolve().name
    return IMAGE_URL + (f"{quote(folder_name)}/" if folder_name else "")


def run_id(manifest: Mapping[str, Any]) -> str:
    """The id of a run's names and settings."""
    return hashlib.sha256(json.dumps([manifest["labels"], manifest["settings"]]).encode()).hexdigest()[:16]


def made_by(settings: Mapping[str, Any]) -> str:
    """The model and method of a run, as exports name them."""
    return f"cliploc {__version__} {settings['model']} {settings['method']}"


def _every_of(out: Path) -> str | None:
    """Which frames an earlier call took; None without one."""
    try:
        every: str | None = read_json(out / "manifest.json", AnnotationManifest).get("every")
    except (OSError, ValueError):
        return None
    return every


def _is_there(out: Path, export: Export, own: Sequence[str], before: Mapping[str, Any]) -> bool:
    """Whether an earlier call wrote an export, even if it was killed right afterwards."""
    return all(one in own for one in export.outputs) and (
        export.name in before.get("files", {}) or any((out / one).exists() for one in export.outputs)
    )


def _spare_inputs(out: Path, pictures: Sequence[Path], others: Sequence[object]) -> None:
    """Refuses a folder in which the run's files would overwrite its inputs."""
    named = [os.fspath(one) for one in others if isinstance(one, str | os.PathLike)]
    written = ["manifest.json", "review.html", "parts", *OWN_FILES, *(name for one in exports for name in one.outputs)]
    outputs = [out / one for one in written]
    Inputs([*pictures, *named]).refuse(outputs, folders=outputs)


def _spare_corrections(out: Path, path: Path) -> None:
    """Refuses a corrected set in an export of the run, which is written again: corrections not taken would be lost."""
    place = path.resolve()
    for one in exports:
        for output in (out / name for name in one.outputs):
            if place == output.resolve() or output.resolve() in place.parents:
                raise UsageError(f"expected a corrected set outside of {output}, which is overwritten: copy it first")


def _labels(labels: str | os.PathLike[str] | Sequence[str]) -> Labels:
    return read_labels(Path(labels)) if isinstance(labels, str | os.PathLike) else labels_of(labels)


def _shards(todo: Sequence[PictureFile], size: int, taken: set[int]) -> Iterator[Shard]:
    """Splits pictures into shards, in order, numbered like no existing part; a resumed run gets the same shards."""
    number = 0
    for start in range(0, len(todo), size):
        while number in taken:
            number += 1
        yield Shard(number, tuple(todo[start : start + size]))
        number += 1


# -------------------------------------------------------------------------------------------------------------- parts
@dataclass(frozen=True)
class _Place:
    """Where a picture's row is, and the row's outcome."""

    part: int
    line: int
    ok: bool
    digest: bytes
    margin: float = 0.0


class Results:
    """The rows of all parts. Rows are read part by part; only their places are in memory."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self.places: dict[str, _Place] = {}
        for path in parts_in(out, KIND.suffix):
            for line, row in enumerate(_rows_of(path)):
                ok = row["status"] == "ok"
                before = self.places.get(row["picture"])
                if before is None or ok or not before.ok:  # a success replaces an earlier failure
                    digest = hashlib.sha256(json.dumps(row).encode()).digest()[:8]
                    margin = _margin(row) if ok else 0.0
                    self.places[row["picture"]] = _Place(int(path.stem), line, ok, digest, margin)
        self._part = functools.lru_cache(CACHED)(self._read)

    def _read(self, part: int) -> list[Row]:
        return _rows_of(part_path(self._out, part, KIND.suffix))

    def row(self, picture: str) -> Row:
        """The row of a picture."""
        place = self.places[picture]
        return self._part(place.part)[place.line]


def _rows_of(path: Path) -> list[Row]:
    """Reads the rows of a part that was found to be undamaged.

    Raises:
        UsageError: the part is damaged.
    """
    return [json.loads(line) for line in _lines_of(path)]


def _rows_in(part: bytes, labels: int) -> list[Row]:
    """The rows of a part.

    Raises:
        ValueError: they are not what a run with so many labels writes.
    """
    rows: list[Row] = [parse_json(line, AnnotatedRow) for line in part.splitlines()]
    for row in rows:
        if row["status"] == "ok":
            if any(label >= labels for label in row["labels"]):
                raise ValueError(f"expected labels below {labels}")
            area = row["width"] * row["height"]
            if any(uncompressed(mask).sum() != area for mask in row.get("masks") or []):
                raise ValueError("expected masks of the picture's size")
    return rows


def _lines_of(path: Path) -> list[bytes]:
    content = read_part(path)
    if content is None:
        raise UsageError(f"{path} is damaged: run the same command again to compute it again")
    return content.splitlines(keepends=True)


def _drop_replaced(out: Path, found: Sequence[PictureFile], run: str) -> list[str]:
    """Removes the rows of pictures whose files were replaced since, and the decisions on their boxes.

    Returns:
        The ids of these pictures.
    """
    by_id = {one.id: one for one in found}
    stale: dict[Path, dict[int, str]] = {}  # part → line → picture
    for path in parts_in(out, KIND.suffix):
        stamps = read_stamps(path)
        for line, row in enumerate(_rows_of(path)):
            picture = by_id.get(row["picture"])
            if picture is None or stamps[line : line + 1] == [stamp(picture)]:
                continue
            if row["blake2b"] != content_digest(picture):
                stale.setdefault(path, {})[line] = picture.id
    replaced = list(dict.fromkeys(name for lines in stale.values() for name in lines.values()))
    if replaced:
        export_states.mark_stale(out)
    decided, corrected = decisions_in(out, run), corrections_in(out, run)
    if decided.keys() & set(replaced):  # before the rows, so that an interrupted run can repeat both
        _write_decisions(out, {name: boxes for name, boxes in decided.items() if name not in replaced}, run)
    reviews = reviews_in(out, run)
    if (corrected.keys() | reviews.keys()) & set(replaced):
        left = {name: one for name, one in corrected.items() if name not in replaced}
        write_corrections(out, left, run, {name: one for name, one in reviews.items() if name not in replaced})
    for path, lines in stale.items():
        content, stamps = _lines_of(path), read_stamps(path)
        fresh = [line for line in range(len(content)) if line not in lines]
        if fresh:
            write_part(path, b"".join(content[line] for line in fresh), [stamps[line] for line in fresh if stamps])
        else:
            remove_part(path)
    return replaced


def _margin(row: Row) -> float:
    """How certain a picture is; a picture with a box that seems to contain several things is not."""
    return 0.0 if any(row["groups"]) else float(row["margin"])


# ------------------------------------------------------------------------------------------------------------ results
@dataclass
class AnnotatedFolder:
    """An annotated folder: everything that the exports, the summary and the review page show."""

    out: Path
    root: Path
    found: Sequence[PictureFile]
    results: Results
    decided: Mapping[str, Mapping[str, bool]]
    names: tuple[str, ...]
    skipped: Sequence[Skipped] | None = ()  # None: as the summary has it
    corrected: Mapping[str, Correction] = field(default_factory=dict)
    reviews: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)  # videos
    boxes: Counter[str] = field(default_factory=Counter, init=False)
    with_label: Counter[str] = field(default_factory=Counter, init=False)
    empty: int = field(default=0, init=False)
    groups: int = field(default=0, init=False)
    dropped: int = field(default=0, init=False)
    failed: dict[str, str] = field(default_factory=dict, init=False)

    def pictures(self, all_boxes: bool = False) -> Iterator[AnnotatedPicture]:
        """Yields the pictures that did not fail, in order; as reviewed and corrected, or all drafts."""
        number = 0
        for one in self.found:
            if self.results.places[one.id].ok:
                number += 1
                yield self.picture(one, number, all_boxes)

    def picture(self, one: PictureFile, number: int, all_boxes: bool = False) -> AnnotatedPicture:
        """One of these pictures."""
        if not all_boxes and one.id in self.corrected:
            return self._corrected(one, number)
        row, decided = self.results.row(one.id), {} if all_boxes else self.decided.get(one.id, {})
        kept = [i for i in range(len(row["boxes"])) if decided.get(str(i), True)]
        masks = row.get("masks")
        return AnnotatedPicture(
            number,
            one.id,
            one.path,
            (row["width"], row["height"]),
            np.array([row["boxes"][i] for i in kept], np.float32).reshape(-1, 4),
            np.array([row["scores"][i] for i in kept], np.float32),
            np.array([row["labels"][i] for i in kept], np.int64),
            tuple(kept),
            tuple(bool(row["groups"][i]) for i in kept),
            _margin(row),
            np.array([row["certainty"][i] for i in kept], np.float32),
            tuple({"size": [row["height"], row["width"]], "counts": masks[i]} for i in kept) if masks else (),
        )

    def _corrected(self, one: PictureFile, number: int) -> AnnotatedPicture:
        """A picture with the boxes of a corrected set, which a person has seen: their score is 1."""
        row, correction = self.results.row(one.id), self.corrected[one.id]
        count = len(correction.boxes)
        return AnnotatedPicture(
            number,
            one.id,
            one.path,
            (row["width"], row["height"]),
            np.array(correction.boxes, np.float32).reshape(-1, 4),
            np.ones(count, np.float32),
            np.array(correction.labels, np.int64),
            tuple(range(len(row["boxes"]), len(row["boxes"]) + count)),  # numbers that follow those of the drafts
            (False,) * count,
            _margin(row),
            np.ones(count, np.float32),
            self._corrected_masks(one.id, row) if row.get("masks") is not None else (),
        )

    def _corrected_masks(self, picture: str, row: Row) -> tuple[Rle, ...]:
        """The masks of a corrected picture.

        Raises:
            UsageError: corrections.json has been changed, and has others.
        """
        size, masks = [row["height"], row["width"]], self.corrected[picture].masks
        if masks is None or not all(_fills(one, size) for one in masks):
            raise UsageError(
                f"expected a mask of each corrected box of {picture} in {self.out / 'corrections.json'}: move it away "
                "and --apply the corrected set again"
            )
        return tuple({"size": size, "counts": one or ""} for one in masks)

    def draft_scores(self) -> dict[str, LabelScore]:
        """How drafts did against the corrected boxes: of all labels as "", then of each; empty without any."""
        done = self.corrected_whole()
        rows = [(self.results.row(name), self.corrected[name]) for name in done]
        if not rows:
            return {}
        pairs = [PicturePair(row["boxes"], row["scores"], row["labels"], one.boxes, one.labels) for row, one in rows]
        every, each = score_drafts(pairs, len(self.names))
        return {"": every, **dict(zip(self.names, each, strict=True))}

    def count(self) -> None:
        """Computes the counts."""
        for one in self.pictures():
            labels = Counter(self.names[label] for label in one.label.tolist())
            self.boxes.update(labels)
            self.with_label.update(labels.keys())
            self.empty += not labels
            self.groups += sum(one.groups)
            if one.name not in self.corrected:
                self.dropped += len(self.results.row(one.name)["boxes"]) - len(one.label)
        self.failed.update(self.unreadable)
        for picture in self.found:
            if not self.results.places[picture.id].ok:
                self.failed[picture.id] = self.results.row(picture.id)["reason"]

    def stamp(self, *more: object) -> str:
        """A digest that changes with everything that is written."""
        digest = hashlib.sha256(json.dumps([str(self.root.resolve()), *map(str, more)]).encode())
        digest.update(json.dumps(self.decided, sort_keys=True).encode())
        if self.corrected:
            digest.update(json.dumps(_plain_corrections(self.corrected), sort_keys=True).encode())
        for one in self.found:
            digest.update(json.dumps([one.id, str(one.path)]).encode() + self.results.places[one.id].digest)
        return digest.hexdigest()

    def corrected_whole(self) -> list[str]:
        """The corrected pictures that are finished; a person may still be working on the others in the editor."""
        there = [one.id for one in self.found if one.id in self.corrected]
        return [name for name in there if self.reviews.get(name, {"status": "reviewed"})["status"] == "reviewed"]

    def seen(self, picture: str) -> bool:
        """Whether somebody has reviewed or corrected a picture."""
        if picture in self.reviews:
            return bool(self.reviews[picture]["status"] != "none")
        return picture in self.decided or picture in self.corrected

    def reviewed(self, drafts: AnnotatedPicture) -> ReviewPicture:
        """A picture as the editor shows it: all drafts, and the boxes that hold now."""
        row, name = self.results.row(drafts.name), drafts.name
        review = self.reviews.get(name, {"status": "none", "revision": 0})
        if (correction := self.corrected.get(name)) is None:
            kept = kept_drafts(row, self.decided.get(name, {}))
            masks = [row["masks"][i] for i in kept] if "masks" in row else None
            correction = Correction([row["boxes"][i] for i in kept], [row["labels"][i] for i in kept], masks, [*kept])
        return ReviewPicture(
            drafts,
            correction.boxes,
            correction.labels,
            correction.drafts or [None] * len(correction.boxes),
            correction.masks,
            review["status"] if name in self.reviews or not self.seen(name) else "reviewed",
            review["revision"],
        )

    def least_certain(self, count: int) -> list[AnnotatedPicture]:
        """The least certain pictures, with all boxes, for a review; pictures reviewed before come last."""
        places = self.results.places
        good = [(one, number) for number, one in enumerate((one for one in self.found if places[one.id].ok), start=1)]
        good.sort(key=lambda pair: (self.seen(pair[0].id), places[pair[0].id].margin))
        return [self.picture(one, number, all_boxes=True) for one, number in good[:count]]


def _fills(counts: str | None, size: Sequence[int]) -> bool:
    """Whether a mask's counts are those of a picture of this size."""
    try:
        return counts is not None and int(uncompressed(counts).sum()) == size[0] * size[1]
    except ValueError:
        return False


def summary_of(out: Path) -> dict[str, Any]:
    """The summary that the last call wrote; empty if there is none or the file is damaged."""
    try:
        found: dict[str, Any] = read_json(out / "summary.json", AnnotationSummary)
    except (OSError, ValueError):
        return {}
    return found


def conclude(
    run: AnnotatedFolder,
    before: Mapping[str, Any],
    formats: Sequence[Export],
    settings: ExportSettings,
    review: int,
    run_id: str,
    computed: int,
    notes: tuple[str, ...],
    reporter: Reporter,
) -> AnnotateResult:
    """Writes the exports, the review page and the summary where they are not up to date."""
    run.count()
    files: dict[str, list[str]] = dict(before.get("files", {}))
    stamps: dict[str, str] = dict(before.get("stamps", {}))

    decisions = (
        hashlib.sha256(json.dumps(run.decided, sort_keys=True).encode()).hexdigest()[:16] if run.decided else None
    )
    corrected = sum(one.id in run.corrected for one in run.found)

    def up_to_date(name: str, stamp: str) -> bool:
        return stamps.get(name) == stamp and all((run.out / one).exists() for one in files.get(name, ["?"]))

    for one in formats:
        needed = settings if "image_url" in one.needs else replace(settings, image_url="")
        needed = needed if "polygons" in one.needs else replace(needed, polygons=False)
        needed = needed if "picture_files" in one.needs else replace(needed, copies=False)
        stamp = run.stamp(one.name, needed)
        if not up_to_date(one.name, stamp):
            reporter.phase(f"writing {one.name}")
            export_states.mark_stale(run.out, [one.name])
            one.write(run.pictures, needed, run.out)
            files[one.name], stamps[one.name] = list(one.outputs), stamp
        export_states.mark_current(run.out, one.name, one.outputs, run_id, decisions, corrected)
    stamp = run.stamp("review", review, settings.names, json.dumps(run.reviews, sort_keys=True))
    if review and not up_to_date("review", stamp):
        reporter.phase("writing review.html")
        chosen = run.least_certain(review)
        shown = [run.reviewed(one) for one in chosen]
        write_review(run.out / "review.html", shown, settings.names, run_id, len(run.found), settings.masks)
        files["review"], stamps["review"] = ["review.html"], stamp
    if review:
        export_states.mark_current(run.out, "review", ["review.html"], run_id, decisions, corrected)
    result = AnnotateResult(
        run.out,
        len(run.found) + len(run.unreadable),
        {name: run.boxes[name] for name in run.names},
        {name: run.with_label[name] for name in run.names},
        run.empty,
        run.failed,
        run.groups,
        run.dropped,
        sum(run.seen(one.id) for one in run.found),
        {name: tuple(names) for name, names in files.items()},
        computed,
        notes,
        run.skipped or (),
        run_id,
        decisions,
        corrected,
        draft_scores=run.draft_scores(),
        scored=len(run.corrected_whole()),
    )
    _write_scores(run.out, result)
    written = {"polygons": settings.polygons, "copy": settings.copies, "review": review}
    document = {**result.document(), "stamps": stamps, "written": written}
    if run.skipped is None and "skipped" in before:
        document["skipped"] = before["skipped"]
    if document != before:
        write_json(run.out / "summary.json", document)
    return result


# ---------------------------------------------------------------------------------------------------------- decisions
def decisions_in(out: Path, run: str) -> dict[str, dict[str, bool]]:
    """The decisions of all reviews so far: picture → box → whether it is kept."""
    path = out / "decisions.json"
    return _read_decisions(path, run) if path.exists() else {}


def _is_decisions(path: Path) -> bool:
    """Whether a file is read as decisions: it is not in a format of another tool."""
    if path.is_dir() or path.suffix.lower() in (".xml", ".yaml", ".yml"):
        return False
    try:
        read = read_json(path)
    except (OSError, ValueError):
        return True
    return not isinstance(read, list) and not (isinstance(read, dict) and "images" in read)


def _read_decisions(path: Path, run: str) -> dict[str, dict[str, bool]]:
    try:
        read = read_json(path)
    except FileNotFoundError:
        raise UsageError(f"expected decisions in {path}, found no such file: check the path") from None
    except (OSError, ValueError) as error:
        raise UsageError(
            f"expected decisions as review.html saves them, {path} cannot be read ({error}): move it away, or save it "
            "again from the page"
        ) from None
    if not isinstance(read, dict) or read.get("kind") != REVIEW_KIND:
        raise UsageError(f"expected decisions as review.html saves them, {path} has other content: check the path")
    if read.get("run") != run:
        raise UsageError(f"{path} decides on boxes of another run: apply it to that run's --out")
    try:
        return dict(checked(read, Decisions)["decisions"])
    except DocumentError as error:
        raise UsageError(
            f"expected decisions as picture → box → true or false, {path} has other content ({error}): save it again "
            "from the page"
        ) from None


def _merge_review(out: Path, path: Path, run: str, results: Results, labels: int) -> None:
    """Adds what review.html saved: the pictures that a person edited, or decisions on boxes."""
    try:
        read = read_json(path)
    except (OSError, ValueError):
        read = None
    if not isinstance(read, dict) or read.get("kind") != REVIEW_KIND or "pictures" not in read:
        _merge_decisions(out, path, run, results)
        return
    try:
        pictures = checked(read, SavedReview)["pictures"]
    except DocumentError as error:
        raise UsageError(f"expected a review as review.html saves it, {path} has other content ({error})") from None
    if read["run"] != run:
        raise UsageError(f"{path} reviews boxes of another run: apply it to that run's --out")
    decided, corrected, reviews = decisions_in(out, run), corrections_in(out, run), reviews_in(out, run)
    for name, one in pictures.items():
        place = results.places.get(name)
        if place is None or not place.ok:
            raise UsageError(f"{path} reviews {name}, which this run does not have: check the file")
        row = results.row(name)
        try:
            found = review_of(one, row, labels, kept_drafts(row, decided.get(name, {})))
        except UnusableReviewError as error:
            raise UsageError(f"{path} cannot be applied to {name}: {error}: save it again from the page") from None
        enter(name, found, one["status"], corrected, reviews)
    write_corrections(out, corrected, run, reviews)


def kept_drafts(row: Row, decided: Mapping[str, bool]) -> list[int]:
    """The numbers of the drafts of a picture that no review dropped."""
    return [i for i in range(len(row["boxes"])) if decided.get(str(i), True)]


def enter(
    picture: str,
    found: Correction | None,
    status: str,
    corrected: dict[str, Correction],
    reviews: dict[str, dict[str, Any]],
) -> int:
    """Stores what a person saved of a picture: its boxes, or None if the drafts hold. Returns the new revision."""
    revision = int(reviews.get(picture, {}).get("revision", 0)) + 1
    reviews[picture] = {"status": status, "revision": revision}
    if found is None:
        corrected.pop(picture, None)
    else:
        corrected[picture] = found
    return revision


def _merge_decisions(out: Path, path: Path, run: str, results: Results) -> None:
    """Adds a review's decisions to the earlier ones; for a box decided twice the later decision counts."""
    new, old = _read_decisions(path, run), decisions_in(out, run)
    for picture, boxes in new.items():
        place = results.places.get(picture)
        count = len(results.row(picture)["boxes"]) if place is not None and place.ok else -1
        for box in boxes:
            if int(box) >= count:
                raise UsageError(
                    f"{path} decides on box {box} of {picture}, which this run does not have: check the file"
                )
        old[picture] = {**old.get(picture, {}), **boxes}
    export_states.mark_stale(out)
    _write_decisions(out, old, run)


def _write_decisions(out: Path, decisions: Mapping[str, Mapping[str, bool]], run: str) -> None:
    document = {"kind": REVIEW_KIND, "schema_version": SCHEMA_VERSION, "run": run, "decisions": decisions}
    write_json(out / "decisions.json", document)


# -------------------------------------------------------------------------------------------------------- corrections
def corrections_in(out: Path, run: str) -> dict[str, Correction]:
    """The corrected pictures of all sets and reviews so far."""
    return {
        name: Correction(list(map(list, one["boxes"])), one["labels"], one.get("masks"), one.get("drafts"))
        for name, one in _read_corrections(out, run)["pictures"].items()
    }


def reviews_in(out: Path, run: str) -> dict[str, dict[str, Any]]:
    """Picture → `status` and `revision`, of those that a person saved in the editor."""
    return dict(_read_corrections(out, run).get("reviews", {}))


def _read_corrections(out: Path, run: str) -> dict[str, Any]:
    path = out / "corrections.json"
    if not path.exists():
        return {"pictures": {}}
    try:
        read: dict[str, Any] = read_json(path, SavedCorrections)
        if read["run"] != run:
            raise ValueError("it belongs to another run")
    except (OSError, ValueError) as error:
        raise UsageError(
            f"expected the corrections of this run, {path} cannot be read ({error}): move it away and --apply the "
            "corrected set again"
        ) from None
    return read


def _merge_corrections(
    out: Path,
    path: Path,
    run: str,
    results: Results,
    found: Sequence[PictureFile],
    labels: Labels,
    masks: bool,
) -> tuple[Corrections, Counter[str]]:
    """Adds a corrected set to the earlier ones; for a picture corrected twice the later set counts.

    Returns:
        What was read, and where the masks of its boxes are from, for a run with masks.
    """
    done = [one.id for one in found if results.places[one.id].ok]
    sizes = {name: (int(row["width"]), int(row["height"])) for name in done for row in [results.row(name)]}
    words = [prompts.parse([entry]).synonyms[0] for entry in labels.entries]
    read = read_corrections(path, sizes, words, [out / "yolo", out / "voc"], masks)
    sources: Counter[str] = Counter()
    if masks:
        for name, one in read.pictures.items():
            read.pictures[name], of_picture = correction_masks.filled(one, results.row(name))
            sources += of_picture
    reviews = {name: one for name, one in reviews_in(out, run).items() if name not in read.pictures}
    write_corrections(out, {**corrections_in(out, run), **read.pictures}, run, reviews)
    return read, sources


def _plain_corrections(pictures: Mapping[str, Correction]) -> dict[str, Any]:
    return {
        name: {key: value for key, value in vars(one).items() if value is not None} for name, one in pictures.items()
    }


def write_corrections(
    out: Path, pictures: Mapping[str, Correction], run: str, reviews: Mapping[str, Mapping[str, Any]]
) -> None:
    """Writes corrections.json; exports written before are stale from now on."""
    export_states.mark_stale(out)
    document = {"kind": CORRECTIONS_KIND, "schema_version": SCHEMA_VERSION, "run": run}
    of_editor = {"reviews": reviews} if reviews else {}
    write_json(out / "corrections.json", {**document, "pictures": _plain_corrections(pictures), **of_editor})


def _write_scores(out: Path, result: AnnotateResult) -> None:
    """Writes draft_scores.json where it is not up to date; without corrected pictures there is none."""
    path = out / "draft_scores.json"
    if not result.draft_scores:
        path.unlink(missing_ok=True)
        return
    every, *labels = result.draft_scores.items()
    document = {
        "schema_version": SCHEMA_VERSION,
        "pictures": result.scored,
        "iou": IOU,
        "all": every[1].document(),
        "labels": {name: one.document() for name, one in labels},
    }
    try:
        before = read_json(path)
    except (OSError, ValueError):
        before = None
    if before != document:
        write_json(path, document)

"""`annotate`: draft boxes of a folder for other tools; resumable. docs/annotate.md explains the folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from cliploc import __version__, prompts
from cliploc._documents import AnnotationManifest, read_if_there
from cliploc._files import (
    Inputs,
    alone_in,
    part_path,
    parts_in,
    read_stamps,
    remove,
    remove_part,
    temporaries_of,
    user_path,
    write_part,
    write_whole,
)
from cliploc.config import DEFAULTS, IMAGE_URL, OPTIONS, AnnotateOptions, Options, short
from cliploc.errors import CliplocError, UsageError
from cliploc.jobs import annotation_edits as edits
from cliploc.jobs import correction_masks, export_states, folder
from cliploc.jobs.annotation_results import AnnotatedFolder, AnnotateResult, conclude, refuse_decisions, summary_of
from cliploc.jobs.annotation_rows import (
    KIND,
    LEARNT,
    LEARNT_BEFORE,
    SCHEMA_VERSION,
    TAUGHT,
    TAUGHT_BEFORE,
    lines_of,
    read_taught,
    rows_in,
    rows_of,
    run_id,
)
from cliploc.jobs.annotator import RESERVED, AnnotatorSettings
from cliploc.jobs.drafts import DraftRule
from cliploc.jobs.engine import Engine, Notes, Part, Ready, Shard, pictures_in_words, run_here, saying_what_is_kept
from cliploc.jobs.folder import plain, room_for_parts
from cliploc.jobs.labels import Labels, labels_of, read_labels
from cliploc.jobs.lessons import are_whole, lessons_path
from cliploc.jobs.picture_files import UNREAD, FoundPictures, PictureFile, content_digest, find_pictures, stamp
from cliploc.jobs.plan import SHARD, shard_size, shards_of
from cliploc.jobs.teach import teach
from cliploc.registry import plugin_sources
from cliploc.report.exports import Export, ExportSettings, chosen_exports, exports
from cliploc.reporter import SILENT, Reporter

OWN_FILES = (
    TAUGHT,
    LEARNT,
    TAUGHT_BEFORE,
    LEARNT_BEFORE,
    export_states.FILE,
    "summary.json",
    edits.CORRECTIONS,
    edits.SAVES,
    "draft_scores.json",
)  # files that every run may write


def annotate(
    pictures: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | FoundPictures,
    labels: str | os.PathLike[str] | Sequence[str] | Labels,
    out: str | os.PathLike[str],
    *,
    min_presence: float | None = None,
    min_score: float | Literal["auto"] = "auto",
    max_boxes: int | None = DEFAULTS.max_boxes,
    min_area: float = DEFAULTS.min_area,
    engine: Engine = run_here,
    shard: int = SHARD,
    reporter: Reporter = SILENT,
    options: Options | None = None,
    **more: Any,
) -> AnnotateResult:
    """Makes draft boxes of named things in pictures, and writes them for other tools.

    Args:
        pictures: a folder with its sub-folders, a pattern such as "photos/**/*.jpg", a .txt list, or paths; or
            pictures that were found already.
        labels: a file of `cliploc.jobs.labels.read_labels`, its lines as a list, or `Labels`.
        out: an empty folder, or the folder of a run with the same settings, which is resumed, also with additional
            pictures. Thresholds, `min_presence` above 0, `min_score`, `max_boxes`, `nms_across` and what is written may
            differ: only the drafts are chosen again.
        min_presence: minimum presence of a name; a label's own threshold overrides it; 0: every name is boxed.
        min_score: minimum score of a box, as in `cliploc.Options`. "auto": 0.2, but a name that is in the
            picture keeps its best box.
        max_boxes: maximum number of boxes of a name in a picture, best first; None for all.
        min_area: minimum area of a box's region, as a share of the picture.
        engine: the engine that runs it.
        shard: number of pictures that are computed and written together; rounded to whole batches.
        reporter: gets the phases ("annotate", then "writing NAME" for each format that is not up to date), the numbers
            of pictures to do and done, each failed picture, and each note. An exception raised by the reporter ends the
            run, which can be resumed.
        options: options of the `Localizer`: model, method, scales, flip, batch_size …; None for the defaults. Names,
            background and filters are not among them, but arguments of this function.
        **more: options of `cliploc.config.AnnotateOptions`, such as `formats=["yolo"]`, and single options of the
            `Localizer`, such as `flip=True`, which override those of `options`.

    Returns:
        What was found and written.

    Raises:
        UsageError: pictures, labels, a model or an option that cannot be used, or a folder with other settings.
        DiskFullError: no room on the disk.
    """
    own = {option.name for option in fields(AnnotateOptions)} & more.keys()
    asked = AnnotateOptions(**{name: more.pop(name) for name in own})
    chosen = chosen_exports(asked.formats)
    if isinstance(labels, str | os.PathLike):
        names = read_labels(Path(labels))
    else:
        names = labels if isinstance(labels, Labels) else labels_of(labels)
    options = _model_options(options, more)
    masks = asked.masks or options.masks_by != "heat"
    if asked.polygons and not masks:
        raise UsageError("expected masks with polygons, got polygons alone: add --masks, or leave --polygons out")
    OPTIONS["min_presence"].check(min_presence)
    if unknown := asked.share.keys() - {*names.names}:
        raise UsageError(f"expected --share of a label, one of {', '.join(names.names)}, got {min(unknown)}")
    given_thresholds = [
        min_presence if least_presence is None else least_presence for least_presence in names.thresholds
    ]  # None: the usual
    DraftRule((), min_score, max_boxes, asked.nms_across, asked.unsure)  # refuses what cannot be used
    for form in chosen:
        form.check(ExportSettings(names.names, "", "", masks, asked.polygons))

    target = user_path(out)
    refuse_decisions(target)
    earlier = read_if_there(target / "manifest.json", AnnotationManifest)  # of an earlier call
    there = pictures if isinstance(pictures, FoundPictures) else find_pictures(pictures)
    picture_files = there.pictures[: asked.limit]
    given = None if asked.decisions is None else user_path(asked.decisions)
    listed = [listing for listing in (pictures, labels) if isinstance(listing, str | os.PathLike)]
    _spare_inputs(target, [*(file.path for file in picture_files), *listed], given)
    least = [
        presence
        for presence in (*given_thresholds, earlier.get("settings", {}).get("min_presence"))
        if presence is not None
    ]
    settings = AnnotatorSettings(names, options, min_area, asked.groups, min(least, default=None), masks, asked.teach)

    worker = settings()  # refuses what cannot be used before anything is written
    notes = Notes(reporter)
    notes.add(worker.notes)
    if note := there.skipped_note():
        notes.add([note])
    described = worker.describe()
    if asked.share and "second_look" not in described:
        raise UsageError("expected --share with a second look, which gives chances, got neither: leave --share out")
    usual = worker.localizer.usual_min_presence
    thresholds = tuple(usual if presence is None else presence for presence in given_thresholds)
    shares = tuple(asked.share.get(name) for name in names.names)
    rule = DraftRule(thresholds, min_score, max_boxes, asked.nms_across, asked.unsure, shares)
    prefix = asked.image_url
    if prefix is None:  # Label Studio serves folders below its document root, not the root itself
        name = there.root.resolve().name
        prefix = IMAGE_URL + (f"{quote(name)}/" if name else "")
    manifest = plain(
        {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND.name,
            "cliploc_version": __version__,
            **({"plugins": plugins} if (plugins := plugin_sources()) else {}),
            "root": there.root.resolve(),
            "labels": {words: {} for words in names.entries},
            "settings": described,
            "drafts": rule.document(),
            "token": folder.token_for(target),
            "image_url": prefix,
        }
    )
    files = [name for export in chosen for name in export.outputs]
    mine = [*OWN_FILES, *(["review.html"] if asked.review else []), *files]
    with alone_in(target):
        begun = folder.begin(target, KIND, manifest, mine, lambda _, part: rows_in(part, len(names.names)))
        notes.add(begun.notes)
        with temporaries_of(begun.token):
            with room_for_parts(target, lambda: len(begun.whole), len(begun.whole)):
                changed = {"image_url": asked.image_url, "drafts": rule.document()}
                changed["root"] = manifest["root"]  # the pictures may lie elsewhere now
                if folder.read_manifest(target, KIND)["drafts"] != rule.document():
                    export_states.mark_stale(target)
                folder.update_manifest(
                    target, KIND, **{key: value for key, value in changed.items() if value is not None}
                )
                run = run_id(manifest)
                edits.merge_saves(target, run)
                damaged = set(begun.damaged)
                if "teaching" in described:
                    lost = [index for index in sorted(begun.whole) if not are_whole(target, index)]
                    notes.add(
                        f"what part {index:05d} kept to learn from is damaged: it is computed again" for index in lost
                    )
                    damaged.update(lost)
                    notes.add(_remove_damaged_taught(target, run))
                unreadable = _remove_stale(target, sorted(damaged), picture_files, run, notes)
                picture_files = [file for file in picture_files if file.id not in unreadable]
                of_run = AnnotatedFolder(target, manifest, picture_files, there.skipped, unreadable)
            whole = {int(path.stem) for path in parts_in(target, KIND.suffix)}
            done = {name for name, place in of_run.results.places.items() if place.ok or not asked.retry}
            todo = [file for file in picture_files if file.id not in done]
            size = shard_size(worker.localizer.options.batch_size, shard)
            free = (number for number in count() if number not in whole)
            shards = {n: replace(shard, index=n) for n, shard in zip(free, shards_of(todo, size), strict=False)}
            keep = _Keep(target, shards, notes, reporter)

            reporter.phase("annotate")
            reporter.start(len(todo), len(picture_files))
            not_applied: Mapping[str, str] = {}
            with room_for_parts(target, lambda: len(whole) + keep.written, len(whole) + len(shards)):
                of_review = given is not None and edits.is_review(given)
                if given is not None and of_review:  # it only refers to pictures that are annotated already
                    not_applied = edits.merge_review(of_run, given)
                if shards:
                    export_states.mark_stale(target)
                    folder.begin_session(target, KIND)
                    with saying_what_is_kept(target, lambda: f"{len(done) + keep.pictures:,} pictures"):
                        engine(list(shards.values()), Ready(settings, worker), keep, reporter)
                    of_run.read_rows()
                if given is not None and not of_review:  # for it the sizes of all pictures must be known
                    read, sources = edits.merge_corrections(of_run, given)
                    not_applied = read.problems
                    notes.add([correction_masks.in_words(sources)] if sources else [])
                    notes.add([f"{read.form}: {len(read.pictures):,} of {len(picture_files):,} pictures corrected"])
                of_run.read_edits()
                if of_run.prior is not None and of_run.prior.everywhere:
                    [name] = names.names
                    notes.add([f"{name}: taken to be in nearly all pictures; if it is not: --share '{name}=0.5'"])
                if left := sorted(of_run.corrected.keys() - {file.id for file in picture_files} - unreadable.keys()):
                    notes.add([f"corrected, but not there now: {pictures_in_words(left)}; corrections go by the name"])
                if "teaching" in described:
                    learns = partial(reporter.phase, "learning from the folder")
                    notes.add(teach(of_run, begun=learns).lines())
                if asked.max_false is not None:
                    notes.add([of_run.keep_promise(asked.max_false)])
                    folder.update_manifest(target, KIND, drafts=of_run.rule.document())
                state, before = folder.read_manifest(target, KIND), summary_of(target)
                export = of_run.export_settings(state["image_url"], asked.polygons, asked.copy)
                kept = [export for export in exports if _is_there(target, export, state["files"], before)]
                result = conclude(
                    of_run,
                    list(dict.fromkeys([*kept, *chosen])),
                    export,
                    before=before,
                    review=asked.review,
                    computed=sum(of_run.results.places[file.id].ok for file in todo),
                    notes=notes.lines,
                    reporter=reporter,
                )
                return replace(result, not_applied=not_applied)


def _model_options(options: Options | None, more: Mapping[str, Any]) -> Options:
    """The options of the model. Files with templates are read here, as the engine may run on other machines."""
    if not isinstance(options, Options | None):
        raise UsageError(f"expected options as cliploc.Options, got {short(options)}: write cliploc.Options(…)")
    given = {**({} if options is None else options.given()), **more}
    if reserved := RESERVED & given.keys():
        raise UsageError(
            f"{', '.join(sorted(reserved))}: not an option of the model here: annotate sets it, see its arguments"
        )
    chosen = Options.of(**given)
    return chosen.but(templates=prompts.resolve_templates(chosen.templates))


def _is_there(out: Path, export: Export, own: Sequence[str], before: Mapping[str, Any]) -> bool:
    """Whether an earlier call wrote an export, even if it was killed right afterwards."""
    return all(output in own for output in export.outputs) and (
        export.name in before.get("files", {}) or any((out / output).exists() for output in export.outputs)
    )


def _spare_inputs(out: Path, inputs: Sequence[str | os.PathLike[str]], corrected: Path | None) -> None:
    """Refuses a folder in which the run would overwrite its inputs, or a corrected set in one of its exports."""
    written = [
        "manifest.json",
        "review.html",
        "parts",
        *OWN_FILES,
        *(name for export in exports for name in export.outputs),
    ]
    outputs = [out / name for name in written]
    Inputs(inputs).refuse(outputs, folders=outputs)
    if corrected is None:
        return
    place = corrected.resolve()
    for output in (out / name for export in exports for name in export.outputs):  # corrections not taken would be lost
        own = output.resolve()
        if place == own or own in place.parents or (place in own.parents and own.is_dir()):  # a folder is searched
            raise UsageError(f"expected a corrected set outside of {output}, which is overwritten: copy it first")


def _remove_stale(
    out: Path, damaged: Sequence[int], files: Sequence[PictureFile], run: str, notes: Notes
) -> dict[str, str]:
    """Removes damaged parts, and rows and corrections of replaced pictures: their pictures are computed again.

    Returns the annotated pictures that cannot be read now, with the reason. They may come back: nothing is removed.
    """
    away = dict[str, str]()
    if damaged:
        export_states.mark_stale(out)
    for index in damaged:
        lessons_path(out, index).unlink(missing_ok=True)
        remove_part(part_path(out, index, KIND.suffix))  # it is not known which pictures it contained
    by_id = {file.id: file for file in files}
    stale: dict[Path, dict[int, str]] = {}  # part → line → picture
    for path in parts_in(out, KIND.suffix):
        stamps = read_stamps(path)
        for line, row in enumerate(rows_of(path)):
            picture = by_id.get(row["picture"])
            same = picture is not None and stamps[line : line + 1] == [stamp(picture)]
            if picture is None or (same and row["blake2b"] != UNREAD):  # a disk that failed leaves the stamps
                continue
            digest = content_digest(picture)
            if digest == UNREAD and row["status"] == "ok":
                away[picture.id] = "it was annotated, and cannot be read now: bring it back, or remove its name"
            elif row["blake2b"] != digest:
                stale.setdefault(path, {})[line] = picture.id
    replaced = list(dict.fromkeys(name for lines in stale.values() for name in lines.values()))
    if replaced:
        export_states.mark_stale(out)
    corrected, reviews = edits.corrections_in(out, run)
    if (corrected.keys() | reviews.keys()) & set(replaced):  # before the rows: an interrupted run can repeat both
        left = {name: correction for name, correction in corrected.items() if name not in replaced}
        edits.write_corrections(
            out, left, run, {name: review for name, review in reviews.items() if name not in replaced}
        )
    for path, lines in stale.items():
        content, stamps = lines_of(path), read_stamps(path)
        fresh = [line for line in range(len(content)) if line not in lines]
        if fresh:
            write_part(path, b"".join(content[line] for line in fresh), [stamps[line] for line in fresh if stamps])
        else:
            lessons_path(out, int(path.stem)).unlink(missing_ok=True)
            remove_part(path)
    if replaced:
        lost = len((corrected.keys() | reviews.keys()) & set(replaced))
        ending = f"; what was corrected in {lost:,} of them is dropped" if lost else ""
        notes.add([f"replaced since they were annotated, and annotated again: {pictures_in_words(replaced)}{ending}"])
    return away


def _remove_damaged_taught(out: Path, run: str) -> list[str]:
    """Removes damaged files of what teaching found, and reviews that hold for drafts in them; says so."""
    notes = []
    for name in (TAUGHT, TAUGHT_BEFORE):
        try:
            read_taught(out, run, name)
        except UsageError:
            notes.append(f"{name} is damaged: drafts are learnt again")
            if name == TAUGHT:
                corrected, reviews = edits.corrections_in(out, run)
                if lost := sorted(reviews.keys() - corrected.keys()):
                    left = {picture: review for picture, review in reviews.items() if picture in corrected}
                    edits.write_corrections(out, corrected, run, left)
                    notes.append(f"to be reviewed again, as their drafts are lost: {pictures_in_words(lost)}")
            remove(out / name)  # last: a call that is killed does all of it again
    return notes


class _Keep:
    """Writes each part that the engine hands over, and tells the reporter which pictures failed."""

    def __init__(self, out: Path, shards: Mapping[int, Shard], notes: Notes, reporter: Reporter) -> None:
        self._out, self._shards, self._notes, self._reporter = out, shards, notes, reporter
        # Taken before any picture is read, so that a picture replaced meanwhile is noticed by the next call.
        self._stamps = {sample.id: stamp(sample) for shard in shards.values() for sample in shard.samples}
        self.written = self.pictures = 0  # number of parts, and of pictures in them

    def __call__(self, part: Part) -> None:
        of_part = [self._stamps[sample.id] for sample in self._shards[part.index].samples]
        if part.lessons:  # before the rows: without them a picture could never be taught
            write_whole(lessons_path(self._out, part.index), lambda temporary: temporary.write_bytes(part.lessons))
        write_part(part_path(self._out, part.index, KIND.suffix), part.content, of_part)
        self.written += 1
        self.pictures += part.content.count(b"\n")
        self._notes.add(part.notes)
        for row in map(json.loads, part.content.splitlines()):
            if row["status"] != "ok":
                self._reporter.failed(row["picture"], CliplocError(f"{row['picture']}: {row['reason']}"))

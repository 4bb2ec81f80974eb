"""`annotate`: draft boxes of a folder for other tools; resumable. docs/annotate.md explains the folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import msgspec

from cliploc import __version__
from cliploc.errors import CliplocError, UsageError
from cliploc.find import prompts
from cliploc.find.prompts import Labels, labels_of, read_labels
from cliploc.formats import Export, ExportSettings, chosen_exports, exports
from cliploc.label import correction_masks
from cliploc.label.annotator import RESERVED, AnnotateWorker
from cliploc.label.apply import apply_corrections, apply_review, is_review
from cliploc.label.drafts import DraftRule
from cliploc.label.results import LEARNT, AnnotatedFolder, AnnotateResult, Written, conclude
from cliploc.label.teach.teach import teach
from cliploc.options import (
    DEFAULTS,
    IMAGE_URL,
    OPTIONS,
    AnnotateOptions,
    Options,
    short,
)
from cliploc.registry import plugin_sources
from cliploc.runs.engine import (
    Engine,
    Notes,
    Part,
    Ready,
    pictures_in_words,
    run_here,
    saying_what_is_kept,
)
from cliploc.runs.labelling import Found, LabellingRun, settled_in
from cliploc.runs.picture_files import (
    UNREAD,
    FoundPictures,
    PictureFile,
    Skipped,
    bad_name,
    content_digest,
    find_pictures,
    stamp,
)
from cliploc.runs.plan import SHARD, shard_size, shards_of
from cliploc.runs.store import FILE, saying_disk_is_full
from cliploc.support.files import Inputs, alone_in, user_path
from cliploc.support.reporter import SILENT, Reporter

OWN_FILES = (LEARNT, "summary.json", "draft_scores.json")  # files that every run may write


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
        labels: a file of `cliploc.find.prompts.read_labels`, its lines as a list, or `Labels`.
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
        **more: options of `cliploc.options.AnnotateOptions`, such as `formats=["yolo"]`, and single options of the
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
    earlier = settled_in(target)  # by an earlier call
    there = pictures if isinstance(pictures, FoundPictures) else find_pictures(pictures)
    given = None if asked.decisions is None else user_path(asked.decisions)
    listed = [listing for listing in (pictures, labels) if isinstance(listing, str | os.PathLike)]
    _spare_inputs(target, [*(file.path for file in there.pictures), *listed], given)
    asked_for = (*given_thresholds, earlier.get("least"))
    least = min((presence for presence in asked_for if presence is not None), default=None)
    make_worker = partial(AnnotateWorker, names, options, min_area, asked.groups, least, masks, asked.teach)

    worker = make_worker()  # refuses what cannot be used before anything is written
    notes = Notes(reporter)
    notes.add(worker.notes)
    notes.add([note for note in [there.skipped_note()] if note])
    usual = worker.localizer.usual_min_presence
    thresholds = tuple(usual if presence is None else presence for presence in given_thresholds)
    shares = tuple(asked.share.get(name) for name in names.names)
    rule = DraftRule(thresholds, min_score, max_boxes, asked.nms_across, asked.unsure, shares)
    plugins = plugin_sources()
    of_run = {
        "cliploc_version": __version__,
        **({"plugins": plugins} if plugins else {}),
        "labels": names.entries,
        **worker.describe(),
    }
    if asked.share and "second_look" not in of_run:
        raise UsageError("expected --share with a second look, which gives chances, got neither: leave --share out")
    mine = [*OWN_FILES, *(["review.html"] if asked.review else [])]
    mine += [name for export in chosen for name in export.outputs]
    own_before = earlier.get("files", [])
    _refuse_others(target, mine, own_before)
    with (
        alone_in(target),
        saying_disk_is_full(target),
        LabellingRun.make(target, names.names, of_run) as run,
    ):
        run.store["files"] = sorted({*own_before, *mine})
        urls = (asked.image_url, earlier.get("image_url"), _image_url(there.root))
        image_url = next(url for url in urls if url is not None)
        run.change(root=str(there.root.resolve()), drafts=asdict(rule), image_url=image_url)
        work = _Work(target, run, notes, reporter, asked)
        files = there.pictures[: asked.limit]
        unreadable = {file.id: reason for file in files if (reason := bad_name(file.id))}
        for name, reason in unreadable.items():
            reporter.failed(name, CliplocError(f"{name}: {reason}"))
        unreadable |= work.remove_stale([file for file in files if file.id not in unreadable])
        files = [file for file in files if file.id not in unreadable]
        folder, computed, not_applied = work.annotate(
            files, there.skipped, unreadable, given, engine, Ready(make_worker, worker),
            shard_size(worker.localizer.options.batch_size, shard),
        )  # fmt: skip
        if folder.prior is not None and folder.prior.everywhere:
            [name] = names.names
            notes.add([f"{name}: taken to be in nearly all pictures; if it is not: --share '{name}=0.5'"])
        if "teaching" in of_run:
            learns = partial(reporter.phase, "learning from the folder")
            notes.add(teach(folder, begun=learns).lines())
        if asked.max_false is not None:
            notes.add([folder.keep_promise(asked.max_false)])
        written = Written(image_url, asked.polygons, asked.copy, asked.review)
        before = [exports.get(name) for name in (*run.exports, *exports.names()) if name in exports.names()]
        before = [export for export in before if _is_there(run, export)]
        result = conclude(
            folder,
            list(dict.fromkeys([*before, *chosen])),
            written,
            computed=computed,
            notes=notes.lines,
            reporter=reporter,
        )
        return replace(result, not_applied=not_applied, notes=notes.lines)


def _model_options(options: Options | None, more: Mapping[str, Any]) -> Options:
    """The options of the model. Files with templates are read here, as the engine may run on other machines."""
    if not isinstance(options, Options | None):
        raise UsageError(f"expected options as cliploc.Options, got {short(options)}: write cliploc.Options(…)")
    given = {**({} if options is None else options.changed()), **more}
    if reserved := RESERVED & given.keys():
        raise UsageError(
            f"{', '.join(sorted(reserved))}: not an option of the model here: annotate sets it, see its arguments"
        )
    chosen = Options.of(**given)
    return chosen.but(templates=prompts.resolve_templates(chosen.templates))


def _refuse_others(out: Path, files: Sequence[str], own: Sequence[str]) -> None:
    """Refuses to overwrite files that are not the run's."""
    if taken := [name for name in files if name not in own and os.path.lexists(out / name)]:
        raise UsageError(
            f"{out} holds {', '.join(taken)}, not written by this run, which would overwrite it: move it away, or "
            "choose another --out"
        )


def _image_url(root: Path) -> str:
    """Label Studio serves folders below its document root, not the root itself."""
    name = root.resolve().name
    return IMAGE_URL + (f"{quote(name)}/" if name else "")


def _is_there(run: LabellingRun, export: Export) -> bool:
    """Whether an earlier call wrote an export, even if it was killed right afterwards."""
    out, own = run.store.path.parent, run.store["files"]
    return all(output in own for output in export.outputs) and (
        export.name in run.exports or any((out / output).exists() for output in export.outputs)
    )


def _spare_inputs(out: Path, inputs: Sequence[str | os.PathLike[str]], corrected: Path | None) -> None:
    """Refuses a folder in which the run would overwrite its inputs, or a corrected set in one of its exports."""
    written = [
        FILE,
        "review.html",
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


class _Work:
    """Annotates the pictures of a call that are not annotated yet."""

    def __init__(self, out: Path, run: LabellingRun, notes: Notes, reporter: Reporter, asked: AnnotateOptions) -> None:
        self._out, self._run, self._notes, self._reporter, self._asked = out, run, notes, reporter, asked
        self._stamps: dict[str, str] = {}
        self.added = 0  # number of pictures

    def remove_stale(self, files: Sequence[PictureFile]) -> dict[str, str]:
        """Removes pictures that were replaced, with what was corrected in them: they are computed again.

        Returns the annotated pictures that cannot be read now, with the reason. They may come back: nothing is removed.
        """
        away, replaced, same = dict[str, str](), list[PictureFile](), dict[str, str]()
        stamped = self._run.stamped()
        for file in (file for file in files if file.id in stamped):
            before, checksum, done = stamped[file.id]
            now = stamp(file)
            if before == now and checksum != UNREAD:  # a disk that failed leaves the stamps
                continue
            digest = content_digest(file)
            if digest == UNREAD and done:
                away[file.id] = "it was annotated, and cannot be read now: bring it back, or remove its name"
            elif digest != checksum:
                replaced.append(file)
            else:
                same[file.id] = now
        self._run.restamp(same)
        if replaced:
            pictures, names = self._run.pictures(), [file.id for file in replaced]
            lost = sum(self._run.saved(pictures[name]).touched for name in names)
            ending = f"; what was corrected in {lost:,} of them is dropped" if lost else ""
            self._run.remove(names)
            self._notes.add(
                [f"replaced since they were annotated, and annotated again: {pictures_in_words(names)}{ending}"]
            )
        return away

    def annotate(
        self,
        files: Sequence[PictureFile],
        skipped: Sequence[Skipped],
        unreadable: Mapping[str, str],
        given: Path | None,  # what people corrected
        engine: Engine,
        make_worker: Ready,
        size: int,  # of a shard
    ) -> tuple[AnnotatedFolder, int, Mapping[str, str]]:
        """Returns the folder, how many pictures were annotated now, and why corrections were not taken."""
        stamped, not_applied = self._run.stamped(), dict[str, str]()
        done = {name for name, (_, _, good) in stamped.items() if good or not self._asked.retry}
        todo = [file for file in files if file.id not in done]
        self._reporter.phase("annotate")
        self._reporter.start(len(todo), len(files))
        of_review = given is not None and is_review(given)
        if given is not None and of_review:  # it only refers to pictures that are annotated already
            present = [file for file in files if file.id in stamped]
            not_applied = apply_review(AnnotatedFolder(self._run, present), given)
        if todo:
            # Taken before any picture is read, so that a picture replaced meanwhile is noticed by the next call.
            self._stamps = {file.id: stamp(file) for file in todo}
            self._run.store.begin_session()
            with saying_what_is_kept(self._out, lambda: f"{len(done) + self.added:,} pictures"):
                engine([*shards_of(todo, size)], make_worker, self._keep, self._reporter)
        folder = AnnotatedFolder(self._run, files, skipped, unreadable)
        if given is not None and not of_review:  # for it the sizes of all pictures must be known
            read, sources = apply_corrections(folder, given)
            folder.weigh()
            not_applied = read.problems
            self._notes.add([correction_masks.in_words(sources)] if sources else [])
            self._notes.add([f"{read.form}: {len(read.pictures):,} of {len(files):,} pictures corrected"])
        left = folder.pictures.keys() - {file.id for file in files} - unreadable.keys()
        if gone := sorted(name for name in left if folder.saved(name).correction is not None):
            self._notes.add([f"corrected, but not there now: {pictures_in_words(gone)}; corrections go by the name"])
        return folder, sum(folder.pictures[file.id].error is None for file in todo), not_applied

    def _keep(self, part: Part) -> None:
        """Adds what the engine hands over, and tells the reporter which pictures failed."""
        found = msgspec.msgpack.decode(part.content, type=list[Found])
        self._run.add(found, self._stamps)
        self.added += len(found)
        self._notes.add(part.notes)
        for one in found:
            if one.error is not None:
                self._reporter.failed(one.picture, CliplocError(f"{one.picture}: {one.error}"))

"""`annotate`: draft boxes of a folder for other tools; resumable. docs/annotate.md explains the folder."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from itertools import chain, groupby
from operator import attrgetter
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cliploc import __version__
from cliploc.errors import CliplocError, UsageError
from cliploc.find import prompts
from cliploc.find.learnt import joined
from cliploc.find.prompts import Labels, labels_of, read_labels
from cliploc.formats import ExportSettings, chosen_exports, exports
from cliploc.label import corrections, drafts, results
from cliploc.label.teach.teach import teach
from cliploc.label.worker import RESERVED, AnnotateWorker
from cliploc.options import FOUND, IMAGE_URL, AnnotateOptions, Options, short
from cliploc.registry import plugin_sources
from cliploc.runs import label_store, picture_files, plan, store
from cliploc.runs.engine import Engine, Notes, Part, Ready, pictures_in_words, run_here
from cliploc.support.files import AnyPath, Inputs, locked, refuse_taken, user_path
from cliploc.support.reporter import SILENT, Reporter

FILES = (results.LEARNT, "summary.json")  # that every run may write


def annotate(
    pictures: AnyPath | Sequence[AnyPath] | picture_files.FoundPictures,
    labels: AnyPath | Sequence[str] | Labels,
    out: AnyPath,
    *,
    engine: Engine = run_here,
    shard: int = plan.SHARD,
    reporter: Reporter = SILENT,
    options: Options | None = None,
    **more: Any,
) -> results.AnnotateResult:
    """Makes draft boxes of named things in pictures, and writes them for other tools.

    Args:
        pictures: a folder with its sub-folders, a pattern such as "photos/**/*.jpg", a .txt list, or paths; or
            pictures that were found already.
        labels: a file of `cliploc.find.prompts.read_labels`, its lines as a list, or `Labels`.
        out: an empty folder, or the folder of a run with the same settings, which is resumed, also with additional
            pictures, or with additional names: then only these are looked for in its pictures, and all else stays.
            Thresholds, `min_presence` above 0, `min_score`, `max_boxes` and what is written may differ:
            only the drafts are chosen again.
        engine: the engine that runs it.
        shard: number of pictures that are computed and written together; rounded to whole batches.
        reporter: gets the phases ("annotate", then "writing NAME" for each format that is not up to date), the numbers
            of pictures to do and done, each failed picture, and each note. An exception raised by the reporter ends the
            run, which can be resumed.
        options: options of the `Localizer`: model, method, scales, flip, batch_size …; None for the defaults. Without a
            `min_score` it is "auto": 0.2, but a name that is in the picture keeps its best box. A label's own threshold
            overrides `min_presence`; 0: every name is boxed.
        **more: options of `cliploc.options.AnnotateOptions`, such as `formats=["yolo"]`, and single options of the
            `Localizer`, such as `flip=True`, which override those of `options`.

    Returns:
        What was found and written.

    Raises:
        UsageError: pictures, labels, a model or an option that cannot be used, or a folder with other settings.
        DiskFullError: no room on the disk.
    """
    names = {option.name for option in fields(AnnotateOptions)} & more.keys()
    flags = AnnotateOptions(**{name: more.pop(name) for name in names})
    options = _model_options(options, more)
    formats = chosen_exports(flags.formats)
    if isinstance(labels, str | os.PathLike):
        labels_file, labels = labels, read_labels(Path(labels))
    else:
        labels_file, labels = None, labels if isinstance(labels, Labels) else labels_of(labels)
    target = user_path(out)
    earlier = label_store.settled_in(target)  # by an earlier call
    before = earlier.renamed(flags.rename, flags.remove)
    labels = labels.after(before)
    masks = flags.masks or options.masks_by != "heat"
    if unknown := flags.share.keys() - {*labels.names}:
        raise UsageError(f"expected --share of a label, one of {', '.join(labels.names)}, got {min(unknown)}")
    for form in formats:
        form.check(ExportSettings(labels.names, "", "", masks))
    found = pictures if isinstance(pictures, picture_files.FoundPictures) else picture_files.find_pictures(pictures)
    corrected = None if flags.decisions is None else user_path(flags.decisions)
    listed = [file for file in (pictures, labels_file) if isinstance(file, str | os.PathLike)]
    _check_inputs(target, [*(file.path for file in found.pictures), *listed], corrected)

    default = options.min_presence  # None: the usual
    presences = [default if threshold is None else threshold for threshold in labels.thresholds]
    least = min((presence for presence in (*presences, earlier.least) if presence is not None), default=None)
    make_worker = partial(AnnotateWorker, labels, options, least, masks, flags.teach)
    worker = make_worker()  # refuses what cannot be used before anything is written
    added = [entry for entry, name in zip(labels.entries, labels.names, strict=True) if name not in earlier.names]
    if not flags.as_typed and (doubts := worker.doubts(added)):
        raise UsageError(f"{' '.join(doubts)} Correct the name, or give --as-typed")
    notes = Notes(reporter)
    notes.add([*worker.notes, *filter(None, [found.skipped_note()])])
    rule = drafts.DraftRule(
        tuple(FOUND if presence is None else presence for presence in presences),
        "auto" if options.min_score is None else options.min_score,
        options.max_boxes,
        flags.unsure,
        tuple(flags.share.get(name) for name in labels.names),
    )
    plugins = plugin_sources()
    made_with = {"cliploc_version": __version__, **({"plugins": plugins} if plugins else {})}
    settings = {**made_with, "labels": labels.entries, **worker.describe()}
    if flags.share and "second_look" not in settings:
        raise UsageError("expected --share with a second look, which gives chances, got neither: leave --share out")
    files = [*FILES, *(name for form in formats for name in form.outputs)]
    refuse_taken(target, (name for name in files if name not in earlier.files))
    # Label Studio serves folders below its document root, not the root itself.
    below = IMAGE_URL + "".join(f"{quote(name)}/" for name in [found.root.resolve().name] if name)
    image_url = next(url for url in (flags.image_url, earlier.image_url, below) if url is not None)
    made_by = f"cliploc {__version__} {settings['model']} {settings['method']}"
    written = ExportSettings(labels.names, made_by, image_url, masks, flags.copy, flags.reviewed, flags.val)
    settled = {"root": str(found.root.resolve()), "drafts": asdict(rule), "written": asdict(written)}
    wanted = (target, labels, settings, settled, flags, notes)
    with locked(target), store.disk_errors(target), _opened(*wanted) as run:
        run.files = sorted({*earlier.files, *files})
        work = _Work(run, notes, reporter, flags, [name for name in labels.names if before and name not in before])
        size = plan.shard_size(worker.localizer.options.batch_size, shard)
        folder = work.annotate(found, corrected, engine, Ready(make_worker, worker), size)
        if folder.prior is not None and folder.prior.everywhere:
            [name] = labels.names
            notes.add([f"{name}: taken to be in nearly all pictures; if it is not: --share '{name}=0.5'"])
        promised = flags.max_false is not None and bool(run.reviewed())
        if "teaching" in settings and not promised:  # else drafts stay as they were when pictures were reviewed
            notes.add(teach(folder, begun=partial(reporter.phase, "learning from the folder")).lines())
        if flags.max_false is not None:
            notes.add(folder.accept_drafts(flags.max_false))
        earlier_formats = [exports.get(name) for name in run.exports if name in exports.names()]
        formats = tuple(dict.fromkeys([*earlier_formats, *formats]))
        result = results.conclude(folder, formats, written, computed=work.computed, reporter=reporter)
        return replace(result, not_applied=work.not_applied, notes=notes.lines)


def _model_options(options: Options | None, more: Mapping[str, Any]) -> Options:
    """The options of the model. Files with templates are read here, as the engine may run on other machines."""
    if not isinstance(options, Options | None):
        raise UsageError(f"expected options as cliploc.Options, got {short(options)}: write cliploc.Options(…)")
    values = {**({} if options is None else options.changed()), **more}
    if reserved := RESERVED & values.keys():
        names = ", ".join(sorted(reserved))
        raise UsageError(f"{names}: not an option of the model here: annotate sets it, see its arguments")
    chosen = Options.of(**values)
    return chosen.but(templates=prompts.resolve_templates(chosen.templates))


def _check_inputs(out: Path, inputs: Sequence[AnyPath], corrected: Path | None) -> None:
    """Refuses a folder in which the run would overwrite its inputs, or a corrected set in one of its exports."""
    outputs = [out / name for name in (store.FILE, *FILES, *(name for form in exports for name in form.outputs))]
    inputs = inputs if corrected is None else [*inputs, corrected]
    Inputs(inputs).check_outputs(outputs, folders=outputs)
    if corrected is not None and corrected.resolve() == out.resolve():
        raise UsageError(f"expected a corrected set outside of {out}, whose exports are overwritten: copy it first")


def _opened(
    out: Path,
    labels: Labels,
    settings: Mapping[str, Any],
    settled: Mapping[str, Any],
    flags: AnnotateOptions,
    notes: Notes,
) -> label_store.LabellingRun:
    """The run with the names that are wanted; what people did with others is called otherwise, or goes."""
    if flags.rename or flags.remove:
        with label_store.LabellingRun.open(out) as run:
            for old, new in flags.rename.items():
                if old in run.names:
                    run.rename(old, new)
            for name in flags.remove:
                drawn = run.remove_name(name) if name in run.names else 0
                notes.add([f"{name}: removed, with {drawn:,} boxes of reviewed pictures"] if drawn else [])
    return label_store.LabellingRun.make(out, labels.names, settings, **settled)


class _Work:
    """Annotates the pictures of a call that are not annotated yet."""

    def __init__(
        self,
        run: label_store.LabellingRun,
        notes: Notes,
        reporter: Reporter,
        flags: AnnotateOptions,
        added: Sequence[str],  # names that the run did not have
    ) -> None:
        self._added_names = added
        self._run, self._notes, self._reporter, self._flags = run, notes, reporter, flags
        self._stamps: dict[str, str] = {}
        self._added = self.computed = 0  # number of pictures: all, and those with results
        self.not_applied: Mapping[str, str] = {}  # picture → why its corrections were not taken

    def annotate(
        self, found: picture_files.FoundPictures, corrected: Path | None, engine: Engine, make_worker: Ready, shard: int
    ) -> results.AnnotatedFolder:
        """Computes what is missing, and takes what people corrected."""
        run, files = self._run, found.pictures[: self._flags.limit]
        unreadable = {file.id: reason for file in files if (reason := picture_files.bad_name(file.id))}
        for name, reason in unreadable.items():
            self._reporter.failed(name, CliplocError(f"{name}: {reason}"))
        unreadable |= self._remove_stale([file for file in files if file.id not in unreadable])
        files = [file for file in files if file.id not in unreadable]
        stamped, missing = run.stamped(), run.missing()
        done = {name for name, (_, _, good) in stamped.items() if good or not self._flags.retry} - missing.keys()
        if self._added_names and (seen := [file.id for file in files if file.id in missing.keys() & run.reviewed()]):
            stays = f"{pictures_in_words(seen)}; what is reviewed stays: look there again"
            self._notes.add([f"reviewed before names were added: {stays}"])
        todo = [replace(file, labels=missing.get(file.id, ())) for file in files if file.id not in done]
        self._reporter.phase("annotate")
        self._reporter.start(len(todo), len(files))
        if todo:
            # Taken before any picture is read, so that a picture replaced meanwhile is noticed by the next call.
            self._stamps = {file.id: picture_files.stamp(file) for file in todo}
            run.store.begin_session()
            labels_of = attrgetter("labels")
            alike = groupby(sorted(todo, key=labels_of), labels_of)  # with whole batches each
            shards = chain.from_iterable(plan.shards_of([*some], shard) for _, some in alike)
            numbered = [replace(one, index=index) for index, one in enumerate(shards)]
            with store.interrupt_message(run.out, lambda: f"{len(done) + self._added:,} pictures"):
                engine(numbered, make_worker, self._add, self._reporter)
        folder = results.AnnotatedFolder(run, files)
        self.computed = sum(folder.pictures[file.id].error is None for file in todo)
        if corrected is not None:
            read, line = corrections.apply_corrections(folder, corrected)
            folder.update_prior()
            self.not_applied = read.problems
            self._notes.add([line])
        left = folder.pictures.keys() - {file.id for file in files} - unreadable.keys()
        run.left_out, run.unreadable = sorted(name for name in left if (folder.root / name).is_file()), unreadable
        if gone := sorted(name for name in left if folder.saved(name).correction is not None):
            self._notes.add([f"corrected, but not there now: {pictures_in_words(gone)}; corrections go by the name"])
        return folder

    def _remove_stale(self, files: Sequence[picture_files.PictureFile]) -> dict[str, str]:
        """Removes pictures that were replaced, with what was corrected in them: they are computed again.

        Returns the annotated pictures that cannot be read now, with the reason. They may come back: nothing is removed.
        """
        away, replaced, same = dict[str, str](), list[str](), dict[str, str]()
        stamped = self._run.stamped()
        for file in (file for file in files if file.id in stamped):
            before, checksum, done = stamped[file.id]
            now = picture_files.stamp(file)
            if before == now and checksum != picture_files.UNREAD:  # a disk that failed leaves the stamps
                continue
            digest = picture_files.content_digest(file)
            if digest == picture_files.UNREAD and done:
                away[file.id] = "it was annotated, and cannot be read now: bring it back, or remove its name"
            elif digest != checksum:
                replaced.append(file.id)
            else:
                same[file.id] = now
        self._run.restamp(same)
        if replaced:
            pictures = self._run.pictures()
            lost = sum(self._run.saved(pictures[name]).touched for name in replaced)
            ending = f"; what was corrected in {lost:,} of them is dropped" if lost else ""
            self._run.remove(replaced)
            again = f"replaced since they were annotated, and annotated again: {pictures_in_words(replaced)}"
            self._notes.add([again + ending])
        return away

    def _add(self, part: Part) -> None:
        """Adds what the engine hands over, and reports which pictures failed."""
        found: list[label_store.PictureResult] = part.content
        self._run.add(found, self._stamps, joined)
        self._added += len(found)
        self._notes.add(part.notes)
        for one in found:
            if one.error is not None:
                self._reporter.failed(one.picture, CliplocError(f"{one.picture}: {one.error}"))

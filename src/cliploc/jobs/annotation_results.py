"""An annotated folder as a whole: drafts and corrections together, and the files that show them."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from cliploc import __version__, prompts
from cliploc._documents import AnnotationSummary, read_if_there
from cliploc.calibration import Floats
from cliploc.config import MIN_SCORE
from cliploc.errors import UsageError
from cliploc.jobs import annotation_edits as edits
from cliploc.jobs import export_states
from cliploc.jobs.annotation_rows import SCHEMA_VERSION, Results, run_id
from cliploc.jobs.annotator import Row
from cliploc.jobs.corrections import Correction
from cliploc.jobs.draft_scores import IOU, LabelScore, least_score, score_drafts
from cliploc.jobs.drafts import Chosen, DraftRule, Prior, choose
from cliploc.jobs.folder import write_json
from cliploc.jobs.picture_files import PictureFile, Skipped, by_path
from cliploc.report.document import skipped_document
from cliploc.report.exports import AnnotatedPicture, Export, ExportSettings
from cliploc.report.html import count
from cliploc.report.review_page import ReviewPicture, write_review
from cliploc.reporter import SILENT, Reporter
from cliploc.rle import fills, uncompressed


@dataclass(frozen=True)
class AnnotateResult:
    """The result of an annotation run.

    Attributes:
        out: the run's folder.
        pictures: number of pictures.
        boxes: label → number of its boxes.
        unsure: label → number of boxes that may be right, which exports have only if they are asked for.
        with_label: label → number of pictures with it.
        empty: number of pictures without boxes.
        failed: picture → why it failed.
        groups: number of boxes that seem to contain several things.
        reviewed: number of pictures that were reviewed.
        files: format → its files, written by this call or up to date before it.
        computed: number of pictures that this call annotated; the others were done before, or failed.
        notes: remarks on the run.
        skipped: files that were left out, and why.
        run: id of the names and settings that the boxes were made with, as in review.html.
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
    unsure: Mapping[str, int]
    with_label: Mapping[str, int]
    empty: int
    failed: Mapping[str, str]
    groups: int
    reviewed: int
    files: Mapping[str, tuple[str, ...]]
    computed: int
    notes: tuple[str, ...]
    skipped: Sequence[Skipped] = ()
    run: str = ""
    corrected: int = 0
    not_applied: Mapping[str, str] = field(default_factory=dict)
    draft_scores: Mapping[str, LabelScore] = field(default_factory=dict)
    scored: int = 0

    def document(self) -> dict[str, Any]:
        """The result as in summary.json."""
        return {
            "schema_version": SCHEMA_VERSION,
            "run": self.run,
            "pictures": self.pictures,
            "labels": {
                name: {
                    "boxes": self.boxes[name],
                    "unsure": self.unsure[name],
                    "pictures": self.with_label[name],
                }
                for name in self.boxes
            },
            "without_boxes": self.empty,
            "failed": [{"picture": name, "reason": reason} for name, reason in self.failed.items()],
            "skipped": skipped_document(self.skipped),
            "boxes_round_several": self.groups,
            "pictures_reviewed": self.reviewed,
            "pictures_corrected": self.corrected,
            "files": {name: list(files) for name, files in self.files.items()},
        }

    def closing(self, seconds: float) -> list[str]:
        """The lines printed at the end of a run."""
        done, boxes = self.pictures - len(self.failed), sum(self.boxes.values())
        words = [f"{done:,} of {count(self.pictures, 'picture')} done, {self.computed:,} of them now, {seconds:.1f} s"]
        words.append(f"{count(boxes, 'box', 'boxes')}; {count(self.empty, 'picture')} without any")
        if self.failed:
            words.append(f"{len(self.failed):,} failed: see summary.json")
        lines = ["; ".join(words)]
        if unsure := sum(self.unsure.values()):
            lines.append(
                f"{count(unsure, 'unsure box', 'unsure boxes')}: see `cliploc review`; --unsure exports them, too"
            )
        if self.groups:
            lines.append(f"boxes that seem to contain several things: {self.groups:,}; see --groups, or review them")
        if self.reviewed:
            lines.append(f"{count(self.reviewed, 'picture')} reviewed")
        if self.corrected:
            lines.append(f"{count(self.corrected, 'picture')} corrected")
        if self.draft_scores:
            lines.append(f"drafts of {self.scored:,} of them compared with the corrected boxes, at IoU {IOU}:")
        for name, scores in self.draft_scores.items():
            if not scores.drafts and not scores.true:
                continue
            words = [f"{name or 'all labels'}: {scores.right} of {scores.drafts} drafts right"]
            words.append(f"{scores.right} of {scores.true} boxes found")
            if scores.min_score is not None:
                outcome = f"{scores.kept_right} of {scores.kept} right, {scores.kept_right} of {scores.true} found"
                words.append(f"best with --min-score {np.float32(scores.min_score)!s} ({outcome})")
            lines.append("; ".join(words))
        if not boxes and len(self.failed) < self.pictures:
            editor = f"`cliploc review {self.out}`"
            lines.append(f"no boxes were found: check the names, or draw a thing in three pictures with {editor}")
        return [*lines, f"written to {self.out}: {', '.join(file for names in self.files.values() for file in names)}"]

    def table(self) -> list[tuple[str, str, str, str]]:
        """The table of labels: a header, then a row for each label."""
        lines = [
            (name, f"{boxes:,}", f"{self.unsure[name]:,}", f"{self.with_label[name]:,}")
            for name, boxes in self.boxes.items()
        ]
        return [("label", "drafts", "unsure", "pictures"), *lines]


class AnnotatedFolder:
    """An annotated folder: everything that the exports, the summary and the review page show."""

    def __init__(
        self,
        out: Path,
        manifest: Mapping[str, Any],
        files: Sequence[PictureFile] = (),  # however they were found: sorted as ids in exports count
        skipped: Sequence[Skipped] | None = None,  # None: as the summary has it
        unreadable: Mapping[str, str] = MappingProxyType({}),  # picture → why it has no row
    ) -> None:
        """Reads the folder of a run, as its manifest describes it."""
        self.out, self.root, self.run = out, Path(manifest["root"]), run_id(manifest)
        self.found, self.skipped, self.unreadable = files, skipped, unreadable
        self.labels = tuple(manifest["labels"])  # as `cliploc.jobs.labels.Labels.entries`
        self.names = prompts.parse(self.labels).names
        self.rule = DraftRule(**manifest["drafts"])  # which candidates are drafts
        self.settings: Mapping[str, Any] = manifest["settings"]  # that its rows were made with
        self.results = Results(self.out, self.run)
        self.read_edits()

    @property
    def masks(self) -> bool:
        """Whether its boxes have masks."""
        return bool(self.settings.get("masks", False))

    def export_settings(self, image_url: str, polygons: bool, copy: bool) -> ExportSettings:
        """How its pictures are exported."""
        made_by = f"cliploc {__version__} {self.settings['model']} {self.settings['method']}"
        return ExportSettings(self.names, made_by, image_url, self.masks, polygons, copy)

    def read_rows(self) -> None:
        """Reads what the model found."""
        self.results = Results(self.out, self.run)
        self.show(self.found)

    def show(self, files: Sequence[PictureFile]) -> None:
        """Takes these pictures; what is known of how common names are is of them alone."""
        self.found = sorted(files, key=by_path)
        self.prior: Prior | None = None  # without a second look presence is no chance
        presence, true = self._known()
        if len(presence) and "second_look" in self.settings:
            self.prior = Prior.of(presence, self.rule.shares or [None] * len(self.names), true)

    def _known(self) -> tuple[Floats, Floats]:
        """Of each picture `[n, P]` the chances of names, and whether they are there; NaN: unknown, not reviewed."""
        places, reviewed = self.results.places, {*self.corrected_whole()}
        there = {file.id: places[file.id].presence for file in self.found if file.id in places}
        known = {name: presence for name, presence in there.items() if presence is not None}
        true = np.full((len(known), len(self.names)), np.nan)
        for i, name in enumerate(known):
            if name in reviewed:
                true[i] = np.isin(range(len(self.names)), self.corrected[name].labels)
        return np.array([*known.values()], np.float64).reshape(true.shape), true

    def chosen(self, picture: str) -> Chosen:
        """Which of a picture's candidates are drafts, and which are unsure."""
        return choose(self.results.row(picture), self.rule, self.prior)

    def untaught(self, picture: str) -> Chosen:
        """The same without what teaching found."""
        return choose(self.results.row(picture, taught=False), self.rule, self.prior)

    def kept(self, picture: str) -> list[int]:
        """The numbers of the boxes that hold where no corrected ones do, best first."""
        return self.chosen(picture).shown(self.rule.unsure)

    def shown_row(self, picture: str, unsure: bool = True) -> Row:
        """A picture's row with its drafts alone, and its unsure boxes, best first."""
        row, chosen = self.results.row(picture), self.chosen(picture)
        ids = [*chosen.drafts, *(chosen.unsure if unsure else ())]
        picked: Row = {key: [row[key][i] for i in ids] for key in ("boxes", "labels", "masks") if key in row}
        return {**row, **picked, "scores": chosen.scores[ids].tolist()}

    def read_edits(self) -> None:
        """Reads what people changed."""
        refuse_decisions(self.out)
        self.corrected, self.reviews = edits.corrections_in(self.out, self.run)
        self.show(self.found)

    def pictures(self) -> Iterator[AnnotatedPicture]:
        """Yields the pictures that did not fail, by path, as reviewed and corrected."""
        for number, file in enumerate(self.annotated(), start=1):
            yield self.picture(file, number, self.chosen(file.id))

    def annotated(self) -> list[PictureFile]:
        """The pictures that did not fail."""
        return [file for file in self.found if self.results.places[file.id].ok]

    def picture(self, file: PictureFile, number: int, chosen: Chosen, all_boxes: bool = False) -> AnnotatedPicture:
        """One of these pictures. A person has seen the boxes of a corrected one: their score is 1."""
        row, correction = self.results.row(file.id), None if all_boxes else self.corrected.get(file.id)
        if correction is None:
            if all_boxes:  # those that a review shows: also the ones that somebody kept under another rule
                kept = self.corrected[file.id].drafts if file.id in self.corrected else None
                there = [i for i in kept or () if i is not None and i < len(chosen.scores)]
                ids = chosen.ordered([*{*chosen.drafts, *chosen.unsure, *there}])
            else:
                ids = chosen.shown(self.rule.unsure)
            boxes, labels, groups = ([row[key][i] for i in ids] for key in ("boxes", "labels", "groups"))
            scores, certainty = chosen.scores[ids].tolist(), chosen.presence[labels].tolist()
            masks = [row["masks"][i] for i in ids] if row.get("masks") else []
        else:
            boxes, labels, count = correction.boxes, correction.labels, len(correction.boxes)
            ids = [*range(len(row["boxes"]), len(row["boxes"]) + count)]  # numbers that follow those of the drafts
            scores, certainty, groups = [1.0] * count, [1.0] * count, [0] * count
            masks = [] if row.get("masks") is None else self._corrected_masks(file.id, correction, row)
        return AnnotatedPicture(
            number,
            file.id,
            file.path,
            (row["width"], row["height"]),
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(scores, np.float32),
            np.array(labels, np.int64),
            tuple(ids),
            tuple(map(bool, groups)),
            chosen.margin,
            np.array(certainty, np.float32),
            tuple({"size": [row["height"], row["width"]], "counts": mask} for mask in masks),
        )

    def _corrected_masks(self, picture: str, correction: Correction, row: Row) -> list[str]:
        """The masks of a corrected picture, of a file that somebody may have changed."""
        try:
            masks = [mask or "" for mask in correction.masks or [""] * len(correction.boxes)]
            fitting = all(fills(uncompressed(mask), row["width"] * row["height"]) for mask in masks)
        except ValueError:
            fitting = False
        if correction.masks is None or not fitting:
            raise UsageError(
                f"expected a mask of each corrected box of {picture} in {self.out / edits.CORRECTIONS}: move it away "
                "and --apply the corrected set again"
            )
        return masks

    def _corrected_drafts(self) -> list[tuple[Row, Correction]]:
        return [(self.shown_row(name, unsure=False), self.corrected[name]) for name in self.corrected_whole()]

    def draft_scores(self) -> dict[str, LabelScore]:
        """How drafts did against the corrected boxes: of all labels as "", then of each; empty without any."""
        pairs = self._corrected_drafts()
        if not pairs:
            return {}
        every, each = score_drafts(pairs, len(self.names))
        return {"": every, **dict(zip(self.names, each, strict=True))}

    def stamp(self, *more: object) -> str:
        """A digest that changes with everything that is written."""
        digest = hashlib.sha256(json.dumps([str(self.root.resolve()), *map(str, more)]).encode())
        digest.update(json.dumps([self.rule.document(), None if self.prior is None else [*self.prior.shifts]]).encode())
        if self.corrected:
            digest.update(json.dumps(edits.plain_corrections(self.corrected), sort_keys=True).encode())
        for file in self.found:
            digest.update(json.dumps([file.id, str(file.path)]).encode() + self.results.stamp(file.id))
        return digest.hexdigest()

    def shares(self) -> dict[str, float]:
        """About the share of pictures with each label that the model knows by its text."""
        presence, true = self._known()
        if self.prior is None:
            return {}
        chances = np.where(np.isnan(true), self.prior.adjusted(presence), true).mean(axis=0)
        # Of names that were learnt from boxes alone nothing says that a picture lacks them.
        by_text = ~np.isnan(presence[0]) & (presence != 1).any(axis=0)
        return {name: float(share) for name, share, said in zip(self.names, chances, by_text, strict=True) if said}

    def keep_promise(self, most_false: float) -> str:
        """Raises the minimum score so that so few drafts are wrong; what is said of it."""
        rule, auto = self.rule, self.rule.min_score == "auto"
        self.rule = replace(rule, min_score=MIN_SCORE) if auto else rule  # it is only raised
        pairs = self._corrected_drafts()
        kept = least_score(pairs, len(self.names), most_false)
        if kept is None:
            self.rule = rule
            return (
                f"--max-false {most_false:g}: the {len(pairs):,} corrected pictures are too few for this promise, or "
                f"too many of their drafts are wrong: --min-score stays {rule.min_score}; correct more pictures"
            )
        score, count, wrong = kept
        self.rule = replace(rule, min_score=score)
        return (
            f"--max-false {most_false:g}: drafts from a score of {score:.2f} on; of {count:,} such drafts on "
            f"{len(pairs):,} corrected pictures {wrong:,} are wrong"
        )

    def corrected_whole(self) -> list[str]:
        """The corrected pictures that are finished; a person may still be working on the others in the editor."""
        return [file.id for file in self.found if file.id in self.corrected and self.is_finished(file.id)]

    def finished(self) -> dict[str, tuple[list[list[float]], list[int]]]:
        """The boxes and labels of the pictures that a person has finished: corrected ones, or drafts that hold."""
        boxes_of = {}
        for name in (file.id for file in self.annotated() if self.is_finished(file.id)):
            if name in self.corrected:
                boxes_of[name] = self.corrected[name].boxes, self.corrected[name].labels
            else:
                row, kept = self.results.row(name), self.kept(name)
                boxes_of[name] = [row["boxes"][i] for i in kept], [row["labels"][i] for i in kept]
        return boxes_of

    def status(self, picture: str) -> str:
        """What a person said of a picture; a corrected one of which nobody said anything is finished."""
        if picture in self.reviews:
            return str(self.reviews[picture]["status"])
        return "reviewed" if picture in self.corrected else "none"

    def seen(self, picture: str) -> bool:
        """Whether somebody has reviewed or corrected a picture."""
        return self.status(picture) != "none"

    def touched(self, picture: str) -> bool:
        """Whether what a person did with a picture refers to its drafts: they stay as they are."""
        return self.seen(picture) or picture in self.corrected

    def all_touched(self) -> set[str]:
        """These pictures."""
        return {picture for picture in {*self.reviews, *self.corrected} if self.touched(picture)}

    def count_finished(self) -> int:
        """About the number of the pictures of `finished`, at once."""
        return sum(map(self.is_finished, {*self.reviews, *self.corrected}))

    def revision(self, picture: str) -> int:
        """The number of times that a picture was saved."""
        return int(self.reviews.get(picture, {}).get("revision", 0))

    def enter(self, picture: str, correction: Correction | None, status: str) -> int:
        """Stores what a person saved of a picture: its boxes, or None if the drafts hold. Returns the new revision."""
        revision = self.revision(picture) + 1
        self.reviews[picture] = {"status": status, "revision": revision}
        if correction is None:
            self.corrected.pop(picture, None)
        else:
            self.corrected[picture] = correction
        return revision

    def is_finished(self, picture: str) -> bool:
        """Whether it counts in `count_finished`."""
        return self.status(picture) == "reviewed"

    def reviewed(self, file: PictureFile, number: int) -> ReviewPicture:
        """A picture as the editor shows it: all drafts, and the boxes that hold now."""
        row, name, chosen = self.results.row(file.id), file.id, self.chosen(file.id)
        if (correction := self.corrected.get(name)) is None:
            kept = chosen.shown(self.rule.unsure)
            masks = [row["masks"][i] for i in kept] if "masks" in row else None
            correction = Correction([row["boxes"][i] for i in kept], [row["labels"][i] for i in kept], masks, [*kept])
        return ReviewPicture(
            self.picture(file, number, chosen, all_boxes=True),
            frozenset(chosen.unsure),
            correction.boxes,
            correction.labels,
            correction.drafts or [None] * len(correction.boxes),
            correction.masks,
            self.status(name),
            self.revision(name),
            self.results.drawn(name),
        )


def refuse_decisions(out: Path) -> None:
    """Refuses a folder with edits that are not read any more."""
    if (old := out / "decisions.json").exists():
        raise UsageError(
            f"{old} is of a review page before cliploc 0.2.0, which is not read any more: remove it, and --apply "
            "the boxes that an earlier version exports"
        )


def summary_of(out: Path) -> dict[str, Any]:
    """The summary that the last call wrote; empty if there is none or the file is damaged."""
    return read_if_there(out / "summary.json", AnnotationSummary)


def left_out_of(run: AnnotatedFolder) -> list[str]:
    """The annotated pictures that are there, but not among those of this call."""
    names = run.results.places.keys() - {file.id for file in run.found} - run.unreadable.keys()
    return sorted(name for name in names if (run.root / name).is_file())


def conclude(
    run: AnnotatedFolder,
    formats: Sequence[Export],
    settings: ExportSettings,
    *,
    before: Mapping[str, Any],  # the summary of the last call
    review: int,  # number of pictures of the review page
    computed: int = 0,  # number of pictures that this call annotated
    notes: tuple[str, ...] = (),
    reporter: Reporter = SILENT,
) -> AnnotateResult:
    """Writes the exports, the review page and the summary where they are not up to date, or are damaged."""
    files: dict[str, list[str]] = dict(before.get("files", {}))
    stamps: dict[str, str] = dict(before.get("stamps", {}))
    corrected = sum(file.id in run.corrected for file in run.found)

    def sealed(name: str, stamp: str, newest: int | None = None) -> str:
        """The stamp of what an export was made from, with that of the files that are there."""
        return f"{stamp} {export_states.seal(run.out, files.get(name, ()), newest)}"

    def update(name: str, stamp: str, outputs: Sequence[str], title: str, write: Callable[[], None]) -> None:
        known = re.fullmatch(f"{stamp} ([0-9]{{1,20}}) [0-9a-f]+", stamps.get(name, ""))
        if known is None or known[0] != sealed(name, stamp, int(known[1])):
            reporter.phase(f"writing {title}")
            export_states.mark_stale(run.out, [name])
            write()
            files[name] = list(outputs)
            stamps[name] = sealed(name, stamp)
        export_states.mark_current(run.out, name, outputs, run.run, corrected)

    def write_page() -> None:
        good = [(file, number) for number, file in enumerate(run.annotated(), start=1)]
        # The least certain first; pictures reviewed before come last.
        good.sort(key=lambda pair: (run.seen(pair[0].id), run.chosen(pair[0].id).margin))
        shown = [run.reviewed(file, number) for file, number in good[:review]]
        write_review(run.out / "review.html", shown, settings.names, run.run, len(run.found), settings.masks)

    for form in formats:
        needed = settings if "image_url" in form.needs else replace(settings, image_url="")
        needed = needed if "polygons" in form.needs else replace(needed, polygons=False)
        needed = needed if "picture_files" in form.needs else replace(needed, copies=False)
        write = functools.partial(form.write_all, run.pictures, needed, run.out)
        update(form.name, run.stamp(form.name, needed), form.outputs, form.name, write)
    if review:
        stamp = run.stamp("review", review, settings.names, json.dumps(run.reviews, sort_keys=True))
        update("review", stamp, ["review.html"], "review.html", write_page)
    else:
        files.pop("review", None)  # of an earlier call: it may have other boxes by now
    result = _counted(run, files, computed, notes, corrected)
    _write_scores(run.out, result)
    written = {"polygons": settings.polygons, "copy": settings.copies, "review": review}
    document = {**result.document(), "stamps": stamps, "written": written}
    document["left_out"] = left_out_of(run)
    if run.skipped is None:  # from the editor, which has the pictures of the last call
        document |= {name: before[name] for name in ("skipped", "left_out") if name in before}
    if document != before:
        write_json(run.out / "summary.json", document)
    return result


def _counted(
    run: AnnotatedFolder,
    files: Mapping[str, Sequence[str]],
    computed: int,
    notes: tuple[str, ...],
    corrected: int,
) -> AnnotateResult:
    boxes, unsure, with_label = Counter[str](), Counter[str](), Counter[str]()
    empty = groups = 0
    for number, file in enumerate(run.annotated(), start=1):
        chosen = run.chosen(file.id)
        picture = run.picture(file, number, chosen)
        labels = Counter(run.names[label] for label in picture.label.tolist())
        boxes.update(labels)
        with_label.update(labels.keys())
        empty += not labels
        groups += sum(picture.groups)
        if file.id in run.corrected:
            continue
        of_label = run.results.row(file.id)["labels"]
        left = {*chosen.unsure} - {*picture.box_ids}
        unsure.update(run.names[of_label[i]] for i in left)
    failed = [file.id for file in run.found if not run.results.places[file.id].ok]
    return AnnotateResult(
        run.out,
        len(run.found) + len(run.unreadable),
        {name: boxes[name] for name in run.names},
        {name: unsure[name] for name in run.names},
        {name: with_label[name] for name in run.names},
        empty,
        {**run.unreadable, **{name: run.results.row(name)["reason"] for name in failed}},
        groups,
        sum(run.seen(file.id) for file in run.found),
        {name: tuple(names) for name, names in files.items()},
        computed,
        notes,
        run.skipped or (),
        run.run,
        corrected,
        draft_scores=run.draft_scores(),
        scored=len(run.corrected_whole()),
    )


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
        "labels": {name: scores.document() for name, scores in labels},
    }
    if read_if_there(path, dict[str, Any]) != document:
        write_json(path, document)

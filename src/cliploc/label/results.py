"""An annotated folder as a whole: drafts and corrections together, and the files that show them."""

import copy
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np

from cliploc.draw.html import count
from cliploc.errors import InputError, UsageError
from cliploc.find import prompts
from cliploc.formats import AnnotatedPicture, Export, ExportSettings, pictures_of
from cliploc.images.rle import Rle
from cliploc.label.drafts import DraftRule, LabelScore, Prior, View, choose, score_drafts
from cliploc.label.editor.page import ReviewPicture
from cliploc.label.estimates import FEWEST, SURE, NameCount, Observation, Sample, fewest, observe
from cliploc.runs.label_store import Candidates, Correction, LabellingRun, Saved, TaughtPicture
from cliploc.runs.picture_files import PictureFile, PromptedDataset, PromptedPicture, by_path, content_digest
from cliploc.support.files import write_bytes, write_json
from cliploc.support.reporter import SILENT, Reporter
from cliploc.values import ClassName, Floats, Problem

SCHEMA_VERSION = 6  # of summary.json
LEARNT = "learnt.safetensors"  # see `cliploc.find.learnt`


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
        reviewed: number of pictures that were reviewed.
        files: format → its files, written by this call or up to date before it.
        computed: number of pictures that this call annotated; the others were done before, or failed.
        notes: remarks on the run.
        corrected: number of pictures whose boxes are those of a corrected set.
        not_applied: picture, as the corrected set of this call names it → why it was left as it is.
        draft_scores: label → how its drafts did in the reviewed pictures with corrected boxes; "" for all labels.
        counts: label → about how many things there are, and in how many pictures, by those reviewed in random order.
    """

    out: Path
    pictures: int
    boxes: Mapping[str, int]
    unsure: Mapping[str, int]
    with_label: Mapping[str, int]
    empty: int
    failed: Mapping[str, str]
    reviewed: int
    files: Mapping[str, tuple[str, ...]]
    computed: int
    notes: tuple[str, ...] = ()
    corrected: int = 0
    not_applied: Mapping[str, str] = field(default_factory=dict)
    draft_scores: Mapping[str, LabelScore] = field(default_factory=dict)
    counts: Mapping[str, NameCount] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The result as in summary.json."""
        return {
            "schema_version": SCHEMA_VERSION,
            "pictures": self.pictures,
            "labels": {
                name: {"boxes": boxes, "unsure": self.unsure[name], "pictures": self.with_label[name]}
                for name, boxes in self.boxes.items()
            },
            "without_boxes": self.empty,
            "failed": [{"picture": name, "reason": reason} for name, reason in self.failed.items()],
            "pictures_reviewed": self.reviewed,
            "pictures_corrected": self.corrected,
            "draft_scores": msgspec.to_builtins(self.draft_scores),
            "counts": msgspec.to_builtins(self.counts),
            "files": {name: list(files) for name, files in self.files.items()},
        }

    def closing(self, seconds: float) -> list[str]:
        """The lines printed at the end of a run."""
        done, boxes, unsure = self.pictures - len(self.failed), sum(self.boxes.values()), sum(self.unsure.values())
        words = [f"{done:,} of {count(self.pictures, 'picture')} done, {self.computed:,} of them now, {seconds:.1f} s"]
        words.append(f"{count(boxes, 'box', 'boxes')}; {count(self.empty, 'picture')} without any")
        words += [f"{len(self.failed):,} failed: see summary.json"] if self.failed else []
        lines = ["; ".join(words)]
        if unsure:
            unsure_boxes = count(unsure, "unsure box", "unsure boxes")
            lines.append(f"{unsure_boxes}: see `cliploc review`; --unsure exports them, too")
        for number, what in ((self.reviewed, "reviewed"), (self.corrected, "corrected")):
            lines += [f"{count(number, 'picture')} {what}"] if number else []
        names = [name for name in self.boxes if name in self.draft_scores]
        for name in names if len(names) == 1 else self.draft_scores:
            lines.append(f"{name or 'all names'}, compared with corrected boxes: {self.draft_scores[name].in_words()}")
        for name, of in self.counts.items():
            things, pictures = of.things.in_words(), of.pictures.in_words()
            lines.append(f"{name}: about {things} in {pictures} pictures, by those that were reviewed in random order")
        if self.reviewed and not self.counts:
            lines.append(
                f"to count what the others show: review {FEWEST} in random order, an order of `cliploc review`"
            )
        if not boxes and len(self.failed) < self.pictures:
            editor = f"`cliploc review {self.out}`"
            lines.append(f"no boxes were found: check the names, or draw a thing in three pictures with {editor}")
        return [*lines, f"written to {self.out}: {', '.join(file for names in self.files.values() for file in names)}"]

    def table(self) -> list[tuple[str, str, str, str]]:
        """The table of labels: a header, then a row for each label."""
        counts = {name: (boxes, self.unsure[name], self.with_label[name]) for name, boxes in self.boxes.items()}
        rows = [(name, f"{boxes:,}", f"{unsure:,}", f"{some:,}") for name, (boxes, unsure, some) in counts.items()]
        return [("label", "drafts", "unsure", "pictures"), *rows]


class AnnotatedFolder:
    """An annotated folder: everything that the exports, the summary and the review page show."""

    def __init__(self, run: LabellingRun, files: Sequence[PictureFile] = ()) -> None:
        """Shows these pictures of a run, however they were found: sorted as ids in exports count."""
        self.run, self.out, self.root = run, run.out, Path(run.root)
        self.settings: Mapping[str, Any] = run.settings  # that its boxes were made with
        self.labels: tuple[str, ...] = run.entries  # as `cliploc.find.prompts.Labels.entries`
        self.names, self.masks = run.names, run.masks  # the second: whether its boxes have masks
        self.rule = msgspec.convert(run.drafts, DraftRule)  # which candidates are drafts
        self.pictures = run.pictures()  # of the run
        self.taught_instead: Mapping[str, TaughtPicture] | None = None  # of what the run holds: some not written yet
        self.show(files)

    def at(self, run: LabellingRun) -> Self:
        """The same pictures in another state of the run, with the rule of that."""
        if run.names != self.names:
            raise InputError(f"names of the run in {self.out} were changed meanwhile: open the folder again")
        _ = self.prior  # what is known of the folder is that of now
        other = copy.copy(self)
        other.run, other.rule = run, msgspec.convert(run.drafts, DraftRule)
        return other

    @property
    def id(self) -> str:
        """The id of its names and settings."""
        return hashlib.sha256(json.dumps([self.settings, self.names]).encode()).hexdigest()[:16]

    def show(self, files: Sequence[PictureFile]) -> None:
        """Takes these pictures; what is known of how common names are is of them alone."""
        self.found = sorted(files, key=by_path)
        self.update_prior()

    def update_prior(self) -> None:
        """Lets what is reviewed now count for the other pictures."""
        self.__dict__.pop("prior", None)

    @cached_property
    def prior(self) -> Prior | None:
        """How far chances are off in this folder; None without a second look: then presence is no chance."""
        if "second_look" not in self.settings:
            return None
        presence, true = self._known()
        return Prior.of(presence, self.rule.shares or [None] * len(self.names), true) if len(presence) else None

    def _known(self) -> tuple[Floats, Floats]:
        """Of each picture `[n, P]` the chances of names, and whether they are there; NaN: unknown, not reviewed."""
        names = [file.id for file in self.found if file.id in self.pictures and self.pictures[file.id].error is None]
        true, reviewed = np.full((len(names), len(self.names)), np.nan), self.run.reviewed()
        for i, name in enumerate(names):
            if name in reviewed and (correction := self.saved(name).correction) is not None:
                true[i] = np.isin(range(len(self.names)), correction.labels)
        return np.array([self.pictures[name].presence for name in names], np.float64).reshape(true.shape), true

    def candidates(self, name: str, taught: bool = True) -> Candidates:
        """The candidates of a picture, without those that teaching found if they are not asked for."""
        picture = self.pictures[name]
        found, more = self.run.candidates(picture), None
        if taught and self.taught_instead is not None:
            more = self.taught_instead.get(name)
        elif taught:
            more = self.run.taught(picture, self.saved(name).generation)
        return found if more is None else found.with_taught(more)

    def saved(self, name: str) -> Saved:
        """What a person did with a picture."""
        return self.run.saved(self.pictures[name])

    def drawn(self, name: str, generation: int) -> str:
        """A word that changes with a picture's drafts: their numbers are of these. It begins with the file's."""
        return f"{self.pictures[name].checksum[:16]}-{generation}"

    def chances(self, name: str) -> Floats:
        """The chances `[P]` of the names in a picture without what teaching found."""
        presence = self.pictures[name].presence
        return presence if self.prior is None else self.prior.adjusted(presence)

    def view(self, name: str) -> View:
        """A picture as it is now."""
        found = self.candidates(name)
        return View(found, choose(found, self.rule, self.prior), self.saved(name), self.rule.unsure)

    def annotated(self) -> list[PictureFile]:
        """The pictures that did not fail."""
        return [file for file in self.found if self.pictures[file.id].error is None]

    def exported(self) -> Iterator[AnnotatedPicture]:
        """Yields the pictures that did not fail, by path, as reviewed and corrected."""
        for number, file in enumerate(self.annotated(), start=1):
            yield self._exported(file, number, self.view(file.id))

    def _exported(self, file: PictureFile, number: int, now: View) -> AnnotatedPicture:
        """One of these pictures. A person has seen the boxes of a corrected one: their score is 1."""
        if (correction := now.saved.correction) is None:
            return self._with_drafts(file, number, now, now.chosen.visible(self.rule.unsure))
        count, total = len(correction.boxes), len(now.found.labels)
        ones = np.ones(count, np.float32)
        return replace(
            self._with_drafts(file, number, now, ()),
            xyxy=np.array(correction.boxes, np.float32).reshape(-1, 4),
            score=ones,
            label=np.array(correction.labels, np.int64),
            box_ids=tuple(range(total, total + count)),  # numbers that follow those of the drafts
            certainty=ones,
            masks=_rle(now.found.size_wh, correction.masks),
        )

    def _with_drafts(self, file: PictureFile, number: int, now: View, ids: Sequence[int]) -> AnnotatedPicture:
        """A picture with these of its candidates."""
        boxes, chosen, status = now.found.take(ids), now.chosen, now.saved.status
        arrays = (boxes.xyxy, chosen.scores[[*ids]], chosen.presence[boxes.labels])
        xyxy, scores, presence = (array.astype(np.float32) for array in arrays)
        about = (number, file.id, file.path, boxes.size_wh, xyxy, scores, boxes.labels, tuple(ids), chosen.margin)
        masks = _rle(boxes.size_wh, boxes.masks)
        return AnnotatedPicture(*about, presence, masks, "draft" if status == "none" else status)

    def _reviewed(self) -> list[tuple[str, View]]:
        """The pictures that a person has finished."""
        reviewed = self.run.reviewed()
        return [(file.id, self.view(file.id)) for file in self.annotated() if file.id in reviewed]

    def draft_scores(self) -> dict[str, LabelScore]:
        """How drafts did against the boxes of corrected pictures: of all labels as "", then of each that is there."""
        views = [now for _, now in self._reviewed()]
        pairs = [(now.drafts(), now.saved.correction) for now in views if now.saved.correction is not None]
        every, each = score_drafts(pairs, len(self.names))
        named = {name: score for name, score in zip(self.names, each, strict=True) if score.drafts or score.boxes}
        return {"": every, **named} if pairs else {}

    def observation(self, name: str, now: View) -> Observation:
        """What a picture says of others."""
        plain = now
        if now.found.taught:
            found = self.candidates(name, taught=False)
            plain = replace(now, found=found, chosen=choose(found, self.rule, self.prior))
        return observe(now, plain, len(self.names))

    def accept_drafts(self, most: float) -> list[str]:
        """Leaves the drafts that need no look, as reviewed pictures promise; what is to be said of it."""
        sample = Sample({file.id: self.observation(file.id, self.view(file.id)) for file in self.annotated()})
        found = sample.accepted_drafts(most, range(len(self.names)))
        if found is None:
            drafts = sum(len(one.drafts) for one in sample.seen)
            reviewed = f"{len(sample.seen)} pictures with {drafts} drafts were reviewed in random order"
            needed = f"it needs {fewest(most)} drafts, nearly all right: go on in `cliploc review`, order: random"
            return [f"no draft can be trusted at {most:.0%}: {reviewed} since drafts were last drawn; {needed}"]
        self.rule = replace(self.rule, min_score=float(np.float32(found.score)))
        each = {name: sample.accepted_drafts(most, [label]) for label, name in enumerate(self.names)}
        shares = {"all names": found, **({} if len(each) == 1 else each)}
        promise = f"need no look: at most {most:.0%} of them are wrong ({SURE:.0%} sure)"
        return [
            f"{name}: {one.share:.0%} of the drafts, of score {one.score:.2f} and more, {promise}"
            for name, one in shares.items()
            if one is not None
        ]

    def shares(self) -> dict[str, float]:
        """About the share of pictures with each label that the model knows by its text."""
        if self.prior is None:
            return {}
        presence, true = self._known()
        chances = np.where(np.isnan(true), self.prior.adjusted(presence), true).mean(axis=0)
        # Of names that were learnt from boxes alone nothing says that a picture lacks them.
        by_text = ~np.isnan(presence[0]) & (presence != 1).any(axis=0)
        return {name: float(share) for name, share, known in zip(self.names, chances, by_text, strict=True) if known}

    def finished(self) -> dict[str, Correction]:
        """The boxes of the pictures that a person has finished: corrected ones, or drafts that hold."""
        return {name: now.boxes() for name, now in self._reviewed()}

    def reviewed(self, file: PictureFile, number: int) -> ReviewPicture:
        """A picture as the editor shows it: all drafts, and the boxes that hold now."""
        now = self.view(file.id)
        found, chosen, saved = now.found, now.chosen, now.saved
        # Also those that somebody wanted under another rule.
        origins = () if saved.correction is None else saved.correction.drafts or ()
        used = [i for i in origins if i is not None and i < len(found.labels)]
        drafts = self._with_drafts(file, number, now, chosen.ordered([*{*chosen.drafts, *chosen.unsure, *used}]))
        word = self.drawn(file.id, saved.generation)
        return ReviewPicture(drafts, frozenset(chosen.unsure), now.boxes(), saved, word)


def _rle(size_wh: tuple[int, int], masks: Sequence[str | None] | None) -> tuple[Rle, ...]:
    return tuple({"size": [size_wh[1], size_wh[0]], "counts": mask or ""} for mask in masks or ())


def conclude(
    folder: AnnotatedFolder,
    formats: Sequence[Export],
    settings: ExportSettings,
    *,
    computed: int = 0,  # number of pictures that this call annotated
    reporter: Reporter = SILENT,
) -> AnnotateResult:
    """Writes the exports and the summary where they do not hold the boxes of now."""
    run, out = folder.run, folder.out
    visible = hashlib.sha256(json.dumps([[file.id, str(file.path)] for file in folder.found]).encode()).hexdigest()
    run.change(written=asdict(settings), visible=visible, drafts=asdict(folder.rule))
    run.exports = {**{form.name: 0 for form in formats}, **run.exports}  # also of a call that is killed now
    settings = replace(settings, names=run.names)
    with run.snapshot() as state:
        now, changes = folder.at(state), state.changes
        for form in formats:
            if state.exports[form.name] != changes or not all((out / output).exists() for output in form.outputs):
                reporter.phase(f"writing {form.name}")
                form.write(pictures_of(now.exported, settings), settings, out)
                run.exports = {**run.exports, form.name: changes}
        result = _counted(now, {form.name: form.outputs for form in formats}, computed)
        write_learnt(out, state.learnt())
        write_json(out / "summary.json", result.document())
    return result


def write_learnt(out: Path, content: bytes | None) -> None:
    """Writes what was learnt of a run, or removes it."""
    path = out / LEARNT
    if content is None:
        path.unlink(missing_ok=True)
    else:
        write_bytes(path, content)


def _counted(folder: AnnotatedFolder, files: Mapping[str, tuple[str, ...]], computed: int) -> AnnotateResult:
    boxes, unsure, with_label = Counter[str](), Counter[str](), Counter[str]()
    empty = reviewed = corrected = 0
    observations = dict[str, Observation]()
    for file in folder.annotated():
        now = folder.view(file.id)
        observations[file.id] = folder.observation(file.id, now)
        labels = Counter(folder.names[label] for label in now.boxes().labels)
        boxes.update(labels)
        with_label.update(labels.keys())
        empty += not labels
        reviewed += now.saved.status != "none"
        corrected += now.saved.correction is not None
        if now.saved.correction is None and not folder.rule.unsure:
            unsure.update(folder.names[label] for label in now.found.labels[[*now.chosen.unsure]])
    failed = {file.id: why for file in folder.found if (why := folder.pictures[file.id].error) is not None}
    return AnnotateResult(
        out=folder.out,
        pictures=len(folder.found) + len(folder.run.unreadable),
        boxes={name: boxes[name] for name in folder.names},
        unsure={name: unsure[name] for name in folder.names},
        with_label={name: with_label[name] for name in folder.names},
        empty=empty,
        failed={**folder.run.unreadable, **failed},
        reviewed=reviewed,
        files=files,
        computed=computed,
        corrected=corrected,
        draft_scores=folder.draft_scores(),
        counts=Sample(observations).counts(folder.names),
    )


def reviewed_pictures(out: Path) -> PromptedDataset:
    """The pictures of an annotation that a person has reviewed, each asked for all labels of the run."""
    pictures, problems = [], []
    with LabellingRun.open(out) as run:
        folder = AnnotatedFolder(run)
        folder.show([PictureFile(name, folder.root / name) for name in folder.pictures])
        finished, texts = folder.finished(), prompts.parse(folder.labels)
    for file in folder.annotated():
        if file.id not in finished:
            continue
        if content_digest(file) != folder.pictures[file.id].checksum:
            problems.append(Problem("missing picture", file.id, "moved, or replaced since it was annotated: left out"))
            continue
        correction, names = finished[file.id], tuple(range(len(texts)))
        boxes = {label: np.array(correction.boxes_of(label), np.float32) for label in sorted({*correction.labels})}
        pictures.append(PromptedPicture(file.id, file.path, folder.pictures[file.id].size_wh, names, boxes))
    if not pictures:
        raise UsageError(f"expected reviewed pictures in {out}, found none: review some with cliploc review {out}")
    classes = tuple(ClassName(words[0], words) for words in texts.synonyms)
    return PromptedDataset("reviewed", out, "reviewed", "tune", classes, tuple(pictures), tuple(problems))

"""Chooses a model's recipe, its gain measured on pictures that did not choose; see `cliploc help tune`."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial, reduce
from importlib.util import find_spec
from operator import or_
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cliploc.boxes import BoxRule
from cliploc.config import UNREFINED, text_of
from cliploc.datasets import AskedDataset, AskedPicture
from cliploc.jobs import folder
from cliploc.jobs.calibrate import FOLDS, Calibrated, UnfitError, calibrate, refuse_few
from cliploc.jobs.draft_scores import fits_of
from cliploc.jobs.folder import RunKind
from cliploc.jobs.plan import Setting, as_setting
from cliploc.jobs.rows import Row, arrow, columns_of_pictures, rows_in, schema_of
from cliploc.jobs.task import SUMMARY, BenchmarkTask, class_entries, dataset_entry, run_task
from cliploc.jobs.worker import Asked, AskingJudge
from cliploc.localization import Localization
from cliploc.localizer import Localizer
from cliploc.memory import Memory
from cliploc.metrics import Bootstrap
from cliploc.recipes import Recipe, Tower, save_recipe
from cliploc.refine import refinements
from cliploc.reporter import SILENT, Reporter
from cliploc.tower import Backbone
from cliploc.values import GOOD_IOU, Boxes

Floats = npt.NDArray[np.float64]
SHARD = 4  # pictures that are computed and written together; the memory holds what the tower made of them
BYTES = 2**30  # of that memory
VIEWS: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] = (  # scales and windows that are tried
    ((1.0,), ()),
    ((1.0,), (2.0,)),
    ((1.43,), ()),
    ((1.43,), (2.0,)),
    ((1.43,), (1.5, 2.0)),
    ((2.0,), ()),
)
TAUS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
SPLITS = (1.0, 0.4)
VARIED = ("scales", "windows", "refine")


# ---------------------------------------------------------------------------------------------------- what is compared
def variants_of(localizer: Localizer) -> list[dict[str, Any]]:
    """The options of each variant, the present recipe first: other views, or a refinement one edit away."""
    own = {name: tuple(getattr(localizer.options, name)) for name in VARIED}
    views = [{**own, "scales": scales, "windows": windows} for scales, windows in VIEWS]
    steps = [{**own, "refine": names} for names in neighbours(own["refine"], steps_for(localizer.backbone))]
    unique: list[dict[str, Any]] = []
    for variant in (own, *views, *steps):
        if variant not in unique:
            unique.append(variant)
    return unique


def steps_for(backbone: Backbone) -> list[str]:
    """The refinements on the grid that run on a tower; those over the picture take seconds for each map."""
    there = [
        refinement
        for refinement in refinements
        if refinement.package is None or find_spec(refinement.package) is not None
    ]
    return [refinement.name for refinement in there if refinement.on == "grid" and backbone.kind in refinement.towers]


def neighbours(own: Sequence[str], steps: Sequence[str]) -> list[tuple[str, ...]]:
    """No refinement, and the lists with one step fewer, another one in its place, or one more."""
    own = tuple(own)
    neighbours: list[tuple[str, ...]] = [()]
    for place in range(len(own)):
        neighbours += [(*own[:place], *more, *own[place + 1 :]) for more in ((), *((step,) for step in steps))]
    neighbours += [(*own, step) for step in steps]
    return [chain for chain in dict.fromkeys(neighbours) if chain != own and len(set(chain)) == len(chain)]


def rules_of(own: BoxRule) -> list[BoxRule]:
    """How maps are cut, the variant's own rule first; all boxes count, so that no score has to be calibrated."""
    plain = replace(own, min_score=0.0, max_boxes=None)
    taus = dict.fromkeys((own.threshold, *TAUS))
    splits = dict.fromkeys((own.split_peaks, *SPLITS))
    return [replace(plain, threshold=tau, split_peaks=split) for split in splits for tau in taus]


def quality(boxes: Boxes, truth: Mapping[int, npt.NDArray[Any]]) -> float:
    """The mean, over names there, of the AP of ranked boxes; each takes its best free true box at IoU ≥ 0.5."""
    precisions = []
    for label, true in truth.items():
        own = boxes.where(np.flatnonzero(boxes.label == label))
        hits = np.array(fits_of(own.xyxy[np.argsort(-own.score, kind="stable")], true)) >= GOOD_IOU
        precision = hits.cumsum() / np.arange(1, len(hits) + 1)
        precisions.append(precision[hits].sum() / len(true))
    return float(np.mean(precisions))


def row_schema() -> Any:
    """The columns of a row, one for each picture and variant: the `quality` by each rule."""
    return schema_of(**columns_of_pictures(), quality=arrow().list_(arrow().float64()))


TASK = BenchmarkTask(RunKind("tuning", "a tuning", 1), SUMMARY, row_schema)


class TuningJudge(AskingJudge):
    """Cuts a variant's maps by each rule."""

    keep_maps = True

    def __init__(self, *of_judge: Any) -> None:
        super().__init__(*of_judge)
        self.rules = rules_of(self.localizer.box_rule)
        flow, memory = self.localizer.flow, self.localizer.options.memory
        needs = [flow.tasks.make(setting.method, setting.options).needs for setting in self.settings]
        needs += [step.needs(self.localizer.backbone) for step in flow.steps.on_grid]
        if memory is not None:  # all judges are made before the first picture is looked at
            memory.besides = reduce(or_, needs, memory.besides)

    def describe(self, setting: Setting) -> dict[str, Any]:
        rules = [(rule.threshold, rule.split_peaks) for rule in self.rules]
        return {**super().describe(setting), "rules": [list(rule) for rule in rules]}

    def look(self, sample: AskedPicture, read: None) -> Asked:  # noqa: ARG002
        """See `PictureJudge.look`; only names that are there are asked."""
        return Asked(sample, [label for label in sample.truth if label not in self.unknown])

    def judge(self, seen: Asked, setting: Setting, heat: Localization | None, reporter: Reporter) -> Row:  # noqa: ARG002
        if heat is None:
            return {"quality": []}
        truth = seen.truth(heat.image.size)
        return {"quality": [quality(heat.boxes_by(rule), truth) for rule in self.rules]}


# ------------------------------------------------------------------------------------------------------- what is chosen
@dataclass(frozen=True)
class Gain:
    """What choosing gains over the present recipe, in pictures that did not choose."""

    mean: float
    error: float  # its standard error
    interval: tuple[float, float]  # 95 %, pictures drawn again
    chosen: tuple[int, ...]  # the candidate of each fold

    @property
    def sure(self) -> bool:
        """Whether it is more than the noise."""
        return self.interval[0] > 0


def best_of(values: Floats) -> int:
    """The best candidate by its mean over pictures `[n, K]`; of equal ones the first."""
    return int(values.mean(axis=0).argmax())


def cross_fitted(values: Floats) -> Gain:
    """The gain of choosing among `[n, K]`, the present first: folds are measured by the others' best candidate."""
    fold = np.arange(len(values)) % FOLDS
    chosen = tuple(best_of(values[fold != part]) for part in range(FOLDS))
    gains = values[np.arange(len(values)), np.array(chosen)[fold]] - values[:, 0]
    interval = Bootstrap().of_mean(gains)
    assert interval is not None
    return Gain(float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(len(gains))), interval, chosen)


@dataclass(frozen=True)
class Tuned:
    """What tuning chose."""

    recipe: Recipe
    better: bool  # whether it is another one than the present
    gain: Gain
    candidates: Sequence[Mapping[str, Any]]  # their options, the present one first
    values: Floats  # [n, K]
    calibrated: Calibrated | None
    why_not: str  # why there is no calibration of these pictures; "" where there is one
    dataset: Mapping[str, Any]
    failed: int  # pictures that could not be read

    def facts(self) -> dict[str, Any]:
        """What is told of the choice, in the recipe's file and with `--json`."""
        folds = Counter(words_of_candidate(self.candidates[candidate]) for candidate in self.gain.chosen)
        return {
            "dataset": dict(self.dataset),
            "gain": {
                **{key: value for key, value in asdict(self.gain).items() if key != "chosen"},
                "pictures": len(self.values),
                "present": float(self.values[:, 0].mean()),
                "folds": dict(folds),
                "better": self.better,
            },
        }

    def save(self, path: Path) -> dict[str, Any]:
        """Writes the recipe's file, and returns its content."""
        calibration = None if self.calibrated is None else self.calibrated.calibration
        return save_recipe(path, self.recipe, calibration, self.facts())

    def table(self) -> list[tuple[str, ...]]:
        """A header, then the present recipe, and each variant by its best rule on these pictures."""
        present = self.values[:, 0]
        places: dict[str, list[int]] = {}
        for k, candidate in enumerate(self.candidates):
            places.setdefault(words_of_variant(candidate), []).append(k)
        rows: list[tuple[str, ...]] = [("variant", "τ", "split", "mean AP", "difference")]
        shown = [0, *(alike[best_of(self.values[:, alike])] for alike in places.values())]
        for k in dict.fromkeys(shown):
            candidate, difference = self.candidates[k], self.values[:, k] - present
            error = difference.std(ddof=1) / np.sqrt(len(difference))
            told = "present recipe" if not k else f"{difference.mean():+.3f} ± {error:.3f}"
            cut = (text_of(candidate["threshold"]), text_of(candidate["split_peaks"]))
            rows.append((words_of_variant(candidate), *cut, f"{self.values[:, k].mean():.3f}", told))
        return rows

    def legend(self) -> Iterator[str]:
        """Lines below the table."""
        gain, (low, high) = self.gain, self.gain.interval
        yield (
            "mean AP: average precision of a name's boxes in a picture where it is, IoU ≥ 0.5; differences with their "
            "standard errors, of pictures that chose τ and split themselves, so too high"
        )
        yield (
            f"gain on pictures that did not choose: {gain.mean:+.3f}, standard error {gain.error:.3f}, 95 % "
            f"{low:+.3f} to {high:+.3f}, {len(self.values)} pictures in {FOLDS} folds"
        )
        if self.better:
            yield f"chosen: {words_of_candidate(self.recipe.options)}"
        else:
            yield "no variant is better than the present recipe by more than the noise: it is kept"
        if self.why_not:
            yield f"calibration: none of these pictures: {self.why_not}"


def words_of_variant(options: Mapping[str, Any]) -> str:
    """Views and refinement in words."""
    return ", ".join(f"{name} {text_of(options[name]) or 'none'}" for name in VARIED)


def words_of_candidate(options: Mapping[str, Any]) -> str:
    """All that is chosen in words."""
    cut = f"τ {text_of(options['threshold'])}, split {text_of(options['split_peaks'])}"
    return f"{words_of_variant(options)}, {cut}"


def tune(localizer: Localizer, dataset: AskedDataset, out: Path, reporter: Reporter = SILENT) -> Tuned:
    """Chooses views, refinement, τ and split of a model, and calibrates it, in `out`, which is resumed."""
    refuse_few(dataset)
    values, candidates, failed = _measured(localizer, dataset, out / "tuning", reporter)
    gain, present = cross_fitted(values), localizer.options
    best = best_of(values) if gain.sure else 0
    own = {name: getattr(present, name) for name in (*UNREFINED, "resize", "image_size")}
    options = {name: value for name, value in {**own, **candidates[best]}.items() if value is not None}
    about = f"{'tuned' if best else 'kept'} on {dataset.name} {dataset.split}, {len(values)} pictures"
    tower = Tower(localizer.backbone.name, localizer.backbone.weights_id)
    recipe = Recipe("tuned", localizer.method.name, options, about, tower)
    judged = Localizer(
        **present.but(
            model=localizer.backbone, recipe=None, method=recipe.method, **{**options, "second_look": True}
        ).given()
    )
    calibrated, why_not = None, ""
    try:
        # A folder for each choice: a resumed run may choose another, as after a picture was replaced.
        calibrated = calibrate(judged, dataset, out / f"calibration-{best}", reporter)
        if calibrated.after.box_error > calibrated.before.box_error:
            before, after = calibrated.before.box_error, calibrated.after.box_error
            why_not, calibrated = f"the calibration error of boxes would rise from {before:.3f} to {after:.3f}", None
    except UnfitError as error:
        why_not = str(error)
    facts = {key: dataset_entry(dataset, {})[key] for key in ("name", "split", "samples", "samples_sha256")}
    return Tuned(recipe, best > 0, gain, candidates, values, calibrated, why_not, facts, failed)


def _measured(
    localizer: Localizer, dataset: AskedDataset, out: Path, reporter: Reporter
) -> tuple[Floats, list[dict[str, Any]], int]:
    """The quality of each picture by each candidate, `[n, K]`, their options, and how many pictures failed."""
    setup, own = as_setting(localizer)
    free = {"second_look": False, "min_presence": 0.0, "min_score": 0.0, "calibration": None, "memory": Memory(BYTES)}
    variants = variants_of(localizer)
    setups = [replace(setup, options=setup.options.but(**free, **variant)) for variant in variants]
    # A refinement moves τ, so a τ that was given is that of the present refinement.
    taus = [own.threshold if variant["refine"] == variants[0]["refine"] else None for variant in variants]
    settings = [replace(own, id=f"variant-{number}", setup=number, threshold=tau) for number, tau in enumerate(taus)]
    judge_of = partial(TuningJudge, class_entries(dataset))
    ran = run_task(TASK, judge_of, dataset, setups, settings, out, shard_size=SHARD, reporter=reporter, phase="tuning")
    rules = {setting["id"]: setting["rules"] for setting in folder.read_manifest(out, TASK.kind)["settings"]}
    candidates = [
        {**variant, "threshold": tau, "split_peaks": split}
        for setting, variant in zip(settings, variants, strict=True)
        for tau, split in rules[setting.id]
    ]
    of_pictures: dict[str, dict[str, list[float]]] = {}
    for row in rows_in(out):
        if row["status"] == "ok" and row["quality"]:
            of_pictures.setdefault(row["sample"], {})[row["setting"]] = row["quality"]
    whole = [picture for picture in of_pictures.values() if len(picture) == len(settings)]
    if len(whole) < FOLDS:
        raise UnfitError(
            f"expected at least {FOLDS} pictures with names that {localizer.backbone.name} knows, got {len(whole)}: "
            "take more pictures"
        )
    values = np.array([[value for setting in settings for value in picture[setting.id]] for picture in whole])
    return values, candidates, len(ran.failed)

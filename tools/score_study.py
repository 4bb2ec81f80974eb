# ruff: noqa: E501  (a paragraph of Markdown is wrapped as it is printed)
"""Fits and checks the score of a box, and writes docs/studies/box-score.md (about 6 minutes, one thread).

Pictures and true boxes are those of tools/choose_thresholds.py, asked for their true name; no number is reported on
them. A box is right if it has IoU ≥ 0.5 with a true box. Everything that is said of a fit is said of pictures that were
not in it: five folds of pictures.

* Which features: each set is fitted to the settings of FITTED, which all weigh the same, and judged on those of JUDGED.
  Log loss is the mean over these.
* Whether to fit anew to JUDGED, whose first has `level`, as recipes have: the log loss of both fits.
* Whether one set of weights is enough: mean score and share right of each setting's boxes, also of published methods
  that are not in the fit.
* Reliability: boxes in five bins by their score, and the share of each that is right.

The weights in cliploc/boxes/score.py are copied by hand from an earlier run's fit.

    python tools/score_study.py --cache /tmp/scores                                  # prints it
    python tools/score_study.py --cache /tmp/scores --write --figure docs/studies/box-score.png
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cliploc.boxes import BoxRule, boxes_from_maps
from cliploc.boxes.score import BIAS, WEIGHTS, features_of, scored_boxes
from cliploc.images.geometry import iou_matrix
from cliploc.localizer import Localizer

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "../shared/data/imagenet_one_per_class"
SYNSETS = ROOT / "../shared/data/ilsvrc_val_dev/synsets.csv"
STUDY = ROOT / "docs/studies/box-score.md"
FOLDS = 5
BINS = (0, 0.2, 0.4, 0.6, 0.8, 1)
SETTINGS: Mapping[str, tuple[Mapping[str, Any], float]] = {  # name → options, τ
    "`mini`, cam, affinity, level, windows 1.5 and 2, scale 1.43": (
        {"model": "mini", "method": "cam", "refine": ("affinity", "level"), "scales": (1.43,), "windows": (1.5, 2)},
        0.5,
    ),
    "`mini`, cam, affinity, 320": ({"model": "mini", "method": "cam", "refine": ("affinity",), "image_size": 320}, 0.5),
    "`mini-vit`, naclip, affinity, scale 1.43": (
        {"model": "mini-vit", "method": "naclip", "refine": ("affinity",), "scales": (1.43,)},
        0.6,
    ),
    "`mini`, cam, 224": ({"model": "mini", "method": "cam"}, 0.3),
    "`mini`, layer_cam, 224": ({"model": "mini", "method": "layer_cam"}, 0.25),
    "`mini-vit`, naclip, 224": ({"model": "mini-vit", "method": "naclip"}, 0.6),
    "`mini-vit`, chefer, 224": ({"model": "mini-vit", "method": "chefer"}, 0.25),
    "`mini`, cam, affinity, windows 2, scale 1.43": (  # near the recipe that the weights were fitted to
        {"model": "mini", "method": "cam", "refine": ("affinity",), "scales": (1.43,), "windows": (2,)},
        0.6,
    ),
}
JUDGED = tuple(SETTINGS)[:3]
FITTED = (tuple(SETTINGS)[7], *JUDGED[1:])
CANDIDATES = (
    ("peak",),
    ("contrast",),
    ("stability",),
    ("share",),
    ("contrast", "stability"),
    ("contrast", "share"),
    ("stability", "share"),
    ("peak", "contrast", "stability"),
    tuple(WEIGHTS),
    (*WEIGHTS, "peak"),
    (*WEIGHTS, "area"),
    (*WEIGHTS, "presence"),
)


@dataclass(frozen=True)
class Measured:
    """All boxes of some settings: what is known of each, whether it is right, its picture and its setting."""

    features: Mapping[str, np.ndarray]
    right: np.ndarray
    picture: np.ndarray
    setting: np.ndarray

    def of(self, names: Sequence[str]) -> np.ndarray:
        return np.stack([self.features[name] for name in names], axis=1)

    @property
    def weights(self) -> np.ndarray:
        """All settings weigh the same."""
        counts = np.bincount(self.setting)
        return (len(self.right) / np.count_nonzero(counts) / np.maximum(counts, 1))[self.setting]

    def only(self, keep: np.ndarray) -> Measured:
        features = {name: values[keep] for name, values in self.features.items()}
        return Measured(features, self.right[keep], self.picture[keep], self.setting[keep])


def maps_of(setting: str, drawn: Mapping[str, Any], cache: Path) -> list[tuple[np.ndarray, float]]:
    """Each picture's map and presence; what the cache lacks is computed."""
    names = {row["wnid"]: row["synset_words"].split(", ")[0] for row in csv.DictReader(SYNSETS.open())}
    localizer, found = None, []
    cache.mkdir(parents=True, exist_ok=True)
    for wnid in drawn:
        kept = cache / f"{list(SETTINGS).index(setting)}-{wnid}.npz"
        if not kept.exists():
            localizer = localizer or Localizer(min_presence=0, **SETTINGS[setting][0])
            with Image.open(PICTURES / f"{wnid}.jpg") as file:
                result = localizer(file.convert("RGB"), [names[wnid]])
            np.savez(kept, heat=result.maps[0].astype(np.float16), presence=result.presence[0])
        with np.load(kept) as file:
            found.append((file["heat"].astype(np.float32), float(file["presence"])))
    return found


def measure(maps: Mapping[str, Sequence[tuple[np.ndarray, float]]], drawn: Mapping[str, Any]) -> Measured:
    """The boxes of all settings."""
    columns: dict[str, list[np.ndarray]] = {}
    for place, (setting, of_setting) in enumerate(maps.items()):
        rule = BoxRule(threshold=SETTINGS[setting][1])
        for number, (wnid, (heat, presence)) in enumerate(zip(drawn, of_setting, strict=True)):
            boxes = boxes_from_maps(heat[None], rule)
            if not len(boxes.xyxy):
                continue
            to_picture = np.array([drawn[wnid]["width"], drawn[wnid]["height"]] * 2) / np.array(heat.shape[::-1] * 2)
            found = features_of(heat, boxes.xyxy, rule)
            certain = np.clip(presence, 1e-6, 1 - 1e-6)
            values = {
                **vars(found),
                "peak": boxes.score,
                "area": np.sqrt((boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]).prod(axis=1) / heat.size),
                "presence": np.full(len(boxes.score), np.log(certain / (1 - certain))),
                "today": boxes.score * presence,
                "certain": np.full(len(boxes.score), presence),
                "right": iou_matrix(boxes.xyxy * to_picture, drawn[wnid]["xyxy"]).max(axis=1) >= 0.5,
                "picture": np.full(len(boxes.score), number),
                "setting": np.full(len(boxes.score), place),
            }
            for name, value in values.items():
                columns.setdefault(name, []).append(value)
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    return Measured(joined, joined.pop("right"), joined.pop("picture"), joined.pop("setting"))


def fit(inputs: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Logistic regression by Newton's method, with a slight pull of standardised weights to 0; bias first."""
    mean, spread = inputs.mean(axis=0), inputs.std(axis=0) + 1e-9
    rows = np.column_stack([np.ones(len(inputs)), (inputs - mean) / spread])
    pull = np.diag([0.0] + [1.0] * inputs.shape[1])
    chosen = np.zeros(rows.shape[1])
    for _ in range(100):
        chance = 1 / (1 + np.exp(-rows @ chosen))
        slope = rows.T @ (weights * (chance - right)) + pull @ chosen
        step = np.linalg.solve((rows.T * (weights * chance * (1 - chance))) @ rows + pull, slope)
        chosen -= step
        if np.abs(step).max() < 1e-9:
            break
    scaled = chosen[1:] / spread
    return np.concatenate([[chosen[0] - scaled @ mean], scaled])


def predict(chosen: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-(chosen[0] + inputs @ chosen[1:])))


def held_out(boxes: Measured, names: Sequence[str], fitted: np.ndarray) -> np.ndarray:
    """Each box's score by a fit to the boxes `fitted`, its own picture's fold left out."""
    inputs, scores, weights = boxes.of(names), np.zeros(len(boxes.right)), np.zeros(len(boxes.right))
    weights[fitted] = boxes.only(fitted).weights
    for fold in range(FOLDS):
        test = boxes.picture % FOLDS == fold
        use = fitted & ~test
        scores[test] = predict(fit(inputs[use], boxes.right[use], weights[use]), inputs[test])
    return scores


def settings_of(boxes: Measured, names: Sequence[str]) -> np.ndarray:
    """Which boxes are of these settings, `[n]`."""
    return np.isin(boxes.setting, [list(SETTINGS).index(name) for name in names])


def area_under_curve(scores: np.ndarray, right: np.ndarray) -> float:
    """How often a right box has a higher score than a wrong one; equal ones count half."""
    above = np.sign(scores[right][:, None] - scores[~right][None]) / 2 + 0.5
    return float(above.mean())


def mean_loss(scores: np.ndarray, boxes: Measured) -> tuple[float, np.ndarray]:
    """The log loss, mean over the settings of JUDGED, and its terms `[pictures]`, which add up to it."""
    terms = -np.log(np.where(boxes.right, scores, 1 - scores).clip(1e-6))
    of_settings = [boxes.setting == list(SETTINGS).index(name) for name in JUDGED]
    each = sum(terms * here / here.sum() for here in of_settings) / len(of_settings)  # [n]
    by_picture = np.bincount(boxes.picture, weights=each)
    return float(by_picture.sum()), by_picture


def best_right(scores: np.ndarray, boxes: Measured, pictures: int) -> float:
    """The share of pictures whose best-scored box is right; of equal scores the first."""
    hits = 0
    for number in np.unique(boxes.picture):
        here = np.flatnonzero(boxes.picture == number)
        hits += boxes.right[here[np.argmax(scores[here])]]
    return hits / pictures


def bins(scores: np.ndarray, boxes: Measured) -> list[tuple[str, int, float, float]]:
    """For each bin: its name, boxes, mean score, share right."""
    place = np.digitize(scores, BINS[1:-1])
    found = []
    for number in range(len(BINS) - 1):
        here = place == number
        name = f"{BINS[number]:.1f}–{BINS[number + 1]:.1f}"
        means = (float(scores[here].mean()), float(boxes.right[here].mean())) if here.any() else (np.nan, np.nan)
        found.append((name, int(here.sum()), *means))
    return found


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)] + [""]


def section(boxes: Measured, milliseconds: float, pictures: int, figure: Path | None) -> str:
    """The page."""
    fitted, judged = settings_of(boxes, FITTED), settings_of(boxes, JUDGED)
    of_setting = {name: boxes.setting == place for place, name in enumerate(SETTINGS)}
    rows = []
    for names in CANDIDATES:
        scores = held_out(boxes, names, fitted)
        parts = [(scores[here], boxes.only(here)) for here in (of_setting[name] for name in JUDGED)]
        curves = [f"{area_under_curve(values, part.right):.3f}" for values, part in parts]
        best = [f"{best_right(values, part, pictures):.3f}" for values, part in parts]
        rows.append([", ".join(names), f"{mean_loss(scores, boxes)[0]:.4f}", " / ".join(curves), " / ".join(best)])
    chosen = fit(boxes.of(tuple(WEIGHTS))[fitted], boxes.right[fitted], boxes.only(fitted).weights)
    scores = held_out(boxes, tuple(WEIGHTS), fitted)
    fresh = ", ".join(f"{name} {value:.2f}" for name, value in zip(("bias", *WEIGHTS), chosen, strict=True))
    shipped = predict(np.array([BIAS, *WEIGHTS.values()]), boxes.of(tuple(WEIGHTS)))
    (loss, terms), (anew, anew_terms), (as_is, _) = (
        mean_loss(values, boxes) for values in (scores, held_out(boxes, tuple(WEIGHTS), judged), shipped)
    )
    error = (anew_terms - terms).std(ddof=1) * np.sqrt(len(terms))
    lines = [
        "# Score of a box: features and weights",
        "",
        "**Question.** Which features of a map say whether a box is right, and how far does one set of weights hold?",
        "",
        "    python tools/score_study.py --cache DIR --write --figure docs/studies/box-score.png",
        "",
        f"**Pictures.** {pictures} tuning pictures, asked for their true name; a box is right if it has IoU ≥ 0.5 with a true box. Scores are of",
        "pictures that were left out of the fit (five folds). The [weights in use](../mini.md#score-of-a-box) were fitted before windows changed",
        "`affinity`, `level` was added and places were compared by [a learnt reading](refinement.md#a-reading-learnt-from-masks);",
        f"fitted again to the same settings (8, 2 and 3 below, {fitted.sum()} boxes): {fresh}. No setting splits boxes.",
        "",
        f"Fitted to settings 1–3 instead, log loss on left-out pictures is {anew:.4f}, by settings 8, 2 and 3 it is {loss:.4f}",
        f"(standard error of the difference {error:.4f}). The weights in use have {as_is:.4f}, but these pictures were in their fit.",
        "**Decision.** A new fit is no better, and the weights stay.",
        "",
        "Reliability, boxes of settings 1–3 and of setting 1 alone:",
        "",
    ]
    every, first = bins(scores[judged], boxes.only(judged)), boxes.only(of_setting[JUDGED[0]])
    alone = bins(scores[of_setting[JUDGED[0]]], first)
    lines += table(
        ("score", "boxes", "mean score", "share right", "setting 1: boxes", "mean score", "share right"),
        [
            [one[0], *(cell for part in (one, other) for cell in (str(part[1]), f"{part[2]:.2f}", f"{part[3]:.2f}"))]
            for one, other in zip(every, alone, strict=True)
        ],
    )
    if figure:
        lines += [f"![Share of right boxes against their score]({figure.name})", ""]
    lines += [
        "By setting. Hottest: the box with the map's hottest place, whose mean score should be the share that is right. AUC: how often a right",
        "box has the higher score than a wrong one, over all pictures. Best: the share of pictures whose best-scored box is right.",
        "",
    ]
    by_setting = []
    for place, (name, here) in enumerate(of_setting.items(), start=1):
        part, values, peaks = boxes.only(here), scores[here], boxes.features["peak"][here]
        hottest = peaks >= peaks.max()
        by_setting.append(
            [
                f"{place}. {name}, τ {SETTINGS[name][1]:g}",
                str(len(values)),
                f"{values[hottest].mean():.2f}",
                f"{part.right[hottest].mean():.2f}",
                f"{area_under_curve(values, part.right):.3f}",
                f"{area_under_curve(peaks, part.right):.3f}",
                f"{best_right(values, part, pictures):.3f}",
            ]
        )
    lines += table(
        (
            "setting",
            "boxes",
            "hottest: mean score",
            "share right",
            "AUC: score",
            "peak",
            "best: score",
        ),
        by_setting,
    )
    lines += [
        "Methods without refinement are overestimated (settings 4–7, not in the fit). How far scores hold among many small things was not",
        "measured. Presence ranks boxes of different pictures, too; few models have it calibrated, so it is no feature.",
        "",
        "Which features (log loss: mean of settings 1–3; AUC and best of settings 1 / 2 / 3; presence as its logit):",
        "",
    ]
    lines += table(("features", "log loss", "AUC", "best"), rows)
    lines += [
        f"Scores take {milliseconds:.1f} ms of processor time a map of 320×320, beside its boxes.",
        "",
    ]
    return "\n".join(lines)


def draw(boxes: Measured, pictures: int, path: Path) -> None:
    """The reliability curve, with 95 % intervals by resampling pictures."""
    import matplotlib.pyplot as plt

    judged = settings_of(boxes, JUDGED)
    scores = held_out(boxes, tuple(WEIGHTS), settings_of(boxes, FITTED))
    axes = plt.figure(figsize=(4.6, 4.2), layout="constrained").gca()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="a score that is the share")
    shown = boxes.only(judged)
    found = bins(scores[judged], shown)
    draws = np.random.default_rng(0)
    samples = []
    for _ in range(1000):
        times = np.bincount(draws.choice(pictures, pictures), minlength=pictures)[shown.picture]
        place = np.digitize(scores[judged], BINS[1:-1])
        total = np.bincount(place, weights=times, minlength=len(found))
        samples.append(np.bincount(place, weights=times * shown.right, minlength=len(found)) / np.maximum(total, 1))
    low, high = np.quantile(samples, [0.025, 0.975], axis=0)
    x, y = np.array([one[2] for one in found]), np.array([one[3] for one in found])
    ends = np.abs(np.stack([np.minimum(low, y), np.maximum(high, y)]) - y)
    axes.errorbar(x, y, yerr=ends, marker="o", capsize=3, label="settings 1–3, pictures left out of the fit")
    for one in found:
        axes.annotate(f"{one[1]}", (one[2], one[3]), xytext=(6, -12), textcoords="offset points", fontsize=8)
    axes.set(xlabel="score (number of boxes at each point)", ylabel="share with IoU ≥ 0.5", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False, loc="upper left", fontsize=8)
    plt.savefig(path, dpi=110)


def cost(maps: Sequence[tuple[np.ndarray, float]], rule: BoxRule) -> float:
    """Milliseconds of processor time that scores add to a map's boxes; the least of five rounds."""

    def least(run: Any) -> float:
        times = []
        for _ in range(5):
            start = time.process_time()
            for heat, _ in maps:
                run(heat[None], rule)
            times.append(time.process_time() - start)
        return min(times)

    return (least(scored_boxes) - least(boxes_from_maps)) / len(maps) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="a folder for the maps")
    parser.add_argument("--figure", type=Path, help="a file for the reliability curve")
    parser.add_argument("--write", action="store_true", help="into docs/studies/box-score.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    drawn = json.loads((ROOT / "tools/tuning_boxes.json").read_text())["boxes"]
    maps = {setting: maps_of(setting, drawn, arguments.cache) for setting in SETTINGS}
    boxes = measure(maps, drawn)
    milliseconds = cost(maps[JUDGED[0]], BoxRule(threshold=SETTINGS[JUDGED[0]][1]))
    text = section(boxes, milliseconds, len(drawn), arguments.figure)
    print(text)
    if arguments.figure:
        draw(boxes, len(drawn), arguments.figure)
    if arguments.write:
        STUDY.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

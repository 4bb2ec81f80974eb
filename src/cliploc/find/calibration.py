"""How the features of boxes become chances: that a box is right, and that its name is in the picture.

Each chance is a logistic model of features that do not depend on a tower's own scale of cosines: weights fitted on
`mini` nearly hold for `mini-vit`, and the other way round (tools/second_look_study.py). Of another model, those of both
together are a guess until `cliploc calibrate` has fitted them to it.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from cliploc.errors import InputError, first_line
from cliploc.support.files import user_path, write_atomic
from cliploc.values import BoolArray, FloatArray, Floats

KIND = "cliploc calibration"
VERSION = 3  # of its features
# A name that lies lower (`OF_NAME`) in every view is not looked for. In coco_tune 78 % of the names that are there lie
# higher, and 19 % of the others (tools/second_look_study.py).
FIRST_LOOK = 2.5
UNSURE = 0.05  # a name with a lower chance is not even unsure
# Of a name in a picture: how far its cosine lies above those of its rivals in the bank (in their standard deviations),
# in the best of the whole picture and its windows, or regions of it, and in the whole picture.
OF_NAME = ("best_view", "whole")
# Of a box, besides:
#   map_score: the logit of its map's score (`boxes.score`)
#   area: the logarithm of its share of the picture
#   inside: how far the name lies above its rivals in what the tower reads inside the box
#   behind: `inside` minus that of the name's best box in the picture
#   bank_mean, bank_related: how far the name lies above its rivals in the bank's other texts, as if each was a picture:
#       the mean, and that of the tenth where it lies highest. Some names fit many pictures a little, others few.
#   inside_rank: the logarithm of the name's rank among its rivals inside the box
OF_BOX = (*OF_NAME, "map_score", "area", "inside", "behind", "bank_mean", "bank_related", "inside_rank")


@dataclass(frozen=True)
class Logistic:
    """A logistic model of features."""

    bias: float
    weights: tuple[float, ...]

    def __call__(self, features: Floats) -> Floats:
        """`[n, F]` → chances `[n]`."""
        chances: Floats = 1 / (1 + np.exp(-(self.bias + features @ np.array(self.weights))))
        return chances


@dataclass(frozen=True)
class Calibration:
    """The models of a second look; see `OF_NAME` and `OF_BOX` for their features."""

    right: Logistic  # of a box: the chance that it has IoU ≥ 0.5 with a thing of its name
    there: Logistic  # of a name with boxes: the chance that it is in the picture
    first: Logistic  # of a name without boxes: the same, from the picture and its windows alone
    models: tuple[str, ...]  # the names of the models that it was fitted on
    about: str  # on what it was fitted, in a line
    # of views and boxes with which it was fitted (`recipes.settings_of`); None: those of the model's recipes
    settings: Mapping[str, Any] | None = None
    # name → what is added to `best_view`, `whole` and `inside` of it and of names that the model reads as it
    lifts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, features in (("right", OF_BOX), ("there", OF_BOX), ("first", OF_NAME)):
            if len(getattr(self, name).weights) != len(features):
                raise ValueError(f"{name} has {len(getattr(self, name).weights)} weights, expected {len(features)}")

    def passes(self, of_names: Floats, min_presence: float) -> BoolArray:
        """`[P]`, which names are looked at again, from what the first look says of them."""
        return (of_names[:, 0] >= FIRST_LOOK) | (self.first(of_names) >= min_presence)

    def document(self) -> dict[str, Any]:
        """As it is written, and part of a run's identity."""
        facts = {"kind": KIND, "version": VERSION, **asdict(self)}
        return {key: value for key, value in facts.items() if key != "settings" or value is not None}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it as a small JSON file, which `--calibration` takes."""
        text = json.dumps(self.document(), indent=1) + "\n"
        write_atomic(Path(path), lambda temporary: temporary.write_text(text, encoding="utf-8"))


class _CalibrationFile(Struct):  # what a file has besides the fields of `Calibration`
    kind: Literal["cliploc calibration"]
    version: Literal[3]


def load_calibration(path: str | os.PathLike[str]) -> Calibration:
    """Reads the file of `Calibration.save`, or an `InputError`."""
    path = user_path(path)
    try:
        content = path.read_bytes()
        msgspec.json.decode(content, type=_CalibrationFile)
        return msgspec.json.decode(content, type=Calibration)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: expected a file of `cliploc calibrate`, of this version, cannot use it ({first_line(error)}): "
            "check the path, or run it again"
        ) from None


@cache
def package_calibration(model: str) -> Calibration:
    """The package's: that of `mini` and of `mini-vit`, and for all other models one that was fitted on both."""
    every = json.loads(resources.files("cliploc.find").joinpath("calibrations.json").read_bytes())
    return msgspec.convert(every.get(model, every["others"]), Calibration)


def fit_logistic(features: Floats, true: BoolArray, weight: Floats) -> Logistic:
    """The most likely logistic model of features `[n, F]` for what is true `[n]`, weighted, slightly regularised."""
    from sklearn.linear_model import LogisticRegression  # here: only who fits needs it

    mean, deviation = features.mean(axis=0), features.std(axis=0).clip(min=1e-9)
    model = LogisticRegression(max_iter=1000).fit((features - mean) / deviation, true, sample_weight=weight)
    weights = model.coef_[0] / deviation
    return Logistic(float(model.intercept_[0] - weights @ mean), tuple(weights.tolist()))


def logit(chance: FloatArray | Floats) -> Floats:
    """`[n]`, finite also for 0 and 1."""
    inner = np.asarray(chance, np.float64).clip(1e-4, 1 - 1e-4)
    logits: Floats = np.log(inner / (1 - inner))
    return logits


def reliability(chance: Sequence[float] | Floats, true: npt.ArrayLike, bins: int = 10) -> float:
    """The expected calibration error (ECE; Naeini 2015): of equal bins, |mean chance − share true| weighted by size."""
    chances, truth = np.asarray(chance, np.float64), np.asarray(true, np.float64)
    index = (chances * bins).astype(np.int64).clip(max=bins - 1)
    gaps = [abs(chances[index == i].sum() - truth[index == i].sum()) for i in range(bins)]
    return float(np.sum(gaps) / max(1, len(chances)))

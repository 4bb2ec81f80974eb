"""Which names lean on the background, on what, and which pairs of names are told apart by the background alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.optimize import brentq
from scipy.stats import mannwhitneyu, norm, t

from cliploc.values import FloatArray, Floats, IntArray

FEWEST = 5  # pictures of a name, below which nothing is said of it
ERROR = 0.05  # chance that any name, or any pair, is flagged by chance
LEAST = 0.005  # cosine by which a flagged name leans more than the others; chosen on ilsvrc_val_dev
CHANCE = 0.5  # the AUROC of a guess
RELATED = 0.1  # of the everyday names: what is too near to a name to be its surroundings
NAMED = 3  # surroundings of a name
STUFF = (  # what COCO's names lack
    *("water", "sky", "cloud", "grass", "sand", "snow", "rock", "tree", "leaf", "flower", "road", "wall", "floor"),
    *("building", "wood", "cloth", "paper", "fence", "dirt", "hand", "text", "night"),
)


@dataclass(frozen=True)
class Name:
    """A name that is predicted; a row of names.csv."""

    name: str
    pictures: int  # judged ones in which it is predicted
    lean: float  # how far its pictures' backgrounds raise its cosine in other pictures
    low: float | None  # of the interval of `lean`, which is widened for the number of names; None of too few pictures
    high: float | None
    others: float | None  # `lean` of all other names
    risk: float  # the mean risk of its predictions
    flagged: bool  # whether the interval lies above the others, by at least `LEAST`
    surroundings: str  # what is outside the thing rather than in pictures of other names, by everyday names


@dataclass(frozen=True)
class Pair:
    """Two names that the background alone tells apart."""

    first: str
    second: str
    auroc: float
    low: float  # of its interval, which is widened for the number of pairs; higher than by chance
    high: float


def leaning(
    names: Sequence[str],
    first: IntArray,  # [n] the predicted name of each picture that is judged
    lean: Floats,  # [n]
    risk: Floats,  # [n]
    around: FloatArray,  # [n, K] cosines of what is outside the thing with everyday names
    everyday: Sequence[str],  # K
    likeness: FloatArray,  # [P, K] cosines of the names with these
) -> list[Name]:
    """Every name that is predicted, the flagged ones and those that lean most first."""
    counts = np.bincount(first, minlength=len(names))
    tested = max(1, int((counts >= FEWEST).sum()))
    rows = []
    for p in np.flatnonzero(counts).tolist():
        own, low, high = first == p, None, None
        mean, of_risk = (round(float(values[own].mean()), 4) for values in (lean, risk))
        others = None if own.all() else round(float(lean[~own].mean()), 4)
        if counts[p] >= FEWEST:
            wide = float(lean[own].std(ddof=1) / math.sqrt(counts[p]) * t.ppf(1 - ERROR / 2 / tested, counts[p] - 1))
            low, high = round(mean - wide, 4), round(mean + wide, 4)
        flagged = low is not None and others is not None and low > others + LEAST
        chosen = "" if own.all() else _surroundings(around[own], around[~own], everyday, likeness[p])
        rows.append(Name(names[p], int(counts[p]), mean, low, high, others, of_risk, flagged, chosen))
    return sorted(rows, key=lambda row: (not row.flagged, row.low is None, -row.lean, row.name))


def _surroundings(own: FloatArray, others: FloatArray, everyday: Sequence[str], likeness: FloatArray) -> str:
    """The everyday names that what is around a name's things resembles more than in other pictures."""
    above = own.mean(axis=0) - others.mean(axis=0)  # not in deviations: what varies little is mostly not there at all
    above[likeness > np.quantile(likeness, 1 - RELATED)] = -np.inf
    return ", ".join(everyday[k] for k in np.argsort(-above)[:NAMED] if above[k] > 0)


def told_apart(names: Sequence[str], first: IntArray, alone: FloatArray) -> list[Pair]:
    """Pairs of names that cosines of backgrounds alone `[n, P]` tell apart, the best first."""
    pairs = list(combinations(np.flatnonzero(np.bincount(first, minlength=len(names)) >= FEWEST).tolist(), 2))
    found = []
    for a, b in pairs:
        differences = [alone[first == own, a] - alone[first == own, b] for own in (a, b)]
        m, n = map(len, differences)
        auroc = float(mannwhitneyu(*differences).statistic) / m / n  # the statistic counts pairs of pictures in order
        low, high = _interval(auroc, m, n, norm.ppf(1 - ERROR / 2 / len(pairs)))
        if low > CHANCE:
            found.append(Pair(names[a], names[b], auroc, low, high))
    return sorted(found, key=lambda pair: -pair.auroc)


def _interval(auroc: float, m: int, n: int, errors: float) -> tuple[float, float]:
    """AUROCs from which that of m and n values is so many standard errors away (Newcombe 2006, method 5)."""

    def beyond(true: float) -> float:
        pairs = ((m + n) / 2 - 1) * ((1 - true) / (2 - true) + true / (1 + true))
        return (true - auroc) ** 2 - errors**2 * true * (1 - true) * (1 + pairs) / m / n

    low, high = max(auroc - 1e-9, 0.0), min(auroc + 1e-9, 1.0)
    return float(brentq(beyond, 0, low)) if low else 0.0, float(brentq(beyond, high, 1)) if high < 1 else 1.0

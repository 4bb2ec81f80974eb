"""Which names lean on the background, on what, and which pairs of names are told apart by the background alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, rankdata, t

from cliploc.values import FloatArray, Floats

FEWEST = 5  # pictures of a name, below which nothing is said of it
ERROR = 0.05  # chance that any name, or any pair, is flagged by chance
LEAST = 0.05  # share of the cosine by which a flagged name leans more than the others; chosen on ilsvrc_val_dev
RELATED = 0.1  # of the bank: what is too near to a name to be its surroundings
NAMED = 3  # surroundings of a name
# What the bank of other names lacks.
STUFF = (
    "water", "sky", "cloud", "grass", "sand", "snow", "rock", "tree", "leaf", "flower", "road", "wall", "floor",
    "building", "wood", "cloth", "paper", "fence", "dirt", "hand", "text", "night",
)  # fmt: skip


@dataclass(frozen=True)
class Name:
    """A name that is predicted; a row of names.csv."""

    name: str
    pictures: int  # judged ones in which it is predicted
    lean: float | None  # the share of its cosine that goes with the background; None of too few pictures
    low: float | None  # of the interval of `lean`, which is widened for the number of names
    high: float | None
    others: float | None  # `lean` of all other names
    risk: float  # the mean risk of its predictions
    flagged: bool  # whether the interval lies above the others, by at least `LEAST`
    surroundings: str  # what is outside the thing rather than in pictures of other names, by names of the bank


@dataclass(frozen=True)
class Pair:
    """Two names that the background alone tells apart."""

    first: str
    second: str
    auroc: float
    low: float  # of its interval, which is widened for the number of pairs
    high: float


def leaning(
    names: Sequence[str],
    first: npt.NDArray[np.int64],  # [n] the predicted name of each picture that is judged
    lean: Floats,  # [n]
    risk: Floats,  # [n]
    around: FloatArray,  # [n, K] cosines of what is outside the thing with the bank
    bank: Sequence[str],  # K
    related: npt.NDArray[np.bool_],  # [P, K] entries that are no surroundings of a name
) -> list[Name]:
    """Every name that is predicted, the flagged ones and those that lean most first."""
    counts = np.bincount(first, minlength=len(names))
    tested = max(1, int((counts >= FEWEST).sum()))
    rows = []
    for p in np.flatnonzero(counts).tolist():
        own = first == p
        mean = low = high = others = None
        if counts[p] >= FEWEST and not own.all():
            mean, others = float(lean[own].mean()), float(lean[~own].mean())
            error = math.hypot(*(float(lean[part].std(ddof=1)) / math.sqrt(part.sum()) for part in (own, ~own)
                                 if part.sum() > 1))  # fmt: skip
            wide = error * float(t.ppf(1 - ERROR / 2 / tested, counts[p] - 1))
            low, high = mean - wide, mean + wide
        flagged = low is not None and others is not None and low > others + LEAST
        chosen = "" if own.all() else _surroundings(around[own], around[~own], bank, related[p])
        rows.append(Name(names[p], int(counts[p]), mean, low, high, others, float(risk[own].mean()), flagged, chosen))
    return sorted(rows, key=lambda row: (not row.flagged, -math.inf if row.lean is None else -row.lean, row.name))


def _surroundings(own: FloatArray, others: FloatArray, bank: Sequence[str], related: npt.NDArray[np.bool_]) -> str:
    """The entries of the bank that what is around a name's things resembles most, compared with other pictures."""
    spread = np.sqrt(others.var(axis=0) + 1e-9)
    above = np.where(related, -np.inf, (own.mean(axis=0) - others.mean(axis=0)) / spread)
    return ", ".join(bank[k] for k in np.argsort(-above)[:NAMED] if above[k] > 0)


def told_apart(names: Sequence[str], first: npt.NDArray[np.int64], alone: FloatArray) -> list[Pair]:
    """Pairs of names that cosines of backgrounds alone `[n, P]` tell apart, the surest first."""
    counts = np.bincount(first, minlength=len(names))
    pairs = list(combinations(np.flatnonzero(counts >= FEWEST).tolist(), 2))
    wide = float(norm.ppf(1 - ERROR / 2 / max(1, len(pairs))))
    found = []
    for a, b in pairs:
        both = (first == a) | (first == b)
        is_first, difference = first[both] == a, alone[both, a] - alone[both, b]
        n, m = int(counts[a]), int(counts[b])
        auroc = float((rankdata(difference)[is_first].sum() - n * (n + 1) / 2) / (n * m))
        kept = min(max(auroc, 0.5 / (n * m)), 1 - 0.5 / (n * m))  # of 1 the error would be 0
        q1, q2 = kept / (2 - kept), 2 * kept**2 / (1 + kept)  # Hanley & McNeil 1982
        spread = kept * (1 - kept) + (n - 1) * (q1 - kept**2) + (m - 1) * (q2 - kept**2)
        error = wide * math.sqrt(spread / (n * m))
        if auroc - error > 0.5:
            found.append(Pair(names[a], names[b], auroc, auroc - error, min(1.0, auroc + error)))
    return sorted(found, key=lambda pair: -pair.low)

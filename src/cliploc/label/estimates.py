"""What pictures that were reviewed in random order say of the others: counts, and drafts that need no look."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import takewhile
from statistics import NormalDist

import numpy as np
from msgspec import Struct
from scipy.special import stdtrit

from cliploc.label.drafts import IOU, View, fits_of
from cliploc.values import Floats

SURE = 0.95
FEWEST = 10  # pictures reviewed in random order, below which nothing is said
START, STEP = 0.25, 0.1  # shares of the drafts, the best first, at which it is tested whether they need no look
# Pictures with a name that may be missing from a sample: where none has it, the error for many pictures n is that of
# Clopper and Pearson (1934), log(2 / (1 − SURE)) / n.
UNSEEN = (math.log(2 / (1 - SURE)) / NormalDist().inv_cdf((1 + SURE) / 2)) ** 2


class Estimate(Struct, frozen=True):
    """A number that is SURE to be within `error` of `count`."""

    count: float
    error: float

    def in_words(self) -> str:
        """As text: "412 ± 18"."""
        return f"{self.count:,.0f} ± {math.ceil(self.error):,}" if self.error else f"{self.count:,.0f}"


class NameCount(Struct, frozen=True):
    """How often a name is in the folder."""

    things: Estimate
    pictures: Estimate  # that show it


@dataclass(frozen=True)
class Draft:
    """A draft of a picture."""

    label: int
    score: float
    right: bool  # whether it fits a box that holds


@dataclass(frozen=True)
class AcceptedDrafts:
    """Drafts that need no look: of those that nobody has seen, at most the promised share is wrong."""

    score: float  # from which on
    share: float  # of the drafts that nobody has seen


def order_of(name: str) -> bytes:
    """The place of a picture in the random order; it depends on its name alone, so that it never changes."""
    return blake2b(name.encode(errors="surrogateescape"), digest_size=8, key=b"review").digest()


def total(true: Floats, expected: Floats, rest: Floats, usual: float = 1.0) -> Estimate:
    """A total over all pictures, of which some are counted, `[n]`, and of all it is known what drafts expect.

    Prediction-powered inference (Angelopoulos et al. 2023), power-tuned (PPI++, 2023), for a finite population:
    expectations count as much as they explain, and what is wrong with them in the sample is taken to be wrong in the
    rest `[m]`. `UNSEEN` residuals are added to the variance, whose mean square is `usual`: a few pictures may show most
    things of a name, and the sample none of them.
    """
    n, m = len(true), len(rest)
    spread = float(((expected - expected.mean()) ** 2).sum())
    trust = float(((expected - expected.mean()) * true).sum() / spread) if spread else 0.0
    trust = min(max(trust, 0.0), 1.0)
    wrong = true - trust * expected
    count = float(true.sum() + trust * rest.sum() + m * wrong.mean())
    variance = (float(((wrong - wrong.mean()) ** 2).sum()) + UNSEEN * usual) / (n + 1)
    error = float(stdtrit(n - 1, (1 + SURE) / 2)) * math.sqrt(variance * m * (n + m) / n)  # by Student's t
    return Estimate(max(count, float(true.sum())), error)


def mean_square(true: Floats) -> float:
    """Of the things in a picture that shows a name, over all names: `[n, P]` counts, and one of 1 more."""
    return float((1 + (true**2).sum()) / (1 + (true > 0).sum()))


def accepted_drafts(seen: Sequence[Sequence[Draft]], rest: Floats, most: float) -> AcceptedDrafts | None:
    """The most drafts of the rest `[m]`, best first, of which with SURE certainty at most a share is wrong.

    `seen`: the drafts of each picture. All drafts are tested at once with half of the risk. With the other half
    thresholds are tested from the best drafts on, in an order that does not depend on which are right, and the first
    that fails ends it: so all that pass hold together (Bonferroni; fixed sequence, Maurer et al. 1995). Each test is
    exact for drafts drawn without replacement (Clopper and Pearson 1934, for finite populations). Drafts that are wrong
    together in a picture count as fewer, by the design effect (Korn and Graubard 1998).
    """
    alike, half = likeness(seen), (1 + SURE) / 2
    best: AcceptedDrafts | None = None
    scores = sorted((draft.score for one in seen for draft in one), reverse=True)

    def sure(score: float, all_right: bool = False) -> bool:
        chosen = [[draft.right or all_right for draft in one if draft.score >= score] for one in seen]
        sizes, left = np.array([len(one) for one in chosen]), int((rest >= score).sum())
        part = 1 / (1 + alike * (float((sizes**2).sum() / sizes.sum()) - 1))
        wrong = math.ceil(round(sum(one.count(False) for one in chosen) * part, 6))
        drawn = max(math.floor(round(int(sizes.sum()) * part, 6)), wrong)
        return left > 0 and certainty(wrong, drawn, math.ceil(left * part), most) >= half

    if scores and sure(scores[-1]):
        return AcceptedDrafts(scores[-1], float((rest >= scores[-1]).mean()))
    for place in range(math.ceil(START * len(scores)), len(scores), max(1, math.ceil(STEP * len(scores)))):
        score = scores[place - 1]
        if best is None and not sure(score, all_right=True):
            continue  # too few to say
        if not sure(score):
            break
        best = AcceptedDrafts(score, float((rest >= score).mean()))
    return best


def likeness(seen: Sequence[Sequence[Draft]]) -> float:
    """How much drafts of a picture are wrong together, 0 to 1: their correlation, with one such pair added."""
    sizes = np.array([len(one) for one in seen])
    wrong = np.array([sum(not draft.right for draft in one) for one in seen])
    share = wrong.sum() / max(sizes.sum(), 1)
    together = ((wrong * (wrong - 1)).sum() + 1) / ((wrong * (sizes - 1)).sum() + 1)
    return float(max((together - share) / (1 - share), 0)) if share < 1 else 0.0


def fewest(most: float) -> int:
    """About the number of drafts, all right, from which so small a share can be promised."""
    return math.ceil(math.log((1 - SURE) / 2) / math.log(1 - most)) if most < 1 else 1


def certainty(wrong: int, seen: int, left: int, most: float) -> float:
    """That at most so large a share of those that are left is wrong, where so many of the seen ones are."""
    from scipy.stats import hypergeom  # here: its import takes half a second

    too_many = wrong + math.floor(most * left) + 1  # in all, if more than the share of those left were wrong
    every = seen + left
    if too_many - wrong > left:
        return 1.0
    return float(hypergeom.sf(wrong, every, too_many, seen))


# ------------------------------------------------------------------------------------------------------------ a folder
@dataclass(frozen=True)
class Observation:
    """What a picture says: what is in it, if that was reviewed, and what its drafts expect of it."""

    reviewed: bool
    drawn: int  # the generation of its drafts
    true: Floats  # [2, P] the boxes of each name that hold, and whether it has any
    expected: Floats  # [2, P] the same by its drafts and unsure boxes
    drafts: Sequence[Draft]


def observe(now: View, plain: View, names: int) -> Observation:
    """Of a picture; what it is expected to have is said by `plain`, without what was taught meanwhile."""
    true, expected = np.zeros((2, names)), np.zeros((2, names))
    np.add.at(true[0], now.boxes().labels, 1)
    true[1] = true[0] > 0
    ids = np.array([*plain.chosen.drafts, *plain.chosen.unsure], np.int64)
    np.add.at(expected[0], plain.found.labels[ids], plain.chosen.scores[ids])
    np.maximum.at(expected[1], plain.found.labels[ids], plain.chosen.scores[ids])
    found, drafts = now.drafts(), list[Draft]()
    for label in np.unique(found.labels).tolist():
        mine = np.flatnonzero(found.labels == label)
        mine = mine[np.argsort(-found.scores[mine], kind="stable")]
        fits = fits_of(found.xyxy[mine], now.boxes().boxes_of(label))
        scores = found.scores[mine].tolist()
        drafts += [Draft(label, score, fit >= IOU) for score, fit in zip(scores, fits, strict=True)]
    return Observation(now.saved.status == "reviewed", now.saved.generation, true, expected, drafts)


class Sample:
    """The pictures of a folder that were reviewed in random order, and those that nobody has reviewed."""

    def __init__(self, pictures: Mapping[str, Observation], order: Sequence[str] | None = None) -> None:
        """Of these pictures. `seen`: with drafts as others have them, not those of before something was taught."""
        order = sorted(pictures, key=order_of) if order is None else order
        now = {one.drawn for one in pictures.values() if not one.reviewed}
        fresh = [name for name in order if not pictures[name].reviewed or pictures[name].drawn in now]
        self.seen, self.counted = (
            [pictures[name] for name in takewhile(lambda name: pictures[name].reviewed, some)]
            for some in (fresh, order)
        )
        # Those that were reviewed in another order.
        self.known = [pictures[name] for name in order[len(self.counted) :] if pictures[name].reviewed]
        self.rest = [one for one in pictures.values() if not one.reviewed]

    def counts(self, names: Sequence[str]) -> dict[str, NameCount]:
        """How many things of each name there are, and in how many pictures; of none where too little is known."""
        if len(self.counted) < FEWEST:
            return {}
        true, expected = (np.array([getattr(one, key) for one in self.counted]) for key in ("true", "expected"))
        rest = np.array([one.expected for one in self.rest]).reshape(-1, 2, len(names))  # [m, 2, P]
        known = sum((one.true for one in self.known), np.zeros((2, len(names))))
        usual, counts = [mean_square(true[:, k]) for k in (0, 1)], {}
        for p, name in enumerate(names):
            found = [total(true[:, k, p], expected[:, k, p], rest[:, k, p], usual[k]) for k in (0, 1)]
            counts[name] = NameCount(
                *(Estimate(one.count + float(known[k, p]), one.error) for k, one in enumerate(found))
            )
        return counts

    def accepted_drafts(self, most: float, labels: Sequence[int]) -> AcceptedDrafts | None:
        """The drafts of names that need no look."""
        seen = [[draft for draft in one.drafts if draft.label in labels] for one in self.seen]
        rest = [draft.score for one in self.rest for draft in one.drafts if draft.label in labels]
        return accepted_drafts(seen, np.array(rest, np.float64), most)

"""Which labels are wrong? Chances from region features alone: no file, no tower. N boxes, P names, D features.

Both opinions of a name are one model: a logistic regression of the set's labels on region features that starts at what
the text says. With few boxes it stays there; a name without text starts at nothing and is learnt from its boxes alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cliploc.values import Floats

Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]

DRAFT = -1  # in the place of a given name
FOLDS = 5
COMPONENTS = 128  # of the region features
RIDGE = 40.0  # the higher, the longer the text alone speaks
PRIOR = 0.5  # power of the names' frequencies that the fit explains away; 1: none is favoured, 0: frequent ones win
TEXT_SCALE = 0.6  # of the tower's logit scale
STEPS = 40  # of the fit
SHARES = np.geomspace(0.001, 0.5, 40)  # of wrong names; all are as likely on a log scale, but for one error seen before
BESIDE = 0.02  # share of wrong names that are those of something else in the picture; of coco_tune
TEMPERATURES = np.exp(np.linspace(-1.2, 1.2, 41))
LEAST_PLACED = 60  # boxes from which placement can be learnt
PLACE_RIDGE = 100.0
LEAST_DRAFTS = 20  # that match a label, from which missing ones can be judged
MEANS = np.linspace(0.25, 4, 16)  # how far from the examples the others are, in the examples' deviations
WIDTHS = np.geomspace(0.5, 2, 9)
PLACED_RATE, DRAFTS_RATE = 0.07, 0.0  # of coco_tune: boxes, and drafts, that are right and look like wrong ones
LEAST_SHARE = 0.003
EXPLAINED = 0.1  # share of the smaller of two boxes of one name from which a label explains a draft
MATCHED = 0.5  # IoU


class Names(NamedTuple):
    """What the names of N boxes are judged to be."""

    chance: Floats  # [N] that the given one is wrong; NaN where there is nothing to tell it from, and of drafts
    likelier: Ints  # [N] the likeliest other name
    logits: Floats  # [N, P] of all names, fitted without the box's picture; -inf for those that no label has


def judge_names(
    features: npt.NDArray[np.floating[Any]],  # [N, D] of the regions: two readings, each of unit length
    text: Floats,  # [P, D / 2] of the names; a row of NaN for one that the tower does not know
    sizes: Floats,  # [N, 2] width and height, as shares of the picture
    given: Ints,  # [N] numbers of names; `DRAFT` for a draft, which is read and not learnt from
    pictures: Ints,  # [N] numbers of pictures
    scale: float,  # the tower's logit scale
) -> Names:
    """The chance that each given name is wrong, by what the text says and labels of other pictures add to it."""
    features = features.astype(np.float32)
    chance, logits = np.full(len(given), np.nan), np.full((len(given), len(text)), -np.inf)
    labelled = given != DRAFT
    used, label = np.unique(given[labelled], return_inverse=True)
    half = text.shape[1]
    cosines = (features[:, :half] + features[:, half:]) @ text[used].T.astype(np.float32) / 2
    known = np.isfinite(cosines)
    # Unknown names get a box's mean of the known ones, so that the text speaks neither for nor against them.
    mean = np.where(known, cosines, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    text = TEXT_SCALE * scale * np.where(known, cosines, mean[:, None])
    number = np.full(len(given), DRAFT)
    number[labelled] = label
    logits[:, used] = text + learnt(design(features, sizes), text, number, pictures, RIDGE, PRIOR)
    if len(used) > 1:
        _, picture = np.unique(pictures[labelled], return_inverse=True)
        there = np.zeros((picture.max() + 1, len(used)))  # labels of each name in each picture
        np.add.at(there, (picture, label), 1)
        elsewhere = (there > 0).sum(axis=0)[label] > 1  # the name is that of a label in another picture, too
        # A right name is drawn from softmax(logits / T), a wrong one from all others alike, or from the picture's.
        beside = np.where(there[picture, label] > 1, 1 / (there > 0).sum(axis=1)[picture], 0)
        wrong = (1 - BESIDE) / (len(used) - 1) + BESIDE * beside
        tempered = torch.from_numpy(logits[np.ix_(labelled, used)])
        right = ((tempered / t).softmax(dim=1).numpy()[np.arange(len(label)), label] for t in TEMPERATURES)
        posterior = of_second((one, (1 - one) * wrong) for one in right)
        chance[labelled] = np.where(known[:, label].any(axis=0) | elsewhere, posterior, np.nan)
    others = logits.copy()
    others[np.flatnonzero(labelled), given[labelled]] = -np.inf
    return Names(chance, others.argmax(axis=1), logits)


def design(features: npt.NDArray[np.floating[Any]], sizes: Floats) -> Floats:
    """Principal components (Halko et al. 2011), size, shape and a constant: `[N, F]`."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        u, s, _ = torch.pca_lowrank(torch.from_numpy(features), min(COMPONENTS, *features.shape), niter=4)
    parts = (u * s).double().numpy()
    shape = np.log(np.maximum(sizes, 1e-4))
    shape = np.stack([shape.sum(axis=1), shape[:, 0] - shape[:, 1]], axis=1)
    shape = (shape - shape.mean(axis=0)) / (shape.std(axis=0) + 1e-6)
    return np.hstack([parts / np.sqrt(np.mean(parts**2) + 1e-12), shape, np.ones((len(features), 1))])


def learnt(inputs: Floats, offset: Floats, given: Ints, pictures: Ints, ridge: float, prior: float) -> Floats:
    """What rows of other pictures add to logits `[N, P]`: each fold of pictures is read by a fit to the others."""
    unique, number = np.unique(pictures, return_inverse=True)
    added, fold = np.zeros_like(offset), (np.random.default_rng(0).permutation(len(unique)) % FOLDS)[number]
    for test in (fold == i for i in range(FOLDS)):
        train = ~test & (given != DRAFT)
        if test.any() and train.any():
            added[test] = inputs[test] @ fit(inputs[train], offset[train], given[train], ridge, prior)
    return added


def fit(inputs: Floats, offset: Floats, given: Ints, ridge: float, prior: float) -> Floats:
    """Weights W `[F, P]` of softmax(offset + prior · log frequency + inputs · W), with a ridge."""
    count = np.bincount(given, minlength=offset.shape[1]) + 1.0
    x, start = torch.from_numpy(inputs), torch.from_numpy(offset + prior * np.log(count / count.sum()))
    y = torch.from_numpy(given)
    weights = torch.zeros(inputs.shape[1], offset.shape[1], dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([weights], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        value = cross_entropy(start + x @ weights, y, reduction="sum") + ridge / 2 * weights.square().sum()
        (weights.grad,) = torch.autograd.grad(value, [weights])
        return value

    search.step(loss)  # type: ignore[no-untyped-call]
    return weights.detach().numpy()


def of_second(densities: Iterable[tuple[Floats, Floats]]) -> Floats:
    """The chance `[N]` of a mixture's second kind; pairs of densities `[N]`, and shares, count by their likelihood."""
    evidence, posteriors = [], []
    for first, second in densities:
        mixed = (1 - SHARES) * first[:, None] + SHARES * second[:, None]  # [N, shares]
        likely = np.log(mixed).sum(axis=0) + np.log(SHARES)
        weight = np.exp(likely - likely.max())
        evidence.append(likely.max() + np.log(weight.sum()))
        posteriors.append((1 / mixed) @ (SHARES * weight / weight.sum()) * second)
    weights = np.exp(np.array(evidence) - np.max(evidence))
    return np.asarray(weights @ np.array(posteriors) / weights.sum())


def judge_places(edges: Floats, pictures: Ints, planted: Floats, of_planted: Ints) -> Floats:
    """The chance `[N]` that each box is badly placed, learnt from M moved copies; NaN where there are too few boxes."""
    if len(edges) < LEAST_PLACED or len(np.unique(pictures)) < FOLDS or not len(planted):
        return np.full(len(edges), np.nan)
    rows = np.vstack([edges, planted])
    rows = np.hstack([(rows - rows.mean(axis=0)) / (rows.std(axis=0) + 1e-6), np.ones((len(rows), 1))])
    moved = (np.arange(len(rows)) >= len(edges)).astype(np.int64)
    logits = learnt(rows, np.zeros((len(rows), 2)), moved, np.concatenate([pictures, of_planted]), PLACE_RIDGE, 1.0)
    scores = logits[:, 1] - logits[:, 0]  # the log of how much denser moved ones lie there
    return alike(scores[moved == 0], scores[moved == 1], PLACED_RATE)


def alike(scores: Floats, examples: Floats, rate: float) -> Floats:
    """The chance `[N]` that each is as the examples, which score higher; a share `rate` of all only looks so."""
    # Scores are bent so that the examples' are normal (0, 1); the others' are then taken as normal (−μ, σ).
    rank = (np.searchsorted(np.sort(examples), scores) + 0.5) / (len(examples) + 1)
    bent = torch.special.ndtri(torch.from_numpy(rank)).numpy()
    others = (np.exp(-(((bent + mean) / width) ** 2) / 2) / width for mean, width in product(MEANS, WIDTHS))
    as_examples = np.exp(-(bent**2) / 2)
    look = of_second((other, as_examples) for other in others)
    share = float(look.mean())
    return np.asarray(look * max(share - rate, LEAST_SHARE) / max(share, LEAST_SHARE))


def judge_missing(logits: Floats, drafts: Floats, explained: Bools, matched: Bools, apart: Floats) -> Floats:
    """The chance `[M]` that each draft misses a label: that it is as those which match one. 0 where one explains it."""
    *_, names, found = drafts.T.astype(float)  # found: the chance by which the draft was made
    fits = torch.from_numpy(logits).log_softmax(dim=1).numpy()[np.arange(len(names)), names.astype(int)]
    scores = fits + np.log(found / (1 - found + 1e-6))
    chance, free = np.zeros(len(names)), ~explained
    few = matched.sum() < LEAST_DRAFTS or free.sum() < LEAST_DRAFTS
    chance[free] = np.nan if few else alike(scores[free] + np.log(apart[free] + 1e-3), scores[matched], DRAFTS_RATE)
    return chance


def compare(drafts: Floats, boxes: Floats, given: Ints) -> tuple[Bools, Bools, Floats]:
    """For each draft of a picture: does a label of its name lie in it or around it, and does one fit; 1 − best IoU."""
    low, high = np.maximum(drafts[:, None, :2], boxes[:, :2]), np.minimum(drafts[:, None, 2:4], boxes[:, 2:])
    shared, same = np.clip(high - low, 0, None).prod(axis=2), drafts[:, 4, None] == given
    one, other = ((xyxy[:, 2:4] - xyxy[:, :2]).prod(axis=1) for xyxy in (drafts, boxes))
    smaller, union = np.minimum(one[:, None], other), one[:, None] + other - shared
    explained, matched = ((same & (shared > least)).any(axis=1) for least in (EXPLAINED * smaller, MATCHED * union))
    return explained, matched, 1 - (shared / union).max(axis=1, initial=0)
